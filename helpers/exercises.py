"""The exercises' judge: one call an answer, which says that it is right, or in a sentence what is wrong with it.

    import helpers.exercises as check

    check.rgb_pixels(to_rgb)

No answer is stored here. What is right is computed: from the sample, from random images and numbers, by the helpers
that the lessons use. Where an answer is wrong, the usual mistakes are computed as well, and the one that gives the same
is named. Every call returns a ``Verdict``, which a notebook shows as a sentence. An error inside the reader's own
function is caught only where a sentence says more than its traceback: of a null in Java, or a model of a fixed size.
"""

from __future__ import annotations

import contextlib
import functools
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image
from pyspark.errors import AnalysisException
from pyspark.logger import PySparkLogger
from pyspark.ml import Pipeline, PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegressionModel
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from scipy.special import softmax
from scipy.stats import binomtest, hypergeom
from sklearn.metrics import accuracy_score, precision_score, recall_score, roc_auc_score

from helpers.evaluation import Evaluation, Reliability, evaluate
from helpers.featurizer import DeepImageFeaturizer, KerasImageTransformer, pixels
from helpers.networks import NETWORKS, build_network, recipe
from helpers.numtadb import IMAGE_TYPE, SAMPLE, image_struct, list_digits, read_digits, train_test_split
from helpers.spark import start_spark

if TYPE_CHECKING:
    import keras

WIDTH = 110  # characters of a line of a verdict


class Fault(Exception):
    """What is wrong with an answer, as a sentence."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says: ``right`` or not, and ``message``, why it matters or what is wrong."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return textwrap.fill(f"{'Right.' if self.right else 'Not yet:'} {self.message}", WIDTH)


def _judged(check: Callable[..., str]) -> Callable[..., Verdict]:
    """A check that returns why the answer matters, or raises ``Fault``, as one that returns a ``Verdict``."""

    @functools.wraps(check)
    def judge(answer: Any, *given: Any, **options: Any) -> Verdict:
        values = answer.values() if isinstance(answer, Mapping) else [answer]
        try:
            if any(value is None or value is ... for value in values):
                raise Fault("there is no answer yet; write yours where the three dots are, and run that cell.")
            return Verdict(True, check(answer, *given, **options))
        except Fault as fault:
            return Verdict(False, str(fault))

    return judge


def _call(function: Any, *arguments: Any) -> Any:
    """What the reader's function gives back."""
    if not callable(function):
        raise Fault(f"give the check your function itself, by its name and without calling it, not {function!r}.")
    result = function(*arguments)
    if result is None or result is ...:
        raise Fault(f"{function.__name__} gives nothing back; write its code, and end it with return.")
    return result


def _need(answer: Any, keys: Iterable[Any]) -> None:
    """``Fault`` unless the answer is a dict of these keys."""
    if not isinstance(answer, Mapping):
        raise Fault(f"keep the answer a dict, with a value for each key; yours is {answer!r}.")
    if missing := [key for key in keys if key not in answer]:
        raise Fault(f"your answer has no {missing[0]!r}; keep all keys.")


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise Fault(f"{what} is to be one number; yours is {value!r}.")
    return float(value)


def _directions(guess: Any, before: Mapping[str, float], after: Mapping[str, float], same: float) -> None:
    """``Fault`` unless each quantity goes the way that was guessed; a change of at most ``same`` counts as none."""
    _need(guess, before)
    for name, first in before.items():
        change = after[name] - first
        truth = "same" if abs(change) <= same else "up" if change > 0 else "down"
        if guess[name] not in ("up", "down", "same"):
            raise Fault(f'{name}: say "up", "down" or "same", not {guess[name]!r}.')
        if guess[name] != truth:
            raise Fault(
                f"{name}: you said {guess[name]}, but it goes from {first:.2f} to {after[name]:.2f}, "
                f"which is {truth} (a change of up to {same:g} counts as the same)."
            )


def _spark() -> SparkSession:
    return SparkSession.getActiveSession() or start_spark("exercises")


def _is(got: Any, wanted: Any, tolerance: float = 1e-6) -> bool:
    """Whether two numbers or arrays are the same but for rounding."""
    got, wanted = (np.asarray(values, np.float64) for values in (got, wanted))
    return got.shape == wanted.shape and bool(np.allclose(got, wanted, rtol=0, atol=tolerance))


def _name_mistake(got: Any, usual: Mapping[str, Any], tolerance: float = 1e-6) -> None:
    """``Fault`` with the first of the usual mistakes, sentences without full stop, that gives what the reader got."""
    for mistake, values in usual.items():
        if _is(got, values, tolerance):
            raise Fault(f"{mistake}.")


def _images() -> dict[str, np.ndarray]:
    """Random images: uint8 (height, width, channels) in the order red, green, blue, alpha."""
    chance = np.random.default_rng(1)
    shapes = {"a colour image": (30, 50, 3), "a grey image": (40, 20, 1), "an image with alpha": (20, 30, 4)}
    return {what: chance.integers(0, 256, shape, np.uint8) for what, shape in shapes.items()}


def _image_row(array: np.ndarray) -> Row:
    """Spark's image struct of such an image, as a collected row has it."""
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    fields = image_struct(picture, "here")
    return Row(**fields | {"data": bytearray(fields["data"])})


# -- 01 Load NumtaDB ---------------------------------------------------------------------------------------------------


@_judged
def shared_test_images(guess: float, seeds: tuple[int, int] = (42, 43)) -> str:
    """How many images the test sets of two seeds share, predicted to about three standard deviations."""
    guess = _number(guess, "the prediction")
    digits = read_digits().select("label", "path")
    first, second = ({row.path for row in train_test_split(digits, seed=seed)[1].collect()} for seed in seeds)
    images = digits.count()
    chance = hypergeom(images, len(first), len(second))
    shared, expected = len(first & second), chance.mean()
    if not 0 <= guess <= len(first):
        raise Fault(f"each test has {len(first)} images, so they cannot share {guess:g}.")
    if abs(guess - expected) > 3 * chance.std():
        if guess < expected:
            raise Fault(
                f"{guess:g} are too few. The second draw knows nothing of the first and does not avoid it: a fifth of "
                "all images is taken, and so about a fifth of the first test as well."
            )
        raise Fault(
            f"{guess:g} are too many. The seed is no detail, it decides which images are drawn; the second draw takes "
            "a fifth of all images, and so only about a fifth of the first test."
        )
    return (
        f"Independent draws share about {expected:.0f} of {len(first)}; here it is {shared}. As few as that were "
        "shared by the article's splits of one seed on different partitions, as if each machine had drawn anew."
    )


