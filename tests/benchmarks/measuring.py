"""What the benchmarks share: figures and their table, pairs that take turns, the machine's own speed, many images.

A benchmark is a module with ``measure(options) -> list[Figure]`` that ends in ``script(...)``: run by hand it prints
its figures as a table, run by ``bench.py`` it hands them over as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from helpers.networks import Recipe

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MATRIX = 2048  # rows and columns of the matrices of sgemm
BLOCK = 8  # pixels: a bit of the pattern that tells pictures apart, as large as JPEG's blocks, so that it outlives them


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    ``what`` was measured; ``value`` with its ``unit`` (``"x"`` for a ratio); ``bar`` the limit it should keep, as text
    (``">= 1.1"``), or nothing; ``detail`` what the value was computed from; ``sgemm`` numpy's GFLOP/s in the same run.
    """

    what: str
    value: float
    unit: str
    bar: str = ""
    detail: str = ""
    sgemm: float | None = None

    def holds(self) -> bool | None:
        """Whether the bar is kept; ``None`` where there is none."""
        if not self.bar:
            return None
        sign, limit = self.bar.split()
        return {">=": self.value >= float(limit), "<=": self.value <= float(limit)}[sign]


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table with columns padded to one width."""
    rows = [["what", "figure", "bar", "kept", "from", "sgemm, GFLOP/s"]]
    for figure in figures:
        kept = {True: "yes", False: "no", None: ""}[figure.holds()]
        sgemm = "" if figure.sgemm is None else f"{figure.sgemm:.0f}"
        value = f"{figure.value:.0f}" if abs(figure.value) >= 100 else f"{figure.value:.2f}"
        rows.append([figure.what, f"{value} {figure.unit}", figure.bar, kept, figure.detail, sgemm])
    rows.insert(1, [])
    widths = [max(len(row[column]) for row in rows if row) for column in range(len(rows[0]))]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        if row
        else f"|{'|'.join('-' * (width + 2) for width in widths)}|"
        for row in rows
    )


def machine() -> str:
    """Processor, cores this process may use and memory: what a figure depends on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = cores_here()
    return f"{' '.join(model.split())}, {cores} core{'s' if cores > 1 else ''}, {memory:.0f} GiB"


def cores_here() -> int:
    """Cores that this process may use."""
    from helpers.spark import available_cores

    return available_cores()


def use_cores(number: int | None) -> None:
    """Keep this process, and all that it starts, to ``number`` cores, as ``taskset`` does; ``None`` leaves it alone."""
    if number is not None:
        allowed = sorted(os.sched_getaffinity(0))
        if number > len(allowed):
            raise SystemExit(f"--cores {number}: this process may use {len(allowed)}")
        os.sched_setaffinity(0, allowed[:number])


def sgemm(seconds: float = 0.8) -> float:
    """GFLOP/s of numpy's product of two float32 matrices, 2 n³ operations each time, over about ``seconds``."""
    a, b = np.random.default_rng(0).standard_normal((2, MATRIX, MATRIX), dtype=np.float32)
    out = np.empty((MATRIX, MATRIX), dtype=np.float32)
    np.matmul(a, b, out=out)  # threads started
    started, products = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds or not products:
        np.matmul(a, b, out=out)
        products += 1
    passed = time.perf_counter() - started
    return products * 2 * MATRIX**3 / passed / 1e9


