"""``notebooks/run.py`` on small notebooks of its own: order, parameters, progress, copies, results and failures."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "notebooks" / "run.py"

spec = importlib.util.spec_from_file_location("run", RUN)
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

RESULTS = [
    {
        "data_set": "sample",
        "layer": ["mixed2", "mixed3"],
        "images": 500,
        "f1": 0.8125,
        "roc_auc": 0.95,
        "wall_time": 1.5,
    },
    {"data_set": "sample", "layer": "mixed3", "images": 500, "f1": 0.9, "roc_auc": 0.99, "wall_time": 2.0},
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write_notebook(folder: Path, name: str, *cells: str, title: str = "A title") -> None:
    parameters = new_code_cell('DATA = None\nPER_CLASS = 50\nBUILD = "../build"', metadata={"tags": ["parameters"]})
    body = [new_markdown_cell(f"# {title}"), parameters, *map(new_code_cell, cells)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=body, metadata=metadata), folder / f"{name}.ipynb")


def write_results(results: list) -> str:
    return f"import json, pathlib\npathlib.Path(BUILD, 'results.json').write_text({json.dumps(results)!r})"


@pytest.fixture
def course(tmp_path: Path) -> tuple[Path, Path]:
    """Folder of two notebooks, and the build folder beside it that they write to."""
    folder = tmp_path / "course"
    folder.mkdir()
    note = """import pathlib
