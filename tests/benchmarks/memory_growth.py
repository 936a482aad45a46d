"""Peak memory of featurizing 500 and 5,000 images with two workers: ``python tests/benchmarks/memory_growth.py``.

Each run is a program of its own that starts Spark, reads a folder of pictures, computes features into a store and reads
them back; ``memory.py`` watches it. No two pictures are alike, so that the network runs on every one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from measuring import HERE, ROOT, Figure, local_spark, run, script, settings_of, sgemm, write_digits
from memory import peak_of


def featurize_folder(name: str, folder: str, images: int, workers: int) -> None:
    """The program that is watched; it fails unless the network has run on every image."""
    from helpers.numtadb import read_digits
    from helpers.store import featurize, timing

    local_spark(workers)
    featurizer = settings_of(name).featurizer()
    with tempfile.TemporaryDirectory() as store:
        features = featurize(read_digits(folder), featurizer, store)
        run(features)
        done = timing(store, featurizer)
    if done["images"] != images:
        raise SystemExit(f"the network ran on {done['images']} images, not on {images}")
    print(f"{images} images, {done['images_per_second']:.1f} images/s")


def measure(options: argparse.Namespace) -> list[Figure]:
    figures, smallest, gemm = [], None, sgemm()
    for images in options.images:
        command = [sys.executable, str(HERE / "memory_growth.py"), "--settings", options.settings]
        command += ["--workers", str(options.workers), "--images", str(images), "--one"]
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "digits"
            write_digits(folder, images)
            peak = peak_of([*command, str(folder)], cwd=ROOT)
        if peak.status:
            raise SystemExit(f"{' '.join(command)} ended with status {peak.status}")
        print(peak, flush=True)
        shares = ", ".join(f"{kind} {size:.0f}" for kind, size in peak.kinds.items() if size >= 0.5)
        what = f"peak PSS, {options.settings}, {images:,} images, {options.workers} workers"
        figures.append(Figure(what, peak.total * 2**20 / 1e9, "GB", "<= 1.7", f"MiB: {shares}", gemm))
        if smallest is None:
            smallest = peak
        else:
            what = f"peak PSS, {images:,} images against {options.images[0]:,}"
            figures.append(Figure(what, peak.total / smallest.total, "x", "<= 1.10", options.settings, gemm))
    return figures


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", choices=["recipe", "article"], default="recipe")
    parser.add_argument("--images", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", metavar="FOLDER", help=argparse.SUPPRESS)


if __name__ == "__main__":
    if "--one" in sys.argv:
        parser = argparse.ArgumentParser()
        arguments(parser)
        given = parser.parse_args()
        featurize_folder(given.settings, given.one, given.images[0], given.workers)
    else:
        script(measure, __doc__, arguments)