@_judged
def rgb_pixels(function: Callable[[Row], np.ndarray]) -> str:
    """``function(image)``: an image struct of 1, 3 or 4 channels as uint8 (height, width, 3), red, green, blue."""
    for what, array in _images().items():
        wanted = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]
        got = np.asarray(_call(function, _image_row(array)))
        height, width = wanted.shape[:2]
        if got.shape[:2] == (width, height):
            raise Fault(
                f"height and width are exchanged: {what} of {height} rows and {width} columns came back as "
                f"{got.shape}. The bytes go row by row, so the shape is (height, width, channels)."
            )
        if array.shape[2] == 1 and got.shape in ((height, width), (height, width, 1)):
            raise Fault("a grey image came back with one channel; give its grey to red, green and blue alike.")
        if got.shape == (height, width, 4):
            raise Fault("an image with alpha came back with four channels; the fourth is no colour, leave it out.")
        if got.shape != wanted.shape:
            raise Fault(f"{what} came back with the shape {got.shape}; wanted is {wanted.shape}.")
        if got.dtype != np.uint8:
            raise Fault(f"the pixels came back as {got.dtype}; leave them bytes, uint8.")
        if _is(got, wanted):
            continue
        if _is(got, wanted[:, :, ::-1]):
            raise Fault(
                f"{what} came back blue, green, red, as Spark has it; turn the order of the channels round, [..., "
                "::-1]."
            )
        if array.shape[2] == 4 and _is(got, array[:, :, [3, 0, 1]]):
            raise Fault("alpha has come among the colours; leave the fourth channel out before you turn the order.")
        if _is(got, wanted[::-1]):
            raise Fault(f"{what} came back upside down; the first bytes are its top row.")
        raise Fault(f"{what} has other pixels than it should have; look where the first three bytes have gone.")
    return (
        "Blue, green, red became red, green, blue, for grey images and those with alpha too. Had you left the order as "
        "it was, nothing would have complained: that is why one tests it."
    )


def _spread(columns: Sequence[str], schema: str) -> Iterable[DataFrame]:
    """The sample's rows without images, twice: over 2 partitions, and over 8 and in the opposite order."""
    names = ("file", "label", "source", "writer", "path", "problem")
    places = [names.index(column) for column in columns]
    rows = [tuple(row[place] for place in places) for row in list_digits(SAMPLE)]
    spark = _spark()
    for partitions, order in ((2, 1), (8, -1)):
        yield spark.createDataFrame(spark.sparkContext.parallelize(rows[::order], partitions), schema)


@_judged
def honest_split(function: Callable[[DataFrame], tuple[DataFrame, DataFrame]], test_fraction: float = 0.2) -> str:
    """``function(digits)``: (training, test) of a frame with ``label`` and ``path``, stratified, by path alone."""
    tests = []
    for digits in _spread(("label", "path"), "label int, path string"):
        sides = _call(function, digits)
        if not (isinstance(sides, tuple | list) and [isinstance(side, DataFrame) for side in sides] == [True, True]):
            raise Fault("give two Spark frames back, return train, test.")
        if lost := [name for side in sides for name in digits.columns if name not in side.columns]:
            raise Fault(f"the column {lost[0]!r} is lost on the way; give both sides with the columns they came with.")
        train, test = (side.select(*digits.columns).collect() for side in sides)
        _look_at_split(digits.collect(), train, test, test_fraction)
        tests.append({row.path for row in test})
    if tests[0] != tests[1]:
        raise Fault(
            f"the same rows over 2 and over 8 partitions give tests that share {len(tests[0] & tests[1])} of "
            f"{len(tests[0])} images: your draw depends on where a row stands. Let it depend on its path alone."
        )
    return (
        f"{len(tests[0])} test images, the same share of each class, and the same ones wherever the rows stand. "
        "Someone else can now repeat your figures."
    )


def _look_at_split(rows: list[Row], train: list[Row], test: list[Row], test_fraction: float) -> None:
    if both := len({row.path for row in train} & {row.path for row in test}):
        raise Fault(
            f"{both} images are in training and in the test: the model would be asked what it has been told. Each row "
            "goes to one side."
        )
    if len(train) + len(test) != len(rows):
        raise Fault(f"{len(train)} and {len(test)} images make {len(train) + len(test)}; there were {len(rows)}.")
    if len(train) == round(len(rows) * test_fraction):
        raise Fault(f"training has {len(train)} images and the test {len(test)}: give training back first.")
    of_class = defaultdict(list)
    for row in rows:
        of_class[row.label].append(row.path)
    counts = Counter(row.label for row in test)
    wanted = {label: round(len(paths) * test_fraction) for label, paths in of_class.items()}
    worst = max(wanted, key=lambda label: abs(counts[label] - wanted[label]))
    if counts[worst] != wanted[worst]:
        raise Fault(
            f"you split by image, not by class: class {worst} has {counts[worst]} test images, wanted {wanted[worst]}. "
            "Number the rows within each class (a Window partitioned by label)."
        )
    drawn = {row.path for row in test}
    ordered = [(sorted(paths), wanted[label]) for label, paths in of_class.items()]
    if drawn in ({p for paths, n in ordered for p in paths[:n]}, {p for paths, n in ordered for p in paths[-n:]}):
        sources = sorted({path.split("/")[0] for path in drawn})
        raise Fault(
            f"you took the images at one end of the list of paths, from {', '.join(sources)} only. A test is to be "
            "like all images: draw it, by a hash of the path."
        )


# -- 02 Inception features ---------------------------------------------------------------------------------------------


@_judged
def feature_counts(guess: Mapping[tuple[str, int], int], layer: str = "mixed4") -> str:
    """How many features an image has, by (pooling, image size), at a layer of InceptionV3."""
    sizes = (96, 192)
    _need(guess, product(("avg", "flatten"), sizes))
    for size in sizes:
        network = build_network("InceptionV3", "random", image_size=size)
        height, width, channels = network.get_layer(layer).output.shape[1:]
        mean, flat = (_number(guess[pooling, size], f"{pooling} at {size} pixels") for pooling in ("avg", "flatten"))
        if mean != channels:
            raise Fault(
                f"avg at {size} pixels: you said {mean:,g}. The map has {channels} channels of {height} x {width} "
                "places, and the mean over the places leaves one number a channel, however large the map is."
            )
        if flat != height * width * channels:
            raise Fault(
                f"flatten at {size} pixels: you said {flat:,g}. Every place of every channel is kept: {height} x "
                f"{width} x {channels}."
            )
    return (
        f"The mean leaves one number a channel at every size of image. Flattened, an image of {size} pixels has "
        f"{flat:,.0f}, {flat / mean:.0f} times as many, for a classifier that has 400 images to learn from."
    )


@_judged
def network_input(function: Callable[[Row, int], np.ndarray], size: int = 24) -> str:
    """``function(image, size)``: an image struct as InceptionV3 takes it: (size, size, 3), RGB, from −1 to 1."""
    import keras

    def ready(rgb: np.ndarray) -> np.ndarray:
        mode = NETWORKS["InceptionV3"].preprocessing
        return keras.applications.imagenet_utils.preprocess_input(np.float32(rgb), mode=mode)

    # the tolerances are less than a byte, as rounding may differ
    scales = {
        "": (ready, 0.005),
        "the values go from 0 to 255, and the network takes −1 to 1": (np.float32, 0.6),
        "the values go from 0 to 1, and the network takes −1 to 1": (lambda rgb: np.float32(rgb) / 255, 0.0025),
    }
    orders = {"": slice(None), "red and blue are exchanged": slice(None, None, -1)}
    for what, array in _images().items():
        row = _image_row(array)
        rgb = pixels(row.height, row.width, row.nChannels, row.data, size)[:, :, ::-1]
        got = np.asarray(_call(function, row, size))
        if got.shape != rgb.shape:
            raise Fault(f"{what} came back with the shape {got.shape}; the network takes {rgb.shape}.")
        if _is(got, ready(rgb), 0.005):
            continue
        for (order, turn), (scale, (scaled, tolerance)) in product(orders.items(), scales.items()):
            if _is(got, scaled(rgb[:, :, turn]), tolerance):
                raise Fault(
                    f"{what}: {' and '.join(filter(None, (order, scale)))}. Nothing breaks, it only sees worse."
                )
        off = np.abs(got - ready(rgb)).max()
        raise Fault(
            f"{what}: the largest difference to what the featurizer feeds the network is {off:.2f}. Resize the bytes "
            "with Pillow, bilinear, to a square, whatever the shape was; then scale."
        )
    return (
        "That is what the network sees. Another resize, another order or another scale gives other "
        "features, and nothing tells you."
    )


