"""The README promises what is there: its commands exist, links lead somewhere, figures are the recorded ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")


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


@pytest.mark.parametrize("name", ["splits", "own_model"])
def test_the_results_are_the_recorded_ones(benchmark, name):
    module = benchmark(name)
    rows = json.loads(module.RECORDS.read_text(encoding="utf8"))
    assert rows, "nothing is recorded"
    assert module.with_table(README, rows) == README
    changed = [{**rows[0], "accuracy": rows[0]["accuracy"] + 0.001}, *rows[1:]]
    assert module.with_table(README, changed) != README


def test_a_record_replaces_its_like_and_no_other(benchmark, tmp_path, monkeypatch):
    splits = benchmark("splits")
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


def test_a_recorded_command_names_no_folder_of_a_machine(benchmark, monkeypatch):
    typed = ["--data", "/some/where/digits", "--weights", "/else/w.h5", "--record", "NumtaDB, real", "--splits", "20"]
    monkeypatch.setattr("sys.argv", ["/some/where/splits.py", *typed, "--store", "/tmp/features"])
    said = "python tests/benchmarks/splits.py --data digits --weights w.h5 --splits 20"
    assert benchmark("recording").command_line() == said
