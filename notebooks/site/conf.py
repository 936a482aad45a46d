"""Sphinx's settings for the reading copy (`make site`): the notebooks as they were executed; nothing is run again.

What is built needs no network: the theme brings its fonts and scripts along, formulas are MathML, which browsers draw
by themselves, and the search is Sphinx's own.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

from latex2mathml.converter import convert

SITE = Path(__file__).resolve().parent
sys.path.insert(0, str(SITE))

import navigation  # noqa: E402

PYPROJECT = tomllib.loads((SITE.parent.parent / "pyproject.toml").read_text(encoding="utf8"))["project"]

project = "Image classification by transfer learning in PySpark"
author = PYPROJECT["authors"][0]["name"]
version = PYPROJECT["version"]
language = "en"

extensions = ["myst_nb"]
exclude_patterns = ["site", "**/.ipynb_checkpoints", ".ipynb_checkpoints"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # from a CDN; a widget needs a kernel, and there is none behind these pages
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_heading_slug_func = "navigation.slug"

html_theme = "furo"
html_title = "Transfer learning in PySpark"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"


def toctree(caption, pages):
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```", ""])


def outside(docname):
    """Replacer of links to files of the repository that are no pages here: the words stay, with the file's name."""
    here = (SITE.parent / docname).parent

    def replace(link):
        file = (here / link[2]).resolve()
        return link[0] if file.is_relative_to(SITE.parent) else f"{link[1]} (`{file.relative_to(SITE.parent.parent)}`)"

    return replace


def adapt(app, docname, source):
    """Add to the contents what Sphinx navigates by; leave the foot out of notebooks: the theme has its own."""
    if docname == "index":
        folder = Path(app.srcdir)
        lessons = [f"{lesson.label} <{lesson.path.stem}>" for lesson in navigation.lessons(folder)]
        source[0] += toctree("Notebooks", [*lessons, "Glossary <glossary>"])
        for kind in ("exercises", "solutions"):
            labels = {lesson.path.stem: lesson.label for lesson in navigation.lessons(folder)}
            names = [path.stem for path in sorted((folder / kind).glob("[0-9][0-9]_*.ipynb"))]
            source[0] += toctree(kind.capitalize(), [f"{labels[name]} <{kind}/{name}>" for name in names])
    elif docname != "glossary":
        notebook = json.loads(source[0])
        notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != "navigation-foot"]
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = "".join(cell["source"])
                if docname.startswith("solutions/"):  # or the search shows two pages of one title
                    text = re.sub(r"\A# Exercises:", "# Solutions:", text)
                cell["source"] = re.sub(r"\[([^]]+)\]\((\.\./[^)#]+)\)", outside(docname), text)
        source[0] = json.dumps(notebook)


def formula(display):
    def visit(translator, node):
        translator.body.append(convert(node.astext(), display=display))
        node.clear()  # or its source would be written as well

    return visit, lambda translator, node: None


def setup(app):
    app.connect("source-read", adapt)
    app.add_html_math_renderer("mathml", formula("inline"), formula("block"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
