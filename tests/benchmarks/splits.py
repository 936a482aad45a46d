"""Accuracy over many splits, not one: ``python tests/benchmarks/splits.py --data FOLDER --weights NAME_OR_FILE``.

Three settings over the same stratified 8:2 splits: the article's; its last layer with logistic regression run to
convergence; our recipe. Each image goes through the network once a setting. Prints a table and, with ``--record NAME``,
puts it under that data set's name into ``notebooks/recorded_results.json``, which notebook 04 shows, and the table into
the README.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "notebooks" / "recorded_results.json"
README = ROOT / "README.md"
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
                "command": f"python tests/benchmarks/splits.py {' '.join(shown(sys.argv[1:]))}".strip(),
            }
        )
        print({name: value for name, value in rows[-1].items() if name != "command"}, flush=True)
    if options.record:
        record(rows)
    spark.stop()


def shown(arguments: list[str]) -> list[str]:
    """The command line as others would type it: without folders of this machine, its store and ``--record NAME``."""
    kept = list(arguments)
    for option in ("--store", "--record"):
        if option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    return [Path(argument).name if "/" in argument else argument for argument in kept]


def record(rows: list[dict]) -> None:
    """Put the rows in place of those of the same setting, data set, weights and images, and into the README."""
    old = json.loads(RECORDS.read_text(encoding="utf8")) if RECORDS.exists() else []
    same = ("setting", "data_set", "weights", "images")
    replaced = [[row[name] for name in same] for row in rows]
    kept = [row for row in old if [row[name] for name in same] not in replaced]
    rows = sorted(kept + rows, key=lambda row: [row[name] for name in ("data_set", "images", "weights", "accuracy")])
    RECORDS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    README.write_text(with_table(README.read_text(encoding="utf8"), rows), encoding="utf8")


def with_table(readme: str, rows: list[dict]) -> str:
    """The README with the table of ``rows`` between its two marks, and under it the commands that made them."""
    head = ["data set", "images", "weights", "setting", "layer", "size", "accuracy", "made by"]
    commands = list(dict.fromkeys(row["command"] for row in rows))
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        accuracy = f"{row['accuracy']:.3f} ± {row['spread']:.3f}"
        cells = [row[name] for name in ("data_set", "images", "weights", "setting", "layer", "image_size")]
        made = f"({commands.index(row['command']) + 1})"
        lines.append(f"| {' | '.join(map(str, [*cells, accuracy, made]))} |")
    lines += ["", *(f"({number}) `{command}`  " for number, command in enumerate(commands, 1))]
    before, rest = readme.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{chr(10).join(lines)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


if __name__ == "__main__":
    main()
