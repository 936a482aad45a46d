"""Does memory grow with the number of images? 20,000 through the default recipe: ``python tests/benchmarks/load.py``.

The files are the sample's digits, again and again, no two alike: a pattern in a corner counts them. They are read and
featurized into a store by one call; meanwhile the proportional set sizes of driver, JVM and Python workers are added up
(``helpers.check.memory_of``). The last quarter of the images is set against the second: in the first one, heaps and
caches still fill.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean

import psutil
from measuring import Figure, local_spark, script, settings_of, write_digits

from helpers.check import memory_of
from helpers.numtadb import read_digits
from helpers.store import featurize, timing


def measure(options: argparse.Namespace) -> list[Figure]:
    images = options.images
    if not 1000 <= images < 2**16:
        raise SystemExit(f"--images {images}: give 1,000 to 65,535")
    seen: list[tuple[int, float]] = []

    def look(done: int, total: int) -> None:
        sizes = memory_of([psutil.Process()])
        seen.append((done, sum(size for _, size in sizes)))

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "digits"
        write_digits(folder, images)
        local_spark(options.workers)
        stage = settings_of("recipe").featurizer()
        features = featurize(read_digits(folder), stage, Path(made) / "store", look).where("features IS NOT NULL")
        done = timing(Path(made) / "store", stage)
        if features.count() != images or done["images"] != images:
            raise SystemExit(f"the network ran on {done['images']:.0f} images, not on {images}")

    def during(first: float, last: float) -> float:
        return mean(size for number, size in seen if first * images < number <= last * images)

    second, fourth = during(0.25, 0.5), during(0.75, 1)
    sizes = f"{second:.0f} : {fourth:.0f} MiB, mean PSS of the second and the last quarter, {len(seen)} looks"
    what = f"memory, {images:,} images, recipe, {options.workers} workers"
    speed = f"{done['images']:,.0f} images in {done['seconds']:.0f} s"
    return [
        Figure(f"growth of {what}", fourth / second, "x", "<= 1.10", sizes),
        Figure(f"largest {what}", max(size for _, size in seen) * 2**20 / 1e9, "GB", "", speed),
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)


if __name__ == "__main__":
    script(measure, __doc__, arguments)
