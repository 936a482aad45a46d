"""The exercises: right answers pass, usual mistakes are named, and the notebooks hold no solutions."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow as pa
import pytest
from conftest import FAST, image_frame, picture
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from pyspark.errors import AnalysisException, PythonException
from pyspark.logger import PySparkLogger
from pyspark.ml import Pipeline, Transformer
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.sql import Row, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_type
from scipy.special import softmax
from scipy.stats import binomtest

from helpers import exercises as check
from helpers.evaluation import evaluate
from helpers.featurizer import DeepImageFeaturizer, KerasImageTransformer, pixels, run_network
from helpers.numtadb import IMAGE_TYPE, assign_folds, image_struct, read_digits, train_test_split

ROOT = Path(__file__).resolve().parent.parent
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
LESSONS = sorted((ROOT / "notebooks").glob("0[1-8]_*.ipynb"))  # 00 is the front door, 09 a report

spec = importlib.util.spec_from_file_location("make_exercises", ROOT / "notebooks" / "make_exercises.py")
make_exercises = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_exercises)


def nothing(*_: object) -> None:
    """A function as the stub leaves it."""


def passes(verdict: check.Verdict) -> None:
    assert verdict.right, verdict
    assert repr(verdict).startswith("Right. ") and len(verdict.message) > 40


def fails(verdict: check.Verdict, *parts: str) -> None:
    assert not verdict.right, verdict
    assert repr(verdict).startswith("Not yet: ")
    for part in parts:
        assert part in verdict.message, verdict


def test_a_missing_answer_is_called_missing():
    for answer in (..., None, {"accuracy": ...}):
        fails(check.constant_answers(answer), "no answer yet")
    fails(check.auc(nothing), "nothing gives nothing back")
    fails(check.auc(0.5), "your function itself")


def test_a_readers_own_error_is_shown_as_it_is():
    with pytest.raises(ZeroDivisionError):
        check.auc(lambda positive, score: 1 / 0)


def test_a_verdict_keeps_to_the_width_of_a_page():
    assert all(len(line) <= check.WIDTH for line in repr(check.Verdict(False, "word " * 100)).splitlines())


# -- 01 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guess", [20, 15, np.int64(25)])
def test_shared_test_images(spark, guess):
    passes(check.shared_test_images(guess))


@pytest.mark.parametrize(
    ("guess", "said"),
    [(0, "does not avoid it"), (100, "no detail"), (101, "cannot share 101"), ("a few", "one number"), (-1, "-1")],
)
def test_shared_test_images_wrong(spark, guess, said):
    fails(check.shared_test_images(guess), said)


def array_of(image: Any) -> np.ndarray:
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, image.nChannels)


def to_rgb(image: Any) -> np.ndarray:
    array = array_of(image)
    return np.repeat(array, 3, axis=2) if image.nChannels == 1 else array[:, :, 2::-1]


def test_rgb_pixels():
    passes(check.rgb_pixels(to_rgb))


RGB_MISTAKES = [
    (lambda im: to_rgb(im)[:, :, ::-1], "turn the order of the channels"),
    (lambda im: to_rgb(im).swapaxes(0, 1), "height and width are exchanged"),
    (lambda im: to_rgb(im)[:, :, :1] if im.nChannels == 1 else to_rgb(im), "one channel"),
    (lambda im: to_rgb(im)[:, :, 0] if im.nChannels == 1 else to_rgb(im), "one channel"),
    (lambda im: array_of(im)[:, :, [2, 1, 0, 3]] if im.nChannels == 4 else to_rgb(im), "four channels"),
    (lambda im: array_of(im)[:, :, ::-1][:, :, :3] if im.nChannels == 4 else to_rgb(im), "alpha has come among"),
    (lambda im: to_rgb(im) / 255, "float64"),
    (lambda im: to_rgb(im)[::-1], "upside down"),
    (lambda im: to_rgb(im).ravel(), "the shape (4500,)"),
    (lambda im: to_rgb(im)[:, ::-1], "other pixels"),
    (nothing, "nothing back"),
]


@pytest.mark.parametrize(("function", "said"), RGB_MISTAKES, ids=[said for _, said in RGB_MISTAKES])
def test_rgb_pixels_wrong(function, said):
    fails(check.rgb_pixels(function), said)


def by(order: Callable, number: int = 10) -> Callable:
    """A split that takes the first ``number`` of each class in an order."""

    def split(digits):
        place = F.row_number().over(Window.partitionBy("label").orderBy(order()))
        numbered = digits.withColumn("place", place)
        return numbered.where(F.col("place") > number), numbered.where(F.col("place") <= number)

    return split


def test_honest_split(spark):
    passes(check.honest_split(by(lambda: F.sha2("path", 256))))
    passes(check.honest_split(train_test_split))


SPLIT_MISTAKES = [
    (lambda d: d.randomSplit([0.8, 0.2], 42), ("by image, not by class: class ", " test images, wanted 10")),
    (by(lambda: F.sha2("path", 256), number=9), ("has 9 test images, wanted 10",)),
    (by(lambda: F.col("path")), ("one end of the list of paths, from training-a only",)),
    (by(lambda: F.rand(seed=1)), ("over 2 and over 8 partitions", "depends on where a row stands")),
    (lambda d: by(lambda: F.sha2("path", 256))(d)[::-1], ("give training back first",)),
    (lambda d: (d, by(lambda: F.sha2("path", 256))(d)[1]), ("100 images are in training and in the test",)),
    (lambda d: (d.limit(0), by(lambda: F.sha2("path", 256))(d)[1]), ("0 and 100 images make 100; there were 500",)),
    (lambda d: train_test_split(d)[1], ("two Spark frames",)),
    (lambda d: tuple(side.drop("label") for side in train_test_split(d)), ("the column 'label' is lost",)),
]


@pytest.mark.parametrize(("function", "said"), SPLIT_MISTAKES, ids=[said[0] for _, said in SPLIT_MISTAKES])
def test_honest_split_wrong(spark, function, said):
    fails(check.honest_split(function), *said)


# -- 02 ----------------------------------------------------------------------------------------------------------------

FEATURES = {("avg", 96): 768, ("avg", 192): 768, ("flatten", 96): 12288, ("flatten", 192): 76800}


def test_feature_counts():
    passes(check.feature_counts(FEATURES))
    fails(check.feature_counts(FEATURES | {("avg", 192): 76800}), "avg at 192", "one number a channel", "10 x 10")
    fails(check.feature_counts(FEATURES | {("flatten", 96): 768}), "flatten at 96", "4 x 4 x 768")
    fails(check.feature_counts({("avg", 96): 768}), "no ('avg', 192)")
    fails(check.feature_counts([768]), "keep the answer a dict")


def fed(image: Any, size: int) -> np.ndarray:
    return np.float32(Image.fromarray(to_rgb(image)).resize((size, size), Image.Resampling.BILINEAR)) / 127.5 - 1


def thumbnail(image: Any, size: int) -> np.ndarray:
    """Keeps proportions, on black."""
    small = Image.fromarray(to_rgb(image))
    small.thumbnail((size, size), Image.Resampling.BILINEAR)
    frame = Image.new("RGB", (size, size))
    frame.paste(small)
    return np.float32(frame) / 127.5 - 1


FED_MISTAKES = [
    (lambda im, size: fed(im, size)[:, :, ::-1], "a colour image: red and blue are exchanged."),
    (lambda im, size: (fed(im, size) + 1) * 127.5, "a colour image: the values go from 0 to 255, and the network"),
    (lambda im, size: (fed(im, size) + 1) / 2, "a colour image: the values go from 0 to 1, and the network"),
    (lambda im, size: (fed(im, size)[:, :, ::-1] + 1) / 2, "exchanged and the values go from 0 to 1"),
    (lambda im, size: to_rgb(im) / 127.5 - 1, "the network takes (24, 24, 3)"),
    (thumbnail, "whatever the shape was"),
]


@pytest.mark.parametrize(("function", "said"), FED_MISTAKES, ids=[said for _, said in FED_MISTAKES])
def test_network_input(function, said):
    passes(check.network_input(fed))
    fails(check.network_input(function), said)


class Grid(Transformer):
    """The stage of the exercise; ``change`` is a mistake in its values, ``after`` one in its frame."""

    def __init__(self, change: Callable = lambda values: values, after: Callable = lambda frame: frame) -> None:
        super().__init__()
        self.change, self.after = change, after

    def _transform(self, dataset):
        change = self.change

        @F.udf("array<double>")
        def values(image):
            grid = image and pixels(image.height, image.width, image.nChannels, image.data, 8).mean(axis=2) / 255
            made = change(grid)
            return None if made is None else np.asarray(made).ravel().tolist()

        column = values("image")
        made = dataset.withColumn("features", F.when(column.isNotNull(), array_to_vector(column)))
        return self.after(made)


def test_ink_grid(spark, monkeypatch):
    monkeypatch.setattr(check, "_grid_accuracy", lambda stage: "the accuracy is left out here, for its time.")
    passes(check.ink_grid(Grid()))


def test_ink_grid_is_set_beside_a_network(spark, monkeypatch):
    few = check.read_digits().where("label < 2 AND source = 'training-a'")
    monkeypatch.setattr(check, "read_digits", lambda: few)
    assert "gets 0." in check._grid_accuracy(Grid()) or "gets 1." in check._grid_accuracy(Grid())


GRID_MISTAKES = [
    (Grid(lambda v: v if v is None else v * 255), "from 0 to 255"),
    (Grid(lambda v: v if v is None else 1 - v), "how dark"),
    (Grid(lambda v: v if v is None else v.T), "column by column"),
    (Grid(lambda v: v if v is None else v[::-1]), "start at the bottom"),
    (Grid(lambda v: v if v is None else v[:, ::-1]), "a place is off by"),
    (Grid(lambda v: v if v is None else v[:4]), "has 32 features"),
    (Grid(lambda v: [0.0] * 64 if v is None else v), "a row without an image has features"),
    (Grid(lambda v: None), "a colour image has null features"),
    (Grid(after=lambda f: f.dropna(subset=["features"])), "of 4 rows 3 came back"),
    (Grid(after=lambda f: f.select("number", "features")), "the column 'image' is lost"),
    (Grid(after=lambda f: f.withColumnRenamed("features", "ink")), "no column 'features'"),
    (Grid(after=lambda f: f.withColumn("features", F.array(F.lit(0.0)))), "array_to_vector"),
    (Grid, "not its class"),
    ("InkGrid", "a pyspark.ml Transformer"),
]


class NullToVector(Grid):
    """Gives ``array_to_vector`` what ``values`` makes of an image, null for none."""

    def __init__(self, values: Callable) -> None:
        super().__init__()
        self.values = values

    def _transform(self, dataset):
        return dataset.withColumn("features", array_to_vector(F.udf("array<double>")(self.values)("image")))


@pytest.mark.parametrize(("stage", "said"), GRID_MISTAKES, ids=[said for _, said in GRID_MISTAKES])
def test_ink_grid_wrong(spark, stage, said):
    fails(check.ink_grid(stage), said)


def test_ink_grid_null_to_vector(spark):
    fails(check.ink_grid(NullToVector(lambda image: image and [0.5] * 64)), "array_to_vector was given null", "F.when(")
    with pytest.raises(PythonException, match="`size` is not supported"):
        check.ink_grid(NullToVector(lambda image: image.size))


# -- 03 ----------------------------------------------------------------------------------------------------------------

PENALTY = {"accuracy": "same", "mean probability of the answer": "down", "sum of the weights' sizes": "down"}


@pytest.fixture(scope="module")
def two_classes(spark):
    """Two well separated classes of 40 vectors, to learn from and to be tested on."""
    rng = np.random.default_rng(0)
    rows = [(n % 2, Vectors.dense(rng.normal(2 * (n % 2), 0.5, 4))) for n in range(80)]
    frame = spark.createDataFrame(rows, ["label", "features"]).repartition(1).cache()
    return frame, frame


def test_stronger_penalty(two_classes):
    passes(check.stronger_penalty(PENALTY, *two_classes))
    wrong = PENALTY | {"mean probability of the answer": "up"}
    fails(check.stronger_penalty(wrong, *two_classes), "mean probability of the answer: you said up, but it goes from")
    fails(check.stronger_penalty(PENALTY | {"accuracy": "down"}, *two_classes), "accuracy: you said down")
    fails(check.stronger_penalty(PENALTY | {"accuracy": "less"}, *two_classes), 'say "up", "down" or "same"')


def scores(w, b, x):
    return x @ w.T + b


SOFTMAX_MISTAKES = [
    (scores, "the softmax is missing"),
    (lambda w, b, x: softmax(scores(w, b, x), axis=0), "each column adds up to 1"),
    (lambda w, b, x: softmax(scores(w, b, x)), "everything together"),
    (lambda w, b, x: softmax(x @ w.T, axis=1), "intercepts are missing"),
    (lambda w, b, x: np.exp(scores(w, b, x)), "do not add up to 1"),
    (lambda w, b, x: 1 / (1 + np.exp(-scores(w, b, x))), "a sigmoid"),
    (lambda w, b, x: softmax(scores(w, b, x), axis=1).T, "a row a class"),
    (lambda w, b, x: softmax(scores(w, b, x), axis=1)[0], "the shape (4,)"),
    (lambda w, b, x: softmax(2 * scores(w, b, x), axis=1), "by the formula it is"),
    (lambda w, b, x: np.exp(scores(w, b, x)) / np.exp(scores(w, b, x)).sum(axis=1, keepdims=True), "largest score"),
]


@pytest.mark.parametrize(("function", "said"), SOFTMAX_MISTAKES, ids=[said for _, said in SOFTMAX_MISTAKES])
def test_probabilities(function, said):
    passes(check.probabilities(lambda w, b, x: softmax(scores(w, b, x), axis=1)))
    fails(check.probabilities(function), said)


@pytest.fixture(scope="module")
def pictures(spark):
    """16 images to learn from and 4 to be tested on, of two classes."""
    rows = image_frame(spark, [picture(n) for n in range(20)])
    rows = rows.withColumn("label", F.col("number") % 2).withColumn("path", F.concat(F.lit("p"), "number"))
    return rows.where("number < 16"), rows.where("number >= 16")


def fitted(frame, **featurizer):
    stages = [DeepImageFeaturizer(**FAST | featurizer), LogisticRegression(maxIter=2)]
    return Pipeline(stages=stages).fit(frame)


def test_trained_pipeline(pictures, tmp_path):
    train, test = pictures
    wanted = {"layer": FAST["layer"], "image_size": FAST["imageSize"]}
    model = fitted(train)
    passes(check.trained_pipeline(model, train, test, **wanted))
    fails(check.trained_pipeline(Pipeline(stages=[]), train, test, **wanted), "before fit")
    fails(check.trained_pipeline(model.stages[1], train, test, **wanted), "not LogisticRegressionModel")
    fails(check.trained_pipeline(fitted(train.union(test)), train, test, **wanted), "4 of its 20 training images are")
    fails(check.trained_pipeline(fitted(train.limit(10)), train, test, **wanted), "on 10 images; 6 more")
    fails(check.trained_pipeline(model, train, test, layer="block2_pool", image_size=32), "wanted is 'block2_pool'")
    fails(
        check.trained_pipeline(model, train, test, layer=FAST["layer"], image_size=64), "sees 32 pixels; wanted are 64"
    )
    two = Pipeline(stages=[model.stages[0]]).fit(train)
    fails(check.trained_pipeline(two, train, test, **wanted), "its stages are DeepImageFeaturizer; wanted")
    model.save(str(tmp_path / "model"))
    loaded = type(model).load(str(tmp_path / "model"))
    fails(check.trained_pipeline(loaded, train, test, **wanted), "a model that was loaded")


# -- 04 ----------------------------------------------------------------------------------------------------------------

CONSTANT = {"accuracy": 0.1, "recall of 3": 1.0, "precision of 3": 0.1, "ROC AUC from labels": 0.5}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("accuracy", 1.0, "you said 1, it is 0.1"),
        ("recall of 3", 0.1, "recall asks about images"),
        ("precision of 3", 1.0, "precision asks about answers"),
        ("ROC AUC from labels", 0.1, "that is guessing"),
        ("accuracy", "a tenth", "one number"),
    ],
)
def test_constant_answers(name, value, said):
    passes(check.constant_answers(CONSTANT))
    fails(check.constant_answers(CONSTANT | {name: value}), name, said)


def pairs(positive, score, above=1.0, tied=0.5):
    difference = score[positive][:, None] - score[~positive]
    return float(np.mean(above * (difference > 0) + tied * (difference == 0)))


def everyone(positive, score):
    difference = score[:, None] - score
    return np.mean((difference > 0) + 0.5 * (difference == 0))


AUC_MISTAKES = [
    (lambda p, s: pairs(p, (s >= 0.5).astype(float)), "the area from labels"),
    (lambda p, s: pairs(p, s, tied=0), "as lost"),
    (lambda p, s: pairs(p, s, tied=1), "as won"),
    (lambda p, s: pairs(p, -s), "the lower score"),
    (everyone, "pairs of one positive and one other"),
    (lambda p, s: pairs(p, s) * p.sum() * (~p).sum() / len(p) ** 2, "divide by all pairs"),
    (lambda p, s: np.mean((s >= 0.5) == p), "the share of right answers"),
    (lambda p, s: 0.123, "counted pair by pair"),
    (lambda p, s: np.ones(3), "is to be one number"),
]


@pytest.mark.parametrize(("function", "said"), AUC_MISTAKES, ids=[said for _, said in AUC_MISTAKES])
def test_auc(function, said):
    passes(check.auc(pairs))
    fails(check.auc(function), said)


def compare(truth, first, second, alternative="two-sided"):
    one = int(np.sum((first == truth) & (second != truth)))
    two = int(np.sum((second == truth) & (first != truth)))
    return one, two, binomtest(one, one + two, alternative=alternative).pvalue if one + two else 1.0


def compare_unguarded(truth, first, second):
    one, two, _ = compare(truth, first, second)
    if one + two == 0:
        raise ZeroDivisionError("division by zero")
    return compare(truth, first, second)


PAIR_MISTAKES = [
    (lambda t, a, b: (int((a == t).sum()), int((b == t).sum()), 1.0), "leave out those that both do"),
    (lambda t, a, b: (*compare(t, a, b)[1::-1], 1.0), "the two counts are exchanged"),
    (lambda t, a, b: (int((a != b).sum()), int((a != b).sum()), 1.0), "two different wrong answers"),
    (lambda t, a, b: compare(t, a, b, "less"), "one-sided"),
    (lambda t, a, b: compare(t, a, b, "greater"), "one-sided"),
    (lambda t, a, b: (*compare(t, a, b)[:2], 0.01), "throws of a fair coin"),
    (lambda t, a, b: (1, 2, 0.5), "only the first model is right"),
    (lambda t, a, b: compare(t, a, b)[:2], "give three things back"),
    (lambda t, a, b: (0, 0, 0.0) if (a == b).all() else compare(t, a, b), "two models that never differ you give"),
    (compare_unguarded, "two models that never differ stop your function"),
]


@pytest.mark.parametrize(("function", "said"), PAIR_MISTAKES, ids=[said for _, said in PAIR_MISTAKES])
def test_paired(function, said):
    passes(check.paired(compare))
    fails(check.paired(function), said)


# -- 05 ----------------------------------------------------------------------------------------------------------------

CHOICES = {"pooling": ["avg", "max"], "image size": [75, 96, 128], "layer": ["a", "b", "c", "d"], "regParam": [1, 2]}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("settings", 11, "2 x 3 x 4 x 2"),
        ("fits", 240, "one is missing"),
        ("fits", 246, "for each pass"),
        ("fits", 48, "each setting is trained once a fold"),
        ("passes of the network", 24, "listened to at all layers"),
    ],
)
def test_search_cost(name, value, said):
    right = {"settings": 48, "fits": 241, "passes of the network": 6}
    passes(check.search_cost(right, CHOICES, folds=5))
    fails(check.search_cost(right | {name: value}, CHOICES, folds=5), said)


def deal(order: Callable) -> Callable:
    """Writers in an order, dealt out in turn."""

    def dealt(digits, folds):
        place = F.row_number().over(Window.partitionBy(F.lit(0)).orderBy(order()))
        return digits.join(digits.select("writer").distinct().withColumn("fold", place % folds), "writer")

    return dealt


def test_folds_by_writer(spark):
    passes(check.folds_by_writer(deal(lambda: F.sha2("writer", 256))))
    passes(check.folds_by_writer(assign_folds))


FOLD_MISTAKES = [
    (lambda d, n: assign_folds(d, n, by_writer=False), "writers are in several folds, training-"),
    (lambda d, n: d.withColumn("fold", (F.rand(1) * n).cast("int")), "you deal out images"),
    (lambda d, n: assign_folds(d, n).withColumn("fold", F.col("fold") + 1), "your folds are [1, 2, 3]"),
    (lambda d, n: d.withColumn("fold", F.abs(F.hash(F.substring("writer", 1, 10))) % n), "are about equal"),
    (lambda d, n: assign_folds(d, n).withColumn("fold", F.expr("IF(fold = 0, NULL, fold)")), "have no fold (null)"),
    (lambda d, n: assign_folds(d, n).where("fold > 0"), "500 images went in"),
    (lambda d, n: d, "with a column 'fold'"),
    (lambda d, n: assign_folds(d, n, seed=d.rdd.getNumPartitions()), "images change their fold"),
]


@pytest.mark.parametrize(("function", "said"), FOLD_MISTAKES, ids=[said for _, said in FOLD_MISTAKES])
def test_folds_by_writer_wrong(spark, function, said):
    fails(check.folds_by_writer(function), said)


def within(tried, folds, error=lambda spread, folds: spread / (folds - 1) ** 0.5):
    best = tried.loc[tried["score"].idxmin()]
    return tried[tried["score"] <= best["score"] + error(best["spread"], folds)]


def choose(tried, folds, *error, order=(True, True)):
    return within(tried, folds, *error).sort_values(["size", "score"], ascending=list(order)).index[0]


RULE_MISTAKES = [
    (lambda t, n: t["score"].idxmin(), "you take the winner"),
    (lambda t, n: t["score"].idxmax(), "the highest score"),
    (lambda t, n: choose(t, n, lambda spread, folds: np.inf), "the cheapest of all"),
    (lambda t, n: choose(t, n, order=(False, True)), "the largest images"),
    (lambda t, n: within(t, n)["size"].idxmin(), "the one with the lowest score"),
    (lambda t, n: choose(t, n, lambda spread, folds: spread), "you take the spread for"),
    (lambda t, n: choose(t, n, lambda spread, folds: spread / folds**0.5), "not of folds"),
    (lambda t, n: choose(t, n, lambda spread, folds: spread / 10), "made-up tables another row is right"),
    (lambda t, n: t.loc[choose(t, n)], "give the row's index"),
    (lambda t, n: 99, "not 99"),
]


@pytest.mark.parametrize(("function", "said"), RULE_MISTAKES, ids=[said for _, said in RULE_MISTAKES])
def test_cautious(function, said):
    passes(check.cautious(choose))
    fails(check.cautious(function), said)


# -- 06 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixel_model():
    """A layer of ten outputs on grey pixels: random weights, and no bias, so that the pixels' scale moves no answer."""
    import keras

    inputs = keras.Input((32, 32, 1))
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(inputs)))
    model.set_weights([np.random.default_rng(8).normal(0, 0.02, (1024, 10)), np.zeros(10)])
    return model


