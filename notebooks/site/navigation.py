"""Write what ties the notebooks together: a line of navigation at their top and foot, glossary links, the contents.

    python notebooks/site/navigation.py            # or: make navigation
    python notebooks/site/navigation.py --check    # changes nothing; exit code 1 where something is out of date

Every notebook ``notebooks/NN_name.ipynb`` gets two cells tagged ``navigation``: after the title, and at the end. All
other cells, their outputs and the layout of the file stay as they are. ``notebooks/index.md`` lists the notebooks with
what a reader learns in each. Needs only Python.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parent.parent
README = NOTEBOOKS.parent / "README.md"
TAG = "navigation"
CONTENTS = """\
# Contents

Image classification by transfer learning in PySpark, in {count} notebooks. Read them in order the first time; each also
runs alone. Words that you do not know are in the [glossary](glossary.md). On {binder} the course runs in your browser,
with nothing to install.
"""


@dataclass(frozen=True)
class Lesson:
    """A notebook: its ``path``, its JSON ``content``, and its ``label``, as links name it ("02 Inception features")."""

    path: Path
    content: dict[str, Any]

    @property
    def prose(self) -> list[str]:
        """Sources of the Markdown cells, without the navigation."""
        cells = [cell for cell in self.content["cells"] if cell["cell_type"] == "markdown" and not is_navigation(cell)]
        return ["".join(cell["source"]) for cell in cells]

    @property
    def label(self) -> str:
        """Number and title; where the title is not what the file is called, the words of the file's name."""
        number, _, words = self.path.stem.partition("_")
        words = words.replace("_", " ")
        title = re.match(r"# (.+)", self.prose[0])
        same = title and title[1].strip().lower() == words
        return f"{number} {title[1].strip() if title and same else words.capitalize()}"

    @property
    def objectives(self) -> str:
        """What stands under "What you will learn": a list and the line of times; ``ValueError`` where nothing does."""
        for source in self.prose:
            if found := re.match(r"## What you will learn\n+(.+)", source, re.DOTALL):
                return found[1].strip()
        raise ValueError(f"{self.path.name} has no section 'What you will learn'; begin one below its title.")


def is_navigation(cell: dict[str, Any]) -> bool:
    return TAG in cell["metadata"].get("tags", [])


def slug(heading: str) -> str:
    """A heading's anchor, as JupyterLab makes it; GitHub and the site follow."""
    return heading.strip().replace(" ", "-")


def lessons(folder: Path) -> list[Lesson]:
    """The course's notebooks in ``folder``, in their order."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    return [Lesson(path, json.loads(path.read_text(encoding="utf8"))) for path in paths]


def glossary_terms(text: str) -> dict[str, list[str]]:
    """Each second-level heading of a glossary, and how prose may spell it: as it is and as "*Also: …*" says."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        term, _, definition = section.partition("\n")
        also = re.search(r"^\*Also: (.+)\.\*$", definition, re.MULTILINE)
        found[term.strip()] = [term.strip(), *(also[1].split(", ") if also else [])]
    return found


def terms_used(prose: str, terms: dict[str, list[str]]) -> list[str]:
    """Terms that occur in ``prose``, singular or plural, by first use. Capitals count where a term has them; words that
    belong to a longer term are not another one ("double precision" is no "precision").
    """
    first = {}
    spelled = [(term, spelling) for term, spellings in terms.items() for spelling in spellings]
    for term, spelling in sorted(spelled, key=lambda pair: -len(pair[1])):
        flags = re.NOFLAG if spelling != spelling.lower() else re.IGNORECASE
        words = re.escape(spelling).replace(r"\ ", r"\s+")
        pattern = re.compile(rf"(?<![\w-]){words}s?(?![\w-])", flags)
        if found := pattern.search(prose):
            first[term] = min(found.start(), first.get(term, len(prose)))
            prose = pattern.sub(lambda match: " " * len(match[0]), prose)
    return sorted(first, key=lambda term: first[term])


def binder_link(readme: str, notebook: str) -> str:
    """The README's Binder link, for a notebook; ``ValueError`` where the README has none."""
    found = re.search(r"\((https://mybinder\.org/[^)]+?/notebooks/)[^)]+\)", readme)
    if not found:
        raise ValueError("README.md has no Binder link to make the notebooks' links from.")
    return f"[Binder]({found[1]}{notebook})"


def step(arrow: str, lesson: Lesson) -> str:
    text = f"← {lesson.label}" if arrow == "←" else f"{lesson.label} →"
    return f"[{text}]({lesson.path.name})"


def cell(place: str, source: str) -> dict[str, Any]:
    lines = source.splitlines(keepends=True)
    return {"cell_type": "markdown", "id": f"navigation-{place}", "metadata": {"tags": [TAG]}, "source": lines}


def with_navigation(course: Sequence[Lesson], number: int, terms: dict[str, list[str]], readme: str) -> dict[str, Any]:
    """The content of notebook ``number`` with its two navigation cells, new or replaced."""
    this = course[number]
    before = [step("←", course[number - 1])] if number else []
    after = [step("→", course[number + 1])] if number + 1 < len(course) else []
    contents = ["[Contents](index.md)", "[Glossary](glossary.md)", binder_link(readme, this.path.name)]
    top = " · ".join([*before, *contents, *after])
    if used := terms_used("\n\n".join(this.prose), terms):
        links = ", ".join(f"[{term}](glossary.md#{slug(term)})" for term in used)
        top += f"\n\n<details><summary>Words of this notebook, explained</summary>\n\n{links}\n\n</details>"
    foot = " · ".join([*before, contents[0], *after])
    title, *others = [c for c in this.content["cells"] if not is_navigation(c)]
    return {**this.content, "cells": [title, cell("top", top), *others, cell("foot", foot)]}


def contents_page(course: Sequence[Lesson], readme: str) -> str:
    """``index.md``: each notebook with what a reader learns in it."""
    binder = binder_link(readme, course[0].path.name)
    page = [CONTENTS.format(count=len(course), binder=binder)]
    page += [f"## [{lesson.label}]({lesson.path.name})\n\n{lesson.objectives}\n" for lesson in course]
    return "\n".join(page)


def files(folder: Path, readme: str) -> dict[Path, str]:
    """Every file that is written, with what it ought to hold."""
    course = lessons(folder)
    terms = glossary_terms((folder / "glossary.md").read_text(encoding="utf8"))
    made = {folder / "index.md": contents_page(course, readme)}
    for number, lesson in enumerate(course):
        content = with_navigation(course, number, terms, readme)
        made[lesson.path] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return made


def out_of_date(made: dict[Path, str]) -> list[Path]:
    return [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf8") != text]


def main(arguments: Sequence[str]) -> int:
    made = files(NOTEBOOKS, README.read_text(encoding="utf8"))
    stale = out_of_date(made)
    for path in stale:
        if "--check" in arguments:
            print(f"{path.name} is out of date: type make navigation", file=sys.stderr)
        else:
            path.write_text(made[path], encoding="utf8")
            print(f"{path.name} written")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
