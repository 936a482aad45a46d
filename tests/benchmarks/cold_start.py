"""Seconds from the first action of a fresh session to the last of 500 features, above what the warm machine takes.

    python tests/benchmarks/cold_start.py
    python tests/benchmarks/cold_start.py --settings recipe --caches empty warm   # and what the graphs spare

The clock starts when ``start_spark`` has returned. Above the steady state is the time left when 500 / (steady images/s)
is taken off, the rate being that of the same query run again. Each run is a process of its own; "warm" has the graphs
that come with the environment, "empty" a cache folder in which nothing lies. Where the time goes is seen from outside,
by what the workers have mapped into memory (/proc/<pid>/maps) and by when features reach the JVM, so it holds whatever
the workers are made of.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from measuring import HERE, Figure, run, sample_digits, script, settings_of, sgemm

IMAGES = 500
REPEATS = {"recipe": 3, "article": 1}
SIGNS = {  # what a worker has mapped once it has got there
    "OpenVINO imported": "libopenvino.so",
    "network being compiled": "openvino_intel_cpu_plugin",
}


class Watch(threading.Thread):
    """Notes when the first Python process under the JVM appears and when each of ``SIGNS`` first shows in one.

    Ends by itself when it has seen everything, so that it does not disturb what comes after.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: dict[str, float] = {}
        self.over = threading.Event()

    def run(self) -> None:
        jvm: psutil.Process | None = None
        while len(self.seen) < 2 + len(SIGNS) and not self.over.wait(0.05):
            try:
                if jvm is None:
                    below = psutil.Process().children(recursive=True)
                    jvm = next((process for process in below if process.name() == "java"), None)
                    continue
                pythons = [process for process in jvm.children(recursive=True) if "python" in process.name()]
            except psutil.NoSuchProcess:
                continue
            self._note("daemon started", bool(pythons))
            self._note("workers forked", len(pythons) > 1)
            for what, sign in SIGNS.items():
                if what not in self.seen:
                    self._note(what, any(sign in _maps(process.pid) for process in pythons))

    def _note(self, what: str, there: bool) -> None:
        if there:
            self.seen.setdefault(what, time.time())


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text(encoding="utf8", errors="replace")
    except (OSError, ProcessLookupError):
        return ""


def one_run(name: str, repeats: int) -> dict[str, object]:
    """One fresh session: seconds of every step of the first query, and of ``repeats`` more of the same.

    Times of features are the JVM's clock at each row behind the network, by Spark's ``reflect``.
    """
    from helpers.spark import start_spark

    started = time.time()
    start_spark()
    steps = {"(before the clock: start_spark, the JVM)": time.time() - started}
    watch = Watch()
    watch.start()
    clock = time.time()
    digits = sample_digits()
    listed = time.time()
    featurized = settings_of(name).featurizer().transform(digits)
    planned = time.time()
    stamped = featurized.selectExpr(
        "features IS NOT NULL AS there",
        "spark_partition_id() AS part",
        "CAST(reflect('java.lang.System', 'currentTimeMillis') AS BIGINT) / 1000.0 AS at",
    )
    rows = stamped.toPandas()
    ended = time.time()
    watch.over.set()
    if rows["there"].sum() != IMAGES:
        raise SystemExit(f"{rows['there'].sum()} of {len(rows)} images have features, not {IMAGES}")
    steps["files listed, sample drawn (one small job)"] = listed - clock
    steps["transform: network exported, or found in the cache"] = planned - listed
    before = planned
    for what in ("daemon started", "workers forked", *SIGNS):
        if what in watch.seen:  # in a workers' design that skips a step, the next one takes its time
            moment = max(watch.seen[what], before)
            steps[what] = moment - before
            before = moment
    first = float(rows["at"].astype(float).min())
    steps["network compiled, first Arrow batch through it"] = first - before
    last = float(rows["at"].astype(float).max())
    steps["first to last features"] = last - first
    steps["result at the driver"] = ended - last
    again = [run(featurized.select("features")) for _ in range(repeats)]
    return {"steps": steps, "total": ended - clock, "again": again, "sgemm": sgemm()}


def measure(options: argparse.Namespace) -> list[Figure]:
    figures = []
    for name in options.settings:
        settings_of(name).graph()  # where it does not lie in the cache already
        repeats = options.repeats or REPEATS[name]
        with tempfile.TemporaryDirectory() as folder:
            runs = {}
            for cache in options.caches:
                environment = os.environ | ({"NUMTADB_CACHE": folder} if cache == "empty" else {})
                command = [sys.executable, str(HERE / "cold_start.py"), "--one", name]
                command += ["--repeats", str(repeats if cache == options.caches[-1] else 0)]
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                runs[cache] = json.loads(done.stdout.splitlines()[-1])
        steady = statistics.median(runs[options.caches[-1]]["again"])
        for cache, got in runs.items():
            above = got["total"] - steady
            print(f"\n{name}, cache of graphs {cache}:")
            for what, seconds in got["steps"].items():
                print(f"{seconds:7.2f} s  {what}")
            print(f"{got['total']:7.2f} s  together, from the clock's start")
            print(f"{steady:7.2f} s  steady state ({IMAGES} / {IMAGES / steady:.1f} images/s)")
            print(f"{above:7.2f} s  above it", flush=True)
            detail = f"{got['total']:.1f} s - {IMAGES} images at {IMAGES / steady:.0f}/s"
            what = f"cold start, {name}, cache {cache}"
            figures.append(Figure(what, above, "s", "<= 6", detail, got["sgemm"]))
    return figures


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", nargs="+", choices=["recipe", "article"], default=["recipe", "article"])
    parser.add_argument(
        "--repeats", type=int, help="warm repetitions for the steady rate (3; article, slow as it is: 1)"
    )
    parser.add_argument(
        "--caches", nargs="+", choices=["empty", "warm"], default=["warm"], help="caches of graphs to start with (warm)"
    )
    parser.add_argument("--one", choices=["recipe", "article"], help=argparse.SUPPRESS)


def main() -> None:
    if "--one" in sys.argv:
        parser = argparse.ArgumentParser()
        arguments(parser)
        options = parser.parse_args()
        print(json.dumps(one_run(options.one, options.repeats)))
    else:
        script(measure, __doc__, arguments)


if __name__ == "__main__":
    main()