@_judged
def ink_grid(stage: Transformer, cells: int = 8) -> str:
    """A Transformer that writes the grey of ``cells`` x ``cells`` places, 0 to 1, row by row, to ``features``."""
    if isinstance(stage, type):
        raise Fault(f"give a stage, {stage.__name__}(), not its class.")
    if not isinstance(stage, Transformer):
        raise Fault(f"a stage is a pyspark.ml Transformer; yours is of type {type(stage).__name__}.")
    images = _images()
    rows = [(i, tuple(_image_row(array))) for i, array in enumerate(images.values())] + [(len(images), None)]
    frame = _spark().createDataFrame(rows, f"number int, image {IMAGE_TYPE.simpleString()}")
    made = stage.transform(frame)
    if lost := [name for name in frame.columns if name not in made.columns]:
        raise Fault(f"the column {lost[0]!r} is lost; a stage adds its column and keeps the others.")
    if "features" not in made.columns:
        raise Fault(f"there is no column 'features'; your stage gives {', '.join(made.columns)}.")
    if not isinstance(kind := made.schema["features"].dataType, VectorUDT):
        raise Fault(
            f"'features' is of type {kind.simpleString()}; classifiers take a vector: array_to_vector makes one."
        )
    try:
        found = {row.number: row.features for row in made.select("number", "features").collect()}
    except Exception as problem:  # py4j's; it is pyspark's to import, and not declared here
        if "NullPointerException" not in str(problem):
            raise
        raise Fault(
            "array_to_vector was given null, and takes none: a row without an image has no array. Write "
            "F.when(values.isNotNull(), array_to_vector(values))."
        ) from None
    if len(found) != len(rows):
        raise Fault(f"of {len(rows)} rows {len(found)} came back; keep a row without an image, with null features.")
    if found[len(images)] is not None:
        raise Fault("a row without an image has features; give it null, or it passes for a picture.")
    for number, (what, array) in enumerate(images.items()):
        row = _image_row(array)
        wanted = pixels(row.height, row.width, row.nChannels, row.data, cells).mean(axis=2) / 255
        _look_at_grid(what, found[number], wanted)
    return f"{cells * cells} numbers an image, without any network. With them {_grid_accuracy(stage)}"


def _look_at_grid(what: str, vector: Any, wanted: np.ndarray) -> None:
    if vector is None:
        raise Fault(f"{what} has null features.")
    got = vector.toArray()
    if got.shape != (wanted.size,):
        raise Fault(f"{what} has {len(got)} features; {len(wanted)} x {len(wanted)} places are {wanted.size}.")
    if _is(got, wanted.ravel(), 0.002):
        return
    usual = {
        "the values go from 0 to 255; divide by 255": wanted * 255,
        "the values tell how dark a place is; 0 is to be black and 1 white": 1 - wanted,
        "the places go column by column; the first eight are to be the top row": wanted.T,
        "the places start at the bottom; the first eight are to be the top row": wanted[::-1],
    }
    _name_mistake(got, {f"{what}: {mistake}": values.ravel() for mistake, values in usual.items()}, 0.01)
    off = np.abs(got - wanted.ravel()).max()
    raise Fault(f"{what}: a place is off by {off:.2f}. Take pixels(…, 8), the mean of its channels, divided by 255.")


def _grid_accuracy(stage: Transformer) -> str:
    sides = train_test_split(read_digits())
    train, test = (
        stage.transform(side).select("label", "path", "features").repartition(1).sortWithinPartitions("path").cache()
        for side in sides
    )
    share = evaluate(recipe().classifier().fit(train).transform(test)).accuracy
    return (
        f"logistic regression gets {share:.2f} of the sample's test images right. A network has to beat that, and not "
        "0.1, before one may say that its features are worth anything."
    )


# -- 03 Logistic regression --------------------------------------------------------------------------------------------


@_judged
def stronger_penalty(
    guess: Mapping[str, str], train: DataFrame, test: DataFrame, weak: float = 0.03, strong: float = 3.0
) -> str:
    """Which way accuracy, sureness and weights go when λ grows, ``"up"``, ``"down"`` or ``"same"``."""

    def measure(strength: float) -> dict[str, float]:
        model = recipe().classifier(regParam=strength).fit(train)
        result = evaluate(model.transform(test))
        return {
            "accuracy": result.accuracy,
            "mean probability of the answer": float(result.confidence.mean()),
            "sum of the weights' sizes": float(np.abs(model.coefficientMatrix.toArray()).sum()),
        }

    before, after = measure(weak), measure(strong)
    _directions(guess, before, after, same=0.03)
    sure = "mean probability of the answer"
    return (
        f"From λ = {weak:g} to {strong:g} the accuracy goes from {before['accuracy']:.2f} to {after['accuracy']:.2f}, "
        f"the mean probability of the answer from {before[sure]:.2f} to {after[sure]:.2f}. Small weights give small "
        "differences of scores: nearly the same answers, much less sure."
    )


