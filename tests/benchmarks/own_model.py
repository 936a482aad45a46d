"""Networks trained here against frozen features: ``python tests/benchmarks/own_model.py --data FOLDER``.

What notebook 06 shows on the sample, on any data set and over more splits. Each is trained on so many images of each
class and asked about all others: ``small_cnn`` from nothing and pretrained on glyphs; the last block of InceptionV3
frozen and trained on; our recipe's frozen features. Prints a line a method and, with ``--record NAME``, puts them under
that data set's name into ``notebooks/recorded_own_model.json``, which notebook 06 shows, and into the README.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

from recording import README, ROOT, Row, between_marks, command_line, put_rows, table_of

RECORDS = ROOT / "notebooks" / "recorded_own_model.json"
MARKS = ("<!-- own model, by tests/benchmarks/own_model.py --record -->", "<!-- end of own model -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data set for read_digits; the sample without it")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 40], help="training images of each class")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--store", default=str(ROOT / "build" / "features"))
    parser.add_argument("--record", metavar="NAME", help="what to call the data set in the recorded results")
    options = parser.parse_args()

    rows = []
    for method, size, scores in measured(options):
        rows.append(
            {
                "data_set": options.record or (Path(options.data).name if options.data else "sample"),
                "method": method,
                "per_class": size,
                "accuracy": round(statistics.mean(scores), 3),
                "spread": round(statistics.stdev(scores), 3) if len(scores) > 1 else 0.0,
                "splits": options.splits,
                "command": command_line(),
            }
        )
        print({name: value for name, value in rows[-1].items() if name != "command"}, flush=True)
    if options.record:
        record(rows)


def measured(options: argparse.Namespace) -> Iterator[tuple[str, int, list[float]]]:
    """(method, training images of each class, accuracy in each split)."""
    from helpers import training
    from helpers.networks import recipe
    from helpers.numtadb import read_digits, sample_per_class
    from helpers.spark import end_spark, start_spark
    from helpers.store import featurize

    start_spark()
    settings = recipe("glyphs")
    digits = sample_per_class(read_digits(options.data), options.per_class)
    images, labels, paths = training.grey_arrays(digits, training.SIDE)
    stages = (settings.featurizer(), settings.featurizer(layer="mixed9", pooling="flatten"))
    features, maps = (training.feature_arrays(featurize(digits, s, options.store), paths) for s in stages)
    splits = {
        size: training.split_rows(digits, paths, range(options.splits), 1 - size / options.per_class)
        for size in options.sizes
    }
    end_spark()

    apart = training.apart
    tables = {
        "small CNN, from nothing": training.cnn_table(images, labels, splits),
        "small CNN, pretrained on glyphs": training.cnn_table(
            images, labels, splits, apart(training.pretrained_cnn)[0]
        ),
    }
    blocks = {
        n: apart(training.block_table, settings, "mixed9", maps, labels, of_size) for n, of_size in splits.items()
    }
    tables["last Inception block, frozen"] = {n: list(table["frozen"]) for n, table in blocks.items()}
    tables["last Inception block, fine-tuned"] = {n: list(table["tuned"]) for n, table in blocks.items()}
    tables["our recipe's features, frozen"] = training.probe_table(features, labels, splits, settings)
    for method, table in tables.items():
        for size, scores in table.items():
            yield method, size, scores


def record(rows: list[Row]) -> None:
    """Put the rows in place of those of the same data set, and into the README."""
    rows = put_rows(RECORDS, rows, ("data_set",), ("data_set",))
    README.write_text(with_table(README.read_text(encoding="utf8"), rows), encoding="utf8")


def with_table(readme: str, rows: list[Row]) -> str:
    """The README with the table of ``rows``: a line a method, a column a size."""
    sizes = sorted({row["per_class"] for row in rows})
    lines: dict[tuple[str, str], Row] = {}
    for row in rows:
        line = lines.setdefault((row["data_set"], row["method"]), {"command": row["command"]})
        line[row["per_class"]] = f"{row['accuracy']:.3f} ± {row['spread']:.3f}"
    table = [{"data_set": data_set, "method": method, **line} for (data_set, method), line in lines.items()]
    text = table_of(
        table,
        ("data set", "trained here", *(f"{size} a class" for size in sizes)),
        lambda line: [line["data_set"], line["method"], *(line.get(size, "") for size in sizes)],
    )
    return between_marks(readme, MARKS, text)


if __name__ == "__main__":
    main()
