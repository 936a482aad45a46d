"""Run the course: execute notebooks 01 to 04 in order, keep what they give, print their results.

    python notebooks/run.py [--data FOLDER] [--weights glyphs|imagenet|random|FILE] [--network NAME]
                            [--layer NAME[,NAME…]] [--per-class N] [--image-size PX] [--build FOLDER]

The executed notebooks lie under BUILD/notebooks, an HTML reading copy of each under BUILD/html. BUILD/results.json is
printed last, one ``name: value`` a line: a block for the article's settings, a blank line, a block for the improved
recipe. Progress and errors go to stderr. Exit code 0 where everything ran, 1 where a cell failed, 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

# Before anything can load TensorFlow: its C++ side logs to stderr, where no Python setting reaches it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from helpers import networks
from helpers.check import check_network

HERE = Path(__file__).resolve().parent
COURSE = ("01_load_numtadb", "02_inception_features", "03_logistic_regression", "04_evaluate")
# nbconvert's own page, which has no alternative text for pictures; here it is taken from the cell's metadata.
PAGE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block data_png -%}
{%- set alt = cell.metadata.get('mystnb', {}).get('image', {}).get('alt') -%}
{{ super() | replace('<img', '<img alt="' ~ (alt | escape_html) ~ '"', 1) if alt else super() }}
{%- endblock -%}
"""
SHOWN_AS = {"f1": "F1", "roc_auc": "ROC AUC"}  # other keys of results.json: the underscores become spaces


class CourseError(Exception):
    """The course did not run to its end; the message says where and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the course as the command line says; returns the exit code."""
    parser = argument_parser()
    options = parser.parse_args(arguments)
    try:
        parameters = notebook_parameters(options)
    except (ValueError, OSError, networks.WeightsUnavailable) as problem:
        parser.error(str(problem))
    network = networks.network(options.network or "InceptionV3")
    # the article's settings run at the network's own size
    fits = check_network(network.name, max(network.image_size, options.image_size or 0))
    if not fits.ok:  # features of an earlier layer may do with less, so it is tried all the same
        print(f"This may not fit into memory: {fits.found}; {fits.fix}.", file=sys.stderr)
    try:
        results = run_course(COURSE, HERE, options.build, parameters)
    except CourseError as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What had run by then is under", options.build / "notebooks", file=sys.stderr)
        return 130
    print(f"Reading copies: {options.build / 'html'}", file=sys.stderr)
    print("\n\n".join(block(result) for result in results))
    return 0


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run the course's notebooks 01 to 04 and print their results.")
    parser.add_argument("--data", metavar="FOLDER", type=Path, help="NumtaDB as Kaggle ships it, or folders 0 … 9")
    parser.add_argument(
        "--weights", metavar="WEIGHTS", help="glyphs (default), imagenet, random or a Keras weights file"
    )
    parser.add_argument(
        "--network", metavar="NAME", help=f"one of {', '.join(networks.NETWORKS)} (default InceptionV3)"
    )
    parser.add_argument("--layer", metavar="NAME", help="layer to take features from, or several with commas between")
    parser.add_argument("--per-class", metavar="N", type=positive, help="images per class (default 50)")
    parser.add_argument(
        "--image-size", metavar="PX", type=positive, help="height and width the network gets, in pixels"
    )
    parser.add_argument("--build", metavar="FOLDER", type=Path, default=Path("build"), help="folder to write to")
    return parser