def test_wrong_scale(spark, pixel_model):
    """Digits are labelled by what the model says of them, so that it is right as long as the scale is."""
    few = read_digits().select("image").limit(60)
    stage = KerasImageTransformer(model=pixel_model, preprocess="unit", outputCol="p")
    scores = stage.transform(few).select("image", vector_to_array("p").alias("p"))
    test = scores.select("image", (F.array_position("p", F.array_max("p")) - 1).cast("int").alias("label")).cache()
    right = {"accuracy": "same", "mean probability of the answer": "up", "images with an error": "same"}
    passes(check.wrong_scale(right, pixel_model, test))
    for name in right:
        fails(check.wrong_scale(right | {name: "down"}, pixel_model, test), f"{name}: you said down")


def in_front(*layers: Callable) -> Callable:
    def function(model):
        import keras

        inputs = x = keras.Input(model.input_shape[1:])
        for layer in layers:
            x = layer(keras.layers)(x)
        return keras.Model(inputs, model(x))

    return function


def rescaled(scale: float, offset: float = 0) -> Callable:
    return in_front(lambda layers: layers.Rescaling(scale, offset))


def in_the_weights(model):
    kernel, bias = model.get_weights()
    model.set_weights([kernel / 255, bias])
    return model


def of_another_size(model):
    import keras

    inputs = keras.Input((12, 12, 1))
    return keras.Model(inputs, model(keras.layers.AveragePooling2D(2)(inputs)))


