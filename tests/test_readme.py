"""The README promises what is there: its commands exist, links lead somewhere, figures are the recorded ones."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")


@pytest.fixture(scope="module")
def splits():
    """The benchmark that writes the README's table."""
    spec = importlib.util.spec_from_file_location("splits", ROOT / "tests" / "benchmarks" / "splits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_make_command_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)\b", README))
    assert {"run", "test", "data", "lab", "help"} <= named
    assert named <= targets


def test_every_relative_link_leads_to_a_file():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_notebook_is_in_the_table():
    there = {path.name for path in (ROOT / "notebooks").glob("0*.ipynb")}
    assert there == set(re.findall(r"\(notebooks/(0\w+\.ipynb)\)", README))


def test_the_results_are_the_recorded_ones(splits):
    rows = json.loads(splits.RECORDS.read_text(encoding="utf8"))
    assert rows, "nothing is recorded"
    assert splits.with_table(README, rows) == README
    changed = [{**rows[0], "accuracy": rows[0]["accuracy"] + 0.001}, *rows[1:]]
    assert splits.with_table(README, changed) != README


def test_a_record_replaces_its_like_and_no_other(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "RECORDS", tmp_path / "recorded.json")
    monkeypatch.setattr(splits, "README", tmp_path / "README.md")
    splits.README.write_text(README, encoding="utf8")
    row = {"setting": "s", "data_set": "d", "weights": "w", "layer": "last", "image_size": 299, "images": 500}
    row |= {"accuracy": 0.5, "spread": 0.1, "splits": 2, "command": "first"}
    splits.record([row, row | {"setting": "t"}])
    splits.record([row | {"accuracy": 0.75, "command": "second"}])
    kept = json.loads(splits.RECORDS.read_text(encoding="utf8"))
    assert sorted((r["setting"], r["accuracy"]) for r in kept) == [("s", 0.75), ("t", 0.5)]
    assert "| 0.750 ± 0.100 | (2) |" in splits.README.read_text(encoding="utf8")


def test_a_recorded_command_names_no_folder_of_a_machine(splits):
    typed = ["--data", "/some/where/digits", "--weights", "/else/w.h5", "--record", "NumtaDB, real", "--splits", "20"]
    typed += ["--store", "/tmp/features"]
    assert splits.shown(typed) == ["--data", "digits", "--weights", "w.h5", "--splits", "20"]


# -- the table of bad input and faults ---------------------------------------------------------------------------------

TABLE = (ROOT / "tests" / "README.md").read_text(encoding="utf8")
MEANT = """
empty file | truncated PNG | text named .png | JPEG named .png | 16-bit PNG | palette PNG with transparency | CMYK JPEG
EXIF-rotated JPEG | 1 × 1 | 1 × 5,000 | decompression bomb | unreadable file | symbolic link to nowhere
folder with spaces, Bengali letters and a # | empty class folder | folder that is no data set at all
CSV without a needed column | CSV row without a file | file without a CSV row | label 10, "x", empty
the same name in two sources | BOM, CRLF, semicolons | two releases of training-e mixed
fewer images than asked per class | a class with one image at the split | null image | unknown network | unknown layer
unknown pooling | image size below the network's minimum | weights of another network | truncated weights
a weights file whose digest does not match | a saved pipeline from another version
logistic regression on features that contain nulls
SIGKILL to a Python worker in a batch | SIGKILL to an executor on a standalone cluster | SIGKILL to the driver
disk full while the store is written | two runs on one store at the same time
a download cut in the middle and taken up again | kernel restarted in the middle of notebook 02 and run again
20,000 images through the default recipe on 2 cores | 100 × the same image | images from 10 to 4,000 px in one frame
downloads are checked | downloads never unpack outside their folder
Keras files load in safe mode | nothing is unpickled
JupyterLab listens on loopback with its token | the Spark UI listens on loopback | the lock is hash-pinned
make never asks for root | CSV reader | split | the store's keys | the image reader's decode path
"""


def test_every_input_and_fault_has_its_row():
    rows = [line.split(" | ") for line in TABLE.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {3}
    names = [row[0].removeprefix("| ") for row in rows]
    meant = [name for line in MEANT.strip().splitlines() for name in line.split(" | ")]
    assert [name for name in meant if name not in names] == []
    assert len(set(names)) == len(names)
    assert all("`test_" in row[2] for row in rows if row[2] != "test |")


def test_every_test_that_is_named_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`(¹?)", TABLE)
    assert len(named) > 60 and len(named) == len(re.findall(r"`test_", TABLE))
    for file, test, slow in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf8")
        (decorators,) = re.findall(rf"((?:^@.*\n|^[ )\]].*\n)*)^def {test}\(", source, re.MULTILINE)
        assert ("@pytest.mark.load" in decorators) == bool(slow), test
