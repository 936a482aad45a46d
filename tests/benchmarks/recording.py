"""What benchmarks write down: rows in a JSON file beside the notebooks that show them, a table in the README."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
Row = dict[str, Any]


def command_line() -> str:
    """The command that runs here, as others would type it: ``shown`` says without what."""
    return " ".join(["python", f"tests/benchmarks/{Path(sys.argv[0]).name}", *shown(sys.argv[1:])])


def shown(arguments: Sequence[str]) -> list[str]:
    """Arguments without folders of this machine, ``--store FOLDER`` and ``--record NAME``."""
    kept = list(arguments)
    for option in ("--store", "--record"):
        if option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    return [Path(argument).name if "/" in argument else argument for argument in kept]


def put_rows(file: Path, rows: Sequence[Row], like: Sequence[str], order: Sequence[str]) -> list[Row]:
    """Write rows into a JSON file, in place of those that agree with one of them in the columns ``like``.

    Returns:
        All rows of the file, sorted by the columns ``order``.
    """
    old = json.loads(file.read_text(encoding="utf8")) if file.exists() else []
    replaced = [[row[name] for name in like] for row in rows]
    kept = [row for row in old if [row[name] for name in like] not in replaced]
    rows = sorted([*kept, *rows], key=lambda row: [row[name] for name in order])
    file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    return rows


def table_of(rows: Sequence[Row], head: Sequence[str], cells: Callable[[Row], Sequence[object]]) -> str:
    """A Markdown table of rows; a last column numbers the commands that made them (``row["command"]``), which stand
    below.
    """
    commands = list(dict.fromkeys(row["command"] for row in rows))
    head = [*head, "made by"]
    lines = [[*map(str, cells(row)), f"({commands.index(row['command']) + 1})"] for row in rows]
    return "\n".join(
        [markdown_table(head, lines), "", *(f"({number}) `{command}`  " for number, command in enumerate(commands, 1))]
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under their head, in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def between_marks(text: str, marks: tuple[str, str], inside: str) -> str:
    """``text`` with ``inside`` between its two marks, in place of what was there; as ``within_marks``."""
    before, _, after = _parts(text, marks)
    return f"{before}{inside.rstrip(chr(10))}\n{after}"


def within_marks(text: str, marks: tuple[str, str]) -> str:
    """What stands between two marks of a text.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    return _parts(text, marks)[1]


def _parts(text: str, marks: tuple[str, str]) -> tuple[str, str, str]:
    """The text up to the inside, with the first mark; the inside; the rest, from the second mark on."""
    before, found, rest = text.partition(marks[0] + "\n")
    inside, ends, after = rest.partition(marks[1])
    if not found or not ends or marks[0] in rest or marks[1] in after:
        raise ValueError(f"the text needs the two lines {marks[0]!r} and {marks[1]!r}, once each and in this order")
    return before + found, inside, ends + after
