"""Networks trained here, on arrays in the driver's memory: what notebook 06 and its benchmark share.

All other modules run networks that are finished; ``networks`` builds them and ``featurizer`` gives them to Spark. Here
they learn, with Keras on TensorFlow: a small CNN of one's own (``small_cnn``), from nothing or pretrained on glyphs
(``draw_glyphs``), and the last block of a large network (``last_block``). ``linear_probe`` is what they are measured
against.

Training amplifies the last bit of a sum, and sums differ with the number of threads. ``steady`` takes one thread and
seeds everything, so that a run is the same on any number of cores, and ``apart`` does so in a process of its own. From
one model of processor to another sums differ still, as TensorFlow cuts them to the processor's vectors and caches. So
the CNN is trained in double precision: what such a difference grows to in some hundred steps is then far below what
float32 can hold.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from helpers.distort import distort
from helpers.featurizer import pixels
from helpers.networks import GREY_OF_RGB, Recipe, build_network, resolve_layers
from helpers.numtadb import train_test_split
from helpers.spark import available_cores, available_memory, ship_package

if TYPE_CHECKING:
    import keras

SEED = 42
SIDE = 32  # pixels, height and width of what small_cnn sees
MEMORY_OF_TRAINING = 400  # MiB, a process that trains small_cnn, above the TensorFlow that all of them share
MEMORY_BESIDE = 1000  # MiB: that TensorFlow, a notebook without Spark, and the machine's own
Split = tuple[np.ndarray, np.ndarray]  # row numbers of the training and of the test images


def steady(seed: int = SEED) -> None:
    """Make what Keras trains from here on repeatable: one thread, deterministic operations, seeds.

    Raises:
        RuntimeError: Keras runs on another backend, or TensorFlow has computed with several threads already.
    """
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow before importing it")
    threads = tf.config.threading
    if (threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads()) != (1, 1):
        try:
            threads.set_intra_op_parallelism_threads(1)
            threads.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            raise RuntimeError(
                "TensorFlow runs on several threads already; call steady() before anything else"
            ) from None
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)


def apart(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function gives in a process of its own, where Keras runs on TensorFlow and is ``steady``.

    TensorFlow takes half a gigabyte as soon as it is imported. This process, which may be a notebook beside a JVM,
    stays without it, and when the other one ends, all of it is free again; after ``stay_ready``, all but that.

    Args:
        function: of a module, not of a notebook; it, its arguments and its result travel by pickle.
    """
    global _ready
    if _ready is not None:
        try:
            return _ready.submit(_in_a_copy, function, *args, **kwargs).result()
        except BrokenProcessPool:  # it was killed, or its copy: the next call begins anew
            _ready.shutdown(wait=False)
            _ready = None
            raise
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin) as process:
        return process.submit(function, *args, **kwargs).result()


_ready: ProcessPoolExecutor | None = None


def stay_ready() -> None:
    """From now on ``apart`` takes copies of one process that has imported TensorFlow, and nothing else. That saves each
    call five seconds, and costs half a gigabyte until this process ends. On Linux only: elsewhere system libraries may
    not bear to be copied.
    """
    global _ready
    if sys.platform == "linux" and _ready is None:
        _ready = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin_to_wait)
        _ready.submit(_begin)  # now, and not with the first call


def _in_a_copy(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), _begin_to_train) as process:
        return process.submit(function, *args, **kwargs).result()


def _begin() -> None:
    # Before Keras is imported; the last one keeps TensorFlow from telling which of its sums it may reorder.
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    steady()


def _begin_to_wait() -> None:
    # Jupyter interrupts the kernel and all that it has started: that is meant for a training, and not for what waits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _begin()


def _begin_to_train() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _begin()


@contextlib.contextmanager
def _double_precision() -> Iterator[None]:
    """Keras builds models in float64 (the policy of layers), and computes losses so."""
    import keras

    policy, floats = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(floats)


def _single(weights: list[np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float32) for array in weights]


# -- arrays from Spark -----------------------------------------------------------------------------------------------


