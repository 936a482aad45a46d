"""The networks: input size, preprocessing, layers and weights.

Keras 3 defines every network (``build_network``). What Spark's workers run is a graph exported from that definition
(``export_graph``): one file that takes the pixels of Spark's image struct and gives features, so that a worker needs
neither Keras nor TensorFlow and is ready in half a second. The export runs in a process of its own and is cached by all
that changes it. Any other Keras model that takes an image goes the same way, from its ``.keras`` file
(``export_model``).

Settings that belong together are a ``Recipe``: the article's (``article``) and the one we recommend (``recipe``).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from helpers.spark import cache_folder

if TYPE_CHECKING:
    import keras
    from pyspark.ml.classification import LogisticRegression

    from helpers.featurizer import DeepImageFeaturizer

POOLINGS = ("avg", "max", "flatten")
RANDOM_SEED = 20190501
GRAPHS_KEPT = 24  # exported graphs in the cache; the least recently used go first


class WeightsUnavailable(RuntimeError):
    """Weights that cannot be had here; the message names the alternatives."""


# Of a batch. More gain OpenVINO nothing, and memory grows with them.
MOST_PIXELS = 180_000
MOST_IMAGES = 8


@dataclass(frozen=True)
class Network:
    """What one needs to know of a network of ``keras.applications``.

    Attributes:
        name: Keras' name of it.
        image_size: height and width in pixels it was designed for.
        minimum_size: smallest height and width it accepts, in pixels.
        parameters: numbers it has learned, without its classification head.
        last_layer: its last layer below the classification head.
        block_ends: regular expression of the layers that end a block, from input to output.
        preprocessing: ``"tf"`` (RGB, x / 127.5 - 1) or ``"caffe"`` (BGR, minus ImageNet's mean), as in Keras.
        worker_mib, mib_per_megapixel: memory of a worker that runs it up to its last layer, as a line over the area of
            a batch's images together, by ``python tests/benchmarks/network_memory.py``.
    """

    name: str
    image_size: int
    minimum_size: int
    parameters: int
    last_layer: str
    block_ends: str
    preprocessing: str
    worker_mib: int
    mib_per_megapixel: int

    def worker_memory(self, image_size: int | None = None) -> float:
        """MiB that a worker takes with batches of images of this height and width, or of the network's own."""
        size = image_size or self.image_size
        return self.worker_mib + self.mib_per_megapixel * batch_size(size) * size**2 / 1e6


NETWORKS = {
    n.name: n
    for n in (
        Network("InceptionV3", 299, 75, 21_802_784, "mixed10", r"mixed\d+", "tf", 353, 248),
        Network(
            "Xception", 299, 71, 20_861_480, "block14_sepconv2_act", r"add(_\d+)?|block14_sepconv2_act", "tf", 342, 398
        ),
        Network("ResNet50", 224, 32, 23_587_712, "conv5_block3_out", r"conv\d_block\d_out", "caffe", 366, 136),
        Network("VGG16", 224, 32, 14_714_688, "block5_pool", r"block\d_pool", "caffe", 295, 488),
        Network("VGG19", 224, 32, 20_024_384, "block5_pool", r"block\d_pool", "caffe", 336, 488),
    )
}

# What becomes of a pixel x (0 to 255) before a network sees it. tf, torch and caffe are the modes of
# keras.applications.imagenet_utils, with its means and deviations of ImageNet's pixels.
PREPROCESSINGS = {
    "none": "x, red, green, blue",
    "unit": "x / 255, red, green, blue",
    "tf": "x / 127.5 - 1, red, green, blue",
    "torch": "x / 255 minus ImageNet's mean, over its deviation, red, green, blue",
    "caffe": "x minus ImageNet's mean, blue, green, red",
}
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN_RGB = (0.485, 0.456, 0.406)
TORCH_DEVIATION_RGB = (0.229, 0.224, 0.225)
GREY_OF_RGB = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as Pillow's mode L has it, here without its rounding


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def network(name: str) -> Network:
    """The network of that name; ``ValueError`` names the near misses."""
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}; {_near(str(name), list(NETWORKS))}")
    return NETWORKS[name]