def of_the_size_of_the_exercise(model):
    import keras

    inputs = keras.Input((32, 32, 1))
    return keras.Model(inputs, model(keras.layers.Rescaling(1 / 255)(inputs)))


def of_colours(model):
    import keras

    inputs = keras.Input((6, 6, 3))
    return keras.Model(inputs, model(keras.layers.Conv2D(1, 1)(inputs)))


SCALING_MISTAKES = [
    (lambda model: model, "the pixels reach the model as they are"),
    (rescaled(255), "you multiply the pixels"),
    (rescaled(1 / 127.5, -1), "you scale to −1 … 1"),
    (rescaled(1 / 255**2), "twice"),
    (rescaled(1 / 200), "does not give what the first one gives"),
    (in_the_weights, "changed the weights"),
    (of_another_size, "your model takes (None, 12, 12, 1)"),
    (of_colours, "your model takes (None, 6, 6, 3)"),
    (of_the_size_of_the_exercise, "takes (None, 6, 6, 1), and yours gives it something else; take the size"),
    (in_front(lambda layers: layers.Lambda(lambda x: x / 255)), "Lambda"),
    (lambda model: model(np.zeros((1, 6, 6, 1))), "give a Keras model back"),
    (nothing, "nothing back"),
]


def test_scaling_inside(spark):
    passes(check.scaling_inside(rescaled(1 / 255)))


