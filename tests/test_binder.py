"""Binder's image: repo2docker finds the environment, postBuild and start. Nothing is built and no Docker is needed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def dockerfile(repository: Path) -> str:
    """The Dockerfile repo2docker would build for that folder."""
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug"]
    command += ["--user-id", "1000", "--user-name", "jovyan", str(repository)]  # it refuses to act for root
    # An address nobody answers at: a Docker daemon that happens to run here must not matter.
    environment = os.environ | {"DOCKER_HOST": "tcp://127.0.0.1:9"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return "\n".join(line for line in done.stdout.splitlines() if not line.lstrip().startswith("#"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What matters of the repository, with its symlink, in a folder of its own."""
    shutil.copytree(ROOT / "binder", tmp_path / "binder", symlinks=True)
    for name in ("environment.yml", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_dockerfile_has_environment_post_build_and_start(repository):
    text = dockerfile(repository)
    assert re.search(r"env update .*--file \"binder/environment\.yml\"", text)
    assert re.search(r"environment-2epy-2d3-2e11-2dlinux", text), "not built on Python 3.11"
    assert re.search(r"^RUN \./binder/postBuild$", text, re.MULTILINE)
    assert re.search(r"^ENV R2D_ENTRYPOINT=.*/binder/start", text, re.MULTILINE)
    # The packages come before the repository's files, or every commit would install them anew.
    assert text.index("env update") < text.index("COPY --chown=1000:1000 src/ ")


def test_each_part_is_seen_because_its_file_is_there(repository):
    """The assertions above depend on the files: without them repo2docker writes something else."""
    for name, line in (("postBuild", "./binder/postBuild"), ("start", "R2D_ENTRYPOINT")):
        (repository / "binder" / name).unlink()
        assert line not in dockerfile(repository)


def test_the_environment_is_a_symlink_to_the_root():
    link = ROOT / "binder" / "environment.yml"
    assert link.is_symlink() and os.readlink(link) == "../environment.yml"


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_scripts_are_executable_and_bash_accepts_them(name):
    script = ROOT / "binder" / name
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_start_hands_over_to_what_binder_asks_for():
    command = [
        ROOT / "binder" / "start",
        sys.executable,
        "-c",
        "import os, sys; print(os.environ['TF_CPP_MIN_LOG_LEVEL'], sys.argv[1])",
    ]
    done = subprocess.run([*map(str, command), "two words"], capture_output=True, text=True, check=True)
    assert done.stdout == "3 two words\n"


def test_post_build_installs_the_course_and_nothing_else():
    commands = [
        line for line in (ROOT / "binder" / "postBuild").read_text("utf-8").splitlines() if "pip install" in line
    ]
    assert len(commands) == 1 and {"--no-deps", "--no-build-isolation"} <= set(commands[0].split())
