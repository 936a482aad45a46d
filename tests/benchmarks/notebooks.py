"""Seconds and peak memory of every notebook, as a reader meets them: ``python tests/benchmarks/notebooks.py``.

Each runs under papermill, in the course's order, over one folder for what they store, which is empty at first;
``memory.py`` watches it. ``--record`` writes both columns into the README's table of the notebooks.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from measuring import machine
from memory import Peak, peak_of
from recording import README, ROOT, between_marks, within_marks

COURSE = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
MARKS = ("<!-- seconds and memory, by tests/benchmarks/notebooks.py --record -->", "<!-- end of notebooks -->")


def measured(notebook: Path, build: Path) -> Peak:
    """What a run of the notebook takes; ``SystemExit`` where a cell fails."""
    executed = build / notebook.name
    command = ["-m", "papermill", "--cwd", str(notebook.parent), "--no-progress-bar", "--log-level", "ERROR"]
    where = [] if notebook == COURSE[0] else ["-p", "BUILD", str(build)]  # the first one has no parameters
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    peak = peak_of([sys.executable, *command, str(notebook), str(executed), *where], env=quiet)
    if peak.status:
        raise SystemExit(f"{notebook.name} ended with status {peak.status}; its last cell is in {executed}")
    return peak


def with_figures(rows: str, peaks: dict[str, Peak]) -> str:
    """A Markdown table whose last two columns are seconds and memory, with the figures of these notebooks."""
    lines = rows.splitlines()
    for number, line in enumerate(lines):
        cells = line.split("|")
        for name, peak in peaks.items():
            if f"[{name}]" in line:
                cells[-3:-1] = f" {peak.seconds:.0f} ", f" {peak.total * 2**20 / 1e9:.1f} GB "
                lines[number] = "|".join(cells)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NUMBER", help="only those, as 05 06; all without")
    parser.add_argument("--record", action="store_true", help="write the figures into README.md")
    options = parser.parse_args()
    chosen = [file for file in COURSE if not options.names or file.name[:2] in options.names]
    if unknown := set(options.names) - {file.name[:2] for file in chosen}:
        parser.error(f"no notebook begins with {', '.join(sorted(unknown))}")
    print(machine())
    peaks = {}
    with tempfile.TemporaryDirectory() as build:
        for notebook in chosen:
            peaks[notebook.stem] = measured(notebook, Path(build))
            print(f"{notebook.stem}: {peaks[notebook.stem]}", flush=True)
    if options.record:
        text = README.read_text(encoding="utf8")
        README.write_text(between_marks(text, MARKS, with_figures(within_marks(text, MARKS), peaks)), encoding="utf8")
        print(f"recorded in {README.name}")


if __name__ == "__main__":
    main()
