"""Make the exercise notebooks from the solution notebooks.

    python notebooks/make_exercises.py [--check]

One source: the executed notebooks under ``notebooks/solutions``. What becomes of a cell is in its tags:

- ``exercise``: the statement (Markdown), kept;
- ``solution``: code gives way to the text under ``stub`` in the cell's metadata; Markdown is left out;
- ``check``: the call that judges the answer, kept;
- any other: kept.

``notebooks/exercises`` gets the result, without outputs. ``--check`` writes nothing and exits with 1 where a file there
is not what would be written.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent


def exercise_notebook(solution: NotebookNode) -> NotebookNode:
    """The notebook that is to be solved: no solutions, no outputs, no counts.

    Raises:
        ValueError: a code cell is tagged as solution and has no stub.
    """
    exercise = copy.deepcopy(solution)
    exercise.cells = [cell for cell in map(_exercise_cell, exercise.cells) if cell is not None]
    return exercise


def _exercise_cell(cell: NotebookNode) -> NotebookNode | None:
    stub = cell.metadata.pop("stub", None)
    if "solution" in cell.metadata.get("tags", []):
        if cell.cell_type != "code":
            return None
        if not stub:
            raise ValueError(f"cell {cell.id} is tagged solution, but has no stub in its metadata")
        cell.source = stub
        cell.metadata.tags = ["answer"]
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
    return cell


def exercise_texts(solutions: Path) -> dict[str, str]:
    """The text of each exercise notebook by its file name, from a folder of solution notebooks.

    Raises:
        ValueError: as ``exercise_notebook``, with the file's name.
    """
    texts = {}
    for path in sorted(solutions.glob("*.ipynb")):
        try:
            notebook = exercise_notebook(nbformat.read(path, as_version=4))
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from None
        texts[path.name] = nbformat.writes(notebook) + "\n"
    return texts


def out_of_date(texts: dict[str, str], folder: Path) -> list[str]:
    """Names of files in ``folder`` that are missing, differ, or have no solution any more."""
    there = {path.name: path.read_text(encoding="utf8") for path in folder.glob("*.ipynb")}
    return sorted(name for name in there.keys() | texts.keys() if there.get(name) != texts.get(name))


def main(arguments: Sequence[str] | None = None, folder: Path = HERE) -> int:
    """``make exercises``; the exit code."""
    parser = argparse.ArgumentParser(description="Make the exercise notebooks from the solution notebooks.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where one is out of date")
    options = parser.parse_args(arguments)
    exercises = folder / "exercises"
    try:
        texts = exercise_texts(folder / "solutions")
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 1
    stale = out_of_date(texts, exercises)
    if options.check:
        for name in stale:
            print(f"{exercises / name} is out of date; type: make exercises", file=sys.stderr)
        return 1 if stale else 0
    exercises.mkdir(exist_ok=True)
    for name in stale:
        if name in texts:
            (exercises / name).write_text(texts[name], encoding="utf8")
        else:
            (exercises / name).unlink()
        print(f"{name}: {'made' if name in texts else 'removed, it has no solution'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
