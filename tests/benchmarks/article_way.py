"""The article's way, costed: its code as written against ours, on the same images and the same featurizer.

    python tests/benchmarks/article_way.py
    python tests/benchmarks/article_way.py --per-class 50 --record   # for the picture in notebook 02

As written: nothing is kept, so each question to the frame (one fit, four evaluations, two ``toPandas``, one ``show``)
reads the images and runs the network again, as far as Spark cannot do without. Ours: ``featurize`` into a store, once;
``evaluate``, once. Article's settings at 299 px. Seconds, and how many images have gone through the network, counted by
an accumulator around the function that runs it in the workers. ``--record`` writes the images of each
step into ``notebooks/recorded_article_way.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from measuring import Figure, local_spark, run, script, settings_of, sgemm
from pyspark.accumulators import Accumulator
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import DataFrame
from recording import ROOT, command_line, put_rows

from helpers import featurizer

RECORDS = ROOT / "notebooks" / "recorded_article_way.json"


def count_images(seen: Accumulator) -> None:
    """From now on, featurizers made in this process add to ``seen`` the images that they run through the network.

    A featurizer's function goes to the workers by value, and with it what has taken the place of ``run_network``.
    """
    original = featurizer.run_network

    def counted(network: Any, images: pa.StructArray, size: int, batch_size: int) -> tuple[list, list]:
        seen.add(len(images))
        return original(network, images, size, batch_size)

    featurizer.run_network = counted


Step = Callable[[str], None]  # told at the end of a step what it was


class Steps:
    """What each step of a way took, from the making of this object on: ``rows`` with ``step``, ``images`` through the
    network and ``seconds``.
    """

    def __init__(self, seen: Accumulator) -> None:
        self.seen, self.rows = seen, []
        self.last = (time.perf_counter(), seen.value)

    def ended(self, step: str) -> None:
        now = (time.perf_counter(), self.seen.value)
        seconds, images = now[0] - self.last[0], now[1] - self.last[1]
        print(f"{seconds:7.2f} s  {images:5d} images through the network: {step}", flush=True)
        self.rows.append({"step": step, "images": images, "seconds": seconds})
        self.last = now

    def sums(self) -> tuple[float, int]:
        return sum(row["seconds"] for row in self.rows), sum(row["images"] for row in self.rows)


def as_written(digits: DataFrame, said: Step) -> None:
    """The article's code, on today's library: split, fit, four figures, the matrix and the report, ROC AUC, a look."""
    from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score
    from sklearn.preprocessing import label_binarize

    settings = settings_of("article")
    train, test = digits.randomSplit([0.8, 0.2], 42)
    # the article's stage keeps every row; leaving rows out would take the network even for the labels
    stages = [settings.featurizer(handleInvalid="keep"), settings.classifier()]
    model = Pipeline(stages=stages).fit(train)
    said("fit")
    predictions = model.transform(test)
    evaluator = MulticlassClassificationEvaluator()
    for name in ("f1", "weightedPrecision", "weightedRecall", "accuracy"):
        evaluator.evaluate(predictions, {evaluator.metricName: name})
        said(f"evaluate {name}")
    truth = predictions.select("label").toPandas()
    said("toPandas of the labels")
    predicted = predictions.select("prediction").toPandas()
    said("toPandas of the predictions")
    confusion_matrix(truth, predicted, labels=range(10))
    classification_report(truth, predicted, zero_division=0)
    roc_auc_score(*(label_binarize(part, classes=range(10)) for part in (truth, predicted)), average="micro")
    with contextlib.redirect_stdout(io.StringIO()):
        predictions.select("image", "prediction", "label").show()
    said("show")


def our_way(digits: DataFrame, said: Step) -> None:
    """The same answers by the store and ``evaluate``."""
    from helpers.evaluation import evaluate
    from helpers.numtadb import train_test_split
    from helpers.store import featurize

    settings = settings_of("article")
    with tempfile.TemporaryDirectory() as store:
        features = featurize(digits, settings.featurizer(), store)
        said("featurize")
        train, test = train_test_split(features)
        model = settings.classifier().fit(train)
        said("fit")
        evaluation = evaluate(model.transform(test))
        print(evaluation.report, file=io.StringIO())
        said("evaluate")


def measure(options: argparse.Namespace) -> list[Figure]:
    from helpers.numtadb import read_digits, sample_per_class

    spark = local_spark()
    digits = sample_per_class(read_digits(), options.per_class)
    run(settings_of("article").featurizer().transform(digits.limit(8)).select("features"))  # workers up, network loaded
    seen = spark.sparkContext.accumulator(0)
    count_images(seen)
    found = {}
    for name, way in (("as written", as_written), ("ours", our_way)):
        print(f"\n{name}:")
        found[name] = Steps(seen)
        way(digits, found[name].ended)
        print("{:7.2f} s  {:5d} images together".format(*found[name].sums()))
    spark.stop()
    if options.record:
        rows = [
            {"way": name, "step": row["step"], "images": row["images"], "command": command_line()}
            for name, steps in found.items()
            for row in steps.rows
        ]
        put_rows(RECORDS, rows, ("way",), ("way",))
    (their_seconds, their_images), (our_seconds, our_images) = (steps.sums() for steps in found.values())
    gemm = sgemm()
    images = 10 * options.per_class
    if our_images != images:
        raise SystemExit(f"{our_images} runs of the network were counted for {images} images in a store")
    return [
        Figure(
            "article's way against ours, seconds",
            their_seconds / our_seconds,
            "x",
            detail=f"{their_seconds:.1f} s : {our_seconds:.1f} s, {images} images",
            sgemm=gemm,
        ),
        Figure(
            "article's way against ours, network runs",
            their_images / our_images,
            "x",
            detail=f"{their_images} : {our_images} images through the network",
            sgemm=gemm,
        ),
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--per-class", type=int, default=8, help="images of each digit (8)")
    parser.add_argument("--record", action="store_true", help="write the steps down for notebook 02")


if __name__ == "__main__":
    script(measure, __doc__, arguments)