@_judged
def probabilities(function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> str:
    """``function(weights, intercepts, features)``: the softmax, (images, classes), from (classes, d), (classes,) and
    (images, d).
    """
    chance = np.random.default_rng(3)
    weights, intercepts, features = (chance.normal(0, 1, shape) for shape in ((4, 6), 4, (5, 6)))
    scores = features @ weights.T + intercepts
    got = np.asarray(_call(function, weights, intercepts, features))
    if got.shape == scores.T.shape:
        raise Fault(f"you give {got.shape}, a row a class; give a row an image, {scores.shape}: features @ weights.T")
    if got.shape != scores.shape:
        raise Fault(f"you give the shape {got.shape}; wanted is a row an image and a column a class, {scores.shape}.")
    usual = {
        "these are the scores; the softmax is missing": scores,
        "each column adds up to 1; an image's probabilities are a row, so sum over axis=1": softmax(scores, axis=0),
        "everything together adds up to 1; each image's row is to: sum over axis=1, keepdims=True": softmax(scores),
        "the intercepts are missing from the scores": softmax(features @ weights.T, axis=1),
        "the rows do not add up to 1; divide each by its sum": np.exp(scores),
        "each class is judged by itself (a sigmoid); in a softmax the classes compete": 1 / (1 + np.exp(-scores)),
    }
    if not _is(got, softmax(scores, axis=1)):
        _name_mistake(got, usual)
        raise Fault(
            f"the first image's row is {np.round(got[0], 3)}; by the formula it is {softmax(scores[0]).round(3)}."
        )
    with np.errstate(all="ignore"):  # the reader's function may overflow, which is the point
        large = np.asarray(function(weights, intercepts, 500 * features))
    if not _is(large, softmax(500 * features @ weights.T + intercepts, axis=1)):
        raise Fault(
            "right for small scores, but e to the power of a thousand is too large for any float. Subtract each "
            "image's largest score first: the probabilities stay the same."
        )
    return "That is all that the model computes: ten scores, and one softmax in which the classes compete."


@_judged
def trained_pipeline(
    model: PipelineModel, train: DataFrame, test: DataFrame, layer: str = "mixed2", image_size: int = 75
) -> str:
    """A fitted pipeline of featurizer (at ``layer``, at ``image_size`` pixels) and classifier, trained on ``train``."""
    if isinstance(model, Pipeline):
        raise Fault("this is the pipeline before fit, which has learned nothing; fit gives a PipelineModel.")
    if not isinstance(model, PipelineModel):
        raise Fault(f"wanted is a PipelineModel, what Pipeline(stages=[…]).fit gives, not {type(model).__name__}.")
    names = [type(stage).__name__ for stage in model.stages]
    if names != [DeepImageFeaturizer.__name__, LogisticRegressionModel.__name__]:
        raise Fault(f"its stages are {', '.join(names)}; wanted are the featurizer and the classifier, in this order.")
    featurizer, classifier = model.stages
    if featurizer.getLayer() != [layer]:
        raise Fault(
            f"the featurizer listens at {featurizer.getLayer() or 'the last layer'}; wanted is {layer!r} alone."
        )
    if featurizer.image_size() != image_size:
        raise Fault(f"the network sees {featurizer.image_size()} pixels; wanted are {image_size}.")
    if not classifier.hasSummary:
        raise Fault(
            "a model that was loaded does not tell what it was trained on; give the one that fit has just made."
        )
    learned = {row.path for row in classifier.summary.predictions.select("path").collect()}
    known, asked = ({row.path for row in side.select("path").collect()} for side in (train, test))
    if peeked := learned & asked:
        raise Fault(
            f"{len(peeked)} of its {len(learned)} training images are test images: any figure of it on the test would "
            "be about images it knows. Fit on the training images only."
        )
    if missing := known - learned:
        raise Fault(f"it was trained on {len(learned)} images; {len(missing)} more training images were there.")
    share = evaluate(model.transform(test)).accuracy
    return (
        f"One object from picture to digit, which has seen no test image and gets {share:.2f} of them right. Its "
        "featurizer came through fit as it was; only the classifier has learned."
    )


# -- 04 Evaluate -------------------------------------------------------------------------------------------------------


@_judged
def constant_answers(guess: Mapping[str, float], answer: int = 3, per_class: int = 10) -> str:
    """The figures of a model that gives one answer to everything, on ``per_class`` images of each of ten digits."""
    truth = np.repeat(np.arange(10), per_class)
    given = np.full(len(truth), answer)
    one = {"labels": [answer], "average": "macro", "zero_division": 0}
    figures = {
        "accuracy": accuracy_score(truth, given),
        f"recall of {answer}": recall_score(truth, given, **one),
        f"precision of {answer}": precision_score(truth, given, **one),
        "ROC AUC from labels": np.mean([roc_auc_score(truth == k, given == k) for k in range(10)]),
    }
    why = {
        "accuracy": "a tenth of the images is of that class, and only those are right",
        f"recall of {answer}": f"recall asks about images: of all {answer}, how many were found? It finds every one",
        f"precision of {answer}": f"precision asks about answers: of all that it calls {answer}, how many are?",
        "ROC AUC from labels": "it puts no image before another; that is guessing, and guessing has an area of its own",
    }
    _need(guess, figures)
    for name, figure in figures.items():
        if abs(_number(guess[name], name) - figure) > 0.005:
            raise Fault(f"{name}: you said {guess[name]:g}, it is {figure:g}; {why[name]}.")
    return (
        f"A perfect recall of {answer}, an AUC of one half, and a useless model: no figure by itself tells how good a "
        "classifier is, and an AUC of 0.5 is not half as good as one of 1."
    )


@_judged
def auc(function: Callable[[np.ndarray, np.ndarray], float]) -> str:
    """``function(positive, score)``: the chance that a positive image has the higher score, ties counting half."""
    chance = np.random.default_rng(4)
    positive = chance.random(60) < 0.3
    score = np.clip(0.35 + 0.2 * positive + chance.normal(0, 0.2, 60), 0, 1).round(1)
    got = _number(_call(function, positive, score), "the area")
    wanted = roc_auc_score(positive, score)
    gaps = score[positive][:, None] - score[~positive]
    above, tied = (gaps > 0).mean(), (gaps == 0).mean()
    everyone = score[:, None] - score
    usual = {
        "that is the area from labels, 0 or 1: you cut the scores at a threshold, and their order is gone. Compare the "
        "scores themselves": roc_auc_score(positive, score >= 0.5),
        "you count a pair of equal scores as lost; it is undecided, half a win": above,
        "you count a pair of equal scores as won; it is undecided, half a win": above + tied,
        "you count how often the positive image has the lower score": 1 - wanted,
        "you compare each image with all others; take pairs of one positive and one other image": np.mean(
            (everyone > 0) + 0.5 * (everyone == 0)
        ),
        "you divide by all pairs of images; divide by the number of positive ones times the number of others": (
            wanted * positive.mean() * (1 - positive.mean())
        ),
        "that is the share of right answers at a threshold of 0.5; an AUC has no threshold": np.mean(
            (score >= 0.5) == positive
        ),
    }
    if not _is(got, wanted):
        _name_mistake(got, usual)
        raise Fault(f"on 60 made-up images you get {got:.4f}; counted pair by pair it is {wanted:.4f}.")
    by_label = roc_auc_score(positive, score >= 0.5)
    return (
        f"{wanted:.3f} on made-up images, as scikit-learn has it. From labels, cut at 0.5, the same images give "
        f"{by_label:.3f}: many pairs are tied then, and a tie tells nothing of the order."
    )


@_judged
def paired(function: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[int, int, float]]) -> str:
    """``function(truth, first, second)``: images that only the first model, only the second gets right, and the p-value
    of a difference that large or larger, either way, if each of these images were a fair coin.
    """
    chance = np.random.default_rng(5)
    truth = chance.integers(0, 10, 200)
    first, second = (np.where(chance.random(200) < share, truth, chance.integers(0, 10, 200)) for share in (0.7, 0.8))
    cases = [
        (truth, first, second),
        (truth, second, first),
        (truth[:6], truth[:6], (truth[:6] + np.array([0, 0, 0, 0, 1, 1])) % 10),
    ]
    for case in cases:
        _look_at_pairs(_call(function, *case), *case)
    try:
        same = function(truth, truth, truth)
    except (ValueError, ZeroDivisionError) as problem:
        raise Fault(
            f"two models that never differ stop your function ({problem}); there is no difference: p = 1."
        ) from None
    if tuple(same) != (0, 0, 1):
        raise Fault(f"for two models that never differ you give {same}; no image speaks for either: 0, 0 and p = 1.")
    only_first, only_second, p = function(*cases[0])
    unpaired = abs((first == truth).mean() - (second == truth).mean())
    return (
        f"On 200 made-up images two models are {unpaired:.2f} apart in accuracy; {only_first} images speak for one, "
        f"{only_second} for the other, p = {p:.3f}. The images on which they agree say nothing about which is better."
    )


