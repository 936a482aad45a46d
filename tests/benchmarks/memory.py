"""Peak memory of a command and everything it starts: ``python tests/benchmarks/memory.py CMD …``.

    python tests/benchmarks/memory.py make run
    python tests/benchmarks/memory.py jupyter nbconvert --to notebook --execute --stdout notebooks/04_evaluate.ipynb

Every 0.2 s, or more seldom where looking would take more than a tenth of a core, the proportional set sizes (PSS:
private pages in full, a page that n processes share as an n-th each, so that nothing counts twice) of all processes
below the command are added up, from Linux' ``/proc/<pid>/smaps_rollup``. Printed is the largest sum with the share of
each kind of process in it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from helpers.check import memory_of

INTERVAL = 0.2  # seconds between two samples
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


@dataclass(frozen=True)
class Peak:
    """The moment of the largest sum: ``total`` PSS in MiB, ``kinds`` the same by kind of process, the largest first,
    ``processes`` their number, ``samples`` how often was looked, ``seconds`` how long the command ran and ``status``
    its exit status.
    """

    total: float
    kinds: dict[str, float]
    processes: dict[str, int]
    samples: int
    seconds: float
    status: int

    def __str__(self) -> str:
        lines = [f"peak PSS {self.total:.0f} MiB of {sum(self.processes.values())} processes ({self.seconds:.1f} s)"]
        for kind, size in self.kinds.items():
            share = size / self.total if self.total else 0
            lines.append(f"{size:8.0f} MiB  {share:4.0%}  {kind} ({self.processes[kind]})")
        return "\n".join(lines)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends, so that they stay in sight."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def peak_of(command: Sequence[str], interval: float = INTERVAL, **how: object) -> Peak:
    """Run ``command`` and watch its tree; ``how`` goes to ``subprocess.Popen``.

    Raises:
        RuntimeError: this is no Linux with ``smaps_rollup``.
        OSError: the command does not start.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise RuntimeError("memory is read from /proc/<pid>/smaps_rollup, which only Linux 4.14 and newer have")
    adopt_orphans()
    me = psutil.Process()
    others = set(me.children())  # what this process has started for other ends
    largest: list[tuple[str, float]] = []
    samples, started = 0, time.perf_counter()
    process = subprocess.Popen(list(command), **how)
    due = started
    while True:
        looks = time.perf_counter()
        _bury(set(me.children()) - others, process.pid)
        seen = memory_of(set(me.children()) - others)
        if sum(size for _, size in seen) > sum(size for _, size in largest):
            largest = seen
        samples += 1
        looked = time.perf_counter()
        due = max(due + interval, looked + 9 * (looked - looks))
        try:
            status = process.wait(due - looked)
            break
        except subprocess.TimeoutExpired:
            continue
    kinds: Counter[str] = Counter()
    for kind, size in largest:
        kinds[kind] += size
    return Peak(
        total=sum(kinds.values()),
        kinds=dict(kinds.most_common()),
        processes=dict(Counter(kind for kind, _ in largest)),
        samples=samples,
        seconds=time.perf_counter() - started,
        status=status,
    )


def _bury(children: Iterable[psutil.Process], own: int) -> None:
    """Take the exit status of adopted processes that have ended; without it they stay, dead, as long as this one."""
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.pid != own and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interval", type=float, default=INTERVAL, help=f"seconds between samples ({INTERVAL})")
    parser.add_argument("--json", type=Path, help="write the peak there, too")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD …")
    options = parser.parse_args()
    if not options.command:
        parser.error("give the command to run")
    try:
        peak = peak_of(options.command, options.interval)
    except (OSError, RuntimeError) as problem:
        parser.error(f"{options.command[0]}: {problem}")
    print(peak, file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(asdict(peak), indent=1) + "\n", encoding="utf8")
    return peak.status if peak.status >= 0 else 128 - peak.status


if __name__ == "__main__":
    sys.exit(main())
