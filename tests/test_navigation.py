"""The course as a whole: navigation is up to date, links and anchors lead somewhere, headings are in order, pictures
have an alternative text. Nothing is built or executed here; `make site` checks the built pages as well."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
_spec = importlib.util.spec_from_file_location("navigation", FOLDER / "site" / "navigation.py")
navigation = importlib.util.module_from_spec(_spec)
sys.modules["navigation"] = navigation  # dataclasses look their module up
_spec.loader.exec_module(navigation)

README = (ROOT / "README.md").read_text("utf8")
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
PAGES = [*NOTEBOOKS, FOLDER / "index.md", FOLDER / "glossary.md"]
TERMS = navigation.glossary_terms((FOLDER / "glossary.md").read_text("utf8"))
SUBSTANCE = 40  # characters; "a picture" describes nothing


def prose(page: Path) -> str:
    """A page's Markdown, without what stands in code fences."""
    text = page.read_text("utf8")
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(text: str) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in re.findall(r"^(#{1,6})\s+(.+?)\s*$", text, re.MULTILINE)]


def heading_problems(text: str) -> list[str]:
    levels = [level for level, _ in headings(text)]
    found = [] if levels[:1] == [1] and levels.count(1) == 1 else ["it does not begin with its one title"]
    return found + [f"a heading of level {b} below one of level {a}" for a, b in pairwise(levels) if b > a + 1]