@pytest.mark.parametrize(("function", "said"), SCALING_MISTAKES, ids=[said for _, said in SCALING_MISTAKES])
def test_scaling_inside_wrong(spark, function, said):
    fails(check.scaling_inside(function), said)


def test_scaling_inside_shows_a_readers_own_error():
    with pytest.raises(ValueError, match="invalid literal"):
        check.scaling_inside(lambda model: int("a"))


@pytest.fixture(scope="module")
def asked(spark):
    """A view ``digits`` and a function ``digit`` that takes an image for what its origin says."""
    pairs = [(3, "3"), (3, "9"), (3, "9"), (9, "3"), (5, "6"), (5, None), (1, "1")]
    rows = [(label, Row(origin=read)) for label, read in pairs]
    spark.createDataFrame(rows, "label int, image struct<origin: string>").createOrReplaceTempView("digits")
    spark.udf.register("digit", lambda image: image.origin, "string")
    yield
    spark.catalog.dropTempView("digits")
    spark.sql("DROP TEMPORARY FUNCTION digit")


def errors(what="label, read_as", where="WHERE read_as <> label", rest="ORDER BY images DESC"):
    return f"""
        SELECT {what}, count(*) AS images FROM (SELECT label, digit(image) AS read_as FROM digits)
        {where} GROUP BY ALL {rest}"""