def positive(text: str) -> int:
    """A whole number above 0; argparse turns the error into its sentence."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def notebook_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """The values the notebooks' parameters cells get; what was not given keeps the value written there.

    Paths are made absolute, since the notebooks run in their own folder.

    Raises:
        ValueError, FileNotFoundError, WeightsUnavailable: in one sentence, what cannot work.
    """
    name = options.network or "InceptionV3"
    networks.check_size(name, options.image_size)
    given: dict[str, Any] = {
        "NETWORK": options.network,
        "PER_CLASS": options.per_class,
        "IMAGE_SIZE": options.image_size,
    }
    if options.data is not None:
        if not options.data.is_dir():
            raise FileNotFoundError(f"there is no folder {options.data} to read digits from")
        from helpers.numtadb import list_digits  # here, as it imports Spark, which takes a second

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notebook 01 gives them
            list_digits(options.data.resolve())
        given["DATA"] = str(options.data.resolve())
    file = networks.weights_file(name, options.weights or "glyphs")
    if options.weights:
        named = options.weights in ("glyphs", "imagenet", "random")
        given["WEIGHTS"] = options.weights if named else str(file.resolve())
        if options.weights not in ("glyphs", "random"):
            # notebook 02's first graph, which it finds made: weights that do not fit, or do not come, are told now
            networks.export_graph(name, given["WEIGHTS"])
    if options.layer:
        layers = [layer.strip() for layer in options.layer.split(",")]
        known = networks.layer_names(name)
        for layer in layers:
            if layer not in known:
                near = get_close_matches(layer, known, cutoff=0.4) or known[-3:]
                raise ValueError(
                    f"{name} has no layer {layer!r}; it has {', '.join(near)} and others, {len(known)} in all"
                )
        given["LAYER"] = layers if len(layers) > 1 else layers[0]
    if options.build.resolve() != HERE.parent / "build":
        given["BUILD"] = str(options.build.resolve())
    return {name: value for name, value in given.items() if value is not None}


def run_course(
    names: Sequence[str], folder: Path, build: Path, parameters: dict[str, Any], stream: Any = None
) -> list[dict[str, Any]]:
    """Execute notebooks, write executed ones and HTML copies under ``build``, and return ``results.json``.

    Args:
        names: notebooks to run in this order, without suffix.
        folder: where they lie; their kernels run in it.
        build: folder for ``notebooks/``, ``html/`` and the notebooks' own results.
        parameters: values for their parameters cells.
        stream: where progress goes (stderr).

    Raises:
        CourseError: a notebook is missing, a cell failed, a kernel died, or the last notebook left no results.
    """
    stream = stream or sys.stderr
    sources = {name: folder / f"{name}.ipynb" for name in names}
    if missing := [str(path) for path in sources.values() if not path.is_file()]:
        raise CourseError(f"There is no notebook {missing[0]}.")
    executed, html, results = build / "notebooks", build / "html", build / "results.json"
    for kind in (executed, html):
        kind.mkdir(parents=True, exist_ok=True)
    # What an earlier run left must not pass for this one's.
    for stale in [results, *(executed / f"{n}.ipynb" for n in names), *(html / f"{n}.html" for n in names)]:
        stale.unlink(missing_ok=True)

    cells = {name: len(nbformat.read(path, as_version=4).cells) for name, path in sources.items()}
    injected = len(names) if parameters else 0  # papermill adds a cell with the parameters to each
    with Progress(sum(cells.values()) + injected, stream) as progress:
        for name, path in sources.items():
            progress.notebook_start(name, cells[name] + bool(parameters))
            notebook = execute(path, executed / path.name, parameters, progress)
            (html / f"{name}.html").write_text(reading_copy(notebook, name, folder), encoding="utf-8")
            progress.notebook_end()
    if not results.is_file():
        raise CourseError(f"{names[-1]} ran, but left no {results}.")
    return json.loads(results.read_text("utf-8"))


def execute(source: Path, target: Path, parameters: dict[str, Any], progress: Progress) -> NotebookNode:
    """Run one notebook with papermill; ``CourseError`` names the cell that failed and its error's last line."""
    try:
        return papermill.execute_notebook(
            source,
            target,
            parameters=parameters,
            cwd=source.parent,
            progress_bar=False,
            extra_arguments=["--log-level=ERROR"],  # keeps the kernel's own remarks off the bar
            on_cell_start=progress.cell_start,  # nbclient's hook, which papermill passes on
        )
    except PapermillExecutionError as error:
        why = f"{error.ename}: {last_line(error.evalue)}"
    except DeadKernelError:
        why = "the kernel died, most often for want of memory (python -m helpers.check tells)"
    raise CourseError(f"{progress.where}: {why}\nThe notebook as far as it ran: {target}")


def last_line(message: str) -> str:
    """The line of an error's text that says what happened: the last one that is no entry of a (Java) stack trace."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", message)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    telling = [line for line in lines if not re.match(r"at [\w.$/<>]+\(|\.\.\. \d+ (more|common)|JVM stacktrace", line)]
    return (telling or lines or [""])[-1]


class Progress:
    """One bar over all cells of all notebooks on a terminal; elsewhere a plain line a notebook.

    Attributes:
        where: the cell that runs, as ``notebook, cell 5 of 14 (the heading above it)``.
    """

    def __init__(self, total: int, stream: Any) -> None:
        self.where = ""
        self._stream = stream
        self._terminal = stream.isatty()
        self._before = 0  # cells of the notebooks that are done
        # No remaining time in it: cells differ too much for a guess to be worth anything.
        form = "{desc} {bar} {n_fmt}/{total_fmt} cells, {elapsed}"
        self._bar = tqdm(total=total, file=stream, disable=not self._terminal, dynamic_ncols=True, bar_format=form)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def notebook_start(self, name: str, cells: int) -> None:
        self._name, self._cells, self._heading, self._began = name, cells, "", time.monotonic()
        self.where = f"{name}, before its first cell"

    def cell_start(self, cell: NotebookNode, cell_index: int) -> None:
        """Called by nbclient for every cell, prose included."""
        if cell.cell_type == "markdown" and (headings := re.findall(r"^#{1,6}\s+(.+)$", cell.source, re.MULTILINE)):
            self._heading = f" ({headings[-1].strip()})"
        self.where = f"{self._name}, cell {cell_index + 1} of {self._cells}{self._heading}"
        self._bar.set_description(self.where, refresh=False)
        self._bar.update(self._before + cell_index - self._bar.n)
        self._bar.refresh()

    def notebook_end(self) -> None:
        self._before += self._cells
        self._bar.update(self._before - self._bar.n)
        if not self._terminal:
            took = time.monotonic() - self._began
            print(f"{self._name}: {self._cells} cells, {took:.0f} s", file=self._stream, flush=True)


def reading_copy(notebook: NotebookNode, name: str, folder: Path) -> str:
    """The notebook as one HTML page with its pictures inside; links to other notebooks lead to their pages.

    Navigation is left out, since it leads to what has no page here. Pictures get the alternative text of their cell.
    """
    cells = [cell for cell in notebook.cells if "navigation" not in cell.metadata.get("tags", [])]
    exporter = HTMLExporter(embed_images=True, raw_template=PAGE)
    notebook = nbformat.from_dict({**notebook, "cells": cells})
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name, "path": str(folder)}})
    return re.sub(r'href="(0\d_\w+)\.ipynb', r'href="\1.html', page)


def block(result: dict[str, Any]) -> str:
    """One object of results.json, a ``name: value`` a line; values as JSON has them, text and lists without marks."""
    return "\n".join(f"{SHOWN_AS.get(key, key.replace('_', ' '))}: {shown(value)}" for key, value in result.items())


def shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return ", ".join(shown(item) for item in value)
    return json.dumps(value)


if __name__ == "__main__":
    sys.exit(main())
