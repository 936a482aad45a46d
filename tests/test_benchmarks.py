"""What of the benchmarks needs no clock: operations counted, memory of a process tree, the table, the README."""

import json
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from helpers.check import memory_of

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"
README = (ROOT / "README.md").read_text(encoding="utf8")

needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux alone has smaps_rollup")


def test_operations_of_small_networks_counted_by_hand(benchmark):
    import keras

    flops = benchmark("keras_loop").flops
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(5, 3, use_bias=False),  # 6 x 6 places, windows of 3 x 3 x 3, 5 channels
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(2, strides=2),  # 3 x 3 places, windows of 2 x 2, each of 5 channels
            layers.SeparableConv2D(7, 3, padding="same"),  # 3 x 3 places: windows of 3 x 3, then 5 to 7 channels
            layers.Flatten(),
            layers.Dense(10),  # 63 to 10
        ]
    )
    adds = 36 * 27 * 5 + 9 * 4 * 5 + 9 * (9 * 5 + 5 * 7) + 63 * 10
    assert flops(network) == 2 * adds
    grouped = keras.Sequential([keras.Input((4, 4, 6)), layers.Conv2D(4, 1, groups=2)])
    assert flops(grouped) == 2 * 16 * 3 * 4
    nested = keras.Sequential([keras.Input((4, 4, 6)), grouped])
    assert flops(nested) == flops(grouped)
    with pytest.raises(ValueError, match="operations of a Conv1D"):
        flops(keras.Sequential([keras.Input((8, 3)), layers.Conv1D(2, 3)]))


def test_operations_of_inception(benchmark):
    from helpers.networks import build_network

    # 5.7 billion multiply-adds is what the literature gives for InceptionV3 at 299 px
    assert benchmark("keras_loop").flops(build_network("InceptionV3", "random")) == pytest.approx(11.4e9, rel=0.02)


HOLD = "import time; held = bytearray(b'x') * (100 << 20); time.sleep(1.5)"


@needs_smaps
def test_memory_of_a_grandchild_is_seen(benchmark):
    memory = benchmark("memory")
    starts = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"]
    small = memory.peak_of([sys.executable, "-c", "import time; time.sleep(0.5)"], 0.1)
    peak = memory.peak_of(starts, 0.1)
    assert peak.status == 0 and peak.samples >= 5
    assert 100 < peak.total - small.total < 130
    assert sum(peak.kinds.values()) == pytest.approx(peak.total)
    assert sum(peak.processes.values()) == 2


@needs_smaps
def test_memory_of_an_orphan_is_seen(tmp_path):
    """A program whose parent has ended, as Spark's JVM when a kernel is killed, still counts."""
    starts = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {HOLD!r}])"
    shell = f"{shlex.join([sys.executable, '-c', starts])}; sleep 1.5"
    out = tmp_path / "peak.json"
    command = [sys.executable, str(BENCHMARKS / "memory.py"), f"--json={out}", "sh", "-c", shell]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(out.read_text())["total"] > 100


@needs_smaps
def test_orphans_that_have_ended_do_not_stay(benchmark):
    orphan = shlex.join([sys.executable, "-c", "import subprocess; subprocess.Popen(['sleep', '0.2'])"])
    before = set(psutil.Process().children())
    benchmark("memory").peak_of(["sh", "-c", f"{orphan}; sleep 1"], 0.1)
    assert set(psutil.Process().children()) == before


