"""The evaluation against hand-computed cases, Spark's own evaluator and scikit-learn."""

import math
import warnings

import numpy as np
import pytest
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions as F
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import label_binarize

from helpers.evaluation import evaluate

SCHEMA = "label int, prediction double, probability array<double>"


@pytest.fixture(autouse=True)
def _no_warning():
    """scikit-learn tells of undefined figures by warnings; none may reach a notebook."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="sklearn")
        warnings.filterwarnings("error", module="helpers")
        warnings.filterwarnings("error", category=RuntimeWarning)
        yield


@pytest.fixture(scope="module")
def hundred_fifty(spark):
    """150 random rows of ten classes, right in about four of five, as Spark's classifiers write them."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 10, 150)
    vectors = np.array([rng.dirichlet(0.2 + 1.5 * np.eye(10)[label]) for label in labels])
    rows = [
        (int(label), float(vector.argmax()), Vectors.dense(vector))
        for label, vector in zip(labels, vectors, strict=True)
    ]
    frame = spark.createDataFrame(rows, ["label", "prediction", "probability"]).cache()
    return frame, labels, vectors


def small(spark, truth, predicted, probabilities=None, schema=SCHEMA):
    if probabilities is None:
        classes = 1 + max(*truth, *predicted)
        probabilities = np.eye(classes)[predicted].tolist()
    return spark.createDataFrame(list(zip(truth, map(float, predicted), probabilities, strict=True)), schema)


def test_by_hand(spark):
    result = evaluate(small(spark, [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]))
    assert result.labels == [0, 1, 2]
    assert result.images == 6
    assert result.confusion.dtype == np.int64
    assert result.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    # Classes 0, 1, 2: precision 1/2, 2/3, 1; recall 1/2, 1, 1/2; F1 1/2, 4/5, 2/3; two images each.
    assert result.precision == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert result.recall == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert result.f1 == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    assert result.accuracy == pytest.approx(4 / 6)
    # From labels a class's area is (1 + true positive rate − false positive rate) / 2.
    assert result.roc_auc_hard == pytest.approx(((1 + 1 / 2 - 1 / 4) + (1 + 1 - 1 / 4) + (1 + 1 / 2 - 0)) / 6)


def test_weights_are_the_classes_images(spark):
    """Class 0 with three images, class 1 with one: the weighted mean is not the plain one."""
    result = evaluate(small(spark, [0, 0, 0, 1], [0, 0, 1, 1]))
    assert result.precision == pytest.approx((3 * 1 + 1 * 1 / 2) / 4)
    assert result.recall == pytest.approx((3 * 2 / 3 + 1 * 1) / 4)
    assert result.f1 == pytest.approx((3 * 4 / 5 + 1 * 2 / 3) / 4)


@pytest.mark.parametrize(
    ("metric", "name"),
    [("f1", "f1"), ("weightedPrecision", "precision"), ("weightedRecall", "recall"), ("accuracy", "accuracy")],
)
def test_spark_agrees(hundred_fifty, metric, name):
    frame, _, _ = hundred_fifty
    spark_says = MulticlassClassificationEvaluator(metricName=metric).evaluate(frame)
    assert 0.5 < spark_says < 0.95  # a classifier that makes errors, or every formula would agree
    assert getattr(evaluate(frame), name) == pytest.approx(spark_says, abs=1e-12)


def test_roc_auc_counts_pairs(hundred_fifty):
    """The area is the share of (image of the class, other image) pairs that the score puts in order, ties half."""
    frame, labels, vectors = hundred_fifty
    areas, hard = [], []
    for label in range(10):
        for scores, into in ((vectors[:, label], areas), ((vectors.argmax(1) == label).astype(float), hard)):
            own, other = scores[labels == label][:, None], scores[labels != label][None, :]
            into.append(np.mean((own > other) + 0.5 * (own == other)))
    result = evaluate(frame)
    assert result.roc_auc == pytest.approx(np.mean(areas), abs=1e-12)
    assert result.roc_auc_hard == pytest.approx(np.mean(hard), abs=1e-12)
    assert result.roc_auc_hard < result.roc_auc


