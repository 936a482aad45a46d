"""Accuracy over many splits, not one: ``python tests/benchmarks/splits.py --data FOLDER --weights NAME_OR_FILE``.

Three settings over the same stratified 8:2 splits: the article's; its last layer with logistic regression run to
convergence; our recipe. Each image goes through the network once a setting. Prints a table and, with ``--record NAME``,
puts it under that data set's name into ``notebooks/recorded_results.json``, which notebook 04 shows, and the table into
the README.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from recording import README, ROOT, Row, between_marks, command_line, put_rows, table_of

RECORDS = ROOT / "notebooks" / "recorded_results.json"
MARKS = ("<!-- results, by tests/benchmarks/splits.py --record -->", "<!-- end of results -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data set for read_digits; the sample without it")
    parser.add_argument("--weights", default="glyphs")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--store", default=str(ROOT / "build" / "features"))
    parser.add_argument("--record", metavar="NAME", help="what to call the data set in the recorded results")
    options = parser.parse_args()

    from pyspark.ml.evaluation import MulticlassClassificationEvaluator

    from helpers.networks import article, recipe
    from helpers.numtadb import read_digits, sample_per_class, train_test_split
    from helpers.spark import start_spark
    from helpers.store import featurize

    spark = start_spark()
    digits = sample_per_class(read_digits(options.data), options.per_class)
    first = article(options.weights)
    converged = replace(first, title="last layer, converged", max_iter=100, reg_param=0.01, elastic_net_param=0.0)
    accuracy = MulticlassClassificationEvaluator(metricName="accuracy")
    rows = []
    for settings in (first, converged, recipe(options.weights)):
        featurizer = settings.featurizer()
        features = featurize(digits, featurizer, options.store).select("label", "path", "features").coalesce(2).cache()
        scores = []
        for seed in range(options.splits):
            train, test = train_test_split(features, seed=seed)
            scores.append(accuracy.evaluate(settings.classifier().fit(train).transform(test)))
        rows.append(
            {
                "setting": settings.title,
                "data_set": options.record or (Path(options.data).name if options.data else "sample"),
                "weights": Path(options.weights).name,
                "layer": "+".join(settings.layer or ["last"]),
                "image_size": featurizer.image_size(),
                "images": features.count(),
                "accuracy": round(statistics.mean(scores), 3),
                "spread": round(statistics.stdev(scores), 3),
                "splits": options.splits,
                "command": command_line(),
            }
        )
        print({name: value for name, value in rows[-1].items() if name != "command"}, flush=True)
    if options.record:
        record(rows)
    spark.stop()


def record(rows: list[Row]) -> None:
    """Put the rows in place of those of the same setting, data set, weights and images, and into the README."""
    order = ("data_set", "images", "weights", "accuracy")
    rows = put_rows(RECORDS, rows, ("setting", "data_set", "weights", "images"), order)
    README.write_text(with_table(README.read_text(encoding="utf8"), rows), encoding="utf8")


def with_table(readme: str, rows: list[Row]) -> str:
    """The README with the table of ``rows``."""
    columns = ("data_set", "images", "weights", "setting", "layer", "image_size")
    head = ("data set", "images", "weights", "setting", "layer", "size", "accuracy")
    text = table_of(
        rows, head, lambda row: [*(row[name] for name in columns), f"{row['accuracy']:.3f} ± {row['spread']:.3f}"]
    )
    return between_marks(readme, MARKS, text)


if __name__ == "__main__":
    main()
