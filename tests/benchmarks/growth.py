"""What reading costs, and how speed grows with images and workers: ``python tests/benchmarks/growth.py``.

At the recipe's size, where the network is fast and reading counts most. Reading: images/s from picture files on disk
against images/s from the same images in memory (a cached frame), in pairs. Growth: 100, 500 and 2,000 images, with one
worker and with two; 2,000 are the sample's 500 four times, each time with another pixel.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics

from measuring import (
    Figure,
    copies,
    cores_here,
    local_spark,
    median_ratio,
    run,
    script,
    settings_of,
    sgemm,
    take_turns,
)
from pyspark.sql import functions as F

from helpers.numtadb import read_digits

SIZES = (100, 500, 2000)


def rates_by_size(workers: int, rounds: int) -> dict[int, list[float]]:
    """Images/s of every size with so many workers, from files, once workers and network are warm."""
    featurizer = settings_of("recipe").featurizer()
    digits = read_digits()
    few = digits.where(
        F.col("path").isin([row.path for row in digits.select("path").orderBy("path").limit(100).collect()])
    )
    frames = {100: few, 500: digits, 2000: copies(digits, 4)}
    featurized = {size: featurizer.transform(frame).select("features") for size, frame in frames.items()}
    run(featurized[500])
    print(f"growth, {workers} worker{'s' if workers > 1 else ''}, images/s:")
    measures = {f"{size:,}": (lambda size=size: size / run(featurized[size])) for size in SIZES}
    rates = take_turns(measures, rounds)
    return dict(zip(SIZES, rates.values(), strict=True))


def reading(pairs: int) -> tuple[list[float], list[float]]:
    """Images/s of the sample, from files and from memory, in pairs."""
    featurizer = settings_of("recipe").featurizer()
    digits = read_digits().select("image")
    # Spark takes what is cached wherever the same plan occurs, so the cached one has a filter that the other has not
    cached = digits.where(F.lit(True)).cache()
    images = cached.count()
    files, memory = (featurizer.transform(frame).select("features") for frame in (digits, cached))
    for frame, is_cached in ((files, False), (memory, True)):
        plan = io.StringIO()
        with contextlib.redirect_stdout(plan):
            frame.explain()
        if ("InMemoryTableScan" in plan.getvalue()) is not is_cached:
            raise SystemExit("reading cannot be measured: Spark caches otherwise than this benchmark takes for granted")
    run(files)
    run(memory)
    print("reading, images/s:")
    rates = take_turns({"files": lambda: images / run(files), "memory": lambda: images / run(memory)}, pairs)
    cached.unpersist()
    return rates["files"], rates["memory"]


def measure(options: argparse.Namespace) -> list[Figure]:
    gemm = sgemm()
    rates = {}
    for workers in (number for number in (1, 2) if number <= cores_here()):
        spark = local_spark(workers)
        rates[workers] = rates_by_size(workers, options.rounds)
        if workers == min(2, cores_here()):
            files, memory = reading(options.pairs)
        spark.stop()
    detail = f"{statistics.median(files):.0f} : {statistics.median(memory):.0f} images/s, recipe, 500 images"
    figures = [Figure("speed from files against memory", median_ratio(files, memory), "x", ">= 0.8", detail, gemm)]
    for number, by_size in rates.items():
        middle = {size: statistics.median(values) for size, values in by_size.items()}
        detail = ", ".join(f"{size:,}: {rate:.0f}/s" for size, rate in middle.items())
        what = f"speed of 2,000 images against 500, {number} worker{'s' if number > 1 else ''}"
        figures.append(Figure(what, middle[2000] / middle[500], "x", "", detail, gemm))
    if len(rates) == 2:
        one, two = (statistics.median(by_size[2000]) for by_size in rates.values())
        figures.append(
            Figure("speed of 2 workers against 1", two / one, "x", "", f"{two:.0f} : {one:.0f} images/s", gemm)
        )
    return figures


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=3, help="pairs from files and from memory (3)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds over the sizes (1)")


if __name__ == "__main__":
    script(measure, __doc__, arguments)