def grey_arrays(digits: DataFrame, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images as ``KerasImageTransformer`` with ``preprocess="unit"`` gives them to a model of one channel.

    Args:
        digits: frame with ``image``, ``label`` and ``path``; rows without an image are left out.
        size: height and width in pixels.

    Returns:
        float32 (n, size, size, 1) in 0 to 1, int64 labels (n,) and paths, in order of path.
    """
    ship_package(digits.sparkSession)

    def grey(images: pa.Array) -> pa.Array:
        return pa.array([_grey(image, size) for image in images.to_pylist()], pa.list_(pa.float32()))

    small = digits.select("path", "label", F.arrow_udf(grey, "array<float>")("image").alias("grey"))
    # a filter on grey in Spark would read the pictures twice
    table = small.toArrow().sort_by("path")
    table = table.filter(table["grey"].is_valid())
    values = table["grey"].combine_chunks().flatten().to_numpy().reshape(-1, size, size, 1)
    return values, table["label"].to_numpy().astype(np.int64), table["path"].to_pylist()


def _grey(image: dict[str, Any] | None, size: int) -> np.ndarray | None:
    if image is None:
        return None
    bgr = pixels(image["height"], image["width"], image["nChannels"], image["data"], size)
    return (bgr[..., ::-1] @ np.array(GREY_OF_RGB) / 255).ravel().astype(np.float32)


def feature_arrays(features: DataFrame, paths: Sequence[str]) -> np.ndarray:
    """The column ``features`` as float32 (n, length), in the order of ``paths``."""
    rows = {row.path: row.features for row in features.select("path", "features").collect()}
    return np.stack([rows[path].toArray() for path in paths]).astype(np.float32)


def split_rows(
    digits: DataFrame, paths: Sequence[str], seeds: Sequence[int], test_fraction: float = 0.2
) -> list[Split]:
    """Row numbers (training, test) of ``train_test_split``'s stratified split of the ``paths``, for each seed."""
    there = digits.sparkSession.createDataFrame(pd.DataFrame({"path": paths}))
    keys = digits.select("label", "path").join(F.broadcast(there), "path", "semi").cache()
    splits = []
    for seed in seeds:
        _, test = train_test_split(keys, test_fraction, seed)
        chosen = {row.path for row in test.select("path").collect()}
        in_test = np.array([path in chosen for path in paths])
        splits.append((np.flatnonzero(~in_test), np.flatnonzero(in_test)))
    keys.unpersist()
    return splits


# -- a CNN of one's own ----------------------------------------------------------------------------------------------


def small_cnn(classes: int, size: int = SIDE, width: int = 24) -> keras.Model:
    """Three convolutions and a head: grey float32 (n, size, size, 1) to probabilities (n, classes).

    It looks at each image's distance from its own mean grey, in units of its own deviation: light on dark and dark on
    light are the same to it, and so are strong ink and faint.
    """
    import keras
    from keras import layers

    inputs = keras.Input((size, size, 1))
    x = keras.ops.abs(layers.LayerNormalization(axis=(1, 2, 3), center=False, scale=False)(inputs))
    for depth, side in enumerate((5, 3, 3)):
        x = layers.Conv2D(width * 2**depth, side, strides=2, padding="same", use_bias=False)(x)
        x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(layers.GlobalMaxPooling2D()(x)))


