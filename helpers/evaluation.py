"""How good a classifier's predictions are: every figure from one pass over the Spark frame.

``evaluate`` brings three small columns (label, prediction, class probabilities) to the driver in a single action, so a
frame that would run the network again for every question runs it once. scikit-learn does the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, NumericType
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

__all__ = ["Evaluation", "RejectionCurve", "Reliability", "RocCurve", "evaluate"]


class RocCurve(NamedTuple):
    """One receiver operating characteristic.

    ``false_positive_rate`` and ``true_positive_rate`` are float64 arrays of one length, both from 0 to 1 and never
    falling; ``area`` is the area under the curve, 0.5 for guessing.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    area: float


class Reliability(NamedTuple):
    """How often a model was right, set against how sure it was (:meth:`Evaluation.reliability`).

    ``table``: a row for each bin of confidence that holds images: ``low`` and ``high`` (its bounds), ``images``,
    ``confidence`` (their mean) and ``accuracy``. ``error``: the expected calibration error, 0–1.
    """

    table: pd.DataFrame
    error: float


class RejectionCurve(NamedTuple):
    """The error rate among the answers that are left when the least sure are withheld
    (:meth:`Evaluation.rejection_curve`).

    ``coverage``, ``risk`` and ``threshold`` are float64 arrays of one length, from the fewest answers to all of them:
    the share of images that are answered, the share of wrong ones among those, and the least confidence that is still
    answered. ``area`` is the mean risk over all numbers of answers.
    """

    coverage: np.ndarray
    risk: np.ndarray
    threshold: np.ndarray
    area: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of one set of predictions; made by :func:`evaluate`.

    ``labels``: the k classes that occur as label or as prediction, rising. ``images``: rows evaluated.
    ``f1``, ``precision``, ``recall``: means over the classes weighted by their number of images (0 for a class that was
    never predicted); ``accuracy``: the share of right predictions. ``roc_auc``: mean over the classes of the area under
    "this class against the rest" by probability. ``roc_auc_hard``: the same from the predicted labels alone, each
    binarised to 0 or 1, which is how the 2019 article computed its 0.901; it is lower than ``roc_auc`` as a rule,
    because a label says nothing of how sure the model was. Both are nan when the frame holds only one class.
    ``confusion``: int64 (k, k), rows the true classes, columns the predicted ones. ``report``: scikit-learn's
    classification report as text, ``report_table`` the same as a pandas frame, one row per class and average.
    ``truth`` and ``predicted`` int64 (images,), ``probabilities`` float64 (images, k) in the order of ``labels``: what
    the figures were computed from.
    """

    labels: list[int]
    images: int
    f1: float
    precision: float
    recall: float
    accuracy: float
    roc_auc: float
    roc_auc_hard: float
    confusion: np.ndarray = field(repr=False)
    report: str = field(repr=False)
    report_table: pd.DataFrame = field(repr=False)
    truth: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)
    probabilities: np.ndarray = field(repr=False)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high) of the accuracy, both within 0–1: the Wilson score interval at confidence ``level``.

        With p right out of n images and z the normal quantile of (1 + level) / 2 it is
        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n).
        Source: E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference", Journal of
        the American Statistical Association 22 (158), 209–212; computed by ``scipy.stats``. It takes the images for
        independent draws: many images of one writer make the truth wider. ``ValueError`` unless 0 < level < 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"interval: level is {level}; give a share between 0 and 1, such as 0.95.")
        right = int(np.trace(self.confusion))
        low, high = binomtest(right, self.images).proportion_ci(confidence_level=level, method="wilson")
        return float(low), float(high)

    def roc_curves(self, hard: bool = False) -> dict[int, RocCurve]:
        """The curve of each class against the rest, by label; from the probabilities or, ``hard``, the labels alone.

        A class with no image in the frame, or with nothing else in it, has no curve and is left out.
        """
        scores = _hard_scores(self.predicted, self.labels) if hard else self.probabilities
        curves = {}
        for column, label in enumerate(self.labels):
            is_class = self.truth == label
            if is_class.any() and not is_class.all():
                # Every threshold is kept: the corners that scikit-learn drops are on the curve, but not on a mean of
                # several.
                x, y, _ = roc_curve(is_class, scores[:, column], drop_intermediate=False)
                curves[label] = RocCurve(x, y, float(roc_auc_score(is_class, scores[:, column])))
        return curves

    def macro_curve(self, hard: bool = False) -> RocCurve | None:
        """The mean of the classes' curves at each false positive rate, or None where no class has one.

        Its area is ``roc_auc`` (``hard``: ``roc_auc_hard``), because the area of a mean is the mean of the areas.
        """
        curves = list(self.roc_curves(hard).values())
        if not curves:
            return None
        grid = np.unique(np.concatenate([curve.false_positive_rate for curve in curves]))
        # A curve climbs vertically where several points share one x, so each x counts twice: with the height at which
        # the curves arrive (interp from the right, mirrored) and with the height at which they leave.
        arrive = np.mean([np.interp(-grid, -x[::-1], y[::-1]) for x, y, _ in curves], axis=0)
        leave = np.mean([np.interp(grid, x, y) for x, y, _ in curves], axis=0)
        area = self.roc_auc_hard if hard else self.roc_auc
        return RocCurve(np.repeat(grid, 2), np.column_stack([arrive, leave]).ravel(), area)

    @property
    def confidence(self) -> np.ndarray:
        """float64 (images,): the probability of the class that was predicted."""
        return self.probabilities[np.arange(self.images), np.searchsorted(self.labels, self.predicted)]

    def reliability(self, bins: int = 10) -> Reliability:
        """Accuracy by confidence, in ``bins`` equal steps of confidence, and the expected calibration error.

        A model is calibrated when of the answers that it is 80 % sure of 80 % are right. With n images, B_m those whose
        confidence lies in step m (its lower bound exclusive), acc and conf their share of right answers and their mean
        confidence, the error is Σ_m |B_m| / n · |acc(B_m) − conf(B_m)|.
        Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger (2017), "On calibration of modern neural networks", ICML,
        PMLR 70, 1321–1330, equations 2 and 3, after M. P. Naeini, G. F. Cooper, M. Hauskrecht (2015), AAAI. It depends
        on the steps, and few images make it too large. ``ValueError`` unless ``bins`` is 1 or more.
        """
        if bins < 1:
            raise ValueError(f"reliability: bins is {bins}; give 1 or more.")
        edges = np.linspace(0, 1, bins + 1)
        # rounding may leave a probability a hair above 1
        step = np.clip(np.searchsorted(edges, self.confidence, side="left") - 1, 0, bins - 1)
        rows = pd.DataFrame({"step": step, "confidence": self.confidence, "accuracy": self.truth == self.predicted})
        table = rows.groupby("step").agg(
            images=("confidence", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
        )
        gap = (table["accuracy"] - table["confidence"]).abs()
        error = float((table["images"] * gap).sum() / self.images)
        table.insert(0, "low", edges[table.index])
        table.insert(1, "high", edges[table.index + 1])
        return Reliability(table.reset_index(drop=True), error)

    def rejection_curve(self) -> RejectionCurve:
        """What "I don't know" would buy: the risk among the answers whose confidence reaches a threshold, for each one.

        Images of equal confidence are answered together, since no threshold tells them apart; in the area, each of them
        counts with the risk of all. Source: R. El-Yaniv, Y. Wiener (2010), "On the foundations of noise-free selective
        classification", Journal of Machine Learning Research 11, 1605–1641 (coverage and risk); Y. Geifman, G. Uziel,
        R. El-Yaniv (2019), "Bias-reduced uncertainty estimation for deep neural classifiers", ICLR (the area).
        """
        order = np.argsort(-self.confidence, kind="stable")
        sure, wrong = self.confidence[order], (self.truth != self.predicted)[order]
        last = np.append(np.flatnonzero(np.diff(sure)), self.images - 1)  # of each run of equal confidences
        answered = last + 1
        risk = np.cumsum(wrong)[last] / answered
        area = float(np.sum(risk * np.diff(answered, prepend=0)) / self.images)
        return RejectionCurve(answered / self.images, risk, sure[last], area)

    def as_dict(self, digits: int = 4) -> dict[str, int | float]:
        """images, f1, precision, recall, accuracy, roc_auc, roc_auc_hard; the shares rounded to ``digits`` decimals."""
        names = ("f1", "precision", "recall", "accuracy", "roc_auc", "roc_auc_hard")
        return {"images": self.images} | {name: round(getattr(self, name), digits) for name in names}

    def __str__(self) -> str:
        """One ``name: value`` a line, rounded to four decimals, with the 95 % interval behind the accuracy."""
        low, high = self.interval()
        lines = []
        for name, value in self.as_dict().items():
            text = f"{name}: {value}" if name == "images" else f"{name}: {value:.4f}"
            lines.append(text + (f" (95 % interval {low:.3f}–{high:.3f})" if name == "accuracy" else ""))
        return "\n".join(lines)


def evaluate(
    predictions: DataFrame,
    labelCol: str = "label",
    predictionCol: str = "prediction",
    probabilityCol: str = "probability",
) -> Evaluation:
    """Evaluate a classifier's output in one pass: the frame is computed once, by one action.

    ``labelCol`` and ``predictionCol`` hold class numbers 0, 1, 2 … in any numeric type; ``probabilityCol`` an ML vector
    or an array whose element i belongs to class i, as Spark's classifiers write it. A class beyond the end of that
    vector is one that training never saw: its probability counts as 0 and its images as errors, and the figures include
    it. All rows come to the driver, about 8 · (classes + 2) bytes each.

    ``ValueError``: a column is missing; the frame is empty; a label, prediction or probability is null or not a number
    (the sentence counts them); a class number is negative or no whole number; the vectors differ in length.
    ``TypeError``: a column has the wrong type.
    """
    table = _collect(predictions, labelCol, predictionCol, probabilityCol)
    images = table.num_rows
    if images == 0:
        raise ValueError("evaluate: the frame has no rows; check the filter or the split that made it.")
    for name, column in zip((labelCol, predictionCol, probabilityCol), table.columns, strict=True):
        if column.null_count:
            raise ValueError(
                f"evaluate: column {name!r} is null in {column.null_count} of {images} rows; drop them first, for "
                f"instance with .dropna(subset=[{name!r}]), and say how many were dropped."
            )
    truth = _classes(table["label"], labelCol)
    predicted = _classes(table["prediction"], predictionCol)
    labels = np.union1d(truth, predicted)
    probabilities = _align(_matrix(table["probability"], probabilityCol), labels)

    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
    report = classification_report(truth, predicted, zero_division=0, digits=3)
    report_dict = classification_report(truth, predicted, zero_division=0, output_dict=True)
    # scikit-learn warns of a matrix of one cell even when the labels are spelled out; its value needs no library.
    confusion = confusion_matrix(truth, predicted, labels=labels) if len(labels) > 1 else np.array([[images]])
    return Evaluation(
        labels=[int(label) for label in labels],
        images=images,
        f1=float(f1),
        precision=float(precision),
        recall=float(recall),
        accuracy=float(accuracy_score(truth, predicted)),
        roc_auc=_macro_auc(truth, labels, probabilities),
        roc_auc_hard=_macro_auc(truth, labels, _hard_scores(predicted, labels)),
        confusion=confusion.astype(np.int64),
        report=report,
        report_table=_report_table(report_dict, images),
        truth=truth,
        predicted=predicted,
        probabilities=probabilities,
    )


def _collect(predictions: DataFrame, label: str, prediction: str, probability: str) -> pa.Table:
    """The three columns as an Arrow table (label and prediction double, probability list of double)."""
    types = {item.name: item.dataType for item in predictions.schema}
    for name in (label, prediction, probability):
        if name not in types:
            raise ValueError(f"evaluate: the frame has no column {name!r}; it has {', '.join(types) or 'none'}.")
    for name in (label, prediction):
        if not isinstance(types[name], NumericType):
            raise TypeError(
                f"evaluate: column {name!r} is {types[name].simpleString()}, not a number; make class numbers of it, "
                "for instance with StringIndexer."
            )
    is_vector = isinstance(types[probability], VectorUDT)
    is_array = isinstance(types[probability], ArrayType) and isinstance(types[probability].elementType, NumericType)
    if not (is_vector or is_array):
        raise TypeError(
            f"evaluate: column {probability!r} is {types[probability].simpleString()}, not a vector; give the "
            "classifier's probabilityCol."
        )

    def column(name: str) -> Column:
        return F.col("`" + name.replace("`", "``") + "`")

    # vector_to_array throws on null; the check of nulls below gives a better sentence.
    array = F.when(column(probability).isNotNull(), vector_to_array(column(probability))) if is_vector else None
    return predictions.select(
        column(label).cast("double").alias("label"),
        column(prediction).cast("double").alias("prediction"),
        (column(probability).cast("array<double>") if array is None else array).alias("probability"),
    ).toArrow()


def _classes(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Class numbers as int64 (images,)."""
    values = column.to_numpy()
    bad = ~(np.isfinite(values) & (values >= 0) & (values == np.floor(values)))
    if bad.any():
        raise ValueError(
            f"evaluate: column {name!r} holds {values[bad][0]:g}, and {bad.sum()} such values in {len(values)} rows; "
            "class numbers are 0, 1, 2 …"
        )
    return values.astype(np.int64)