QUERY_MISTAKES = [
    ("SELEKT 1", "Spark does not take the query"),
    ("SELECT nothing FROM digits", "Spark does not take the query"),
    (42, "as a text"),
    (errors("label, read_as AS answer"), "its columns are label, answer, images"),
    (errors(where=""), "right answers are among them"),
    (errors(where="WHERE NOT read_as <=> label"), "NULL, are among them"),
    (errors("read_as AS label, label AS read_as"), "exchanged"),
    (errors(rest="ORDER BY images DESC LIMIT 1"), "leave out LIMIT"),
    (errors(rest="HAVING images > 1"), "leave out LIMIT"),
    (errors().replace("count(*)", "1"), "your rows count 3 errors of 3 kinds; 6 images were read, 4 of them wrongly"),
    (errors(rest="ORDER BY images"), "not the first row"),
    ("SELECT label, digit(image) AS read_as, 1 AS images FROM digits WHERE digit(image) <> label", "several rows"),
]


def test_confusions(asked):
    passes(check.confusions(errors()))


@pytest.mark.parametrize(("query", "said"), QUERY_MISTAKES, ids=[said for _, said in QUERY_MISTAKES])
def test_confusions_wrong(asked, query, said):
    fails(check.confusions(query), said)


def test_confusions_logs_nothing_of_a_wrong_query(asked, caplog):
    logger = PySparkLogger.getLogger("SQLQueryContextLogger")
    logger.addHandler(caplog.handler)
    try:
        check.confusions("SELECT nothing FROM digits")
        assert caplog.records == []
        with pytest.raises(AnalysisException):  # and all others are logged as before
            check._spark().sql("SELECT nothing FROM digits")
        assert len(caplog.records) == 1
    finally:
        logger.removeHandler(caplog.handler)


