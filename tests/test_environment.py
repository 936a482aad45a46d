"""pyproject.toml, requirements.lock and environment.yml say the same, and nothing of one machine is written in them."""

import ast
import os
import re
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))

CORE = [Requirement(r) for r in PROJECT["project"]["dependencies"]]
EXTRAS = {name: [Requirement(r) for r in rs] for name, rs in PROJECT["project"]["optional-dependencies"].items()}
GROUPS = {name: [Requirement(r) for r in rs] for name, rs in PROJECT["dependency-groups"].items()}
BUILD = [Requirement(r) for r in PROJECT["build-system"]["requires"]]

MACHINES = {
    "Linux x86_64": {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"},
    "Linux aarch64": {"sys_platform": "linux", "platform_machine": "aarch64", "os_name": "posix"},
    "macOS arm64": {"sys_platform": "darwin", "platform_machine": "arm64", "os_name": "posix"},
    "Windows AMD64": {"sys_platform": "win32", "platform_machine": "AMD64", "os_name": "nt"},
}
PYTHONS = ["3.11", "3.12", "3.13"]


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Each pin of a lock with its hashes."""
    found: list[tuple[Requirement, list[str]]] = []
    for line in lock.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            pin, *hashes = re.split(r"\s+--hash=", line.strip())
            found.append((Requirement(pin), hashes))
    return found


PINS = entries(LOCK)
# Environments of their own for tools, made from the dependency groups.
TOOLS = {
    "site": "notebooks/site/requirements.lock",
    "browser": "tests/browser/requirements.lock",
    "runtimes": "tests/benchmarks/runtimes/requirements.lock",
}


def environment_of(machine: str, python: str) -> dict[str, str]:
    return default_environment() | MACHINES[machine] | {"python_version": python, "python_full_version": f"{python}.9"}


def installed(environment: dict[str, str], pins: list[tuple[Requirement, list[str]]] = PINS) -> dict[str, str]:
    """Name and version of what the lock installs there."""
    chosen = [pin for pin, _ in pins if pin.marker is None or pin.marker.evaluate(environment)]
    names = [canonicalize_name(pin.name) for pin in chosen]
    assert len(names) == len(set(names)), "the lock asks for two versions of one package on one machine"
    return {name: next(iter(pin.specifier)).version for name, pin in zip(names, chosen, strict=True)}


def test_every_locked_package_has_one_version_and_hashes():
    assert len(PINS) > 100
    tools = [entries((ROOT / file).read_text("utf-8")) for file in TOOLS.values()]
    assert all(tools)
    for pin, hashes in [*PINS, *chain(*tools)]:
        assert [s.operator for s in pin.specifier] == ["=="], pin
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), pin


@pytest.mark.parametrize("file", ["requirements.lock", "environment.yml", *TOOLS.values()])
def test_no_address_index_or_path_of_a_machine(file):
    text = (ROOT / file).read_text("utf-8")
    for pattern in (
        r"://",
        r"^\s*--(?!hash=sha256:)",
        r" @ ",
        r"(?:^|[\s'\"=])/\w",
        str(ROOT),
        os.path.expanduser("~") + "/",
    ):
        assert not re.search(pattern, text, re.MULTILINE), f"{file} holds {pattern}"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_lock_fulfils_the_project_everywhere(machine, python):
    assert python in SpecifierSet(PROJECT["project"]["requires-python"])
    environment = environment_of(machine, python)
    versions = installed(environment)
    for requirement in [*CORE, *EXTRAS["course"], *EXTRAS["dev"], *BUILD]:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            version = versions.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name} is not in the lock for {machine}, Python {python}"
            assert requirement.specifier.contains(version), f"{requirement} against {version}"
    tensorflow = "tensorflow-cpu" if machine in ("Linux x86_64", "Windows AMD64") else "tensorflow"
    assert {name for name in versions if name in ("tensorflow", "tensorflow-cpu")} == {tensorflow}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("group", TOOLS)
def test_a_tools_lock_fulfils_its_group_everywhere(group, machine, python):
    """Each group has its lock, and the course's own lock does not grow by it."""
    assert GROUPS.keys() == TOOLS.keys()
    environment = environment_of(machine, python)
    versions = installed(environment, entries((ROOT / TOOLS[group]).read_text("utf-8")))
    for requirement in GROUPS[group]:
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in {TOOLS[group]} for {machine}, Python {python}: type make lock"
        assert requirement.specifier.contains(version), f"{requirement} against {version}"
    asked = {canonicalize_name(r.name) for r in [*CORE, *EXTRAS["course"], *EXTRAS["dev"]]}
    assert not {canonicalize_name(r.name) for r in GROUPS[group]} - asked & installed(environment).keys()


def test_other_pythons_are_refused():
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [v for v in ("3.10", "3.11", "3.12", "3.13", "3.14") if v in supported] == PYTHONS


def test_environment_yml_pins_what_the_course_asks_for():
    """Core, the course extra and the build back end: no more, no less, at the lock's versions, markers included."""
    conda, pip = ENVIRONMENT["dependencies"][:-1], ENVIRONMENT["dependencies"][-1]["pip"]
    assert ENVIRONMENT["channels"][0] == "conda-forge"
    assert conda == ["python=3.11", "pip"]
    pins = {canonicalize_name(r.name): r for r in map(Requirement, pip)}
    assert len(pins) == len(pip)
    asked = {canonicalize_name(r.name): r for r in [*CORE, *EXTRAS["course"], *BUILD]}
    assert pins.keys() == asked.keys()
    locked = installed(environment_of("Linux x86_64", "3.11"))
    # Linux never installs macOS' tensorflow, so its version is looked up where it is installed.
    locked |= {"tensorflow": installed(environment_of("macOS arm64", "3.11"))["tensorflow"]}
    for name, pin in pins.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and specifier.version == locked[name], pin
        assert asked[name].specifier.contains(specifier.version), pin
        assert str(pin.marker) == str(asked[name].marker), pin


def imported(path: Path) -> set[str]:
    """Top-level names that a module or a notebook imports, wherever in it."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        source = re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)  # IPython's own commands
    else:
        source = path.read_text("utf-8")
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


# The related technologies' runners, each in an environment of its own; the course's is the fourth.
RELATED = [
    Requirement(line.partition("#")[0].strip())
    for file in sorted((ROOT / "notebooks" / "related").glob("*.in"))
    for line in file.read_text("utf-8").splitlines()
    if line.partition("#")[0].strip()
]
# What may be imported where: the core needs no course, the course needs no tests.
LAYERS = {
    "helpers": CORE + EXTRAS["course"],
    "notebooks": CORE + EXTRAS["course"],
    "binder": CORE + EXTRAS["course"] + EXTRAS["dev"],
    "tests": CORE + EXTRAS["course"] + EXTRAS["dev"],
    "data": CORE + EXTRAS["course"] + EXTRAS["pretrain"],
    "notebooks/related": CORE + RELATED,
    "notebooks/site": GROUPS["site"],
    "tests/browser": GROUPS["browser"],
    "tests/benchmarks": CORE + EXTRAS["course"] + EXTRAS["dev"] + GROUPS["runtimes"],
}
# Import names that differ from the distribution's, for what this environment need not have installed.
PROVIDES = {
    "MNN": ["MNN"],
    "ai_edge_litert": ["ai-edge-litert"],
    "bigdl": ["bigdl-dllib-spark3"],
    "cv2": ["opencv-python-headless"],
    "elephas": ["elephas"],
    "latex2mathml": ["latex2mathml"],
    "onnxruntime": ["onnxruntime"],
    "playwright": ["playwright"],
    "skimage": ["scikit-image"],
    "tensorflowonspark": ["tensorflowonspark"],
    "torch": ["torch"],
}


@pytest.mark.parametrize("folder", LAYERS)
def test_whatever_is_imported_is_declared(folder):
    """A package that is there only because another one needs it may be gone with the next lock."""
    provides = metadata.packages_distributions() | PROVIDES
    declared = {canonicalize_name(r.name) for r in LAYERS[folder]}
    below = [ROOT / other for other in LAYERS if other.startswith(folder + "/")]
    files = [
        p
        for p in (ROOT / folder).rglob("*")
        if p.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in p.parts and not set(below) & set(p.parents)
    ]
    assert files
    own = {"helpers", "tests", *(path.stem for path in files)}
    for path in files:
        for name in imported(path) - own - sys.stdlib_module_names:
            from_ = {canonicalize_name(d) for d in provides.get(name, [])}
            assert from_ & declared, f"{path.relative_to(ROOT)} imports {name}, which is not declared"


def test_this_interpreter_runs_the_locked_versions():
    """The tests speak about the locked packages only if these are the ones they run with."""
    versions = installed(default_environment())
    for requirement in [*CORE, *EXTRAS["course"], *EXTRAS["dev"]]:
        if requirement.marker is None or requirement.marker.evaluate():
            name = canonicalize_name(requirement.name)
            assert metadata.version(name) == versions[name], f"{name}: rebuild the environment"