def _look_at_pairs(answer: Any, truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        raise Fault("give three things back: only first, only second, p.")
    got = [_number(value, what) for value, what in zip(answer, ("only first", "only second", "p"), strict=True)]
    one, two = first == truth, second == truth
    counts = [int((one & ~two).sum()), int((two & ~one).sum())]
    usual = {
        "you count all that each model gets right; leave out those that both do": [one.sum(), two.sum()],
        "you count wrong answers in place of right ones: the two counts are exchanged": counts[::-1],
        "you count images whose two answers differ; two different wrong answers speak for nobody": (
            [(first != second).sum()] * 2
        ),
    }
    if got[:2] != counts:
        _name_mistake(got[:2], usual)
        raise Fault(
            f"you count {got[0]:g} and {got[1]:g}; only the first model is right {counts[0]} times, "
            f"only the second {counts[1]} times."
        )
    p = binomtest(counts[0], sum(counts)).pvalue
    if not _is(got[2], p):
        for side in ("less", "greater"):
            if _is(got[2], binomtest(counts[0], sum(counts), alternative=side).pvalue):
                raise Fault("your p is one-sided; before looking nobody knew which model would win: count both sides.")
        raise Fault(
            f"for {counts[0]} against {counts[1]} you give p = {got[2]:.4f}; of {sum(counts)} throws of a fair coin it "
            f"is {p:.4f} (scipy.stats.binomtest)."
        )


# -- 05 Tune on Spark --------------------------------------------------------------------------------------------------


@_judged
def search_cost(guess: Mapping[str, int], choices: Mapping[str, Sequence[Any]], folds: int) -> str:
    """Settings, fits and passes of the network of a cross-validation whose features are columns.

    ``choices``: values by name; ``pooling``, ``image size`` and ``layer`` are the featurizer's.
    """
    settings = list(product(*choices.values()))
    names = list(choices)
    passes = {(s[names.index("pooling")], s[names.index("image size")]) for s in settings}
    figures = {"settings": len(settings), "fits": folds * len(settings) + 1, "passes of the network": len(passes)}
    _need(guess, figures)
    got = {name: _number(guess[name], name) for name in figures}
    if got["settings"] != figures["settings"]:
        counts = " x ".join(str(len(values)) for values in choices.values())
        raise Fault(f"settings: you said {got['settings']:,g}; a grid takes each value with each other one: {counts}.")
    if got["fits"] == figures["fits"] - 1:
        raise Fault("fits: one is missing; the best setting is trained again, on all folds together.")
    if got["fits"] == folds * len(settings) + len(passes):
        raise Fault(
            "fits: you count a best setting for each pass; one CrossValidator has one, and trains it once more."
        )
    if got["fits"] != figures["fits"]:
        raise Fault(f"fits: you said {got['fits']:,g}; each setting is trained once a fold, and the best once more.")
    if got["passes of the network"] != figures["passes of the network"]:
        raise Fault(
            f"passes: you said {got['passes of the network']:,g}. One pass can be listened to at all layers, and the "
            "classifier's settings and the folds read columns: only pooling and size need a new one."
        )
    return (
        f"{figures['fits']} fits, and {len(passes)} passes of the network. In one pipeline of featurizer and "
        f"classifier each fit would begin with the pictures: {figures['fits']} passes over the images of its folds."
    )


@_judged
def folds_by_writer(function: Callable[[DataFrame, int], DataFrame], folds: int = 3) -> str:
    """``function(digits, folds)``: the frame with an int column ``fold``, 0 to folds − 1; a writer is in one fold."""
    dealt = []
    for digits in _spread(("label", "writer", "path"), "label int, writer string, path string"):
        frame = _call(function, digits, folds)
        if not isinstance(frame, DataFrame) or "fold" not in frame.columns:
            raise Fault("give the Spark frame back, with a column 'fold'.")
        rows = frame.select("path", "writer", "fold").collect()
        _look_at_folds(rows, digits.count(), folds)
        dealt.append({row.path: row.fold for row in rows})
    if dealt[0] != dealt[1]:
        moved = sum(dealt[0][path] != dealt[1][path] for path in dealt[0])
        raise Fault(
            f"the same rows over 2 and over 8 partitions are dealt out differently: {moved} images change their fold. "
            "Let a fold depend on the writer's name, not on the place of a row."
        )
    sizes = Counter(dealt[0].values())
    return (
        f"Folds of {', '.join(str(sizes[fold]) for fold in range(folds))} images, each writer in one of them: "
        "validation asks about hands that training has not met."
    )


def _look_at_folds(rows: list[Row], images: int, folds: int) -> None:
    if len(rows) != images:
        raise Fault(f"{images} images went in and {len(rows)} came back; deal out each of them once.")
    if empty := sum(row.fold is None for row in rows):
        raise Fault(f"{empty} images have no fold (null); give every writer one.")
    sizes = Counter(row.fold for row in rows)
    if not set(sizes) <= set(range(folds)):
        raise Fault(f"your folds are {sorted(sizes)}; CrossValidator numbers {folds} folds 0 to {folds - 1}.")
    of_writer = defaultdict(set)
    for row in rows:
        of_writer[row.writer].add(row.fold)
    if torn := sorted(writer for writer, found in of_writer.items() if len(found) > 1):
        raise Fault(
            f"{len(torn)} of {len(of_writer)} writers are in several folds, {torn[0]} for one in "
            f"{', '.join(map(str, sorted(of_writer[torn[0]])))}: you deal out images. Deal out writers."
        )
    largest, smallest = (pick(range(folds), key=lambda fold: sizes[fold]) for pick in (max, min))
    if sizes[largest] > 1.25 * sizes[smallest]:
        raise Fault(
            f"fold {largest} has {sizes[largest]} of {images} images and fold {smallest} has {sizes[smallest]}. Number "
            "the writers and deal them out in turn, then the folds are about equal."
        )


@_judged
def cautious(function: Callable[[pd.DataFrame, int], Any]) -> str:
    """``function(tried, folds)``: the index of the smallest ``size`` (then the lowest ``score``) within one standard
    error of the lowest score. ``tried`` has ``score`` (a log loss), ``spread`` (over folds, divided by n) and ``size``.
    """

    def within(tried: pd.DataFrame, divide_by: float) -> pd.DataFrame:
        best = tried.loc[tried["score"].idxmin()]
        return tried[tried["score"] <= best["score"] + best["spread"] / divide_by]

    def first(tried: pd.DataFrame, largest: bool = False) -> Any:
        return tried.sort_values(["size", "score"], ascending=[not largest, True]).index[0]

    def rule(tried: pd.DataFrame, n: int) -> Any:
        return first(within(tried, (n - 1) ** 0.5))

    usual: dict[str, Callable[[pd.DataFrame, int], Any]] = {
        "you take the winner; the rule takes the cheapest setting that is not clearly worse": (
            lambda tried, n: tried["score"].idxmin()
        ),
        "you take the highest score; of a log loss the lowest is best": lambda tried, n: tried["score"].idxmax(),
        "you take the cheapest of all settings, also of those that are clearly worse": lambda tried, n: first(tried),
        "of those within the error you take the largest images; the smallest are the cheapest": (
            lambda tried, n: first(within(tried, (n - 1) ** 0.5), largest=True)
        ),
        "of equally small ones you do not take the one with the lowest score": (
            lambda tried, n: within(tried, (n - 1) ** 0.5)["size"].idxmin()
        ),
        "you take the spread for the standard error; divide it by the root of folds − 1": (
            lambda tried, n: first(within(tried, 1))
        ),
        "divide the spread by the root of folds − 1, not of folds: Spark's spread is over n, an estimate takes n − 1": (
            lambda tried, n: first(within(tried, n**0.5))
        ),
    }
    chance = np.random.default_rng(6)
    cases = []
    for _ in range(60):
        tried = pd.DataFrame(
            {
                "score": chance.normal(0.06, 0.01, 12).round(4),
                "spread": chance.uniform(0.004, 0.012, 12).round(4),
                "size": chance.choice([75, 96, 128, 192], 12),
            },
            index=chance.permutation(12),
        )
        cases.append((tried, int(chance.integers(3, 6))))
    got = [_call(function, tried.copy(), folds) for tried, folds in cases]
    for answer, (tried, _) in zip(got, cases, strict=True):
        if np.ndim(answer) or answer not in tried.index:
            raise Fault(
                f"give the row's index back, one of {', '.join(map(str, sorted(tried.index)))}, not {answer!r}."
            )
    if wrong := sum(answer != rule(*case) for answer, case in zip(got, cases, strict=True)):
        _name_mistake(got, {mistake: [other(*case) for case in cases] for mistake, other in usual.items()})
        raise Fault(
            f"in {wrong} of {len(cases)} made-up tables another row is right. Take the rows whose score is at most the "
            "lowest score plus its standard error; of these the smallest size, and of equal sizes the lowest score."
        )
    return (
        "The cheapest setting that is not clearly worse than the winner. What lies within the error may be ahead by "
        "luck alone, so let the price decide."
    )


# -- 06 Your own Keras model -------------------------------------------------------------------------------------------


@_judged
def wrong_scale(guess: Mapping[str, str], model: keras.Model, test: DataFrame) -> str:
    """Which way a model's figures go when it learned from pixels of 0 to 1 and is fed 0 to 255."""

    def measure(preprocess: str) -> dict[str, float]:
        stage = KerasImageTransformer(model=model, preprocess=preprocess, outputCol="p", errorCol="why")
        rows = stage.transform(test).select("label", "p", "why").collect()
        p = np.stack([row.p.toArray() for row in rows if row.p is not None])
        right = [row.label == row.p.argmax() for row in rows if row.p is not None]
        return {
            "accuracy": float(np.mean(right)),
            "mean probability of the answer": float(p.max(axis=1).mean()),
            "images with an error": float(sum(row.why is not None for row in rows)),
        }

    before, after = measure("unit"), measure("none")
    _directions(guess, before, after, same=0.03)
    accuracy, sure = "accuracy", "mean probability of the answer"
    return (
        f"Fed 0 to 255, the same weights get {after[accuracy]:.2f} right in place of {before[accuracy]:.2f}, with a "
        f"mean probability of {after[sure]:.2f} in place of {before[sure]:.2f}. No error, no warning, only certainty. "
        "Write down how a model's pixels were scaled, where nobody can lose it."
    )


@_judged
def scaling_inside(function: Callable[[keras.Model], keras.Model]) -> str:
    """``function(model)``: a Keras model of pixels 0 to 255 that gives what ``model`` gives for them over 255."""
    import keras

    chance = np.random.default_rng(8)
    inputs = keras.Input((6, 6, 1))
    inner = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(inputs)))
    # small weights, so that pixels of 0 to 255 do not drive the softmax to 0 and 1, where all wrong scales look alike
    weights = [chance.normal(0, 0.005, values.shape) for values in inner.get_weights()]
    inner.set_weights(weights)
    x = chance.integers(0, 256, (20, 6, 6, 1)).astype(np.float32)
    try:
        made = _call(function, inner)
    except ValueError as problem:
        if f"expected shape={inner.input_shape}" not in str(problem):
            raise
        raise Fault(
            f"the model that the check gives takes {inner.input_shape}, and yours gives it something else; take the "
            "size from the model: keras.Input(model.input_shape[1:])."
        ) from None
    if not isinstance(made, keras.Model):
        raise Fault(f"give a Keras model back, keras.Model(inputs, outputs), not {type(made).__name__}.")
    if made.input_shape != inner.input_shape:
        raise Fault(
            f"your model takes {made.input_shape}; it is to take what the first one takes, {inner.input_shape}."
        )
    if not all(map(_is, inner.get_weights(), weights)):
        raise Fault("you changed the weights of the model that was given; leave it, and put a layer in front of it.")

    def given(scaled: np.ndarray) -> np.ndarray:
        return np.asarray(inner(scaled))

    got = np.asarray(made(x))
    if not _is(got, given(x / 255), 1e-4):
        usual = {
            "the pixels reach the model as they are, 0 to 255; divide them by 255 first": given(x),
            "you multiply the pixels by 255; Rescaling takes what to multiply with, 1 / 255": given(x * 255),
            "you scale to −1 … 1; this model learned from 0 … 1": given(x / 127.5 - 1),
            "the pixels are divided by 255 twice": given(x / 255**2),
        }
        if got.shape == usual[next(iter(usual))].shape:
            _name_mistake(got, usual, 1e-4)
        raise Fault("on random pixels your model does not give what the first one gives for the same pixels over 255.")
    rows = [(tuple(_image_row(array)),) for array in _images().values()]
    frame = _spark().createDataFrame(rows, f"image {IMAGE_TYPE.simpleString()}")

    def as_stage(model: keras.Model, preprocess: str) -> np.ndarray:
        stage = KerasImageTransformer(model=model, preprocess=preprocess, outputCol="p")
        return np.stack([row.p.toArray() for row in stage.transform(frame).collect()])

    outside = as_stage(inner, "unit")
    try:
        inside = as_stage(made, "none")
    except ValueError as problem:
        raise Fault(f"as a stage your model is refused: {problem}") from None
    if not _is(inside, outside, 1e-4):
        raise Fault('as a stage with preprocess="none" your model gives something else than in Keras.')
    return (
        'With preprocess="none" it gives as a stage what the first gives with "unit". Now the scale travels inside the '
        "file, and nobody has to remember it."
    )