# -- 07 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boastful(spark):
    """300 answers of ten classes from a model that is sure more often than right."""
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 10, 300)
    vectors = softmax(rng.normal(0, 2, (300, 10)) + 4 * np.eye(10)[truth], axis=1)
    rows = [
        (int(t), float(v.argmax()), Vectors.dense(v))
        for t, v in zip((truth + (rng.random(300) < 0.3)) % 10, vectors, strict=True)
    ]
    return evaluate(spark.createDataFrame(rows, ["label", "prediction", "probability"]))


def test_higher_threshold(boastful):
    names = ("share of images answered", "share of wrong among the answers", "share of all images answered rightly")
    right = dict.fromkeys(names, "down")
    passes(check.higher_threshold(right, boastful, low=0.3, high=0.6))
    for name in names:
        fails(check.higher_threshold(right | {name: "up"}, boastful, low=0.3, high=0.6), f"{name}: you said up")
    with pytest.raises(ValueError, match="no answer has a confidence of 2"):
        check.higher_threshold(right, boastful, high=2)


def fade(image, severity):
    return np.rint(image + severity * (np.median(image, axis=(0, 1)) - image)).astype(np.uint8)


def fade_in_place(image, severity):
    image[:] = fade(image, severity)
    return image


def towards(aim: Callable) -> Callable:
    return lambda image, severity: np.rint(image + severity * (aim(image) - image)).astype(np.uint8)


FADING_MISTAKES = [
    (fade_in_place, "you change the image that was given"),
    (lambda im, s: fade(im, s).astype(float), "float64"),
    (lambda im, s: fade(im, s)[:, :, 0], "came back as (40, 30)"),
    (lambda im, s: fade(im, 1 - s), "the wrong way round"),
    (towards(lambda im: 255.0), "fades to white"),
    (towards(np.median), "to one grey"),
    (towards(lambda im: im.mean(axis=(0, 1))), "fades to the mean"),
    (lambda im, s: im // 2, "a pixel is off by"),
]


@pytest.mark.parametrize(("function", "said"), FADING_MISTAKES, ids=[said for _, said in FADING_MISTAKES])
def test_fading(function, said):
    passes(check.fading(fade))
    fails(check.fading(function), said)


def gaps(confidence, right):
    """(share of the answers, mean confidence − accuracy) of each step."""
    step = np.ceil(confidence * 10)
    parts = [step == number for number in np.unique(step)]
    return np.array([(p.mean(), confidence[p].mean() - right[p].mean()) for p in parts]).T


def expected_error(confidence, right):
    share, gap = gaps(confidence, right)
    return float((share * np.abs(gap)).sum())


ERROR_MISTAKES = [
    (lambda c, r: (gaps(c, r)[0] * gaps(c, r)[1]).sum(), "opposite sign"),
    (lambda c, r: -(gaps(c, r)[0] * gaps(c, r)[1]).sum(), "opposite sign"),
    (lambda c, r: abs(c.mean() - r.mean()), "opposite sign"),
    (lambda c, r: np.abs(gaps(c, r)[1]).mean(), "every step counts the same"),
    (lambda c, r: np.abs(gaps(c, r)[1]).sum() / 10, "empty steps too"),
    (lambda c, r: 1 - r.mean(), "the error rate"),
    (lambda c, r: np.abs(r - c).mean(), "the gap of each image"),
    (lambda c, r: np.abs(gaps(c, r)[1]).max(), "the largest gap"),
    (lambda c, r: 0.0, "you get 0.0000"),
]


@pytest.mark.parametrize(("function", "said"), ERROR_MISTAKES, ids=[said for _, said in ERROR_MISTAKES])
def test_calibration_error(boastful, function, said):
    passes(check.calibration_error(expected_error, boastful))
    fails(check.calibration_error(function, boastful), said)


# -- 08 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tasks", 3, "a partition becomes one task"),
        ("rounds of the cores", 1, "one task at a time"),
        ("Arrow batches of a task", 2, "what is left is a batch, too"),
        ("runs of the network in a task", 4, "never waits for the next one"),
    ],
)
def test_pieces_of_work(spark, name, value, said):
    right = {
        "tasks": 4,
        "rounds of the cores": 2,
        "Arrow batches of a task": 3,
        "runs of the network in a task": 5,
    }
    before = spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch")
    passes(check.pieces_of_work(right))
    fails(check.pieces_of_work(right | {name: value}), f"{name}: you said {value}; ", said)
    assert spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") == before