def batch_size(image_size: int) -> int:
    """How many images of this height and width, in pixels, go through a network together where nobody says it."""
    return max(1, min(MOST_PIXELS // image_size**2, MOST_IMAGES))


def check_size(name: str, image_size: int | None) -> int:
    """The size in pixels to run the network at: its own for ``None``; ``ValueError`` where it is too small for it."""
    net = network(name)
    if image_size is None:
        return net.image_size
    if image_size < net.minimum_size:
        raise ValueError(f"{name} needs images of at least {net.minimum_size} pixels, not imageSize={image_size}")
    return int(image_size)


def check_pooling(pooling: str) -> None:
    """``ValueError`` for a pooling that is none of ``POOLINGS``."""
    if pooling not in POOLINGS:
        raise ValueError(f"there is no pooling {pooling!r}; {_near(str(pooling), POOLINGS)}")


def check_preprocessing(preprocess: str) -> None:
    """``ValueError`` for a preprocessing that is none of ``PREPROCESSINGS``."""
    if preprocess not in PREPROCESSINGS:
        raise ValueError(f"there is no preprocessing {preprocess!r}; {_near(str(preprocess), list(PREPROCESSINGS))}")


# -- weights ---------------------------------------------------------------------------------------------------------


def data_folder() -> Path:
    """Folder of what ships with the package: inside an installed wheel, or ``data/`` of the repository."""
    inside = Path(__file__).with_name("_data")
    return inside if inside.is_dir() else Path(__file__).parent.parent / "data"


def glyph_weights() -> Path:
    """The embedded InceptionV3 pretrained on glyphs of many scripts."""
    return data_folder() / "weights" / "inception_v3_glyphs.npz"


@lru_cache(maxsize=64)
def _file_digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_file(name: str, weights: str) -> Path | None:
    """The local file behind ``weights``, ``None`` for ``"imagenet"`` and ``"random"``.

    Raises:
        ValueError: ``"glyphs"`` asked of another network than InceptionV3.
        WeightsUnavailable: there is no such file.
    """
    if weights in ("imagenet", "random"):
        return None
    if weights == "glyphs":
        if name != "InceptionV3":
            raise ValueError(
                f'weights="glyphs" are for InceptionV3; for {name} use "imagenet", "random" or a weights file'
            )
        path = glyph_weights()
    else:
        path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsUnavailable(
            f'there is no weights file {path}; weights takes "imagenet", "glyphs", "random" or the path of a Keras '
            "weights file"
        )
    return path


def weights_digest(name: str, weights: str) -> str:
    """What tells these weights from others: SHA-256 of the file, or the name where Keras or a seed makes them."""
    path = weights_file(name, weights)
    if path is None:
        return f"random:{RANDOM_SEED}" if weights == "random" else "imagenet"
    stat = path.stat()
    return f"sha256:{_file_digest(str(path), stat.st_size, stat.st_mtime_ns)}"


def _random_arrays(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Seeded weights, the same on every Keras backend: kernels normal with variance 2 / fan-in (He et al. 2015,
    arXiv:1502.01852, eq. 10), normalisation as it starts, biases 0."""
    rng = np.random.default_rng(RANDOM_SEED)
    arrays = []
    for variable in variables:
        kind = variable.path.rsplit("/", 1)[-1]
        if kind.endswith("kernel"):
            fan_in = np.prod(variable.shape[:2]) if kind == "depthwise_kernel" else np.prod(variable.shape[:-1])
            arrays.append(rng.standard_normal(variable.shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in)))
        else:
            arrays.append(np.full(variable.shape, kind in ("gamma", "moving_variance"), dtype=np.float32))
    return arrays


def _glyph_arrays(include_top: bool) -> list[np.ndarray]:
    """The embedded weights as float32 arrays in the order of ``get_weights()``: 8-bit kernels times a scale per
    channel.
    """
    with np.load(glyph_weights(), allow_pickle=False) as stored:
        count = sum(key[0] in "qw" and key[1:].isdigit() for key in stored.files)
        arrays = [
            stored[f"q{i:03d}"] * stored[f"s{i:03d}"] if f"q{i:03d}" in stored.files else stored[f"w{i:03d}"]
            for i in range(count if include_top else count - 2)  # the head is the last kernel and its bias
        ]
    return arrays


def class_names(name: str, weights: str) -> list[tuple[str, str]] | None:
    """(identifier, description) of each class of the classification head; ``None`` for ImageNet's thousand."""
    if weights != "glyphs":
        return [(str(i), f"class {i}") for i in range(1000)] if weights == "random" else None
    weights_file(name, weights)
    with np.load(glyph_weights(), allow_pickle=False) as stored:
        return [tuple(str(c).split(" ", 1)) for c in stored["classes"]]


def imagenet_classes() -> list[tuple[str, str]]:
    """(identifier, description) of ImageNet's classes, in the order of the head; Keras downloads and caches them.

    Raises:
        WeightsUnavailable: they cannot be downloaded.
    """
    return [tuple(names) for names in json.loads(_run_apart("classes", {}).splitlines()[-1])]


def _imagenet_classes() -> list[tuple[str, str]]:
    from keras.applications.imagenet_utils import decode_predictions

    with _downloads("ImageNet's class names", "decodePredictions=False"):
        decoded = decode_predictions(np.eye(1000, dtype=np.float32), top=1)
    return [names[:2] for (names,) in decoded]


# -- the Keras networks ----------------------------------------------------------------------------------------------


def _usual_names(model: keras.Model) -> None:
    """Give automatically named layers the names they have in a fresh process (a second InceptionV3 has conv2d_94 …)."""
    groups: dict[str, list] = {}
    for layer in model.layers:
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
        kind = kind.replace("conv2_d", "conv2d").replace("pooling2_d", "pooling2d").replace("padding2_d", "padding2d")
        if found := re.fullmatch(rf"{kind}(?:_(\d+))?", layer.name):
            groups.setdefault(kind, []).append((int(found[1] or 0), layer))
    for kind, members in groups.items():
        for number, (_, layer) in enumerate(sorted(members, key=lambda m: m[0])):
            layer.name = f"{kind}_{number}" if number else kind


def _bare(name: str, include_top: bool, size: int, classes: int) -> keras.Model:
    """The network with weights yet to be set."""
    import keras

    head = {"classes": classes} if include_top else {}
    shape = (size, size, 3) if keras.config.image_data_format() == "channels_last" else (3, size, size)
    model = getattr(keras.applications, name)(weights=None, include_top=include_top, input_shape=shape, **head)
    _usual_names(model)
    return model


def build_network(
    name: str, weights: str = "imagenet", include_top: bool = False, image_size: int | None = None
) -> keras.Model:
    """The Keras network: float32 (n, size, size, 3), preprocessed as Keras does, to its last map or, with its head, to
    probabilities.

    Args:
        name: InceptionV3, Xception, ResNet50, VGG16 or VGG19.
        weights: ``"imagenet"`` (Keras downloads and caches them), ``"glyphs"`` (embedded, InceptionV3 only),
            ``"random"`` (seeded) or the path of a Keras weights file of that network.
        include_top: with the classification head.
        image_size: height and width in pixels; ``None`` is the network's own size.

    Layers have the same names however many networks this process has built.

    Raises:
        ValueError: unknown network, too small a size, or weights of another network.
        WeightsUnavailable: no such file, or no way to Keras' download.
    """
    size = check_size(name, image_size)
    path = weights_file(name, weights)
    known = class_names(name, weights) if include_top else None
    model = _bare(name, include_top, size, len(known) if known else 1000)
    if weights == "imagenet":
        _set(model, _imagenet_arrays(name, include_top), name, "ImageNet's weights")
    elif weights == "random":
        model.set_weights(_random_arrays(model.weights))
    elif weights == "glyphs":
        _set(model, _glyph_arrays(include_top), name, "the embedded weights")
    else:
        try:
            model.load_weights(path)
        except (ValueError, OSError, KeyError) as problem:
            top = "with" if include_top else "without"
            raise ValueError(
                f"{path} does not hold weights of {name} {top} its head: {_first_line(problem)}"
            ) from problem
    return model


def _first_line(problem: BaseException) -> str:
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)


def _set(model: keras.Model, arrays: list[np.ndarray], name: str, what: str) -> None:
    try:
        model.set_weights(arrays)
    except ValueError as problem:
        raise ValueError(
            f"{what} do not fit {name} at {model.input_shape[2]} pixels: {_first_line(problem)}"
        ) from problem


@contextmanager
def _downloads(what: str, instead: str) -> Iterator[None]:
    """One clear sentence where Keras' download of ``what`` fails."""
    try:
        yield
    except Exception as problem:  # Keras' get_file raises plain Exception when a download fails; anything else goes on
        # OSError: a download that broke off; a file of another digest is a ValueError, and is not used
        known = isinstance(problem, OSError) or re.search("URL fetch failure|corrupted file", str(problem))
        if not known:
            raise
        reason = _first_line(problem)[:200]
        raise WeightsUnavailable(
            f"{what} could not be downloaded ({reason}); connect to the internet, or use {instead}"
        ) from problem


def _imagenet_arrays(name: str, include_top: bool) -> list[np.ndarray]:
    import keras

    instead = (
        'weights="glyphs" (InceptionV3, inside this package), weights="random" or the path of a Keras weights file'
    )
    with _downloads(f"ImageNet's weights of {name}", instead):
        return getattr(keras.applications, name)(weights="imagenet", include_top=include_top).get_weights()


def layer_names(name: str) -> list[str]:
    """Names of all layers of the network without its head, from input to output."""
    return [layer.name for layer in _bare(name, False, network(name).image_size, 1000).layers]


def block_ends(name: str) -> list[str]:
    """Names of the layers that end a block of the network, from input to output."""
    return [layer for layer in layer_names(name) if re.fullmatch(network(name).block_ends, layer)]


def resolve_layers(model: keras.Model, layers: Sequence[str]) -> list[keras.KerasTensor]:
    """Outputs of the named layers, of the last one for none; ``ValueError`` names the near misses of a name that is not
    there.
    """
    known = {layer.name: layer for layer in model.layers}
    for layer in layers:
        if layer not in known:
            raise ValueError(f"there is no layer {layer!r} in {model.name}; {_near(layer, list(known))}")
    return [known[layer].output for layer in layers] or [model.output]


def preprocessed(pixels: Any, preprocess: str, channels: int = 3) -> Any:
    """What a network sees of pixels: (n, h, w, 3) in Spark's order, blue, green, red, to float32 (n, h, w, channels).

    For one channel the colours become grey first (``GREY_OF_RGB``). Takes arrays and Keras' symbolic tensors.

    Raises:
        ValueError: no such preprocessing, or one of ImageNet's means for one channel.
    """
    import keras

    check_preprocessing(preprocess)
    if channels == 1 and preprocess in ("torch", "caffe"):
        raise ValueError(f"preprocess={preprocess!r} is for three channels, and this model takes one")
    x = keras.ops.cast(pixels, "float32")
    if preprocess == "caffe":
        return x - keras.ops.array(CAFFE_MEAN_BGR, dtype="float32")
    x = keras.ops.flip(x, axis=-1)
    if channels == 1:
        x = keras.ops.sum(x * keras.ops.array(GREY_OF_RGB, dtype="float32"), axis=-1, keepdims=True)
    if preprocess == "tf":
        return x / 127.5 - 1.0
    if preprocess == "none":
        return x
    x = x / 255.0
    if preprocess == "torch":
        mean, deviation = (keras.ops.array(v, dtype="float32") for v in (TORCH_MEAN_RGB, TORCH_DEVIATION_RGB))
        x = (x - mean) / deviation
    return x


def image_network(
    name: str,
    weights: str = "imagenet",
    layers: Sequence[str] = (),
    pooling: str = "avg",
    image_size: int | None = None,
    include_top: bool = False,
) -> keras.Model:
    """The whole way from pixels to features as one Keras network.

    Takes uint8 (n, size, size, 3) in Spark's order of channels, blue, green, red. Gives float32 (n, features): the
    pooled outputs of the layers side by side, or the class probabilities where ``include_top`` is set and no layer is
    named.
    """
    import keras

    check_pooling(pooling)
    size = check_size(name, image_size)
    model = build_network(name, weights, include_top, size)
    pixels = keras.Input((size, size, 3), dtype="uint8")
    x = preprocessed(pixels, network(name).preprocessing)
    channels_first = keras.config.image_data_format() == "channels_first"
    if channels_first:
        x = keras.ops.transpose(x, (0, 3, 1, 2))

    def flattened(y: keras.KerasTensor) -> keras.KerasTensor:
        """A map as one row, channels last whatever the layout inside; keras.layers.Flatten is exported to OpenVINO for
        one image at a time."""
        if channels_first:
            y = keras.ops.transpose(y, (0, 2, 3, 1))
        return keras.ops.reshape(y, (-1, math.prod(y.shape[1:])))

    names = [layer.name for layer in model.layers]
    if "flatten" in names and not layers:  # VGG's head
        head = names.index("flatten")
        outputs = flattened(keras.Model(model.input, model.layers[head].input)(x))
        for layer in model.layers[head + 1 :]:
            outputs = layer(outputs)
    else:
        outputs = keras.Model(model.input, resolve_layers(model, layers))(x)
    pool = {
        "avg": keras.layers.GlobalAveragePooling2D(),
        "max": keras.layers.GlobalMaxPooling2D(),
        "flatten": flattened,
    }[pooling]

    flat = [pool(y) if len(y.shape) == 4 else y for y in (outputs if isinstance(outputs, list) else [outputs])]
    return keras.Model(pixels, flat[0] if len(flat) == 1 else keras.layers.Concatenate()(flat))


# -- any other Keras model -------------------------------------------------------------------------------------------


def _config(file: Path) -> dict:
    """The description of the model in a ``.keras`` file, read without Keras.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ``.keras`` file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no model file {file}; save a Keras model by model.save('name.keras')")
    try:
        with zipfile.ZipFile(file) as archive:
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as problem:
        raise ValueError(f"{file} is no .keras file; save a Keras model by model.save('name.keras')") from problem
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no .keras file; save a Keras model by model.save('name.keras')")
    return config


def _lambda_layer(config: object) -> str | None:
    """Name of the first Lambda layer in a model's description, ``None`` where there is none."""
    if isinstance(config, dict):
        if config.get("class_name") == "Lambda":
            inner = config.get("config")
            return str(inner.get("name", "lambda") if isinstance(inner, dict) else "lambda")
        config = list(config.values())
    names = map(_lambda_layer, config) if isinstance(config, list) else ()
    return next((name for name in names if name), None)


def check_model_file(file: str | Path) -> Path:
    """The path of a ``.keras`` file that may be loaded: it is there, it is one, and it holds no code.

    A Lambda layer is a Python function inside the file, which would run on whoever loads it.

    Raises:
        FileNotFoundError, ValueError: otherwise.
    """
    path = Path(file).expanduser()
    if name := _lambda_layer(_config(path)):
        raise ValueError(
            f"{path} has a Lambda layer {name!r}, which is Python code that would run wherever the model is loaded; "
            "build the model with Keras' own layers or keras.ops instead"
        )
    return path


def model_digest(file: str | Path) -> str:
    """What tells a ``.keras`` file's model from others: SHA-256 of its description and its weights, not of the date in
    it.
    """
    path = check_model_file(file)
    stat = path.stat()
    return f"sha256:{_model_digest(str(path), stat.st_size, stat.st_mtime_ns)}"


@lru_cache(maxsize=64)
def _model_digest(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name != "metadata.json":
                with archive.open(name) as member:
                    digest.update(f"{name} {hashlib.file_digest(member, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def load_model(file: str | Path) -> keras.Model:
    """A Keras model from its ``.keras`` file, in Keras' safe mode: nothing in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ``.keras`` file, has a Lambda layer or layers of classes that Keras does not know, or is
            damaged.
    """
    import keras

    path = check_model_file(file)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as problem:
        raise ValueError(f"{path} cannot be loaded in Keras' safe mode: {_first_line(problem)}") from problem


def model_network(model: keras.Model, preprocess: str = "none", image_size: int | None = None) -> keras.Model:
    """The whole way from pixels to a model's output as one Keras network.

    Takes uint8 (n, size, size, 3) in Spark's order of channels, blue, green, red. Gives float32 (n, numbers): the
    model's output, a map as one row, channels last.

    Args:
        model: any that takes one image, square, channels last, of one channel or three.
        preprocess: one of ``PREPROCESSINGS``.
        image_size: height and width in pixels for a model that takes any; ``None`` is the model's own.

    Raises:
        ValueError: another shape, size or number of inputs or outputs, or no such preprocessing.
    """
    import keras

    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs:
        raise ValueError(f"the model {model.name!r} was never built; begin it with keras.Input")
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"the model {model.name!r} has {len(inputs)} inputs and {len(outputs)} outputs; a stage has one of each"
        )
    shape = tuple(inputs[0].shape[1:])
    if len(shape) != 3 or shape[2] not in (1, 3) or shape[0] != shape[1]:
        raise ValueError(
            f"the model {model.name!r} takes {shape}; a stage feeds square images, channels last: "
            "(size, size, 3) or (size, size, 1)"
        )
    if shape[0] is None and image_size is None:
        raise ValueError(f"the model {model.name!r} takes images of any size; give one as imageSize")
    if shape[0] is not None and image_size not in (None, shape[0]):
        raise ValueError(f"the model {model.name!r} takes images of {shape[0]} pixels, not imageSize={image_size}")
    size = int(shape[0] or image_size)
    pixels = keras.Input((size, size, 3), dtype="uint8")
    x = keras.ops.cast(preprocessed(pixels, preprocess, shape[2]), inputs[0].dtype)
    y = model(x, training=False)
    if any(number is None for number in y.shape[1:]):
        raise ValueError(f"the model {model.name!r} gives {tuple(y.shape[1:])}, not the same numbers for every image")
    return keras.Model(pixels, keras.ops.cast(keras.ops.reshape(y, (-1, math.prod(y.shape[1:]))), "float32"))


# -- the graph that workers run --------------------------------------------------------------------------------------


def export_graph(
    name: str,
    weights: str = "imagenet",
    layers: Sequence[str] = (),
    pooling: str = "avg",
    image_size: int | None = None,
    include_top: bool = False,
) -> Path:
    """``image_network`` as an OpenVINO graph on disk: the path of its ``.xml``, with the ``.bin`` of its weights beside
    it.

    Made once and kept in the cache under a name that holds everything that changes a feature. Making it takes a few
    seconds in a process of its own, so that this one neither loads Keras nor keeps its memory.

    Raises:
        ValueError: unknown network, layer or pooling, too small a size, or weights of another network.
        WeightsUnavailable: the weights cannot be had here.
    """
    check_pooling(pooling)
    wanted = {
        "name": name,
        "weights": weights,
        "layers": list(layers),
        "pooling": pooling,
        "image_size": check_size(name, image_size),
        "include_top": include_top,
    }
    return _exported("export", name, wanted, {"weights": weights_digest(name, weights)})


def export_model(file: str | Path, preprocess: str = "none", image_size: int | None = None) -> Path:
    """``model_network`` of the model in a ``.keras`` file as an OpenVINO graph on disk, made and kept as
    ``export_graph`` does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a model that cannot be loaded safely, takes something else than an image, or that OpenVINO cannot
            run.
    """
    check_preprocessing(preprocess)
    path = check_model_file(file)
    wanted = {"file": str(path.resolve()), "preprocess": preprocess, "image_size": image_size}
    return _exported("export_model", "model", wanted, {"file": model_digest(path)})


@lru_cache(maxsize=64)
def graph_shape(graph: Path) -> tuple[int, int]:
    """(height and width in pixels of the images that an exported graph takes, numbers it gives for each)."""
    root = ElementTree.parse(graph).getroot()
    taken = root.find("./layers/layer[@type='Parameter']/data")
    given = root.findall("./layers/layer[@type='Result']/input/port/dim")
    return int(taken.get("shape").split(",")[1]), int(given[-1].text)


def _exported(task: str, name: str, wanted: dict, digests: dict) -> Path:
    """The graph that a task of this module writes, from the cache where it is there; ``digests`` stand for the files in
    ``wanted``.
    """
    versions = [importlib.metadata.version(package) for package in ("keras", "openvino")]
    key = json.dumps([task, {**wanted, **digests}, versions, Path(__file__).read_text(encoding="utf8")])
    folder = cache_folder() / "graphs"
    graph = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.xml"
    if graph.exists() and graph.with_suffix(".bin").exists():
        os.utime(graph)
        return graph
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        fresh = Path(unfinished) / "graph.xml"
        _run_apart(task, {**wanted, "path": str(fresh)})
        os.replace(fresh.with_suffix(".bin"), graph.with_suffix(".bin"))
        os.replace(fresh, graph)
    for old in sorted(folder.glob("*.xml"), key=lambda p: p.stat().st_mtime)[:-GRAPHS_KEPT]:
        old.unlink(missing_ok=True)
        old.with_suffix(".bin").unlink(missing_ok=True)
    return graph


def _run_apart(task: str, wanted: dict) -> str:
    """What a task of this module prints, run in a process of its own, if this one is not."""
    if __name__ == "__main__":
        import keras

        TASKS[task](wanted)
        keras.backend.clear_session()  # the next network's layers are numbered from 1 again
        return ""
    # our own folder first, and not the current one (-P): Spark puts the archive it ships on sys.path, which has no data
    # in it
    path = [str(Path(__file__).parent.parent), *(p for p in sys.path if p)]
    environment = os.environ | {"KERAS_BACKEND": "openvino", "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "helpers.networks", task],
        input=json.dumps(wanted),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout
    lines = done.stderr.strip().splitlines() or ["no message"]
    kind, _, message = lines[-1].partition(": ")
    raised = {"ValueError": ValueError, "WeightsUnavailable": WeightsUnavailable}.get(kind.rsplit(".", 1)[-1])
    if raised:
        raise raised(message)
    raise RuntimeError(f"Keras failed (exit status {done.returncode}):\n" + "\n".join(lines[-20:]))


def _export(wanted: dict) -> None:
    import keras

    # as OpenVINO computes: channels last would leave a transposition between each convolution and its normalisation
    keras.config.set_image_data_format("channels_first")
    path = wanted.pop("path")
    _write_graph(image_network(**wanted), path)


def _export_model(wanted: dict) -> None:
    import keras

    path, file = wanted.pop("path"), wanted.pop("file")
    # Keras' own Flatten is exported for one image at a time
    keras.layers.Flatten.call = lambda self, x: keras.ops.reshape(x, (-1, math.prod(x.shape[1:])))
    network = model_network(load_model(file), **wanted)
    try:
        _write_graph(network, path)
        _check_graph(network, path)
    except (NotImplementedError, RuntimeError) as problem:
        raise ValueError(f"{file}: OpenVINO cannot run this model: {_first_line(problem)}") from problem


def _write_graph(network: keras.Model, path: str) -> None:
    """Export a network and fold each normalisation into its convolution, once. Left to the workers, it costs each of
    them the time and a second copy of the weights.
    """
    import openvino
    from openvino._offline_transformations import apply_moc_transformations

    network.export(path, format="openvino", verbose=False)
    graph = openvino.Core().read_model(path)
    apply_moc_transformations(graph, cf=True)
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:  # the graph still reads its weights from path
        fused = Path(folder) / "fused.xml"
        openvino.save_model(graph, fused, compress_to_fp16=False)
        del graph
        os.replace(fused.with_suffix(".bin"), Path(path).with_suffix(".bin"))
        os.replace(fused, path)


def _check_graph(network: keras.Model, path: str) -> None:
    """``RuntimeError`` unless a graph gives for two images together what Keras gives for each: an export may be wrong
    without a word, above all for more than one image at a time.
    """
    import openvino

    images = np.random.default_rng(RANDOM_SEED).integers(0, 256, (2, *network.input_shape[1:]), np.uint8)
    together = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images])[0]
    # called, and not by predict, which computes in bfloat16 where the processor has it
    alone = np.concatenate([np.asarray(network(image[None], training=False)) for image in images])
    if not np.allclose(together, alone, rtol=0, atol=1e-3 * float(np.abs(alone).max())):
        raise RuntimeError("its exported graph gives other numbers than Keras")


def _classes(wanted: dict) -> None:
    print(json.dumps(_imagenet_classes()))


# -- recipes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Settings that belong together: what the featurizer makes of an image and how logistic regression learns from it.

    ``reg_param`` is the strength of the penalty on Spark's mean loss, ``elastic_net_param`` its share of L1.
    """

    title: str
    model_name: str
    weights: str
    layer: tuple[str, ...] | None
    pooling: str
    image_size: int | None
    max_iter: int
    reg_param: float
    elastic_net_param: float

    def replaced(self, layer: str | Sequence[str] | None = None, image_size: int | None = None) -> Recipe:
        """The same settings with another layer, or several, and another size of images in pixels; ``None`` leaves what
        there is.
        """
        layers = (layer,) if isinstance(layer, str) else tuple(layer or ())
        return replace(self, layer=layers or self.layer, image_size=image_size or self.image_size)

    def featurizer(self, **more: object) -> DeepImageFeaturizer:
        """The featurizing stage; ``more`` goes to it as it is.

        It skips images that give no features, as the classifier behind it takes no nulls; the store keeps their rows.
        """
        from helpers.featurizer import DeepImageFeaturizer

        return DeepImageFeaturizer(
            **{
                "modelName": self.model_name,
                "weights": self.weights,
                "layer": list(self.layer) if self.layer else None,
                "pooling": self.pooling,
                "imageSize": self.image_size,
                "handleInvalid": "skip",
                **more,
            }
        )

    def graph(self) -> Path:
        """The network's graph, as ``export_graph`` gives it."""
        return export_graph(self.model_name, self.weights, self.layer or (), self.pooling, self.image_size)

    def classifier(self, **more: object) -> LogisticRegression:
        """Multinomial logistic regression with the recipe's settings; ``more`` goes to it as it is."""
        from helpers.featurizer import FeatureClassifier

        settings = {"maxIter": self.max_iter, "regParam": self.reg_param, "elasticNetParam": self.elastic_net_param}
        return FeatureClassifier(**{"family": "multinomial", **settings, **more})


def article(weights: str = "imagenet", model_name: str = "InceptionV3") -> Recipe:
    """The article's settings: the last layer at the network's own size, five iterations, an elastic net."""
    return Recipe("article's settings", model_name, weights, None, "avg", None, 5, 0.03, 0.5)


def recipe(weights: str = "glyphs", model_name: str = "InceptionV3") -> Recipe:
    """The settings we recommend for these weights, found by ``tests/benchmarks/recipe_table.py``."""
    network(model_name)
    layer, size, penalty = None, None, 0.01
    if model_name == "InceptionV3":
        layer, size, penalty = (("mixed3", "mixed4"), 96, 0.03) if weights == "glyphs" else (("mixed4",), 150, 0.01)
    return Recipe("improved recipe", model_name, weights, layer, "avg", size, 200, penalty, 0.0)


def export_course() -> None:
    """Make the graphs that the notebooks run on the sample, so that none waits for them nor needs memory for that:
    ``python -m helpers.networks``, once, where the course is installed.
    """
    ours = recipe("glyphs")
    blocks = ours.replaced(layer=block_ends("InceptionV3"))
    random = [article("random", name) for name in NETWORKS]
    search = ours.replaced(layer=("mixed2", *ours.layer, "mixed6"))  # notebook 05's passes of the network
    passes = [replace(search, pooling=pooling, image_size=size) for pooling in ("avg", "max") for size in (75, 96)]
    passes.append(ours.replaced(image_size=75))  # and what it chooses
    passes.append(replace(ours, layer=("mixed9",), pooling="flatten"))  # what notebook 06's last block takes
    for made in (article("glyphs"), ours, blocks, replace(blocks, weights="random"), *random, *passes):
        made.graph()


TASKS = {"export": _export, "export_model": _export_model, "classes": _classes}

if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "openvino"  # networks are read and written here, and TensorFlow is large
    if len(sys.argv) == 1:
        export_course()
    else:
        TASKS[sys.argv[1]](json.load(sys.stdin))
