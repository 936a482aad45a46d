"""The Makefile, with a stand-in for Python that notes what it is asked: building, failing, interrupting, passing on."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# `-m venv` copies the stand-in into the new environment; `-m pip` does what $PIP says; all calls are noted in $CALLS.
STAND_IN = """#!/bin/sh
printf '%s|' "$@" >> "$CALLS"; echo >> "$CALLS"
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") eval "${PIP:-true}" ;;
  "-c import"*) [ -z "$NO_VENV" ] || case "$2" in *ensurepip*) exit 1 ;; esac ;;
esac
"""


class Copy:
    """The Makefile with what it depends on, in a folder whose name has a space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "my course"
        self.folder.mkdir()
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self.notes = folder / "calls"
        self.notes.touch()
        inherited = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON")}
        self.environment = inherited | {"CALLS": str(self.notes), "HOME": str(folder)}

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        command = ["make", f"PYTHON={self.python}", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def make(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def calls(self) -> list[str]:
        """What Python was asked since the last time, without the probing of candidates and environments."""
        noted = self.notes.read_text().splitlines()
        self.notes.write_text("")
        return [call.rstrip("|") for call in noted if not call.startswith("-c|")]

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


BUILD = [
    "-m|venv|.venv",
    "-m|pip|install|-qq|--require-hashes|--requirement|requirements.lock",
    "-m|pip|install|-qq|--no-deps|--no-build-isolation|--editable|.",
    "-m|helpers.networks",
    "-m|helpers.spark|archive",
]


def test_the_environment_is_built_once_and_again_when_it_no_longer_fits(copy):
    assert copy.make("check")[0] == 0
    assert copy.calls() == [*BUILD, "-m|helpers.check"]
    assert copy.make("check")[0] == 0
    assert copy.calls() == ["-m|helpers.check"]

    (copy.folder / "requirements.lock").touch()  # as git does when it changes branches: nothing new in it
    (copy.folder / "pyproject.toml").touch()
    assert copy.make("check")[0] == 0
    assert copy.calls() == [*BUILD[2:], "-m|helpers.check"]

    lock = copy.folder / "requirements.lock"
    lock.write_text(lock.read_text() + "# changed\n")
    assert copy.make("check")[0] == 0
    assert copy.calls() == [*BUILD, "-m|helpers.check"]

    copy.folder = copy.folder.rename(copy.folder.with_name("elsewhere"))
    assert copy.make("check")[0] == 0
    assert copy.calls() == [*BUILD, "-m|helpers.check"]


def test_a_failed_build_leaves_no_environment(copy):
    code, out = copy.make("check", PIP="exit 1")
    assert code != 0 and "could not be built" in out
    assert not copy.venv.exists()


def test_an_interrupted_build_leaves_no_environment(copy):
    process = copy.start("check", PIP="echo installing; exec sleep 60")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("installing"):
            break
    assert copy.venv.exists()
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does, to make and all it started
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not copy.venv.exists()
    copy.calls()
    assert copy.make("check")[0] == 0
    assert copy.calls() == [*BUILD, "-m|helpers.check"]


def test_a_python_that_will_not_do_is_named_in_one_sentence(copy):
    code, out = copy.make("check", "PYTHON=/nowhere/python")
    assert code != 0
    assert out.splitlines()[0] == "PYTHON=/nowhere/python is no Python 3.11, 3.12 or 3.13 that runs: name another."
    code, out = copy.make("check", NO_VENV="1")
    assert code != 0
    assert out.splitlines()[0].startswith(f"{copy.python} has no venv module: install it")
    assert not copy.venv.exists()


def test_candidates_that_do_not_run_are_passed_over(copy, tmp_path):
    """pyenv puts a python3.11 on PATH that only says it has none."""
    shims, real = tmp_path / "shims", tmp_path / "real"
    for folder in (shims, real):
        folder.mkdir()
    (shims / "python3.11").write_text("#!/bin/sh\necho 'no such version' >&2; exit 127\n")
    (shims / "python3.11").chmod(0o755)
    shutil.copy(copy.python, real / "python3.11")
    code, out = copy.make("check", "PYTHON=", PATH=f"{shims}:{real}:{os.environ['PATH']}")
    assert code == 0 and f"Building .venv with {real}/python3.11" in out


def test_run_passes_on_what_was_given_and_nothing_else(copy):
    assert copy.make("run")[0] == 0
    assert copy.calls()[-1] == "notebooks/run.py"
    given = ["DATA=my digits", "WEIGHTS=a$$b.h5", "NETWORK=VGG16", "LAYER=one,two", "PER_CLASS=5", "IMAGE_SIZE=64"]
    assert copy.make("run", *given)[0] == 0
    assert copy.calls()[-1] == (
        "notebooks/run.py|--data|my digits|--weights|a$b.h5|--network|VGG16|"
        "--layer|one,two|--per-class|5|--image-size|64"
    )


def test_help_lists_the_commands_and_is_the_default(copy):
    code, out = copy.make()
    assert code == 0 and out == copy.make("help")[1]
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert set(listed) >= {"run", "data", "lab", "test", "check", "clean", "lock", "sample", "pretrain"}
    assert copy.calls() == []


def test_clean_keeps_the_environment_and_distclean_does_not(copy):
    assert copy.make("check")[0] == 0
    for name in ("build", "helpers", "tests", "notebooks", "data"):
        (copy.folder / name / "__pycache__").mkdir(parents=True)
    (copy.folder / "notebooks" / ".ipynb_checkpoints").mkdir()
    assert copy.make("clean")[0] == 0
    assert copy.venv.exists() and not (copy.folder / "build").exists()
    assert not list(copy.folder.glob("*/__pycache__")) and not list(copy.folder.glob("notebooks/.*"))
    assert copy.make("distclean")[0] == 0
    assert not copy.venv.exists()


def test_without_a_home_to_write_to_build_takes_its_place(copy):
    for home in ("", "/nowhere"):
        shutil.rmtree(copy.folder / "build", ignore_errors=True)
        assert copy.make("help", HOME=home)[0] == 0
        assert (copy.folder / "build" / "home").is_dir()
