"""The learning curve's benchmark: what it records, and what is recorded."""

import json
import re

import pytest


@pytest.fixture
def script(benchmark):
    return benchmark("learning_curve")


def test_a_curve_replaces_its_like_and_no_other(script, tmp_path):
    file, like = tmp_path / "recorded.json", script.LIKE
    row = {"data_set": "d", "weights": "w", "per_class": 10, "accuracy": 0.5}
    script.put_rows(file, [row | {"per_class": 20}, row, row | {"weights": "v"}], like, (*like, "per_class"))
    kept = script.put_rows(file, [row | {"accuracy": 0.75}], like, (*like, "per_class"))
    assert kept == json.loads(file.read_text(encoding="utf8"))
    assert kept == [row | {"weights": "v"}, row | {"accuracy": 0.75}], "no point of an older curve is left in a new one"


def test_what_is_recorded_names_its_command(script):
    rows = json.loads(script.RECORDS.read_text(encoding="utf8"))
    assert rows and script.RECORDS.parent.name == "notebooks"
    for row in rows:
        sizes = re.search(r"--sizes ([\d ]+)", row["command"])
        assert row["per_class"] in map(int, sizes[1].split()), "the command that stands with a figure measures it"
        assert not re.search(r" /|--store", row["command"]), "no folder of one machine"
        assert 0 < row["accuracy"] <= 1 and row["spread"] >= 0 and row["splits"] > 1