@needs_smaps
def test_memory_passes_on_what_the_command_says(tmp_path):
    program = "import sys, time; print('said'); time.sleep(1); sys.exit(3)"  # long enough to be looked at
    command = [sys.executable, str(BENCHMARKS / "memory.py"), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said\n")
    assert done.stderr.startswith("peak PSS ") and "driver and other Python (1)" in done.stderr
    missing = subprocess.run([*command[:2], "no-such-program"], capture_output=True, text=True)
    assert missing.returncode == 2 and "no-such-program" in missing.stderr.splitlines()[-1]


@needs_smaps
def test_kinds_of_processes_in_a_spark_program(spark):
    """The JVM, the daemon and its workers are told apart by their parents."""

    def slow(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        for numbers in batches:
            time.sleep(1)  # long enough to be looked at
            yield numbers

    frame = spark.range(2, numPartitions=2).select(F.arrow_udf(slow, "long")("id"))
    rows = []
    job = threading.Thread(target=lambda: rows.extend(frame.collect()))
    other = "driver and other Python"  # this process, and what tests before have left, as multiprocessing's tracker
    already = [kind for kind, _ in memory_of([psutil.Process()])].count(other)
    job.start()
    seen = []
    while job.is_alive():
        kinds = [kind for kind, _ in memory_of([psutil.Process()])]
        seen.append({kind: kinds.count(kind) for kind in kinds})
        job.join(0.2)
    assert len(rows) == 2
    fullest = max(seen, key=lambda kinds: sum(kinds.values()))
    assert fullest["JVM"] == 1
    assert fullest["pyspark daemon"] >= 1, "one for each environment that workers ran in since the JVM started"
    assert fullest["Python workers"] >= 1
    assert fullest[other] == already >= 1


def test_the_table_says_whether_bars_are_kept(benchmark):
    measuring = benchmark("measuring")
    figures = [
        measuring.Figure("speed", 1.234, "x", ">= 1.1", "30 : 24 images/s", 123.4),
        measuring.Figure("memory", 2.0, "GB", "<= 1.7"),
        measuring.Figure("rate", 456.7, "images/s", detail="500 images"),
    ]
    assert measuring.table(figures).splitlines() == [
        "| what   | figure       | bar    | kept | from             | sgemm, GFLOP/s |",
        "|--------|--------------|--------|------|------------------|----------------|",
        "| speed  | 1.23 x       | >= 1.1 | yes  | 30 : 24 images/s | 123            |",
        "| memory | 2.00 GB      | <= 1.7 | no   |                  |                |",
        "| rate   | 457 images/s |        |      | 500 images       |                |",
    ]


def test_ratios_are_of_the_same_round(benchmark):
    measuring = benchmark("measuring")
    order = []

    def measure(name, values):
        def once():
            order.append(name)
            return values.pop(0)

        return once

    rates = measuring.take_turns({"a": measure("a", [2, 30, 8]), "b": measure("b", [1, 10, 2])}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert measuring.median_ratio(rates["a"], rates["b"]) == 3


def test_the_readme_has_the_marks_and_only_what_is_between_them_changes(benchmark):
    bench, recording = benchmark("bench"), benchmark("recording")
    first = recording.between_marks(README, bench.MARKS, "one\ntwo\n")
    assert f"{bench.MARKS[0]}\none\ntwo\n{bench.MARKS[1]}" in first
    again = recording.between_marks(first, bench.MARKS, "one\ntwo")
    assert again == first
    before, after = (README.split(mark)[side] for mark, side in zip(bench.MARKS, (0, 1), strict=True))
    assert first.startswith(before) and first.endswith(after)
    with pytest.raises(ValueError, match="needs the two lines"):
        recording.between_marks(README.replace(bench.MARKS[1], ""), bench.MARKS, "one")
    with pytest.raises(ValueError, match="needs the two lines"):
        recording.between_marks(README + README, bench.MARKS, "one")


def test_the_readme_shows_every_runtime_that_is_measured(benchmark):
    runtimes, recording = benchmark("runtimes"), benchmark("recording")
    head, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in recording.within_marks(README, runtimes.MARKS).splitlines()
        if line.startswith("|")
    ]
    assert head == runtimes.HEAD
    by = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["run by"].rsplit(" ", 1)[0] for row in by] == 2 * list(runtimes.RUNTIMES)
    for row in by:  # what the choice of OpenVINO stands on
        if row["run by"].startswith("OpenVINO"):
            assert row["same bits in any batch"] == "yes" and float(row["from Keras"]) < 1e-5


def test_seconds_and_memory_go_to_the_notebooks_that_were_run(benchmark):
    notebooks, recording, memory = benchmark("notebooks"), benchmark("recording"), benchmark("memory")
    table = recording.within_marks(README, notebooks.MARKS)
    assert [file.stem for file in notebooks.COURSE] == re.findall(r"^\| \[(\w+)\]", table, re.MULTILINE)
    peak = memory.Peak(total=2000, kinds={}, processes={}, samples=1, seconds=61.6, status=0)
    rows = notebooks.with_figures(table, {"05_tune_on_spark": peak}).splitlines()
    changed = [(old, new) for old, new in zip(table.splitlines(), rows, strict=True) if old != new]
    ((old, new),) = changed
    assert new.endswith(" | 62 | 2.1 GB |") and new.rsplit("|", 3)[0] == old.rsplit("|", 3)[0]


def test_copies_of_digits_are_all_different(benchmark, spark):
    from helpers.numtadb import read_digits

    few = read_digits().limit(3)
    rows = benchmark("measuring").copies(few, 300).select("path", "label", "image").collect()
    assert len(rows) == len({row.path for row in rows}) == len({bytes(row.image.data) for row in rows}) == 900
    whole = {row.path: row for row in few.collect()}
    for row in rows:
        path, _, number = row.path.partition("#")
        original = whole[path]
        assert (row.label, row.image.height, row.image.nChannels) == (
            original.label,
            original.image.height,
            original.image.nChannels,
        )
        assert bytes(row.image.data[3:]) == bytes(original.image.data[3:])
        assert int.from_bytes(row.image.data[:3], "big") == int(number)


def test_every_benchmark_explains_itself_and_is_run(benchmark):
    bench = benchmark("bench")
    for module in bench.RUNS:
        assert (BENCHMARKS / f"{module}.py").exists()
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / f"{module}.py"), "--help"], capture_output=True, text=True, check=True
        )
        assert "--cores" in done.stdout and "--json" in done.stdout