def _matrix(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Lists of one length as float64 (images, length)."""
    lengths = np.unique(pc.list_value_length(column).to_numpy())
    if len(lengths) > 1 or lengths[0] == 0:
        raise ValueError(
            f"evaluate: the vectors of column {name!r} have {' and '.join(map(str, lengths))} elements; they must all "
            "have one for each class, from one model."
        )
    # to_numpy turns null elements into nan, so one check covers both.
    flat = pc.list_flatten(column).to_numpy().astype(np.float64)
    values = flat.reshape(len(column), lengths[0])
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(f"evaluate: column {name!r} holds nan or infinity in {bad.sum()} of {len(values)} rows.")
    return values


def _align(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The columns of the classes in ``labels``; zeros for a class beyond the model's last."""
    known = labels < probabilities.shape[1]
    aligned = np.zeros((len(probabilities), len(labels)))
    aligned[:, known] = probabilities[:, labels[known]]
    return aligned


def _hard_scores(predicted: np.ndarray, labels: np.ndarray | list[int]) -> np.ndarray:
    """float64 (images, k): 1 in the predicted class's column, 0 elsewhere."""
    return (predicted[:, None] == np.asarray(labels)[None, :]).astype(np.float64)


def _macro_auc(truth: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean one-against-rest area over the classes that occur beside others; nan where none does.

    ``roc_auc_score(multi_class="ovr")`` is the same mean, but it refuses rows that do not sum to 1, which those of
    hard labels or of a class unseen in training need not, and warns of every class without images.
    """
    areas = []
    for column, label in enumerate(labels):
        is_class = truth == label
        if is_class.any() and not is_class.all():
            areas.append(roc_auc_score(is_class, scores[:, column]))
    return float(np.mean(areas)) if areas else math.nan


def _report_table(report: dict, images: int) -> pd.DataFrame:
    """classification_report's dict as a frame: index the class or the average; precision, recall, f1-score, support."""
    # scikit-learn gives the accuracy as a bare number; the text report prints it in the column of the F1 score.
    rows = {
        name: {"precision": math.nan, "recall": math.nan, "f1-score": row, "support": images}
        if name == "accuracy"
        else row
        for name, row in report.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"support": int})