@contextlib.contextmanager
def _no_log_of_sql() -> Iterator[None]:
    """Here an error in SQL is raised and not logged as well; Spark's Python side logs it with Java's stack trace."""
    logger = PySparkLogger.getLogger("SQLQueryContextLogger")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@_judged
def confusions(query: str) -> str:
    """SQL over the view ``digits`` with the function ``digit(image)``: ``label``, ``read_as`` and ``images`` of each
    kind of error, most frequent first.
    """
    spark = _spark()
    if not isinstance(query, str):
        raise Fault(f"give the query as a text, not {type(query).__name__}.")
    try:
        with _no_log_of_sql():
            found = spark.sql(query)
            rows = [tuple(row) for row in found.collect()]
    except AnalysisException as problem:
        raise Fault(f"Spark does not take the query: {str(problem).splitlines()[0]}") from None
    if found.columns != ["label", "read_as", "images"]:
        raise Fault(f"its columns are {', '.join(found.columns)}; wanted are label, read_as and images, in this order.")
    answers = [tuple(row) for row in spark.sql("SELECT label, digit(image) AS read_as FROM digits").collect()]
    rows = [(int(label), None if read is None else int(read), images) for label, read, images in rows]
    usable = [(label, int(read)) for label, read in answers if read is not None]
    wanted = Counter(pair for pair in usable if pair[0] != pair[1])
    counted = {(label, read): images for label, read, images in rows}
    if any(label == read for label, read in counted):
        raise Fault("right answers are among them; keep the rows WHERE digit(image) is not the label.")
    if any(read is None for _, read in counted):
        raise Fault("images that could not be read, NULL, are among them; nothing was read there, rightly or wrongly.")
    if counted == {(read, label): images for (label, read), images in wanted.items()} != wanted:
        raise Fault("label and read_as are exchanged; label is what the digit is, read_as what the function says.")
    if len(rows) < len(wanted) and set(counted.items()) <= set(wanted.items()):
        raise Fault(f"{len(rows)} kinds of error came back and there are {len(wanted)}; leave out LIMIT and HAVING.")
    if len(rows) > len(counted):
        raise Fault("a kind of error stands in several rows; GROUP BY label and what was read, by nothing else.")
    if counted != wanted:
        raise Fault(
            f"your rows count {sum(counted.values())} errors of {len(counted)} kinds; {len(usable)} images were read, "
            f"{sum(wanted.values())} of them wrongly, in {len(wanted)} kinds."
        )
    if (numbers := [images for *_, images in rows]) != sorted(numbers, reverse=True):
        raise Fault("the most frequent error is not the first row; ORDER BY images DESC.")
    most = max(wanted.values(), default=0)
    return (
        f"{sum(wanted.values())} of {len(usable)} images are read wrongly, in {len(wanted)} kinds of error; the most "
        f"frequent happens {most} times. Nobody who asks such questions needs Python, once a model is registered."
    )


