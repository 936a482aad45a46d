"""A wheel of the course, built and installed elsewhere, carries the sample and the embedded weights."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel as `pip install .` would build it, with the back end that is installed here."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel installed into it, far from the repository."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, text=True)
    return target


def shipped(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"helpers"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    modules = {f"helpers/{path.name}" for path in (ROOT / "helpers").glob("*.py")}
    data = {f"helpers/_data/{kind}/{name}" for kind in ("sample", "weights") for name in shipped(ROOT / "data" / kind)}
    assert len(data) > 500
    assert {name for name in names if name.startswith("helpers/")} == modules | data


def test_installed_elsewhere_it_finds_sample_and_weights(site, tmp_path):
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
import helpers
from helpers import check, networks, numtadb
print(json.dumps({
    "package": helpers.__file__,
    "sample": str(numtadb.SAMPLE),
    "images": len(list(numtadb.SAMPLE.rglob("*.png"))),
    "weights": str(networks.glyph_weights()),
    "checks": {c.name: c.ok for c in (check.check_data(), check.check_weights())},
}))
"""
    command = [sys.executable, "-c", code, str(site)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["package"]) == site / "helpers" / "__init__.py"
    assert Path(found["sample"]) == site / "helpers" / "_data" / "sample"
    assert found["images"] == 500
    weights = Path(found["weights"])
    assert weights.parent == site / "helpers" / "_data" / "weights"
    assert weights.read_bytes() == (ROOT / "data" / "weights" / weights.name).read_bytes()
    assert found["checks"] == {"data": True, "weights": True}


def test_its_metadata_are_those_of_the_project(site):
    (metadata,) = site.glob("numtadb_transfer-*.dist-info/METADATA")
    text = metadata.read_text("utf-8")
    assert "\nName: numtadb-transfer\n" in text and "\nLicense-Expression: MIT\n" in text
    assert "\nRequires-Dist: pyspark" in text and "\nProvides-Extra: course\n" in text
