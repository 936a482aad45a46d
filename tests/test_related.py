"""Related technologies: what is recorded is complete and of the locked versions; an environment that cannot be built
says why. Nothing of them is run here; `make test-related` does that."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks" / "related"
NAMES = ["elephas", "tensorflowonspark", "bigdl", "ours"]
OTHERS = NAMES[:3]
MEASURED = {"fit_seconds", "accuracy", "test_images", "images", "images_per_second", "peak_mib", "processes"}


@pytest.fixture
def related(benchmark) -> ModuleType:
    return benchmark("related")


def recorded(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf8"))


def locked(name: str) -> dict[str, str]:
    """Name and version of each pin; where two are for different Pythons, both, with a blank between."""
    file = ROOT / "requirements.lock" if name == "ours" else FOLDER / f"{name}.lock"
    found: dict[str, str] = {}
    for package, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", file.read_text(encoding="utf8"), re.MULTILINE):
        found[package] = f"{found.get(package, '')} {version}".strip()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_recorded_with_all_its_figures(related, name):
    technology, found = related.TECHNOLOGIES[name], recorded(name)
    assert list(found["tasks"]) == list(technology.tasks)
    for task, figures in found["tasks"].items():
        assert figures.keys() == MEASURED, task
        assert 0.1 < figures["accuracy"] <= 1 and figures["images_per_second"] > 0 and figures["peak_mib"] > 100, task
        assert (figures["test_images"], figures["images"]) == (100, 500), "another sample, or images were lost"
    assert found["title"] == technology.title
    assert found["versions"].keys() == set(technology.shown)
    assert found["disk_mb"] > 100 and found["packages"] > 5 and found["machine"]
    assert (found["install_seconds"] is None) == (name == "ours")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_recorded_ran_on_the_locked_versions(related, name):
    found, pins = recorded(name), locked(name)
    versions = dict(found["versions"])
    if name != "ours":
        versions[related.TECHNOLOGIES[name].package] = found["version"]
        assert found["python"].rpartition(".")[0] in related.TECHNOLOGIES[name].pythons
    assert {package: version for package, version in versions.items() if version not in pins[package].split()} == {}


@pytest.mark.parametrize("name", OTHERS)
def test_a_lock_has_hashes_and_holds_what_is_asked_for(name):
    text = (FOLDER / f"{name}.lock").read_text(encoding="utf8")
    assert "://" not in text and "make lock-related" in text
    pins = re.findall(r"^[\w.-]+==\S+.*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) > 5
    asked = re.findall(r"^([\w.-]+)", (FOLDER / f"{name}.in").read_text(encoding="utf8"), re.MULTILINE)
    assert asked and set(asked) <= locked(name).keys()


@pytest.mark.parametrize("name", OTHERS)
def test_a_missing_python_is_named_with_the_way_to_get_it(related, monkeypatch, name):
    monkeypatch.setattr(related, "candidates", lambda version: iter(()))
    first = related.TECHNOLOGIES[name].pythons[0]
    with pytest.raises(related.NotBuilt, match=rf"needs Python {re.escape(first)}.*python install {re.escape(first)}"):
        related.find_python(name)


def test_a_python_of_another_version_is_passed_by(related, monkeypatch, tmp_path):
    broken = tmp_path / "python3.9"
    broken.write_text("#!/bin/sh\nexit 127\n", encoding="ascii")  # as pyenv's shim where no version is chosen
    broken.chmod(0o755)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert not related.runs(broken, "3.9") and not related.runs(Path(sys.executable), "3.9")
    assert related.runs(Path(sys.executable), here) and not related.runs(tmp_path / "nothing", here)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next(related.candidates("3.9")) == broken


def test_an_environment_of_another_lock_is_built_anew(related, monkeypatch, tmp_path):
    monkeypatch.setattr(related, "BUILD", tmp_path)
    assert not related.is_built("bigdl")
    (tmp_path / "bigdl" / "bin").mkdir(parents=True)
    related.python_of("bigdl").touch()
    built = tmp_path / "bigdl" / "requirements.lock"
    built.write_bytes((FOLDER / "bigdl.lock").read_bytes())
    assert related.is_built("bigdl")
    built.write_bytes(b"numpy==1.0\n")
    assert not related.is_built("bigdl")


def test_a_failed_build_leaves_nothing(related, monkeypatch, tmp_path):
    monkeypatch.setattr(related, "ROOT", tmp_path)
    monkeypatch.setattr(related, "BUILD", tmp_path / "build")
    monkeypatch.setattr(related, "RUNNERS", tmp_path)
    monkeypatch.setattr(related, "find_python", lambda name: Path(sys.executable))
    (tmp_path / "bigdl.lock").write_text("nothing-of-this-name==1 --hash=sha256:00\n", encoding="ascii")
    with pytest.raises(related.NotBuilt, match="could not be built"):
        related.build("bigdl")
    assert not (tmp_path / "build" / "bigdl").exists()


def test_a_runner_that_fails_says_where_its_output_is(related, monkeypatch, tmp_path):
    monkeypatch.setattr(related, "ROOT", tmp_path)
    monkeypatch.setattr(related, "BUILD", tmp_path)
    monkeypatch.setattr(related, "RUNNERS", tmp_path)
    (tmp_path / "ours_digits.py").write_text("raise SystemExit('no such digit')\n", encoding="ascii")
    with pytest.raises(RuntimeError, match=r"ours, head: exit status 1; the end of ours-head\.log:\nno such digit"):
        related.run("ours", "head")


@pytest.mark.parametrize("name", NAMES)
def test_every_runner_has_the_tasks(related, name):
    """Looked at as text: three of them import what is not installed here."""
    source = (FOLDER / f"{name}_digits.py").read_text(encoding="utf8")
    given = re.search(r"main\(\{(.+)\}\)", source)
    assert [task.strip().split(":")[0].strip('"') for task in given[1].split(",")] == list(
        related.TECHNOLOGIES[name].tasks
    )