def test_the_network_runs_as_often_as_pieces_of_work_says():
    """Batches of the featurizer end with the Arrow batch."""
    calls = []

    def network(inputs):
        calls.append(len(inputs[0]))
        return [np.zeros((len(inputs[0]), 2), np.float32)]

    image = image_struct(Image.new("RGB", (4, 4)), "here")
    for size in (50, 50, 25):
        run_network(network, pa.array([image] * size, to_arrow_type(IMAGE_TYPE)), 4, 32)
    assert calls == [32, 18, 32, 18, 25]


def seconds_of(images, rate, on, cores, start):
    return start + images / (rate / on * cores)


def bill(images, rate, on, cores, start):
    hours = seconds_of(images, rate, on, cores, start) / 3600
    return hours, hours * cores


BILL_MISTAKES = [
    (lambda *a: (bill(*a)[0] * 3600, 0), "in seconds"),
    (lambda *a: (bill(*a)[0] * 60, 0), "in minutes"),
    (lambda n, r, on, c, s: bill(n, r, 1, c, s), "for one core's"),
    (lambda n, r, on, c, s: bill(n, r, c, c, s), "with other cores it is another one"),
    (lambda n, r, on, c, s: bill(n, r, on, c, 0), "the seconds of starting are missing"),
    (lambda n, r, on, c, s: bill(n, r, on, c, s / c), "you divide the seconds of starting"),
    (lambda *a: (bill(*a)[0], bill(*a)[0]), "multiply the hours by them"),
    (lambda *a: (bill(*a)[0], bill(*a[:4], 0)[1]), "you pay for the work only"),
    (lambda *a: (bill(*a)[0], bill(*a)[0] * a[2]), "on which was measured"),
    (lambda *a: bill(*a)[0], "two things"),
    (lambda *a: (1.0, 2.0), "gives 1.0000 hours"),
    (lambda *a: (bill(*a)[0], 3.0), "gives 3.0000 core-hours"),
    (lambda n, r, on, c, s: bill(n, r, 2, c, s), "gives"),
]


@pytest.mark.parametrize(("function", "said"), BILL_MISTAKES, ids=[said for _, said in BILL_MISTAKES])
def test_bill(function, said):
    passes(check.bill(bill))
    fails(check.bill(function), said)


def lost(rule: Callable) -> Callable:
    return lambda tasks, executor, at: sorted(
        tasks[rule(tasks, tasks["executor"] == executor, tasks["start"] <= at, tasks["end"] > at)]["partition"]
    )


right_loss = lost(lambda tasks, mine, begun, unfinished: mine & begun & unfinished)

LOSS_MISTAKES = [
    (lost(lambda t, mine, begun, unfinished: mine), "all that the executor ever had"),
    (lost(lambda t, mine, begun, unfinished: mine & begun), "partitions that it had finished"),
    (lost(lambda t, mine, begun, unfinished: mine & unfinished), "had not begun are among them"),
    (lost(lambda t, mine, begun, unfinished: mine & ~unfinished), "which is safe"),
    (lost(lambda t, mine, begun, unfinished: ~mine & begun & unfinished), "the other executors were at"),
    (lost(lambda t, mine, begun, unfinished: begun & unfinished), "only one has died"),
    (lambda *a: right_loss(*a)[::-1], "not in order"),
    (lambda *a: [0], "other partitions are lost"),
    (lambda *a: 3, "as a list"),
]


@pytest.mark.parametrize(("function", "said"), LOSS_MISTAKES, ids=[said for _, said in LOSS_MISTAKES])
def test_lost_partitions(function, said):
    passes(check.lost_partitions(right_loss))
    fails(check.lost_partitions(function), said)


# -- the notebooks -----------------------------------------------------------------------------------------------------


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def test_the_exercises_are_what_the_solutions_make():
    assert make_exercises.main(["--check"]) == 0, "type: make exercises"