def train(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    learning_rate: float,
    shift: int = 0,
    seed: int = SEED,
    batch: int = 32,
) -> list[float]:
    """Train a model in place by Adam, the learning rate falling to 0 along a cosine (I. Loshchilov, F. Hutter: "SGDR:
    stochastic gradient descent with warm restarts", ICLR 2017, equation 5, one period).

    A model that is trained again, with other weights or images, is not compiled again: that would cost a second and
    some 20 MiB each time.

    Args:
        x: what the model takes, float32.
        y: int labels.
        steps: how often ``batch`` images are looked at and the weights changed.
        learning_rate: at the first step.
        shift: images are moved by up to so many pixels each time, the border repeated; 0 leaves them.
        seed: of the order of images and the shifts.

    Returns:
        The loss of each step: the mean cross-entropy of its batch.
    """
    import keras

    if model.compiled:
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
    else:
        # Compiled for this machine's processor (jit_compile), sums would differ from one processor to the next.
        model.compile(keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy", jit_compile=False)
    losses = []
    for step, drawn in zip(range(steps), _batches(x, y, batch, shift, seed), strict=False):
        model.optimizer.learning_rate = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        losses.append(float(model.train_on_batch(*drawn)))
    return losses


def _batches(
    x: np.ndarray, y: np.ndarray, batch: int, shift: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one size, without end; every image comes once before any comes again."""
    chance = np.random.default_rng(seed)
    rows = np.empty(0, np.int64)
    while True:
        while len(rows) < batch:
            rows = np.concatenate([rows, chance.permutation(len(x))])
        now, rows = rows[:batch], rows[batch:]
        images = x[now]
        if shift:
            padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
            size = x.shape[1]
            tops, lefts = chance.integers(0, 2 * shift + 1, (2, batch))
            images = np.stack([p[t : t + size, s : s + size] for p, t, s in zip(padded, tops, lefts, strict=True)])
        yield images, y[now]


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Share of right answers."""
    return float((outputs(model, x).argmax(axis=1) == y).mean())


def outputs(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """What a model gives for x, a hundred at a time."""
    parts = [np.asarray(model(x[start : start + 100], training=False)) for start in range(0, len(x), 100)]
    return np.concatenate(parts)


def linear_probe(
    features: np.ndarray, labels: np.ndarray, train_rows: np.ndarray, settings: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression on frozen features, as Spark's with the recipe's penalty.

    Features are standardised on the training rows; an L2 penalty of ``reg_param`` on the mean loss is
    C = 1 / (n · reg_param) in scikit-learn.

    Returns:
        Kernel (features, classes) and bias (classes,) for the features as they are: the answer is the class with the
        largest ``features @ kernel + bias``.
    """
    x = features[train_rows]
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (len(x) * settings.reg_param), max_iter=settings.max_iter)
    model.fit(scaler.transform(x), labels[train_rows])
    kernel = model.coef_.T / scaler.scale_[:, None]
    return kernel, model.intercept_ - scaler.mean_ @ kernel


def probe_table(
    features: np.ndarray, labels: np.ndarray, splits: dict[int, list[Split]], settings: Recipe
) -> dict[int, list[float]]:
    """Accuracy of ``linear_probe`` on the test rows of each split, trained on its training rows; as ``cnn_table``."""
    found: dict[int, list[float]] = {}
    for n, of_size in splits.items():
        found[n] = []
        for learn, ask in of_size:
            kernel, bias = linear_probe(features, labels, learn, settings)
            found[n].append(float(((features[ask] @ kernel + bias).argmax(axis=1) == labels[ask]).mean()))
    return found


def trained_cnn(
    x: np.ndarray, y: np.ndarray, seed: int = SEED, start: list[np.ndarray] | None = None
) -> tuple[list[np.ndarray], list[float]]:
    """``small_cnn`` trained on images in double precision: each about 32 times, at least 150 steps.

    Args:
        x, y: images float32 (n, size, size, 1) and int labels (n,), from 0.
        seed: of the fresh weights and the order of images.
        start: the weights of another ``small_cnn`` (of any number of classes) to start from, with a fresh head.

    Returns:
        Its weights in float32, as ``get_weights`` has them, and the loss of each step.
    """
    with _double_precision():
        model, losses = _train_cnn(x, y, int(y.max()) + 1, seed, start)
        return _single(model.get_weights()), losses


def _train_cnn(
    x: np.ndarray, y: np.ndarray, classes: int, seed: int, start: list[np.ndarray] | None
) -> tuple[keras.Model, list[float]]:
    import keras

    keras.utils.set_random_seed(seed)
    fresh = small_cnn(classes, x.shape[1]).get_weights()
    model = _cnn_to_train(classes, x.shape[1])
    model.set_weights(fresh if start is None else start[:-2] + fresh[-2:])  # kernel and bias of the head
    return model, train(model, x, y, max(150, len(y)), 3e-3, shift=2, seed=seed)


@lru_cache(maxsize=1)
def _cnn_to_train(classes: int, size: int) -> keras.Model:
    """One for many trainings, as ``train`` says; in double precision."""
    return small_cnn(classes, size)


def cnn_table(
    x: np.ndarray, y: np.ndarray, splits: dict[int, list[Split]], start: list[np.ndarray] | None = None
) -> dict[int, list[float]]:
    """Accuracy of ``trained_cnn`` on the test rows of each split, trained on its training rows; ``splits`` by number of
    training images, as is what comes back. The seed is the split's number.

    Each training has one thread, as in ``apart``; as many run beside each other, in processes of their own, as cores
    and memory allow.
    """
    fit = (available_memory() - MEMORY_BESIDE) // MEMORY_OF_TRAINING
    tasks = [(n, number) for n in sorted(splits, reverse=True) for number in range(len(splits[n]))]  # long ones first
    trainings = [(x, y, *splits[n][number], number, start) for n, number in tasks]
    scores = apart(_score_cnns, trainings, max(1, min(available_cores(), fit, len(tasks))))
    by_task = dict(zip(tasks, scores, strict=True))
    return {n: [by_task[n, number] for number in range(len(splits[n]))] for n in splits}


def _score_cnns(trainings: list[tuple], processes: int) -> list[float]:
    """``_score_cnn`` of each, beside each other: copies of this process, which has only imported TensorFlow so far."""
    # elsewhere than on Linux system libraries may not bear to be copied
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(processes, context, _begin) as pool:
        return list(pool.map(_score_cnn, *zip(*trainings, strict=True)))


def _score_cnn(
    x: np.ndarray,
    y: np.ndarray,
    learn: np.ndarray,
    ask: np.ndarray,
    seed: int,
    start: list[np.ndarray] | None,
) -> float:
    with _double_precision():
        model, _ = _train_cnn(x[learn], y[learn], int(y.max()) + 1, seed, start)
        return accuracy(model, x[ask], y[ask])


# -- glyphs ----------------------------------------------------------------------------------------------------------

# Beginnings of Unicode names. None of them is Bengali, and DejaVu has no Bengali glyph.
GLYPHS = (
    "ARABIC-INDIC DIGIT",
    "ARMENIAN SMALL LETTER",
    "CYRILLIC SMALL LETTER",
    "DIGIT",
    "GEORGIAN LETTER",
    "GREEK SMALL LETTER",
    "LAO DIGIT",
    "LAO LETTER",
    "NKO DIGIT",
    "NKO LETTER",
    "TIFINAGH LETTER",
)
PAGE = 64  # pixels, the side of a drawn glyph's page before it is made smaller


def glyph_classes(each: int = 12) -> dict[str, list[Path]]:
    """Letters and digits of DejaVu's fonts, which come with matplotlib: a character, and the font files that have it.

    The first ``each`` of every beginning in ``GLYPHS``, in Unicode's order.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = {file: set(FT2Font(str(file)).get_charmap()) for file in sorted(folder.glob("DejaVuSans*.ttf"))}
    there = sorted(set().union(*files.values()))
    chosen = []
    for beginning in GLYPHS:
        named = [code for code in there if unicodedata.name(chr(code), "").startswith(f"{beginning} ")]
        chosen += [code for code in named if unicodedata.normalize("NFKD", chr(code)) == chr(code)][:each]
    return {chr(code): [file for file, codes in files.items() if code in codes] for code in chosen}


def draw_glyphs(
    classes: dict[str, list[Path]], per_class: int, size: int = SIDE, seed: int = SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Glyphs written by an unsteady hand: float32 (n, size, size, 1) in 0 to 1, and the number of each one's class.

    Each is drawn with one of its fonts, a pen of chance width, at a chance place and size; then sheared, turned and
    blurred (``helpers.distort``), and given paper and ink of any grey, a fifth of them light on dark.
    """
    chance = np.random.default_rng(seed)
    images, labels = [], []
    for number, (character, files) in enumerate(classes.items()):
        for copy in range(per_class):
            page = _written(character, files[chance.integers(len(files))], chance)
            for name, most in (("shear", 0.5), ("rotation", 0.35), ("blur", 0.2)):
                page = distort(page, name, most * chance.random(), f"{seed} {number} {copy}")
            small = np.asarray(Image.fromarray(page).resize((size, size), Image.Resampling.BILINEAR), np.float32)
            paper, ink = chance.uniform(0.55, 1), chance.uniform(0, 0.35)
            if chance.random() < 0.2:
                paper, ink = 0.0, 1.0
            images.append(ink + (paper - ink) * small[..., None] / 255)
            labels.append(number)
    return np.stack(images).astype(np.float32), np.array(labels)


def _written(character: str, file: Path, chance: np.random.Generator) -> np.ndarray:
    """A character, black on white, uint8 (PAGE, PAGE): its longer side 0.4 to 0.9 of the page's."""
    font = ImageFont.truetype(str(file), 2 * PAGE, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(character)
    glyph = Image.new("L", (right - left + 2, bottom - top + 2), 0)
    ImageDraw.Draw(glyph).text((1 - left, 1 - top), character, 255, font)
    # printed strokes are thicker than a pen's: taken off on either side, mostly
    glyph = glyph.filter(ImageFilter.MinFilter(2 * int(chance.integers(0, 4)) + 1))
    scale = chance.uniform(0.35, 0.9) * PAGE / max(glyph.size)
    width, height = (max(2, round(side * scale)) for side in glyph.size)
    x, y = (int(chance.integers(0, PAGE - side + 1)) for side in (width, height))
    page = Image.new("L", (PAGE, PAGE), 0)
    page.paste(glyph.resize((width, height), Image.Resampling.BOX), (x, y))
    return 255 - np.asarray(page)


def pretrained_cnn(copies: int = 40, steps: int = 1200) -> tuple[list[np.ndarray], list[float], float]:
    """``small_cnn`` trained to name glyphs, ``copies`` drawings of each class.

    Returns:
        Its weights in float32; the loss of each step; the share of right names on another tenth as many drawings.
    """
    import keras

    classes = glyph_classes()
    keras.utils.set_random_seed(SEED)
    with _double_precision():
        model = small_cnn(len(classes))
        losses = train(model, *draw_glyphs(classes, copies), steps, 3e-3, shift=2)
        fresh = draw_glyphs(classes, max(1, copies // 10), seed=SEED + 1)
        return _single(model.get_weights()), losses, accuracy(model, *fresh)


# -- the last block of a large network -------------------------------------------------------------------------------


def last_block(network: keras.Model, start: str) -> keras.Model:
    """The part of a network behind the output of its layer ``start``, with its weights: map to map. A copy; the network
    may go.

    ``ValueError`` where there is no such layer, or a way around it.
    """
    import keras

    (cut,) = resolve_layers(network, [start])
    try:
        block = keras.Model(cut, network.output)
    except ValueError as problem:
        raise ValueError(f"{network.name} cannot be cut behind {start!r}: there is a way around it") from problem
    copied = keras.models.clone_model(block)
    copied.set_weights(block.get_weights())
    return copied


def block_table(
    network: Recipe,
    start: str,
    maps: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[Split],
    steps: int = 30,
    learning_rate: float = 1e-4,
) -> pd.DataFrame:
    """A network's last block as it is against the same block trained on, split by split.

    Its head is logistic regression on the block's averaged output (``linear_probe``), and then block and head are
    trained together. So before the first step this *is* the model on frozen features, and what changes is the
    training's doing. Normalisation keeps the statistics it has.

    Args:
        network: which network, its weights and size of images; its penalty is the logistic regression's.
        start: the layer before the block.
        maps: what that layer gives, computed once: float32 (n, numbers), as ``pooling="flatten"`` has them.
        labels: of all maps, int (n,).
        splits: rows to train on and to test on.
        steps, learning_rate: of ``train``.

    Returns:
        A row a split, with the accuracies on its test rows: ``frozen`` and ``tuned``.
    """
    import keras
    from keras import layers

    block = last_block(build_network(network.model_name, network.weights, image_size=network.image_size), start)
    gc.collect()  # the network, full of cycles
    for layer in block.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    begin = block.get_weights()
    maps = maps.reshape(-1, *block.input_shape[1:])
    pooled = outputs(block, maps).mean(axis=(1, 2))
    inputs = keras.Input(maps.shape[1:])
    head = layers.Dense(len(np.unique(labels)), activation="softmax")
    model = keras.Model(inputs, head(layers.GlobalAveragePooling2D()(block(inputs))))
    found = []
    for number, (learn, ask) in enumerate(splits):
        block.set_weights(begin)
        head.set_weights(linear_probe(pooled, labels, learn, network))
        frozen = accuracy(model, maps[ask], labels[ask])
        train(model, maps[learn], labels[learn], steps, learning_rate, seed=number)
        found.append({"frozen": frozen, "tuned": accuracy(model, maps[ask], labels[ask])})
    return pd.DataFrame(found)
