"""Networks trained here, on arrays in the driver's memory: what notebook 06 and its benchmark share.

All other modules run networks that are finished; ``networks`` builds them and ``featurizer`` gives them to Spark. Here
small ones learn, with Keras on TensorFlow: a CNN of one's own (``small_cnn``), from nothing or pretrained on glyphs
(``draw_glyphs``), and the last block of a large one (``fine_tune``). ``linear_probe`` is what they are measured against.

Training amplifies the last bit of a sum, and sums differ with the number of threads. ``steady`` takes one thread and
seeds everything, so that a run is the same on any number of cores.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pyspark.sql import DataFrame
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from helpers.distort import distort
from helpers.featurizer import pixels
from helpers.networks import GREY_OF_RGB, Recipe
from helpers.numtadb import train_test_split

if TYPE_CHECKING:
    import keras

SEED = 42


def steady(seed: int = SEED) -> None:
    """Make what Keras trains from here on repeatable: one thread, deterministic operations, seeds.

    Call it once before TensorFlow computes anything, and again (any seed) before each training.

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
            raise RuntimeError("TensorFlow runs on several threads already; call steady() before anything else") from None
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)


# -- arrays from Spark -----------------------------------------------------------------------------------------------


def grey_arrays(digits: DataFrame, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images as ``KerasImageTransformer`` with ``preprocess="unit"`` gives them to a model of one channel.

    Args:
        digits: frame with ``image``, ``label`` and ``path``; rows without an image are left out.
        size: height and width in pixels.

    Returns:
        float32 (n, size, size, 1) in 0 to 1, int64 labels (n,) and paths, in order of path. One image at a time comes
        to the driver.
    """
    found = []
    for row in digits.where("image IS NOT NULL").select("path", "label", "image").toLocalIterator():
        image = row.image
        bgr = pixels(image.height, image.width, image.nChannels, image.data, size)
        grey = bgr[..., ::-1].astype(np.float32) @ np.float32(GREY_OF_RGB)
        found.append((row.path, row.label, grey[..., None] / np.float32(255)))
    paths, labels, images = zip(*sorted(found, key=lambda item: item[0]), strict=True)
    return np.stack(images), np.array(labels), list(paths)


def feature_arrays(features: DataFrame, paths: Sequence[str]) -> np.ndarray:
    """The column ``features`` as float32 (n, length), in the order of ``paths``."""
    rows = {row.path: row.features for row in features.select("path", "features").collect()}
    return np.stack([rows[path].toArray() for path in paths]).astype(np.float32)


def split_rows(digits: DataFrame, paths: Sequence[str], seeds: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers (training, test) of ``train_test_split``'s stratified 8:2 split for each seed."""
    keys = digits.select("label", "path").cache()
    splits = []
    for seed in seeds:
        test = {row.path for row in train_test_split(keys, seed=seed)[1].select("path").collect()}
        in_test = np.array([path in test for path in paths])
        splits.append((np.flatnonzero(~in_test), np.flatnonzero(in_test)))
    keys.unpersist()
    return splits


def few_of_each(labels: np.ndarray, rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    """``n`` of ``rows`` of each class, drawn by ``seed``; fewer are part of more."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(np.concatenate([order[labels[order] == k][:n] for k in np.unique(labels)]))


# -- a CNN of one's own ----------------------------------------------------------------------------------------------


def small_cnn(classes: int, size: int = 32, width: int = 16) -> keras.Model:
    """Three convolutions with pooling and a head: grey float32 (n, size, size, 1) to probabilities (n, classes)."""
    import keras
    from keras import layers

    inputs = keras.Input((size, size, 1))
    x = inputs
    for depth in range(3):
        x = layers.Conv2D(width * 2**depth, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.MaxPooling2D()(layers.Activation("relu")(x))
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))


def with_new_head(model: keras.Model, classes: int) -> keras.Model:
    """A copy of a model with another, fresh head: the same weights up to its last layer."""
    import keras

    copied = keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    return keras.Model(copied.input, keras.layers.Dense(classes, activation="softmax")(copied.layers[-1].input))


def train(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    learning_rate: float = 1e-3,
    shift: int = 0,
    seed: int = SEED,
    batch: int = 32,
) -> list[float]:
    """Train by Adam for so many steps of ``batch`` images, the learning rate falling to 0 along a cosine.

    Args:
        x: what the model takes, float32.
        y: int labels.
        shift: images are moved by up to so many pixels each time, the border repeated; 0 leaves them.

    Returns:
        The mean loss (cross-entropy) of each tenth of the steps.
    """
    import keras

    keras.utils.set_random_seed(seed)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    # Compiled for this machine's processor (jit_compile), sums would differ from one processor to the next.
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", jit_compile=False)
    losses = [float(model.train_on_batch(*drawn)) for drawn in _batches(x, y, steps, batch, shift, seed)]
    # Keras gives the mean since the last reset: each step's own loss from it
    sums = np.array(losses) * np.arange(1, steps + 1)
    return [float(part.mean()) for part in np.array_split(np.diff(sums, prepend=0.0), min(10, steps))]


def _batches(
    x: np.ndarray, y: np.ndarray, steps: int, batch: int, shift: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one size; every image comes once before any comes again."""
    chance = np.random.default_rng(seed)
    rows = np.empty(0, np.int64)
    for _ in range(steps):
        while len(rows) < batch:
            rows = np.concatenate([rows, chance.permutation(len(x))])
        now, rows = rows[:batch], rows[batch:]
        images = x[now]
        if shift:
            padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
            size = x.shape[1]
            tops, lefts = chance.integers(0, 2 * shift + 1, (2, batch))
            images = np.stack(
                [p[t : t + size, s : s + size] for p, t, s in zip(padded, tops, lefts, strict=True)]
            )
        yield images, y[now]


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Share of right answers."""
    return float((model.predict_on_batch(x).argmax(axis=1) == y).mean())


def linear_probe(
    features: np.ndarray, labels: np.ndarray, train_rows: np.ndarray, settings: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression on frozen features, as Spark's with the recipe's penalty: kernel (features, classes) and bias.

    Features are standardised on the training rows; an L2 penalty of ``reg_param`` on the mean loss is
    C = 1 / (n · reg_param) in scikit-learn. Kernel and bias take the features as they are, and the answer is the class
    with the largest ``features @ kernel + bias``.
    """
    x = features[train_rows]
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (len(x) * settings.reg_param), max_iter=settings.max_iter)
    model.fit(scaler.transform(x), labels[train_rows])
    kernel = model.coef_.T / scaler.scale_[:, None]
    return kernel, model.intercept_ - scaler.mean_ @ kernel


def probe_accuracy(features: np.ndarray, labels: np.ndarray, rows: tuple[np.ndarray, np.ndarray], settings: Recipe):
    """Accuracy on the test rows of ``linear_probe`` trained on the training rows."""
    kernel, bias = linear_probe(features, labels, rows[0], settings)
    return float(((features[rows[1]] @ kernel + bias).argmax(axis=1) == labels[rows[1]]).mean())


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
    """Letters and digits of DejaVu's fonts, which come with matplotlib: each character with the font files that have it.

    The first ``each`` of every beginning in ``GLYPHS``, in Unicode's order.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = {file: set(FT2Font(str(file)).get_charmap()) for file in sorted(folder.glob("DejaVuSans*.ttf"))}
    files |= {file: set(FT2Font(str(file)).get_charmap()) for file in sorted(folder.glob("DejaVuSerif*.ttf"))}
    there = sorted(set().union(*files.values()))
    chosen = []
    for beginning in GLYPHS:
        named = [code for code in there if unicodedata.name(chr(code), "").startswith(f"{beginning} ")]
        chosen += [code for code in named if unicodedata.normalize("NFKD", chr(code)) == chr(code)][:each]
    return {chr(code): [file for file, codes in files.items() if code in codes] for code in chosen}


def draw_glyphs(
    classes: dict[str, list[Path]], per_class: int, size: int = 32, seed: int = SEED
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
    pen = int(chance.integers(0, 7))
    left, top, right, bottom = font.getbbox(character, stroke_width=pen)
    glyph = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(glyph).text((-left, -top), character, 255, font, stroke_width=pen)
    scale = chance.uniform(0.4, 0.9) * PAGE / max(glyph.size)
    width, height = (max(2, round(side * scale)) for side in glyph.size)
    x, y = (int(chance.integers(0, PAGE - side + 1)) for side in (width, height))
    page = Image.new("L", (PAGE, PAGE), 0)
    page.paste(glyph.resize((width, height), Image.Resampling.BOX), (x, y))
    return 255 - np.asarray(page)


# -- the last block of a large network -------------------------------------------------------------------------------


def last_block(network: keras.Model, start: str) -> keras.Model:
    """The part of a network behind the output of its layer ``start``, with its weights: map to map.

    ``ValueError`` where there is a way around that layer.
    """
    import keras

    try:
        return keras.Model(network.get_layer(start).output, network.output)
    except ValueError as problem:
        raise ValueError(f"{network.name} cannot be cut behind {start!r}: {problem}") from problem


def fine_tune(
    block: keras.Model,
    maps: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    settings: Recipe,
    steps: int,
    learning_rate: float,
    seed: int = SEED,
) -> keras.Model:
    """A block with a head, trained on maps that were computed once; its normalisation keeps the statistics it has.

    The head starts as the logistic regression on the block's averaged output (``linear_probe``), so that before the
    first step this is exactly the model with frozen features, and what changes is due to the block.

    Args:
        block: map to map; it stays as it is, a copy is trained.
        maps: its inputs, float32 (n, h, w, channels).
        labels, rows: labels of all maps, and the maps to train on.
    """
    import keras
    from keras import layers

    copied = keras.models.clone_model(block)
    copied.set_weights(block.get_weights())
    for layer in copied.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    frozen = np.concatenate([block.predict_on_batch(part).mean(axis=(1, 2)) for part in np.array_split(maps, 8)])
    kernel, bias = linear_probe(frozen, labels, rows, settings)
    head = layers.Dense(kernel.shape[1], activation="softmax")
    inputs = keras.Input(maps.shape[1:])
    model = keras.Model(inputs, head(layers.GlobalAveragePooling2D()(copied(inputs))))
    head.set_weights([kernel, bias])
    train(model, maps[rows], labels[rows], steps, learning_rate, seed=seed)
    return model