def test_every_lesson_has_exercises_and_leads_to_them():
    assert [path.name for path in SOLUTIONS] == [path.name for path in LESSONS]
    for path in LESSONS:
        cells = nbformat.read(path, as_version=4).cells
        (at,) = [i for i, cell in enumerate(cells) if "exercises" in tags(cell)]
        assert f"(exercises/{path.name})" in cells[at].source, path
        assert cells[at + 1].source.startswith("## Next"), path


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_links_of_exercises_lead_somewhere(path):
    exercise = nbformat.read(path.parent.parent / "exercises" / path.name, as_version=4)
    links = set(check_links := [link for cell in exercise.cells for link in links_of(cell.source)])
    assert len(check_links) >= 2
    assert [link for link in links if not (path.parent / link).exists()] == []


def links_of(text: str) -> list[str]:
    return [part.split(")")[0] for part in text.split("](")[1:]]


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_each_exercise_has_statement_stub_and_check(path):
    """Two or three a lesson, in this order; more statements may stand between a statement and its answer."""
    exercise = nbformat.read(path.parent.parent / "exercises" / path.name, as_version=4)
    order = "".join({"exercise": "e", "answer": "a", "check": "c"}[t] for cell in exercise.cells for t in tags(cell))
    parts = order.split("c")
    assert parts.pop() == "" and len(parts) in (2, 3)
    assert all(part.strip("e") == "a" and part.startswith("e") for part in parts), order
    headings = [cell.source for cell in exercise.cells if "exercise" in tags(cell) and cell.source.startswith("## ")]
    assert [heading[:5] for heading in headings] == [f"## {n}." for n in range(1, len(parts) + 1)]
    for cell in exercise.cells:
        if "check" in tags(cell):
            assert cell.source.startswith("check.") and "\n" not in cell.source
        if "answer" in tags(cell):
            assert "..." in cell.source or "your code" in cell.source


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_no_solution_is_in_an_exercise(path):
    solution = nbformat.read(path, as_version=4)
    text = (path.parent.parent / "exercises" / path.name).read_text(encoding="utf8")
    kept = [c.metadata.get("stub", "") if "solution" in tags(c) else c.source for c in solution.cells]
    hidden = [line for c in solution.cells if "solution" in tags(c) for line in c.source.splitlines()]
    secret = {line.strip() for line in hidden} - {line.strip() for source in kept for line in source.splitlines()}
    long_enough = [line for line in secret if len(line) > 8]
    assert len(long_enough) >= 3, "nothing is solved"
    assert [line for line in long_enough if json.dumps(line, ensure_ascii=False)[1:-1] in text] == []


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_all_stored_answers_are_right(path):
    """nbval compares what is stored, so that must say that the answer is right."""
    for cell in nbformat.read(path, as_version=4).cells:
        if "check" in tags(cell):
            assert cell.outputs[0].data["text/plain"].startswith("Right. "), cell.source


def small_solution() -> NotebookNode:
    answer = new_code_cell("answer = 42", metadata={"tags": ["solution"], "stub": "answer = ..."}, execution_count=1)
    answer.outputs = [new_output("stream", name="stdout", text="42\n")]
    cells = [
        new_markdown_cell("# Exercises"),
        new_markdown_cell("Because.", metadata={"tags": ["solution"]}),
        new_markdown_cell("## 1. Ask", metadata={"tags": ["exercise"]}),
        answer,
        new_code_cell("check.it(answer)", metadata={"tags": ["check"]}, execution_count=2),
    ]
    return new_notebook(cells=cells)


def test_what_becomes_of_each_cell():
    solution = small_solution()
    made = make_exercises.exercise_notebook(solution)
    nbformat.validate(made)
    assert [cell.source for cell in made.cells] == ["# Exercises", "## 1. Ask", "answer = ...", "check.it(answer)"]
    assert [tags(cell) for cell in made.cells] == [[], ["exercise"], ["answer"], ["check"]]
    assert "stub" not in made.cells[2].metadata and made.cells[2].outputs == []
    assert {cell.execution_count for cell in made.cells if cell.cell_type == "code"} == {None}
    assert solution.cells[3].source == "answer = 42" and solution.cells[3].outputs, "the solution stays as it was"


def test_a_stale_exercise_is_found_and_made_anew(tmp_path, capsys):
    for folder in ("solutions", "exercises"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "solutions" / "01_one.ipynb"
    nbformat.write(small_solution(), path)
    shutil.copy(path, tmp_path / "exercises" / "02_gone.ipynb")
    assert make_exercises.main(["--check"], tmp_path) == 1
    said = capsys.readouterr().err
    assert "01_one.ipynb is out of date; type: make exercises" in said and "02_gone.ipynb is out of date" in said
    assert not (tmp_path / "exercises" / "01_one.ipynb").exists(), "--check writes nothing"
    assert make_exercises.main([], tmp_path) == 0
    assert [p.name for p in (tmp_path / "exercises").iterdir()] == ["01_one.ipynb"]
    assert make_exercises.main(["--check"], tmp_path) == 0
    changed = small_solution()
    changed.cells[2].source = "## 1. Ask something else"
    nbformat.write(changed, path)
    assert make_exercises.main(["--check"], tmp_path) == 1


def test_a_solution_without_stub_is_refused(tmp_path, capsys):
    (tmp_path / "solutions").mkdir()
    solution = small_solution()
    del solution.cells[3].metadata["stub"]
    nbformat.write(solution, tmp_path / "solutions" / "01_one.ipynb")
    assert make_exercises.main([], tmp_path) == 1
    assert "has no stub" in capsys.readouterr().err
    assert not (tmp_path / "exercises").exists()