def test_roc_auc_is_scikit_learns_and_the_articles(hundred_fifty):
    frame, labels, vectors = hundred_fifty
    result = evaluate(frame)
    assert result.roc_auc == pytest.approx(roc_auc_score(labels, vectors, multi_class="ovr", average="macro"))
    article = [label_binarize(side, classes=range(10)) for side in (labels, vectors.argmax(1))]
    assert result.roc_auc_hard == pytest.approx(roc_auc_score(*article, average="macro"))


def test_two_classes_have_the_binary_area(spark):
    scores = [0.1, 0.4, 0.35, 0.8]
    frame = small(spark, [0, 0, 1, 1], [0, 0, 0, 1], [[1 - s, s] for s in scores])
    assert evaluate(frame).roc_auc == pytest.approx(0.75)


@pytest.mark.parametrize("hard", [False, True])
def test_mean_curve_has_the_mean_area(hundred_fifty, hard):
    result = evaluate(hundred_fifty[0])
    curves, mean = result.roc_curves(hard), result.macro_curve(hard)
    assert list(curves) == result.labels
    for x, y, area in [*curves.values(), mean]:
        assert (x[0], y[0]) == (0, 0) or x[0] == 0
        assert (x[-1], y[-1]) == (1, 1)
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()
        assert np.trapezoid(y, x) == pytest.approx(area, abs=1e-12)
    assert mean.area == (result.roc_auc_hard if hard else result.roc_auc)
    if hard:
        assert all(len(curve.true_positive_rate) == 3 for curve in curves.values())


def test_frame_is_computed_once(spark):
    """One job, and each row once through the Python function that stands for the network."""
    counter = spark.sparkContext.accumulator(0)

    @F.udf(VectorUDT())
    def network(label):
        counter.add(1)
        return Vectors.dense(np.eye(3)[label])

    scores = vector_to_array("probability")
    frame = spark.range(60, numPartitions=3).select((F.col("id") % 3).cast("int").alias("label"))
    predictions = frame.withColumn("probability", network("label"))
    predictions = predictions.withColumn("prediction", F.array_position(scores, F.array_max(scores)) - 1)
    context, group = spark.sparkContext, "test_frame_is_computed_once"
    context.setJobGroup(group, "evaluate")
    try:
        result = evaluate(predictions)
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)
        context.setLocalProperty("spark.job.description", None)
    assert result.images == 60
    assert result.accuracy == 1
    assert counter.value == 60
    assert len(context.statusTracker().getJobIdsForGroup(group)) == 1


def test_order_and_partitions_do_not_matter(hundred_fifty):
    frame, _, _ = hundred_fifty
    one, other = evaluate(frame), evaluate(frame.repartition(5).orderBy("prediction"))
    assert one.as_dict(17) == other.as_dict(17)
    assert one.report == other.report


def test_report(spark):
    result = evaluate(small(spark, [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]))
    assert "weighted avg" in result.report
    table = result.report_table
    assert list(table.columns) == ["precision", "recall", "f1-score", "support"]
    assert table.loc["1"].tolist() == pytest.approx([2 / 3, 1, 4 / 5, 2])
    assert table.loc["accuracy", "f1-score"] == pytest.approx(4 / 6)
    assert math.isnan(table.loc["accuracy", "precision"])
    assert table.loc["weighted avg", "support"] == 6


def test_interval_is_wilsons(spark):
    """81 right of 100, as the article's 0.809 on about a hundred images, by the formula written out."""
    result = evaluate(small(spark, [0] * 50 + [1] * 50, [0] * 50 + [1] * 31 + [0] * 19))
    p, n, z = 0.81, 100, 1.959963984540054
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))
    assert result.interval() == pytest.approx(expected, abs=1e-9)
    low, high = result.interval(0.99)
    assert low < expected[0] < expected[1] < high
    with pytest.raises(ValueError, match="level is 95"):
        result.interval(95)


def test_interval_stays_between_0_and_1(spark):
    low, high = evaluate(small(spark, [0, 1], [0, 1])).interval()
    assert 0 < low < 1
    assert high == 1


def test_class_never_predicted_counts_zero(spark):
    result = evaluate(small(spark, [0, 0, 1], [0, 0, 0]))
    assert result.precision == pytest.approx((2 * 2 / 3 + 1 * 0) / 3)
    assert result.confusion.tolist() == [[2, 0], [1, 0]]