def plain(title: str) -> str:
    """A heading's text, without the marks of links, code and emphasis."""
    return re.sub(r"[*`]", "", re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", title))


def link_problems(page: Path, text: str) -> list[str]:
    """Links within the course whose file or anchor is not there, and pictures in prose without a text."""
    found = []
    for mark, label, link in re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", text):
        if mark and len(label) < SUBSTANCE:
            found.append(f"the picture {link} has no alternative text of substance")
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.is_file():
            found.append(f"there is no {link}")
        elif anchor and anchor not in {navigation.slug(plain(title)) for _, title in headings(prose(target))}:
            found.append(f"{target.name} has no heading for #{anchor}")
    return found


def picture_problems(notebook: dict[str, Any]) -> list[str]:
    """Code cells that show a picture without saying in ``metadata.mystnb.image.alt`` what is on it; and the reverse."""
    found = []
    for cell in notebook["cells"]:
        shown = any(mime.startswith("image/") for output in cell.get("outputs", []) for mime in output.get("data", {}))
        text = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
        if shown and len(text) < SUBSTANCE:
            found.append(f"cell {cell['id']} shows a picture without an alternative text of substance")
        if text and not shown:
            found.append(f"cell {cell['id']} describes a picture that it does not show")
    return found


def test_the_navigation_is_up_to_date():
    stale = navigation.out_of_date(navigation.files(FOLDER, README))
    assert [path.name for path in stale] == [], "type make navigation"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_and_links(page):
    text = prose(page)
    assert heading_problems(text) + link_problems(page, text) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_has_an_alternative_text(path):
    assert picture_problems(json.loads(path.read_text("utf8"))) == []


def test_every_notebook_leads_to_its_neighbours_to_the_contents_and_to_binder():
    for before, path, after in zip([None, *NOTEBOOKS], NOTEBOOKS, [*NOTEBOOKS[1:], None], strict=False):
        cells = json.loads(path.read_text("utf8"))["cells"]
        top, foot = ("".join(cells[place]["source"]) for place in (1, -1))
        around = {p.name for p in (before, after) if p}
        for source in (top, foot):
            assert around | {"index.md"} <= set(re.findall(r"\]\(([^)#]+)\)", source))
        (binder,) = re.findall(r"https://mybinder\.org/[^)]+", top)
        assert binder.endswith(f"urlpath=lab/tree/notebooks/{path.name}")
        assert binder.split("?")[0] in README


def test_the_glossary_is_in_order_and_every_word_is_used():
    spelled = [term.lower() for term in TERMS]
    assert spelled == sorted(spelled) and len(spelled) >= 30
    text = "\n".join(prose(path) for path in [*PAGES, *(ROOT / "helpers").glob("*.py"), ROOT / "README.md"])
    assert sorted(set(TERMS) - set(navigation.terms_used(text, TERMS))) == []


# --- the generator ----------------------------------------------------------------------------------------------------


def markdown(number: int, source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": f"c{number}", "metadata": {}, "source": source.splitlines(keepends=True)}


@pytest.fixture
def course(tmp_path) -> Path:
    """Two notebooks with outputs and metadata of their own, and a glossary."""
    for number, name in enumerate(("One thing", "Another thing")):
        cells = [
            markdown(0, f"# {name}\n\nA layer, ROC AUC, the stratified\nsplit."),
            markdown(1, "## What you will learn\n\n- x"),
        ]
        output = {"data": {"text/plain": ["৩"]}, "execution_count": 1, "metadata": {}, "output_type": "execute_result"}
        code = {"cell_type": "code", "execution_count": 1, "id": "c2", "metadata": {"tags": ["parameters"]}}
        cells.append({**code, "outputs": [output], "source": ["1"]})
        file = tmp_path / f"0{number}_{name.lower().replace(' ', '_')}.ipynb"
        notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf8")
    (tmp_path / "glossary.md").write_text("# Glossary\n\n## layer\n\nx\n\n## ROC AUC\n\nx\n\n*Also: arrow.*\n", "utf8")
    return tmp_path


def write(course: Path) -> dict[Path, str]:
    made = navigation.files(course, README)
    for path, text in made.items():
        path.write_text(text, "utf8")
    return made


def test_other_cells_stay_as_they_are_and_a_second_time_changes_nothing(course):
    path = course / "00_one_thing.ipynb"
    before = json.loads(path.read_text("utf8"))
    text = path.read_text("utf8")
    assert write(course) == navigation.files(course, README)
    after = json.loads(path.read_text("utf8"))
    assert [cell for cell in after["cells"] if not navigation.is_navigation(cell)] == before["cells"]
    assert [place for place, cell in enumerate(after["cells"]) if navigation.is_navigation(cell)] == [1, 4]
    assert set(text.splitlines()) <= set(path.read_text("utf8").splitlines()), "lines of the file have changed"


def test_a_changed_notebook_is_out_of_date(course):
    write(course)
    assert navigation.out_of_date(navigation.files(course, README)) == []
    path = course / "01_another_thing.ipynb"
    path.rename(course / "02_another_thing.ipynb")
    stale = navigation.out_of_date(navigation.files(course, README))
    assert {p.name for p in stale} == {"index.md", "00_one_thing.ipynb", "02_another_thing.ipynb"}


def test_words_are_found_as_they_are_written():
    terms = navigation.glossary_terms("# G\n\n## layer\n\nx\n\n## Arrow\n\nx\n\n## test set\n\n*Also: test images.*\n")
    assert navigation.terms_used("Test\nimages, then two layers. An arrow.", terms) == ["test set", "layer"]
    assert navigation.terms_used("Arrow, player, layered", terms) == ["Arrow"]
    terms = {"precision": ["precision"], "double precision": ["double precision"]}
    assert navigation.terms_used("In double precision.", terms) == ["double precision"]
    assert len(navigation.terms_used("In double precision, with high precision.", terms)) == 2


def test_what_cannot_be_made_is_said_in_a_sentence(course):
    with pytest.raises(ValueError, match="no Binder link"):
        navigation.files(course, "# A README")
    path = course / "00_one_thing.ipynb"
    path.write_text(path.read_text("utf8").replace("What you will learn", "Aims"), "utf8")
    with pytest.raises(ValueError, match=r"00_one_thing\.ipynb has no section"):
        navigation.files(course, README)


# --- the checks refuse what they are there to refuse ------------------------------------------------------------------


@pytest.mark.parametrize("text", ["## No title", "# One\n# Two", "# One\n### Three", ""])
def test_headings_out_of_order_are_refused(text):
    assert heading_problems(text)
    assert heading_problems("# One\n## Two\n### Three\n## Two") == []


@pytest.mark.parametrize(
    "link", ["[a](nowhere.ipynb)", "[a](glossary.md#nothing)", "[a](#nothing)", "![short](glossary.md)"]
)
def test_dead_links_and_pictures_without_a_text_are_refused(link):
    page = FOLDER / "index.md"
    assert len(link_problems(page, link)) == 1
    good = f"[a](glossary.md#transfer-learning) [b](https://example.org/x#y) ![{'x' * SUBSTANCE}](glossary.md)"
    assert link_problems(page, good) == []


def test_a_picture_without_a_text_and_a_text_without_a_picture_are_refused():
    picture = {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}
    text = {"mystnb": {"image": {"alt": "x" * SUBSTANCE}}}
    good = {"cells": [{"id": "a", "cell_type": "code", "metadata": text, "outputs": [picture]}]}
    assert picture_problems(good) == []
    for change in ({"metadata": {}}, {"metadata": {"mystnb": {"image": {"alt": "picture"}}}}, {"outputs": []}):
        spoiled = copy.deepcopy(good)
        spoiled["cells"][0].update(change)
        assert len(picture_problems(spoiled)) == 1
