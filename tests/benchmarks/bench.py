"""Speed and memory in one table of ratios, in about eight minutes on two cores: ``make bench``.

    python tests/benchmarks/bench.py                     # prints the table
    python tests/benchmarks/bench.py --record            # and puts it into the README, with date and machine
    python tests/benchmarks/bench.py --only growth cold_start

Every benchmark runs in a process of its own, one after the other; each can be run by hand, too. Ratios hold from one
machine to the next better than seconds do; beside each stands what numpy's sgemm did in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from pathlib import Path

from measuring import cores_here, figures_of, machine, table
from recording import README, between_marks

MARKS = ("<!-- speed and memory, by tests/benchmarks/bench.py --record -->", "<!-- end of speed and memory -->")
RUNS = {
    "memory_growth": [[]],
    "growth": [[]],
    "featurizer_speed": [[], ["--cores", "1"]],
    "article_way": [[]],
    "cold_start": [[]],
}


def recorded(figures_table: str, day: datetime.date, described: str, seconds: float) -> str:
    """What stands between the README's marks: when, where and how long, and the table."""
    return f"`make bench` on {day.isoformat()}, {described}, {seconds / 60:.0f} minutes:\n\n{figures_table}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), help="run only these")
    parser.add_argument("--record", action="store_true", help="write the table into README.md")
    options = parser.parse_args()
    if options.record and set(options.only) != set(RUNS):
        parser.error("--record takes the whole table, not --only some of it")
    started = time.perf_counter()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for module in options.only:
            for arguments in RUNS[module]:
                if "--cores" in arguments and cores_here() == 1:
                    continue  # the run before was on one core already
                found = figures_of(module, arguments, Path(folder))
                print(f"{table(found)}\n{time.perf_counter() - started:.0f} s so far", flush=True)
                figures += found
    seconds = time.perf_counter() - started
    text = table(figures)
    print(f"\n{machine()}; {seconds / 60:.1f} minutes\n\n{text}")
    if options.record:
        inside = recorded(text, datetime.date.today(), machine(), seconds)
        README.write_text(between_marks(README.read_text(encoding="utf8"), MARKS, inside), encoding="utf8")
        print(f"\nrecorded in {README.name}")


if __name__ == "__main__":
    main()