def test_class_only_predicted_has_no_area(spark):
    """Class 2 has no image: it is in the matrix, but not in the means of the areas."""
    truth, predicted = [0, 0, 1, 1], [0, 2, 1, 1]
    result = evaluate(small(spark, truth, predicted))
    assert result.labels == [0, 1, 2]
    assert list(result.roc_curves()) == [0, 1]
    assert result.roc_auc_hard == pytest.approx((0.75 + 1) / 2)


def test_class_unseen_in_training(spark):
    """The vector ends at class 1, the labels at class 3: probability 0 there, area one half, all its images errors."""
    vectors = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]
    result = evaluate(small(spark, [0, 1, 3, 3], [0, 1, 0, 1], vectors))
    assert result.labels == [0, 1, 3]
    assert result.accuracy == 0.5
    assert result.probabilities[:, 2].tolist() == [0] * 4
    assert result.roc_curves()[3].area == 0.5
    assert result.roc_auc == pytest.approx((1 + 1 + 0.5) / 3)


def test_single_class(spark):
    result = evaluate(small(spark, [4, 4, 4], [4, 4, 4]))
    assert result.confusion.tolist() == [[3]]
    assert result.f1 == result.accuracy == 1
    assert math.isnan(result.roc_auc)
    assert math.isnan(result.roc_auc_hard)
    assert result.roc_curves() == {}
    assert result.macro_curve() is None
    assert "roc_auc: nan" in str(result)


@pytest.mark.parametrize("kind", ["int", "bigint", "double", "float", "smallint"])
def test_label_types(spark, kind):
    frame = small(spark, [0, 1, 2], [0, 2, 2])
    frame = frame.select(*[F.col(name).cast(kind) for name in ("label", "prediction")], "probability")
    result = evaluate(frame)
    assert result.labels == [0, 1, 2]
    assert all(type(label) is int for label in result.labels)
    assert result.accuracy == pytest.approx(2 / 3)


def test_other_column_names(spark):
    frame = small(spark, [0, 1], [0, 1]).toDF("digit.true", "guess", "p `soft`")
    assert evaluate(frame, "digit.true", "guess", "p `soft`").accuracy == 1


def test_printing(hundred_fifty):
    result = evaluate(hundred_fifty[0])
    values = result.as_dict()
    assert list(values) == ["images", "f1", "precision", "recall", "accuracy", "roc_auc", "roc_auc_hard"]
    assert values["f1"] == round(result.f1, 4) != result.f1
    assert result.as_dict(2)["f1"] == round(result.f1, 2)
    lines = str(result).splitlines()
    assert lines[0] == "images: 150"
    assert lines[1] == f"f1: {result.f1:.4f}"
    low, high = result.interval()
    assert f"{low:.3f}–{high:.3f}" in lines[4]
    assert len(repr(result)) < 400  # arrays do not flood a cell


@pytest.mark.parametrize("name", ["label", "prediction", "probability"])
def test_missing_column_is_named(spark, name):
    with pytest.raises(ValueError, match=f"no column '{name}'; it has"):
        evaluate(small(spark, [0], [0]).drop(name))


@pytest.mark.parametrize("name", ["label", "prediction", "probability"])
def test_nulls_are_counted(hundred_fifty, name):
    """Also of a vector column, whose conversion throws on null."""
    frame = hundred_fifty[0].limit(20).withColumn("place", F.monotonically_increasing_id())
    frame = frame.withColumn(name, F.when(F.col("place") % 1000 >= 3, F.col(name)))
    missing = frame.where(F.col(name).isNull()).count()
    assert missing > 0
    with pytest.raises(ValueError, match=f"column '{name}' is null in {missing} of 20 rows"):
        evaluate(frame)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "no rows"),
        ([(-1, 0.0, [1.0])], "'label' holds -1"),
        ([(0, 0.5, [1.0])], "'prediction' holds 0.5"),
        ([(0, float("nan"), [1.0])], "'prediction' holds nan"),
        ([(0, 0.0, [1.0]), (0, 0.0, [0.5, 0.5])], "1 and 2 elements"),
        ([(0, 0.0, [])], "have 0 elements"),
        ([(0, 0.0, [float("nan"), 1.0])], "nan or infinity in 1 of 1 rows"),
        ([(0, 0.0, [None, 1.0])], "nan or infinity in 1 of 1 rows"),
    ],
)
def test_bad_values(spark, rows, match):
    with pytest.raises(ValueError, match=match):
        evaluate(spark.createDataFrame(rows, SCHEMA))


