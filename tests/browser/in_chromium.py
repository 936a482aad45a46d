"""The whole way in a browser: a real JupyterLab, every notebook run in Chromium, a digit drawn with the mouse.

    make test-browser                                        # about a quarter of an hour
    make test-browser BROWSER_OPTIONS="-k 07_harder_digits"  # one notebook

JupyterLab serves a copy of the working tree with the course's own Python (``.venv``, or what COURSE_PYTHON names), on a
free port of this machine. Pictures of the notebooks and JupyterLab's log are left in ``build/browser``. The name of
this file keeps it out of ``make test``, whose environment has no Playwright.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SHOTS = ROOT / "build" / "browser"
PYTHON = os.environ.get("COURSE_PYTHON") or str(ROOT / ".venv" / "bin" / "python")
START = 60  # seconds that JupyterLab may take to start, and to open a notebook
RUN = 900  # seconds that a notebook may take
DRAW = 20  # seconds that pictures and widgets may take to be drawn, once all cells have run
TALLEST = 16_000  # px; Chromium takes no larger pictures
BOARD = "07_harder_digits"

# What the notebook on screen holds. Every cell is drawn, not only those in view; see `settings`. An output that is to
# show a widget has the widget's class itself, even where it says that there is none; what it draws is inside.
STATE = """() => {
  const panel = jupyterapp.shell.currentWidget, kernel = panel.sessionContext.session?.kernel;
  const code = panel.content.widgets.filter(cell => cell.model.type === 'code' && cell.model.sharedModel.source.trim());
  const cells = code.map(cell => ({
    id: cell.model.id,
    run: cell.model.executionCount !== null,
    outputs: cell.outputArea.model.toJSON().map(output => ({
      error: output.output_type === 'error' ? `${output.ename}: ${output.evalue}` : null,
      kinds: Object.keys(output.data ?? {}),
    })),
    drawn: cell.outputArea.widgets.map(shown => ({
      pictures: [...shown.node.querySelectorAll('.jp-RenderedImage img')].map(img => img.complete && img.naturalWidth),
      widgets: [...shown.node.querySelectorAll('.jupyter-widgets .jupyter-widgets')].map(widget => widget.offsetHeight),
      broken: shown.node.querySelectorAll('.jupyter-widgets-error-widget').length,
      text: shown.node.textContent,
    })),
  }));
  return {kernel: globalThis.kernelDied ? 'dead' : kernel?.status ?? 'gone', cells};
}"""
FINISHED = f"""() => {{
  const {{kernel, cells}} = ({STATE})();
  const failed = cells.some(cell => cell.outputs.some(output => output.error));
  return globalThis.kernelDied || (kernel === 'idle' && (failed || cells.every(cell => cell.run)));
}}"""
# Pictures and widgets follow what the kernel sends.
DRAWN = f"""() => ({STATE})().cells.every(cell => cell.drawn.every((shown, i) => shown.pictures.every(Boolean) && (
  !cell.outputs[i]?.kinds.includes('application/vnd.jupyter.widget-view+json') || shown.widgets.some(Boolean))))"""
# A kernel that dies is started anew, and the cells that waited for it never run.
WATCH = """() => jupyterapp.shell.currentWidget.sessionContext.statusChanged.connect((_, status) => {
  if (['autorestarting', 'dead'].includes(status)) globalThis.kernelDied = true;
})"""


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its ``url`` (ends with a slash), the ``token`` it asks for, the ``tree`` it serves."""

    url: str
    token: str
    tree: Path


def settings(folder: Path) -> None:
    """All cells in the page, so that pictures out of sight are drawn too; no question about news."""
    for name, values in {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        file = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values), "utf8")


