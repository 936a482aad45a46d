"""Peak memory of featurizing 500 and 5,000 images with two workers: ``python tests/benchmarks/memory_growth.py``.

Each run is a program of its own that starts Spark, computes features into a store and reads them back; ``memory.py``
watches it. 5,000 are the sample's 500, ten times with another pixel each, so that the network runs on every one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

from measuring import HERE, ROOT, Figure, copies, local_spark, run, sample_digits, script, settings_of, sgemm
from memory import peak_of


def featurize_copies(name: str, images: int, workers: int) -> None:
    """The program that is watched; it fails unless the network has run on every image."""
    from helpers.store import featurize, timing

    local_spark(workers)
    settings = settings_of(name)
    digits = copies(sample_digits(), images // 500)
    with tempfile.TemporaryDirectory() as store:
        features = featurize(digits, settings.featurizer(), store)
        run(features)
        done = timing(store, settings.featurizer())
    if done["images"] != images:
        raise SystemExit(f"the network ran on {done['images']} images, not on {images}")
    print(f"{images} images, {done['images_per_second']:.1f} images/s")


def measure(options: argparse.Namespace) -> list[Figure]:
    figures, smallest, gemm = [], None, sgemm()
    for images in options.images:
        command = [sys.executable, str(HERE / "memory_growth.py"), "--one", str(images), "--settings", options.settings]
        peak = peak_of([*command, "--workers", str(options.workers)], cwd=ROOT)
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
    parser.add_argument("--images", type=int, nargs="+", default=[500, 5000], help="multiples of 500")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)


if __name__ == "__main__":
    if "--one" in sys.argv:
        parser = argparse.ArgumentParser()
        arguments(parser)
        given = parser.parse_args()
        featurize_copies(given.settings, given.one, given.workers)
    else:
        script(measure, __doc__, arguments)