@pytest.mark.parametrize(
    ("name", "kind", "match"), [("label", "string", "StringIndexer"), ("probability", "string", "not a vector")]
)
def test_wrong_type(spark, name, kind, match):
    with pytest.raises(TypeError, match=f"column '{name}' is {kind}.*{match}"):
        evaluate(small(spark, [0], [0]).withColumn(name, F.lit("0")))


# --- how sure, and how often right ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def five_answers(spark):
    """Confidences 0.9, 0.9, 0.8, 0.6, 0.55; the second and the last are wrong."""
    sure = [0.9, 0.9, 0.8, 0.6, 0.55]
    truth, predicted = [0, 1, 1, 0, 1], [0, 0, 1, 0, 0]
    vectors = [[s, 1 - s] if p == 0 else [1 - s, s] for s, p in zip(sure, predicted, strict=True)]
    return evaluate(small(spark, truth, predicted, vectors))


def test_confidence_is_that_of_the_predicted_class(spark, five_answers):
    assert sorted(five_answers.confidence) == pytest.approx([0.55, 0.6, 0.8, 0.9, 0.9])
    # Class 1 is the second column, though the frame holds no class 0 at all.
    gap = evaluate(small(spark, [1, 2], [1, 1], [[0.1, 0.7, 0.2], [0.2, 0.5, 0.3]]))
    assert gap.labels == [1, 2]
    assert gap.confidence.tolist() == [0.7, 0.5]


def test_reliability_by_hand(five_answers):
    table, error = five_answers.reliability(bins=5)
    # (0.4, 0.6]: one of two right; (0.6, 0.8]: the one; (0.8, 1]: one of two
    assert table["low"].tolist() == pytest.approx([0.4, 0.6, 0.8])
    assert table["high"].tolist() == pytest.approx([0.6, 0.8, 1.0])
    assert table["images"].tolist() == [2, 1, 2]
    assert table["accuracy"].tolist() == pytest.approx([0.5, 1, 0.5])
    assert table["confidence"].tolist() == pytest.approx([0.575, 0.8, 0.9])
    assert error == pytest.approx((2 * 0.075 + 1 * 0.2 + 2 * 0.4) / 5)
    one = five_answers.reliability(bins=1)
    assert one.error == pytest.approx(abs(3 / 5 - 3.75 / 5))
    with pytest.raises(ValueError, match="bins is 0"):
        five_answers.reliability(bins=0)


def test_the_calibrated_have_no_error_and_the_boastful_have_all(spark):
    """Nine of ten right at confidence 0.9; and always wrong at confidence 1."""
    honest = evaluate(small(spark, [0] * 9 + [1], [0] * 10, [[0.9, 0.1]] * 10))
    assert honest.reliability().error == pytest.approx(0, abs=1e-12)
    boastful = evaluate(small(spark, [0, 1], [1, 0], [[0.0, 1.0], [1.0, 0.0]]))
    assert boastful.reliability().error == 1
    assert boastful.reliability().table["images"].tolist() == [2]


def test_rejection_curve_by_hand(five_answers):
    curve = five_answers.rejection_curve()
    # The two at 0.9 are answered together, one of them wrongly.
    assert curve.coverage.tolist() == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert curve.risk.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 4, 2 / 5])
    assert curve.threshold.tolist() == pytest.approx([0.9, 0.8, 0.6, 0.55])
    assert curve.area == pytest.approx((2 * 1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)


def test_rejection_curve_ends_at_the_error_rate(hundred_fifty):
    result = evaluate(hundred_fifty[0])
    curve = result.rejection_curve()
    assert (curve.coverage[-1], curve.risk[-1]) == (1, pytest.approx(1 - result.accuracy))
    # Each point counted afresh from its threshold, and confidence is worth something: the surest half errs less.
    wrong = result.truth != result.predicted
    for coverage, risk, threshold in zip(curve.coverage, curve.risk, curve.threshold, strict=True):
        answered = result.confidence >= threshold
        assert (coverage, risk) == (pytest.approx(answered.mean()), pytest.approx(wrong[answered].mean()))
    assert curve.area < curve.risk[-1]
