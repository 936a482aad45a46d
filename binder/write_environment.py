"""Write environment.yml: every package pyproject.toml asks for to run the course, at the version requirements.lock has.

Binder and conda users install from it. The development tools stay out, but for the build back end, which installs the
project itself. Run by `make lock`; needs the packages of the `dev` extra.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.11"
HEAD = f"""\
# The course's environment for conda and Binder. Written by `make lock` from pyproject.toml and requirements.lock.
name: numtadb-transfer
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python={PYTHON}
  - pip
  - pip:
"""


def locked_versions(lock: str) -> dict[str, str]:
    """Version of each package in a requirements file, as Python 3.11 installs it on Linux.

    Where the lock holds several versions of a package for different Pythons, the one whose marker fits is taken; a
    package that Linux does not install at all (tensorflow, for macOS) keeps the only version it has.
    """
    linux = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.9", "sys_platform": "linux"}
    versions: dict[str, str] = {}
    for line in lock.splitlines():
        if line.startswith((" ", "#")) or not line.strip():
            continue
        pin = Requirement(line.removesuffix("\\"))
        name = canonicalize_name(pin.name)
        if name not in versions or pin.marker is None or pin.marker.evaluate(linux):
            (specifier,) = pin.specifier
            versions[name] = specifier.version
    return versions


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    asked = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["course"],
        *project["build-system"]["requires"],
    ]
    versions = locked_versions((ROOT / "requirements.lock").read_text("utf-8"))
    lines = []
    for requirement in map(Requirement, asked):
        pin = f"{requirement.name}=={versions[canonicalize_name(requirement.name)]}"
        lines.append(f"      - '{pin}; {requirement.marker}'" if requirement.marker else f"      - {pin}")
    (ROOT / "environment.yml").write_text(HEAD + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