# -- 07 Harder digits --------------------------------------------------------------------------------------------------


@_judged
def higher_threshold(guess: Mapping[str, str], evaluation: Evaluation, low: float = 0.7, high: float = 0.95) -> str:
    """Which way the answers go when only those of confidence ``high`` are given, and no longer all from ``low`` on."""
    right = evaluation.truth == evaluation.predicted

    def measure(threshold: float) -> dict[str, float]:
        kept = evaluation.confidence >= threshold
        if not kept.any():
            raise ValueError(f"higher_threshold: no answer has a confidence of {threshold:g}")
        return {
            "share of images answered": float(kept.mean()),
            "share of wrong among the answers": float((~right)[kept].mean()),
            "share of all images answered rightly": float((right & kept).mean()),
        }

    before, after = measure(low), measure(high)
    _directions(guess, before, after, same=0.005)
    wrong, good = "share of wrong among the answers", "share of all images answered rightly"
    return (
        f"Of the answers {after[wrong]:.2f} are wrong in place of {before[wrong]:.2f}; the price is right answers "
        f"withheld, {before[good] - after[good]:.2f} of all images. On images this hard no threshold makes the errors "
        "go away."
    )


@_judged
def fading(function: Callable[[np.ndarray, float], np.ndarray]) -> str:
    """``function(pixels, severity)``: ink that fades into the paper (each channel's median), at severity 1 entirely."""
    chance = np.random.default_rng(7)
    papers = {"dark ink on light paper": (40, (225, 215, 235)), "light ink on dark paper": (230, (25, 35, 15))}
    for what, (ink, paper) in papers.items():
        image = np.clip(np.array(paper) + chance.integers(-8, 9, (40, 30, 3)), 0, 255).astype(np.uint8)
        image[10:30, 12:18] = ink
        middle = np.median(image, axis=(0, 1))
        for severity in (0.0, 0.5, 1.0):
            given = image.copy()
            got = np.asarray(_call(function, given, severity))
            wanted = np.rint(image + severity * (middle - image))
            if not np.array_equal(given, image):
                raise Fault("you change the image that was given to you, and every later version starts from it; copy.")
            if got.shape != image.shape:
                raise Fault(f"an image of {image.shape} came back as {got.shape}.")
            if got.dtype != np.uint8:
                raise Fault(f"the pixels came back as {got.dtype}; Spark's image holds bytes: round, then uint8.")
            _look_at_faded(f"{what}, severity {severity:g}", got, wanted, image, severity)
    return (
        "The same in steps from the image as it is to bare paper, whatever the paper's colour. distort_images does the "
        "rest: one row a version, and a model that need not know."
    )


def _look_at_faded(what: str, got: np.ndarray, wanted: np.ndarray, image: np.ndarray, severity: float) -> None:
    if np.abs(got - wanted).max() <= 1:  # round or cut off
        return

    def towards(aim: np.ndarray | float, share: float = severity) -> np.ndarray:
        return image + share * (aim - image)

    usual = {
        "the severity is the wrong way round: 0 is the image as it is": (
            towards(np.median(image, axis=(0, 1)), 1 - severity)
        ),
        "it fades to white, whatever the paper; take the median of each channel": towards(255.0),
        "it fades to one grey; take the median of each channel, so that the paper keeps its colour": (
            towards(np.median(image))
        ),
        "it fades to the mean, which the ink has a share in; the median is the paper": towards(image.mean(axis=(0, 1))),
    }
    _name_mistake(got, {f"{what}: {mistake}": values for mistake, values in usual.items()}, tolerance=1)
    off = np.abs(got - wanted).max()
    raise Fault(f"{what}: a pixel is off by {off:.0f}. Go from each pixel towards the paper, by the share severity.")


@_judged
def calibration_error(function: Callable[[np.ndarray, np.ndarray], float], evaluation: Evaluation) -> str:
    """``function(confidence, right)``: the expected calibration error in ten steps of confidence."""
    # the same answers, the sure half wrong and the unsure half right: gaps of both signs
    sure = evaluation.confidence >= np.median(evaluation.confidence)
    turned = replace(evaluation, truth=np.where(sure, (evaluation.predicted + 1) % 10, evaluation.predicted))
    for one in (turned, evaluation):
        confidence, right = one.confidence, one.truth == one.predicted
        got = _number(_call(function, confidence.copy(), right.copy()), "the calibration error")
        _look_at_error(got, confidence, right, one.reliability())
    return (
        f"{got:.2f}: by so much accuracy ({right.mean():.2f} over all) and promise ({confidence.mean():.2f}) are "
        "apart, step by step. With few images chance alone opens gaps, so say how many there were."
    )


def _look_at_error(got: float, confidence: np.ndarray, right: np.ndarray, steps: Reliability) -> None:
    table, gap = steps.table, steps.table["accuracy"] - steps.table["confidence"]
    share = table["images"] / table["images"].sum()
    usual = {
        "gaps of opposite sign cancel: take each without its sign before you average": abs((share * gap).sum()),
        "every step counts the same, be there one image in it or a hundred; weight by its images": gap.abs().mean(),
        "you divide by ten, empty steps too; weight each by its images": gap.abs().sum() / 10,
        "that is the error rate; calibration compares it with what the model promised": 1 - right.mean(),
        "you take the gap of each image, |right − confidence|; a single answer is right or wrong and cannot be "
        "calibrated. Average within each step first": np.abs(right - confidence).mean(),
        "that is the largest gap of a step; wanted is their mean": gap.abs().max(),
    }
    if not _is(got, steps.error, 1e-4):
        _name_mistake(abs(got), usual, 1e-4)
        raise Fault(
            f"you get {got:.4f}; the sum over the steps of (images / all images) · |accuracy − mean confidence| is "
            f"{steps.error:.4f}. The steps are 0–0.1, 0.1–0.2 and so on."
        )


# -- 08 Laptop to cluster ----------------------------------------------------------------------------------------------


