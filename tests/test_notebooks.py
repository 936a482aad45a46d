"""Form of the notebooks: run from top to bottom without a complaint, one skeleton, one parameters cell, questions with
answers, short cells.

nbval compares stored outputs, but passes by a cell that was never executed; these tests refuse such cells.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
COURSE = ["00_start_here", "01_load_numtadb", "02_inception_features", "03_logistic_regression", "04_evaluate"]

# Second-level headings each lesson has, in this order; others may stand between "Setup" and "Summary".
SKELETON = ["What you will learn", "Setup", "Summary", "Next"]
PARAMETERS = {
    "DATA": None,
    "WEIGHTS": "glyphs",
    "NETWORK": "InceptionV3",
    "LAYER": None,
    "PER_CLASS": 50,
    "IMAGE_SIZE": None,
    "BUILD": "../build",
}
LONG = 15  # lines of a code cell a reader still takes in at once
LONG_SHARE = 0.10
UNCOMPARED = {"nbval-skip", "nbval-ignore-output", "raises-exception", "skip-execution", "injected-parameters"}


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def headings(notebook: NotebookNode, level: int) -> list[str]:
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return [h.strip() for source in prose for h in re.findall(rf"^#{{{level}}}\s+(.+)$", source, re.MULTILINE)]


def assigned(source: str) -> dict[str, Any]:
    """Names and literal values that a cell of plain assignments gives; ``ValueError`` for anything else in it."""
    values = {}
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            raise ValueError(f"more than assignments: {ast.unparse(statement)}")
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    return values


def execution_problems(notebook: NotebookNode) -> list[str]:
    """Cells never run or run out of order, and cells that nbval would be told to pass by."""
    cells = code_cells(notebook)
    found = [f"an empty code cell after {i} others" for i, cell in enumerate(cells) if not cell.source.strip()]
    counts = [cell.execution_count for cell in cells]
    if None in counts:
        found.append(f"code cell {counts.index(None) + 1} was never executed")
    elif counts != list(range(1, len(cells) + 1)):
        found.append(f"cells were not executed once each, from top to bottom: {counts}")
    for cell in cells:
        if marks := tags(cell) & UNCOMPARED:
            found.append(f"a cell is tagged {', '.join(sorted(marks))}")
        if re.search(r"#\s*(NBVAL_|PYTEST_VALIDATE_)", cell.source) and "NBVAL_CHECK_OUTPUT" not in cell.source:
            found.append("a cell's comment keeps nbval from comparing it")
    return found


def output_problems(notebook: NotebookNode) -> list[str]:
    """Errors, anything on stderr, and folders of the machine that executed it."""
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"code cell {number} ends in {output.ename}")
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"code cell {number} writes to stderr: {output.text.splitlines()[0]}")
            shown = [output.get("text", ""), *output.get("data", {}).values()]
            if paths := re.findall(
                r"(?<![\w.:/])/(?:home|root|Users|tmp|work|var|opt)/[\w./-]+", "\n".join(map(str, shown))
            ):
                found.append(f"code cell {number} shows a path of the machine that ran it: {paths[0]}")
    return found


def kernel_problems(notebook: NotebookNode) -> list[str]:
    kernel = dict(notebook.metadata.get("kernelspec", {}))
    good = kernel.get("name") == "python3" and kernel.get("language") == "python"
    return [] if good else [f"the kernel is {kernel or 'not named'}, not python3"]


def length_problems(notebook: NotebookNode) -> list[str]:
    cells = code_cells(notebook)
    long = [cell for cell in cells if len(cell.source.splitlines()) > LONG]
    if len(long) > LONG_SHARE * len(cells):
        return [f"{len(long)} of {len(cells)} code cells have more than {LONG} lines; a tenth of them may"]
    return []


def skeleton_problems(notebook: NotebookNode) -> list[str]:
    first = notebook.cells[0]
    found = []
    if first.cell_type != "markdown" or not first.source.startswith("# ") or len(headings(notebook, 1)) != 1:
        found.append("it does not begin with its one title")
    there = [heading for heading in headings(notebook, 2) if heading in SKELETON]
    if there != SKELETON:
        found.append(f"of the headings {SKELETON} it has {there}")
    return found


def parameter_problems(notebook: NotebookNode) -> list[str]:
    cells = [cell for cell in code_cells(notebook) if "parameters" in tags(cell)]
    if len(cells) != 1:
        return [f"{len(cells)} cells are tagged parameters"]
    try:
        values = assigned(cells[0].source)
    except ValueError as problem:
        return [f"the parameters cell holds {problem}"]
    return [] if values == PARAMETERS else [f"its parameters are {values}"]


def question_problems(notebook: NotebookNode) -> list[str]:
    """One cell of three questions before the summary, each with its answer folded away."""
    asking = [i for i, cell in enumerate(notebook.cells) if "questions" in tags(cell)]
    if len(asking) != 1:
        return [f"{len(asking)} cells are tagged questions"]
    at = asking[0] + 1
    if at == len(notebook.cells) or not notebook.cells[at].source.startswith("## Summary"):
        return ["the questions do not stand before the summary"]
    parts = re.split(r"^\*\*(\d)\. (.+)\*\*$", notebook.cells[at - 1].source, flags=re.MULTILINE)
    if not parts[0].startswith("## Questions") or parts[1::3] != ["1", "2", "3"]:
        return [f"under the heading Questions they are numbered {parts[1::3]}"]
    # the blank lines let what is between be read as Markdown
    folded = re.compile(r"\s*<details><summary>Answer</summary>\n\n(?P<answer>.+)\n\n</details>\s*", re.DOTALL)
    answers = [folded.fullmatch(text) for text in parts[3::3]]
    without = [n for n, a in zip(parts[1::3], answers, strict=True) if not a or "<details>" in a["answer"]]
    return [f"question {n} has no answer that is folded away" for n in without]


CHECKS = [execution_problems, output_problems, kernel_problems, length_problems, question_problems]
LESSON_CHECKS = [skeleton_problems, parameter_problems]


def test_the_whole_course_is_there():
    assert [path.stem for path in NOTEBOOKS][: len(COURSE)] == COURSE


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, check: Callable):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert check(notebook) == []


@pytest.mark.parametrize("check", LESSON_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem != "00_start_here"], ids=lambda path: path.stem)
def test_lesson(path: Path, check: Callable):
    assert check(nbformat.read(path, as_version=4)) == []


# --- the checks themselves: each passes a good notebook and refuses each way to spoil it ------------------------------


def good_notebook() -> NotebookNode:
    parameters = "\n".join(f"{name} = {value!r}" for name, value in PARAMETERS.items())
    asked = [f"**{n}. Why?**\n\n<details><summary>Answer</summary>\n\nSo.\n\n</details>\n" for n in (1, 2, 3)]
    questions = "\n".join(["## Questions\n", *asked])
    body = [
        new_markdown_cell("# A lesson"),
        *(new_markdown_cell(f"## {heading}") for heading in SKELETON[:2]),
        new_markdown_cell(questions, metadata={"tags": ["questions"]}),
        *(new_markdown_cell(f"## {heading}") for heading in SKELETON[2:]),
        new_code_cell(parameters, execution_count=1, metadata={"tags": ["parameters"]}),
        *(new_code_cell("1 + 1", execution_count=n) for n in range(2, 11)),
    ]
    body[-1].outputs = [new_output("execute_result", data={"text/plain": "2"}, execution_count=10)]
    return new_notebook(
        cells=body, metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    )


def stream(name: str, text: str) -> Callable[[NotebookNode], None]:
    return lambda nb: nb.cells[-1].outputs.append(new_output("stream", name=name, text=text))


def error(nb: NotebookNode) -> None:
    nb.cells[-1].outputs.append(new_output("error", ename="ValueError", evalue="x", traceback=[]))


def lines(*cells: int) -> Callable[[NotebookNode], None]:
    def lengthen(nb: NotebookNode) -> None:
        for cell in cells:
            nb.cells[-cell].source = "\n".join(["1"] * (LONG + 1))

    return lengthen


def attribute(index: int, name: str, value: Any) -> Callable[[NotebookNode], None]:
    return lambda nb: nb.cells[index].update({name: value})


def edit(index: int, old: str, new: str, count: int = -1) -> Callable[[NotebookNode], None]:
    return lambda nb: nb.cells[index].update(source=nb.cells[index].source.replace(old, new, count))


SPOILED: list[tuple[str, Callable, Callable[[NotebookNode], Any]]] = [
    ("never executed", execution_problems, attribute(-1, "execution_count", None)),
    ("executed twice", execution_problems, attribute(-1, "execution_count", 11)),
    ("empty", execution_problems, attribute(-1, "source", " \n")),
    ("tagged out", execution_problems, lambda nb: nb.cells[-1].metadata.update(tags=["nbval-ignore-output"])),
    ("injected", execution_problems, lambda nb: nb.cells[-1].metadata.update(tags=["injected-parameters"])),
    ("commented out", execution_problems, attribute(-1, "source", "# NBVAL_IGNORE_OUTPUT\n1")),
    ("error", output_problems, error),
    ("stderr", output_problems, stream("stderr", "WARN\n")),
    ("machine's path", output_problems, stream("stdout", "read /home/someone/digits/a.png\n")),
    ("other kernel", kernel_problems, lambda nb: nb.metadata.kernelspec.update(name=".venv")),
    ("no kernel", kernel_problems, lambda nb: nb.metadata.pop("kernelspec")),
    ("too many long cells", length_problems, lines(1, 2)),
    ("no title", skeleton_problems, attribute(0, "source", "A lesson")),
    ("two titles", skeleton_problems, attribute(0, "source", "# A lesson\n\n# Another")),
    ("missing heading", skeleton_problems, attribute(4, "source", "## In short")),
    ("headings in another order", skeleton_problems, lambda nb: nb.cells.insert(1, nb.cells.pop(5))),
    ("no questions", question_problems, lambda nb: nb.cells.pop(3)),
    ("questions twice", question_problems, lambda nb: nb.cells.insert(3, nb.cells[3])),
    ("questions after the summary", question_problems, lambda nb: nb.cells.insert(4, nb.cells.pop(3))),
    ("two questions", question_problems, edit(3, "**3. Why?**", "Why?")),
    ("another heading", question_problems, edit(3, "## Questions", "## Quiz")),
    ("an answer in the open", question_problems, edit(3, "<details><summary>Answer</summary>", "", 1)),
    ("no answer", question_problems, edit(3, "So.\n\n", "", 1)),
    ("no parameters", parameter_problems, lambda nb: nb.cells[6].metadata.pop("tags")),
    ("two parameters cells", parameter_problems, lambda nb: nb.cells[-1].metadata.update(tags=["parameters"])),
    ("another value", parameter_problems, edit(6, "50", "40")),
    ("code among them", parameter_problems, edit(6, "PER_CLASS = 50", "PER_CLASS = 50\nprint(1)")),
]


def test_the_checks_pass_a_good_notebook():
    notebook = good_notebook()
    nbformat.validate(notebook)
    assert [check(notebook) for check in (*CHECKS, *LESSON_CHECKS)] == [[]] * 7
    lines(1)(notebook)
    assert length_problems(notebook) == [], "one cell of ten may be long"


@pytest.mark.parametrize(("check", "spoil"), [s[1:] for s in SPOILED], ids=[s[0] for s in SPOILED])
def test_the_checks_refuse_a_spoiled_notebook(check: Callable, spoil: Callable):
    notebook = good_notebook()
    spoil(notebook)
    (problem,) = check(notebook)
    assert problem


# --- what the comparison of outputs leaves out ------------------------------------------------------------------------


def sanitised(text: str) -> str:
    for pattern, replacement in get_sanitize_patterns((ROOT / "tests" / "nbval.cfg").read_text("ascii")):
        text = re.sub(pattern, replacement, text)
    return text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("500 images in 35.2 s", "500 images in 7 s"),
        ("fitted in 812 ms", "fitted in 1,024 ms"),
        ("took 2 min", "took 10 min"),
        ("58.0 minutes of 2 cores", "1.2 hours of 2 cores"),
        ("together: 3.12 GB PSS", "together: 2.9 GB PSS"),
        ("14.2 images/s", "1,050 images/s"),
        ("14 images per second", "9.5 images per second"),
        ("at 2026-01-31 10:11:12", "at 2027-02-01T09:08:07.123Z"),
        ("elapsed 0:01:02", "elapsed 1:00:00.25"),
        ("kept in /home/a/course/build/features", "kept in /Users/b/x/build/features"),
        ("'file:/tmp/a.png'", "'file:/srv/data/b.png'"),
    ],
)
def test_times_and_paths_are_not_compared(one: str, other: str):
    assert sanitised(one) == sanitised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("accuracy 0.81", "accuracy 0.82"),
        ("500 images", "499 images"),
        ("a file of 2 GB", "a file of 3 GB"),
        ("500 images in 35.2 s", "499 images in 35.2 s"),
        ("131072 features", "2048 features"),
        ("training-a/a00001.png", "training-a/a00002.png"),
        ("<td>3</td>", "<td>4</td>"),
        ("5 splits", "6 splits"),
        ("| 3 | 0.9 |", "| 3 | 0.8 |"),
        ("1/10", "2/10"),
    ],
)
def test_everything_else_is_compared(one: str, other: str):
    assert sanitised(one) != sanitised(other)
