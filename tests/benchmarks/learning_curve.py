"""Accuracy by number of training images: ``python tests/benchmarks/learning_curve.py --data FOLDER --sizes 5 …``.

Our recipe, trained on so many images of each class and tested on a fifth of all, over several stratified splits; within
a split the smaller training sets are part of the larger ones. Each image goes through the network once. Prints a line a
size and, with ``--record NAME``, puts them under that data set's name into ``notebooks/recorded_learning_curve.json``,
which notebook 05 shows.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from recording import ROOT, command_line, put_rows

RECORDS = ROOT / "notebooks" / "recorded_learning_curve.json"
LIKE = ("data_set", "weights")  # a curve of these is replaced as a whole
TEST = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data set for read_digits; the sample without it")
    parser.add_argument("--weights", default="glyphs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 20, 40], help="training images of each class")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--store", default=str(ROOT / "build" / "features"))
    parser.add_argument("--record", metavar="NAME", help="what to call the data set in the recorded results")
    options = parser.parse_args()

    from pyspark.ml.evaluation import MulticlassClassificationEvaluator

    from helpers.networks import recipe
    from helpers.numtadb import read_digits, sample_per_class, train_test_split
    from helpers.spark import start_spark
    from helpers.store import featurize

    spark = start_spark()
    settings = recipe(options.weights)
    featurizer = settings.featurizer()
    # so many of each class that a fifth for the test leaves enough for the largest training set
    digits = sample_per_class(read_digits(options.data), math.ceil(max(options.sizes) / (1 - TEST)))
    features = featurize(digits, featurizer, options.store).select("label", "path", "features").coalesce(2).cache()
    accuracy = MulticlassClassificationEvaluator(metricName="accuracy")
    scores: dict[int, list[float]] = {size: [] for size in sorted(options.sizes)}
    for seed in range(options.splits):
        train, test = (part.cache() for part in train_test_split(features, TEST, seed))
        tested = test.count()
        for size, found in scores.items():
            few = sample_per_class(train, size, seed).coalesce(2).cache()
            found.append(accuracy.evaluate(settings.classifier().fit(few).transform(test)))
            few.unpersist()
        train.unpersist()
        test.unpersist()
        print(f"split {seed + 1} of {options.splits}: {[round(found[-1], 3) for found in scores.values()]}", flush=True)
    rows = [
        {
            "data_set": options.record or (Path(options.data).name if options.data else "sample"),
            "weights": Path(options.weights).name,
            "setting": settings.title,
            "layer": "+".join(settings.layer or ["last"]),
            "image_size": featurizer.image_size(),
            "per_class": size,
            "accuracy": round(statistics.mean(found), 4),
            "spread": round(statistics.stdev(found), 4) if len(found) > 1 else 0.0,
            "splits": options.splits,
            "test_images": tested,
            "command": command_line(),
        }
        for size, found in scores.items()
    ]
    for row in rows:
        print({name: row[name] for name in ("per_class", "accuracy", "spread")})
    if options.record:
        put_rows(RECORDS, rows, LIKE, (*LIKE, "per_class"))
    spark.stop()


if __name__ == "__main__":
    main()