def take_turns(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each measure ``rounds`` times, one after the other and every second round backwards, so that a machine that
    slows down or speeds up does so for all of them.
    """
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in list(measures)[:: -1 if number % 2 else 1]:
            found[name].append(measures[name]())
        print(f"round {number + 1}: " + ", ".join(f"{n} {v[-1]:.2f}" for n, v in found.items()), flush=True)
    return found


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios of what was measured in the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


# -- Spark -------------------------------------------------------------------------------------------------------------


def settings_of(name: str) -> Recipe:
    """The two settings that the benchmarks run, by name: ``recipe`` (ours) and ``article``, with embedded weights."""
    from helpers.networks import article, recipe

    return {"recipe": recipe, "article": article}[name]("glyphs")


def sample_digits() -> DataFrame:
    """The 500 digits of the sample, as a notebook reads them."""
    from helpers.numtadb import read_digits, sample_per_class

    return sample_per_class(read_digits(), 50)


def copies(digits: DataFrame, times: int) -> DataFrame:
    """Every digit ``times`` times, no two alike: the first pixel of copy k holds k, and so nothing that goes by an
    image's bytes can take one for another.
    """
    from pyspark.sql import functions as F

    numbered = digits.crossJoin(F.broadcast(digits.sparkSession.range(times).withColumnRenamed("id", "copy")))
    first_pixel = F.unhex(F.lpad(F.hex("copy"), 6, "0"))
    image = F.col("image").withField("data", F.overlay(F.col("image.data"), first_pixel, F.lit(1)))
    path = F.concat_ws("#", "path", F.col("copy").cast("string"))
    return numbered.withColumn("image", image).withColumn("path", path).drop("copy")


def write_digits(folder: Path, images: int) -> None:
    """Make a folder with so many JPEG files, 65,536 at most, in class folders: the sample's digits, again and again, no
    two alike, as a pattern in a corner counts them.
    """
    from PIL import Image

    from helpers.numtadb import SAMPLE, list_digits

    rows = list_digits(SAMPLE)
    pictures = [np.asarray(Image.open(row[0]).convert("RGB").resize((180, 180))) for row in rows]
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number in range(images):
        pixels = pictures[number % len(rows)].copy()
        bits = np.unpackbits(np.array([number], ">u2").view(np.uint8)).reshape(4, 4)
        pixels[: 4 * BLOCK, : 4 * BLOCK] = 255 * np.kron(bits, np.ones((BLOCK, BLOCK), np.uint8))[..., None]
        Image.fromarray(pixels).save(folder / str(rows[number % len(rows)][1]) / f"{number:05d}.jpg", quality=85)


def run(frame: DataFrame) -> float:
    """Seconds to compute every row of a frame, kept nowhere."""
    started = time.perf_counter()
    frame.write.format("noop").mode("overwrite").save()
    return time.perf_counter() - started


def local_spark(workers: int | None = None) -> SparkSession:
    """A session of this machine with so many workers, or one a core."""
    from helpers.spark import start_spark

    return start_spark("benchmark", f"local[{workers or cores_here()}]")


class Talk:
    """A process that answers: a line of JSON in, a line of JSON out, until its input ends."""

    def __init__(self, command: Sequence[str], settings: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer to one question."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.heard()

    def heard(self) -> dict[str, Any]:
        """The next line that it says.

        Raises:
            RuntimeError: it has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)} ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# -- running benchmarks ------------------------------------------------------------------------------------------------


def script(
    measure: Callable[[argparse.Namespace], list[Figure]],
    description: str | None,
    arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> None:
    """Run one benchmark as a program: ``arguments`` adds its own, and every one has ``--cores`` and ``--json``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--cores", type=int, help="keep to so many cores; default: all this process may use")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    use_cores(options.cores)
    figures = measure(options)
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures]), encoding="utf8")
    else:
        print(f"\n{machine()}\n{table(figures)}")


def figures_of(module: str, arguments: Sequence[str], folder: Path, **environment: str) -> list[Figure]:
    """The figures of a benchmark run in a process of its own, so that each starts fresh; what it prints is shown.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    handed = folder / f"{time.time_ns()}.json"
    command = [sys.executable, str(HERE / f"{module}.py"), *arguments, "--json", str(handed)]
    print(f"\n== {module} {' '.join(arguments)}".rstrip(), flush=True)
    subprocess.run(command, check=True, env=os.environ | environment)
    return [Figure(**figure) for figure in json.loads(handed.read_text(encoding="utf8"))]