@_judged
def pieces_of_work(
    guess: Mapping[str, int],
    images: int = 500,
    partitions: int = 4,
    arrow_batch: int = 50,
    batch_size: int = 32,
    cores: int = 3,
) -> str:
    """Tasks, rounds of the cores, Arrow batches and runs of the network of a frame, by a run of such a frame."""
    spark = _spark()

    def note(ids: pa.Array) -> pa.Array:
        from pyspark import TaskContext

        return pa.array([f"{TaskContext.get().partitionId()} {ids[0].as_py()} {len(ids)}"] * len(ids))

    setting = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(setting)
    spark.conf.set(setting, str(arrow_batch))
    try:
        noted = spark.range(images, numPartitions=partitions).select(F.arrow_udf(note, "string")("id").alias("seen"))
        seen = {tuple(map(int, row.seen.split())) for row in noted.collect()}
    finally:
        spark.conf.set(setting, before)
    tasks = len({partition for partition, *_ in seen})
    sizes = [size for partition, _, size in seen if partition == 0]
    figures = {
        "tasks": tasks,
        "rounds of the cores": -(-tasks // cores),
        "Arrow batches of a task": len(sizes),
        "runs of the network in a task": sum(-(-size // batch_size) for size in sizes),
    }
    _need(guess, figures)
    got = {name: _number(guess[name], name) for name in figures}
    why = {
        "tasks": "a partition becomes one task, however many cores there are",
        "rounds of the cores": f"a core has one task at a time, so {cores} cores begin with {cores} of {tasks} tasks, "
        "and one that is left is a round of its own",
        "Arrow batches of a task": f"a task has {sum(sizes)} images, and they go to Python {arrow_batch} at a time; "
        "what is left is a batch, too",
        "runs of the network in a task": f"the network takes up to {batch_size} images of one Arrow batch, and never "
        "waits for the next one to fill up",
    }
    for name, figure in figures.items():
        if got[name] != figure:
            raise Fault(f"{name}: you said {got[name]:g}; {why[name]}.")
    return (
        f"So it came when {images} rows were run in {partitions} partitions: Arrow batches of "
        f"{', '.join(str(size) for size in sorted(sizes, reverse=True))}. In the second round "
        f"{partitions - cores} of {cores} cores is busy and the others wait; with more and smaller partitions the end "
        "is more even."
    )


@_judged
def bill(function: Callable[[int, float, int, int, float], tuple[float, float]]) -> str:
    """``function(images, rate, measured_on, cores, start)``: hours and core-hours on ``cores`` cores, by ``rate``
    images per second measured on ``measured_on`` cores; ``start`` seconds of starting do not shrink, and are paid for.
    """

    def right(images: int, rate: float, measured_on: int, cores: int, start: float) -> tuple[float, float]:
        hours = (start + images / (rate / measured_on * cores)) / 3600
        return hours, hours * cores

    case = (90_000, 25.0, 2, 16, 120.0)
    images, rate, measured_on, cores, start = case
    hours, paid = right(*case)
    work = images / (rate / measured_on * cores)
    usual = {
        "that is in seconds; give hours": hours * 3600,
        "that is in minutes; give hours": hours * 60,
        f"you take the rate for one core's; it was measured on {measured_on} together": (
            (start + images / (rate * cores)) / 3600
        ),
        "you take the rate as it was measured; with other cores it is another one": (start + images / rate) / 3600,
        "the seconds of starting are missing": work / 3600,
        "you divide the seconds of starting by the cores; all of them wait until everything is started": (
            (start / cores + work) / 3600
        ),
    }
    for now in (case, (5_000, 400.0, 8, 4, 30.0), (1_000, 12.5, 1, 64, 0.0)):
        answer = _call(function, *now)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise Fault("give two things back, return hours, core_hours.")
        got = [_number(value, what) for value, what in zip(answer, ("hours", "core-hours"), strict=True)]
        wanted = right(*now)
        if not _is(got[0], wanted[0]):
            if now == case:
                _name_mistake(got[0], usual)
            raise Fault(f"{now} gives {got[0]:.4f} hours; it is {wanted[0]:.4f}.")
        if not _is(got[1], wanted[1], 1e-4):
            if now == case:
                names = {
                    "core-hours: somebody pays for each of the cores, so multiply the hours by them": hours,
                    "core-hours: you pay for the work only; the cores cost while they start, too": work * cores / 3600,
                    "core-hours: you take the cores on which was measured; the bill is for those that run": (
                        hours * measured_on
                    ),
                }
                _name_mistake(got[1], names, 1e-4)
            raise Fault(f"{now} gives {got[1]:.4f} core-hours; it is {wanted[1]:.4f}.")
    alone, many = right(images, rate, measured_on, 1, start), right(images, rate, measured_on, 1024, start)
    return (
        f"{images:,} images at {rate:g} a second on {measured_on} cores: {alone[1]:.1f} core-hours on one core, "
        f"{paid:.1f} on {cores}, {many[1]:.1f} on 1024. What does not shrink is paid for on every core, so the fastest "
        "cluster is not the cheapest."
    )


@_judged
def lost_partitions(function: Callable[[pd.DataFrame, str, float], Any]) -> str:
    """``function(tasks, executor, at)``: sorted numbers of the partitions that an executor which dies after ``at``
    seconds had begun and not finished. ``tasks`` has ``partition``, ``executor``, ``start`` and ``end``, seconds
    of an undisturbed run.
    """

    def running(tasks: pd.DataFrame, executor: str, at: float) -> pd.Series:
        return (tasks["executor"] == executor) & (tasks["start"] <= at) & (at < tasks["end"])

    usual: dict[str, Callable[[pd.DataFrame, str, float], pd.Series]] = {
        "you name all that the executor ever had; what it finished has been handed in and written, and what it had not "
        "begun, others begin": lambda t, e, at: t["executor"] == e,
        "partitions that it had finished are among them; their features are handed in and written": (
            lambda t, e, at: (t["executor"] == e) & (t["start"] <= at)
        ),
        "partitions that it had not begun are among them; there is no work of theirs to lose": (
            lambda t, e, at: (t["executor"] == e) & (t["end"] > at)
        ),
        "you name what it had finished, which is safe": lambda t, e, at: (t["executor"] == e) & (t["end"] <= at),
        "you name what the other executors were at; they go on": (
            lambda t, e, at: (t["executor"] != e) & (t["start"] <= at) & (at < t["end"])
        ),
        "you name what all executors were at; only one has died": lambda t, e, at: (t["start"] <= at) & (at < t["end"]),
    }
    chance = np.random.default_rng(9)
    cases = []
    for _ in range(20):
        cases.append((_made_up_tasks(chance), str(chance.integers(0, 3)), round(float(chance.uniform(2, 12)), 2)))
    got = [_call(function, tasks.copy(), executor, at) for tasks, executor, at in cases]
    for answer in got:
        if np.ndim(answer) != 1:
            raise Fault(f"give the partitions' numbers back as a list, sorted, not {answer!r}.")
    got = [list(answer) for answer in got]

    def named(rule: Callable[[pd.DataFrame, str, float], pd.Series]) -> list[list[int]]:
        return [sorted(case[0].loc[rule(*case), "partition"].tolist()) for case in cases]

    if got != (wanted := named(running)):
        for mistake, rule in usual.items():
            if [sorted(answer) for answer in got] == named(rule):
                raise Fault(f"{mistake}.")
        if [sorted(answer) for answer in got] == wanted:
            raise Fault("the right partitions, but not in order; sort them.")
        wrong = sum(one != other for one, other in zip(got, wanted, strict=True))
        raise Fault(f"in {wrong} of {len(cases)} made-up runs other partitions are lost; look who ran what, and when.")
    most, partitions = max(map(len, wanted)), len(cases[0][0])
    return (
        f"In {len(cases)} made-up runs of {partitions} partitions at most {most} are lost, one for each core of "
        "the dead executor. They are computed again, the same bits, since a task depends on its partition alone."
    )


def _made_up_tasks(chance: np.random.Generator, executors: int = 3, cores: int = 2, each: int = 4) -> pd.DataFrame:
    """Tasks of executors whose cores take partitions one after the other, a pause between."""
    rows = []
    for executor, _ in product(range(executors), range(cores)):
        now = 0.0
        for _ in range(each):
            start = now + chance.uniform(0.05, 0.5)
            now = start + chance.uniform(1.5, 4)
            rows.append((str(executor), round(start, 2), round(now, 2)))
    table = pd.DataFrame(rows, columns=["executor", "start", "end"])
    table.insert(0, "partition", chance.permutation(len(table)))
    return table.sort_values("start", ignore_index=True)