def copy_of_the_tree(target: Path) -> Path:
    leave = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", "spark-warehouse", "metastore_db")
    for name in ("notebooks", "helpers", "data"):
        shutil.copytree(ROOT / name, target / name, ignore=leave)
    return target


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if not os.access(PYTHON, os.X_OK):
        pytest.exit(f"There is no {PYTHON} to run the course with: type make test-browser, which builds it.", 1)
    folder = tmp_path_factory.mktemp("lab")
    tree = copy_of_the_tree(folder / "tree")
    settings(folder / "settings")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [PYTHON, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", f"--port={port}"]
    command += ["--ip=127.0.0.1", f"--ServerApp.root_dir={tree}", *(["--allow-root"] if os.geteuid() == 0 else [])]
    # nothing of this user's own Jupyter settings, kernels or session
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    environment = os.environ | own | {"JUPYTER_TOKEN": token, "PYTHONPATH": str(tree)}
    log = SHOTS / "jupyterlab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=tree, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield Lab(address(server, folder / "runtime", log), token, tree)
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()


def address(server: subprocess.Popen, runtime: Path, log: Path) -> str:
    """The URL that the server writes down once it listens; it takes another port where ours is gone by then."""
    until = time.monotonic() + START
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        for file in runtime.glob("jpserver-*.json"):
            if text := file.read_text("utf8"):
                return json.loads(text)["url"]
        time.sleep(0.1)
    pytest.exit(f"JupyterLab did not start; the end of {log}:\n{log.read_text('utf8')[-2000:]}", 1)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.exit("No Chromium on PATH: install it (Debian: sudo apt install chromium) and try again.", 1)
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    context.set_default_timeout(START * 1000)
    yield context.new_page()
    context.close()


def run_all(page: Page, lab: Lab, name: str) -> dict:
    """Open a notebook, drop its stored outputs, restart its kernel, run all cells; what it holds at the end."""
    page.goto(f"{lab.url}lab/tree/notebooks/{name}.ipynb?reset&token={lab.token}")
    page.wait_for_function("() => globalThis.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel")
    page.wait_for_function("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
    page.evaluate(WATCH)
    page.evaluate("() => jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    assert not any(cell["run"] or cell["outputs"] for cell in page.evaluate(STATE)["cells"])
    page.evaluate("() => { jupyterapp.commands.execute('notebook:restart-run-all') }")  # asks, so it is not waited for
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.wait_for_function(FINISHED, timeout=RUN * 1000, polling=500)
    with contextlib.suppress(TimeoutError):  # `problems` says what is missing
        page.wait_for_function(DRAWN, timeout=DRAW * 1000, polling=200)
    return page.evaluate(STATE)


def pictures_stored(path: Path) -> dict[str, int]:
    """How many pictures each code cell of a notebook file shows, by the cell's id."""
    cells = [cell for cell in json.loads(path.read_text("utf8"))["cells"] if cell["cell_type"] == "code"]
    kinds = {cell["id"]: [kind for output in cell["outputs"] for kind in output.get("data", {})] for cell in cells}
    return {name: sum(kind.startswith("image/") for kind in found) for name, found in kinds.items()}


def problems(state: dict, expected: dict[str, int]) -> list[str]:
    """Errors, cells that were not run, pictures that are missing or empty, widgets that did not draw; a line each."""
    found = [] if state["kernel"] == "idle" else [f"the kernel is {state['kernel']}"]
    for cell in state["cells"]:
        name = f"cell {cell['id']}"
        if not cell["run"]:
            found.append(f"{name} was not run")
        found += [f"{name} says {output['error']}" for output in cell["outputs"] if output["error"]]
        pictures = [width for shown in cell["drawn"] for width in shown["pictures"]]
        asked = sum(kind.startswith("image/") for output in cell["outputs"] for kind in output["kinds"])
        if not all(pictures) or len(pictures) < max(asked, expected.get(cell["id"], 0)):
            found.append(f"{name} does not draw each of its pictures")
        for output, shown in zip(cell["outputs"], cell["drawn"], strict=True):
            if "application/vnd.jupyter.widget-view+json" in output["kinds"] and not any(shown["widgets"]):
                found.append(f"{name} has a widget that did not draw: {shown['text'][:80]}")
            if shown["broken"]:
                found.append(f"{name} has a broken widget: {shown['text'][:80]}")
    return found


def shoot(page: Page, name: str) -> None:
    """A picture of the whole notebook: the window is made as tall as the notebook is."""
    tall = page.evaluate("() => Math.ceil(jupyterapp.shell.currentWidget.content.outerNode?.scrollHeight ?? 900)")
    page.set_viewport_size({"width": 1300, "height": min(tall + 150, TALLEST)})
    page.screenshot(path=SHOTS / f"{name}.png")
    page.set_viewport_size({"width": 1300, "height": 900})


def stroke(page: Page, canvas: Locator, points: list[tuple[float, float]]) -> None:
    """Draw a line with the mouse, through points in parts of the canvas's sides."""
    box = canvas.bounding_box()
    assert box
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def test_what_is_wrong_in_a_notebook_is_found(lab: Lab, page: Page) -> None:
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "gone", "version_major": 2, "version_minor": 0}}
    sources = {
        "fine": "from IPython.display import Image, display; 1",
        "lost": "1  # a picture is stored",
        "empty": "Image(b'no picture', format='png')",
        "broken": f"display({view}, raw=True)",
        "error": "1 / 0",
        "after": "2",
    }
    common = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    cells = [{**common, "id": name, "source": source} for name, source in sources.items()]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (lab.tree / "notebooks" / "wrong.ipynb").write_text(json.dumps(notebook), "utf8")
    found = problems(run_all(page, lab, "wrong"), {"lost": 1})
    assert [line.split(":")[0] for line in found] == [
        "cell lost does not draw each of its pictures",
        "cell empty does not draw each of its pictures",
        "cell broken has a widget that did not draw",
        "cell error says ZeroDivisionError",
        "cell after was not run",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_jupyterlab(path: Path, lab: Lab, page: Page) -> None:
    state = run_all(page, lab, path.stem)
    try:
        shoot(page, path.stem)
        assert problems(state, pictures_stored(path)) == []
        if path.stem == BOARD:
            draw_digits(page)
    finally:  # the next notebook needs the memory
        page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")


# Bengali digits as lines, in parts of the canvas's sides.
ZERO = [(0.5, 0.2), (0.72, 0.3), (0.8, 0.5), (0.72, 0.7), (0.5, 0.8), (0.28, 0.7), (0.2, 0.5), (0.28, 0.3), (0.5, 0.2)]
FOUR = [
    *[(0.3, 0.2), (0.3, 0.3), (0.5, 0.5), (0.7, 0.68), (0.66, 0.82), (0.5, 0.86)],
    *[(0.34, 0.82), (0.3, 0.68), (0.5, 0.5), (0.7, 0.3), (0.7, 0.2), (0.5, 0.14), (0.3, 0.2)],
]


def draw_digits(page: Page) -> None:
    """The drawing board reads what the mouse draws, and something else after something else is drawn."""
    canvas = page.locator(".jp-OutputArea-output canvas").first
    canvas.scroll_into_view_if_needed()
    label = page.locator(".jp-OutputArea-output .widget-label")
    answer = label.filter(has_text=re.compile("I read|could not be read")).first
    picture = page.locator(".jp-OutputArea-output img.widget-image")
    empty = canvas.evaluate("canvas => canvas.toDataURL()")
    for digit, name, points in ((0, "zero", ZERO), (4, "four", FOUR)):
        stroke(page, canvas, points)
        answer.wait_for()
        assert canvas.evaluate("canvas => canvas.toDataURL()") != empty
        said = answer.inner_text()
        page.wait_for_function("img => img.complete && img.naturalWidth > 0", arg=picture.first.element_handle())
        page.screenshot(path=SHOTS / f"drawn_{name}.png")
        assert said == f"I read {digit}."
        page.get_by_role("button", name="Clear").last.click()
        label.filter(has_text="Draw a digit.").first.wait_for()