with pathlib.Path(BUILD, 'seen').open('a') as file:
    print(DATA, PER_CLASS, pathlib.Path().resolve(), file=file)"""
    write_notebook(folder, "01_one", note, "print('one')")
    write_notebook(folder, "02_two", note, write_results(RESULTS))
    return folder, tmp_path / "build"


def test_runs_in_order_with_parameters_in_the_notebooks_folder(course):
    folder, build = course
    results = run.run_course(
        ["01_one", "02_two"], folder, build, {"DATA": "/some/where", "PER_CLASS": 7}, io.StringIO()
    )
    assert results == RESULTS
    assert (build / "seen").read_text() == f"/some/where 7 {folder}\n" * 2
    for name in ("01_one", "02_two"):
        notebook = nbformat.read(build / "notebooks" / f"{name}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    page = (build / "html" / "01_one.html").read_text("utf-8")
    assert "A title" in page and "one" in page
    # The notebooks themselves are left as they were.
    assert all(
        cell.execution_count is None
        for cell in nbformat.read(folder / "01_one.ipynb", as_version=4).cells
        if cell.cell_type == "code"
    )


def test_without_parameters_the_notebooks_own_values_hold(course):
    folder, build = course
    run.run_course(["01_one", "02_two"], folder, build, {}, io.StringIO())
    assert (build / "seen").read_text() == f"None 50 {folder}\n" * 2


def test_a_plain_line_a_notebook_where_there_is_no_terminal(course):
    folder, build = course
    stream = io.StringIO()
    run.run_course(["01_one", "02_two"], folder, build, {"PER_CLASS": 7}, stream)
    lines = stream.getvalue().splitlines()
    assert [line.split(" s")[0].rstrip("0123456789") for line in lines] == ["01_one: 5 cells, ", "02_two: 5 cells, "]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_one_bar_names_notebook_and_cell_on_a_terminal(course):
    folder, build = course
    stream = Terminal()
    run.run_course(["01_one", "02_two"], folder, build, {}, stream)
    shown = stream.getvalue()
    for name in ("01_one", "02_two"):
        for cell in range(1, 5):
            assert f"{name}, cell {cell} of 4 (A title)" in shown
    assert " 8/8 " in shown and " 0/8 " in shown
    assert shown.count("\n") == 1, "the bar moves on its own line and ends once"


def test_a_failing_cell_is_named_and_stale_results_are_gone(course):
    folder, build = course
    run.run_course(["01_one", "02_two"], folder, build, {}, io.StringIO())
    write_notebook(folder, "02_two", "1 + 1", "raise ValueError('first\\nwhat went wrong')", title="Split the digits")
    with pytest.raises(run.CourseError) as caught:
        run.run_course(["01_one", "02_two"], folder, build, {}, io.StringIO())
    first, second = str(caught.value).splitlines()
    assert first == "02_two, cell 4 of 4 (Split the digits): ValueError: what went wrong"
    assert second.endswith(str(build / "notebooks" / "02_two.ipynb"))
    assert not (build / "results.json").exists()
    assert not (build / "html" / "02_two.html").exists()
    assert (build / "html" / "01_one.html").exists()


def test_a_dead_kernel_is_told_in_a_sentence(course):
    folder, build = course
    write_notebook(folder, "01_one", "import os; os._exit(9)")
    with pytest.raises(run.CourseError, match=r"^01_one, cell 3 of 3 \(A title\): the kernel died"):
        run.run_course(["01_one"], folder, build, {}, io.StringIO())


def test_a_course_without_results_or_notebook_is_an_error(course):
    folder, build = course
    with pytest.raises(run.CourseError, match=r"01_one ran, but left no .*results\.json"):
        run.run_course(["01_one"], folder, build, {}, io.StringIO())
    with pytest.raises(run.CourseError, match=r"no notebook .*03_three\.ipynb"):
        run.run_course(["03_three"], folder, build, {}, io.StringIO())


def test_main_prints_the_results_last_and_alone_on_stdout(course, monkeypatch, capsys):
    folder, build = course
    monkeypatch.setattr(run, "COURSE", ("01_one", "02_two"))
    monkeypatch.setattr(run, "HERE", folder)
    assert run.main(["--build", str(build), "--weights", "random"]) == 0
    out = capsys.readouterr().out
    assert out == (
        "data set: sample\nlayer: mixed2, mixed3\nimages: 500\nF1: 0.8125\nROC AUC: 0.95\nwall time: 1.5\n"
        "\n"
        "data set: sample\nlayer: mixed3\nimages: 500\nF1: 0.9\nROC AUC: 0.99\nwall time: 2.0\n"
    )
    write_notebook(folder, "01_one", "1 / 0")
    assert run.main(["--build", str(build), "--weights", "random"]) == 1
    failed = capsys.readouterr()
    assert failed.out == "" and "ZeroDivisionError: division by zero" in failed.err


def parameters(*arguments: str) -> dict:
    return run.notebook_parameters(run.argument_parser().parse_args(arguments))


def test_what_was_not_given_is_not_passed():
    assert parameters("--weights", "random", "--build", str(ROOT / "build")) == {"WEIGHTS": "random"}


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits" / "3").mkdir(parents=True)
    (tmp_path / "digits" / "3" / "a.png").touch()
    (tmp_path / "mine.weights.h5").touch()
    monkeypatch.setattr(run.networks, "export_graph", lambda *of: None)  # other tests try the weights themselves
    given = parameters("--data", "digits", "--weights", "mine.weights.h5", "--network", "VGG16", "--image-size", "64")
    assert given == {
        "DATA": str(tmp_path / "digits"),
        "WEIGHTS": str(tmp_path / "mine.weights.h5"),
        "NETWORK": "VGG16",
        "IMAGE_SIZE": 64,
        "BUILD": str(tmp_path / "build"),
    }


def test_layers_are_checked_and_split():
    assert parameters("--weights", "random", "--layer", "mixed2")["LAYER"] == "mixed2"
    assert parameters("--weights", "random", "--layer", "mixed2, mixed3")["LAYER"] == ["mixed2", "mixed3"]
    with pytest.raises(ValueError, match=r"no layer 'mixd3'; it has .*mixed3"):
        parameters("--weights", "random", "--layer", "mixed2,mixd3")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "nowhere"], "there is no folder nowhere to read digits from"),
        (["--weights", "nowhere.h5"], "there is no weights file nowhere.h5"),
        (["--network", "InceptionV4"], "there is no network 'InceptionV4'; did you mean InceptionV3"),
        (["--per-class", "0"], "'0' is not a whole number above 0"),
        (["--per-class", "many"], "'many' is not a whole number above 0"),
        (["--image-size", "20"], "InceptionV3 needs images of at least 75 pixels"),
    ],
)
def test_bad_arguments_end_in_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert sentence in last
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one line", "one line"),
        ("\n  An exception was thrown.\nTraceback:\nValueError: x\n\n", "ValueError: x"),
        ("Error in o42.\n: java.lang.Bad: why\n\tat a.b.C.d(E.java:1)\n\t... 12 more\n", ": java.lang.Bad: why"),
        (
            "a\nCaused by: java.io.IOException: disk full\n\tat x.Y$1.z(Z.scala:3)",
            "Caused by: java.io.IOException: disk full",
        ),
        ("\x1b[31mred\x1b[0m", "red"),
        ("", ""),
    ],
)
def test_the_line_of_an_error_that_says_what_happened(message, line):
    assert run.last_line(message) == line


def test_links_between_notebooks_lead_to_the_reading_copies(tmp_path):
    notebook = new_notebook(cells=[new_markdown_cell("[next](02_inception_features.ipynb#layers) [file](run.py)")])
    page = run.reading_copy(notebook, "01_load_numtadb", tmp_path)
    assert 'href="02_inception_features.html#layers"' in page and 'href="run.py"' in page


def test_the_reading_copy_describes_its_pictures_and_leaves_out_the_navigation(tmp_path):
    picture = new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    cell = new_code_cell("draw()", outputs=[picture], metadata={"mystnb": {"image": {"alt": 'A "row" of digits'}}})
    line = new_markdown_cell("[Contents](index.md)", metadata={"tags": ["navigation"]})
    notebook = new_notebook(cells=[cell, line])
    page = run.reading_copy(notebook, "01_load_numtadb", tmp_path)
    assert """<img alt='A "row" of digits'""" in page and "index.md" not in page
    assert len(notebook.cells) == 2, "the notebook itself has changed"


def test_help_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, str(RUN), "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    assert done.returncode == 0 and "--image-size PX" in done.stdout
