"""Networks trained here against frozen features: ``python tests/benchmarks/own_model.py --data FOLDER``.

What notebook 06 shows on the sample, on any data set and over more splits. Each is trained on so many images of each
class and asked about all others: ``small_cnn`` from nothing and pretrained on glyphs; the last block of InceptionV3
frozen and trained on; our recipe's frozen features. Prints a line a method and, with ``--record NAME``, puts them under
that data set's name into ``notebooks/recorded_own_model.json``, which notebook 06 shows, and into the README.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from splits import README, ROOT, shown

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
                "command": f"python tests/benchmarks/own_model.py {' '.join(shown(sys.argv[1:]))}".strip(),
            }
        )
        print({name: value for name, value in rows[-1].items() if name != "command"}, flush=True)
    if options.record:
        record(rows)


def measured(options: argparse.Namespace) -> Iterator[tuple[str, int, list[float]]]:
    """(method, training images of each class, accuracy in each split)."""
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    from helpers import training
    from helpers.networks import build_network, recipe
    from helpers.numtadb import read_digits, sample_per_class
    from helpers.spark import start_spark
    from helpers.store import featurize

    spark = start_spark()
    settings = recipe("glyphs")
    digits = sample_per_class(read_digits(options.data), options.per_class)
    images, labels, paths = training.grey_arrays(digits, training.SIDE)
    stages = (settings.featurizer(), settings.featurizer(layer="mixed9", pooling="flatten"))
    features, maps = (training.feature_arrays(featurize(digits, s, options.store), paths) for s in stages)
    splits = {
        size: training.split_rows(digits, paths, range(options.splits), 1 - size / options.per_class)
        for size in options.sizes
    }
    spark.stop()

    training.steady()
    pretrained, _, _ = training.pretrained_cnn()
    block = training.last_block(build_network("InceptionV3", "glyphs", image_size=settings.image_size), "mixed9")
    maps = maps.reshape(-1, *block.input_shape[1:])
    for size, of_size in splits.items():
        yield "small CNN, from nothing", size, training.cnn_table(images, labels, of_size)
        yield "small CNN, pretrained on glyphs", size, training.cnn_table(images, labels, of_size, pretrained)
        blocks = training.block_table(block, maps, labels, of_size, settings)
        yield "last Inception block, frozen", size, list(blocks["frozen"])
        yield "last Inception block, fine-tuned", size, list(blocks["tuned"])
        yield "our recipe's features, frozen", size, training.probe_table(features, labels, of_size, settings)


def record(rows: list[dict]) -> None:
    """Put the rows in place of those of the same data set, and into the README."""
    old = json.loads(RECORDS.read_text(encoding="utf8")) if RECORDS.exists() else []
    kept = [row for row in old if row["data_set"] not in {row["data_set"] for row in rows}]
    rows = sorted(kept + rows, key=lambda row: row["data_set"])
    RECORDS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    README.write_text(with_table(README.read_text(encoding="utf8"), rows), encoding="utf8")


def with_table(readme: str, rows: list[dict]) -> str:
    """The README with the table of ``rows`` between its two marks, and under it the commands that made them."""
    sizes = sorted({row["per_class"] for row in rows})
    commands = list(dict.fromkeys(row["command"] for row in rows))
    head = ["data set", "trained here", *(f"{size} a class" for size in sizes), "made by"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for data_set, method in dict.fromkeys((row["data_set"], row["method"]) for row in rows):
        own = {row["per_class"]: row for row in rows if (row["data_set"], row["method"]) == (data_set, method)}
        cells = [f"{own[s]['accuracy']:.3f} ± {own[s]['spread']:.3f}" if s in own else "" for s in sizes]
        made = f"({commands.index(next(iter(own.values()))['command']) + 1})"
        lines.append(f"| {' | '.join([data_set, method, *cells, made])} |")
    lines += ["", *(f"({number}) `{command}`  " for number, command in enumerate(commands, 1))]
    before, rest = readme.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{chr(10).join(lines)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


if __name__ == "__main__":
    main()
