"""Is this machine ready for the course? ``python -m helpers.check`` says so, one line a thing.

    python -m helpers.check --network VGG16 --image-size 448   # and whether its memory holds this choice

``checks()`` gives the same as objects. It starts neither Spark nor a network: versions come from the metadata of the
installed packages, so the whole answer takes about a second.

A notebook that needs more than the course asks ``check_cluster()``, and ``pass_by_the_rest()`` where it has to give up.
``memory_of()`` tells what running processes take.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import shutil
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from helpers import networks, spark

DISTRIBUTION = "numtadb-transfer"
GB = 10**9
MEMORY_NEEDED = 2 * GB  # Binder's limit; the course is sized for it
CLUSTER_MEMORY_NEEDED = 4 * GB  # a master, two workers and their executors beside a notebook
MEMORY_FREE_NEEDED = GB * 3 // 2  # Spark's JVM and two Python workers with InceptionV3 take 1.5 GB together
# The JVM, a notebook's kernel and the workers' daemon, by `python tests/benchmarks/memory_growth.py`
REST_NEEDED = 900 * 2**20
DISK_NEEDED = 2 * GB  # executed notebooks, features, exported networks; NumtaDB itself is another 2 GB
CORES_NEEDED = 2
REINSTALL = "make distclean, then make check"


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what was looked at.
        ok: whether the course runs with it.
        found: what is there.
        fix: the line to type, or the thing to do, where ``ok`` is false; empty otherwise.
    """

    name: str
    ok: bool
    found: str
    fix: str

    def __str__(self) -> str:
        line = f"{self.name:<9} {'OK  ' if self.ok else 'FAIL'}  {self.found}"
        return f"{line}\n{'':<16}{self.fix}" if self.fix else line


def _check(name: str, ok: bool, found: str, fix: str) -> Check:
    return Check(name, ok, found, "" if ok else fix)


def _course() -> metadata.Distribution | None:
    """The installed course; ``None`` where its folder was only put on the path."""
    try:
        return metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def check_python() -> Check:
    """Python's version against the range the course supports."""
    course = _course()
    if course is None:
        return Check("Python", False, f"{DISTRIBUTION} is not installed in {sys.prefix}", REINSTALL)
    here = ".".join(map(str, sys.version_info[:3]))
    wanted = course.metadata["Requires-Python"]
    fix = f"install a Python {wanted} and build the environment with it: make distclean, then make check PYTHON=<path>"
    return _check("Python", SpecifierSet(wanted).contains(here), f"{here}, {sys.executable}", fix)


def check_java() -> Check:
    """A Java that Spark runs on: the machine's own or pip's."""
    try:
        home = spark.find_java()
    except spark.JavaMissing as missing:
        found, _, line = str(missing).partition(" Type: ")
        return Check("Java", False, found, line or "install Java 17 or newer and set JAVA_HOME to its folder")
    return Check("Java", True, f"{spark.java_version(Path(home) / 'bin' / 'java')}, {home}", "")


def container_memory_used(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes the container around this process (cgroup 2) cannot give back; 0 outside of one.

    Files kept in memory only because there is room (``inactive_file``) do not count, as in ``docker stats``.
    """
    try:
        used = int((cgroup / "memory.current").read_text("ascii"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text("ascii").splitlines())
    except FileNotFoundError:
        return 0
    return max(0, used - int(stat["inactive_file"]))


def check_memory() -> Check:
    """Memory of the machine or its container, all of it and what is free, in GB (10⁹ bytes)."""
    total = spark.available_memory() * 2**20
    free = min(psutil.virtual_memory().available, total - container_memory_used())
    found = f"{total / GB:.1f} GB, {free / GB:.1f} GB of it free"
    if total < MEMORY_NEEDED:
        return Check("memory", False, found, "give the machine or container 2 GB (docker run --memory 2g)")
    fix = "shut down other notebooks' kernels (JupyterLab: Kernel > Shut Down All Kernels) or close other programs"
    return _check("memory", free >= MEMORY_FREE_NEEDED, found, fix)


def check_network(name: str = "InceptionV3", image_size: int | None = None) -> Check:
    """Whether the memory of this machine or container holds a network in each of Spark's workers, one a core.

    Args:
        name: one of ``helpers.networks.NETWORKS``.
        image_size: height and width of its images in pixels; the network's own where it is not given.

    Raises:
        ValueError: unknown network, or a size below its minimum.
    """
    size = networks.check_size(name, image_size)
    network, cores = networks.NETWORKS[name], spark.available_cores()
    total = spark.available_memory() * 2**20

    def needed_at(size: int) -> float:
        return REST_NEEDED + cores * network.worker_memory(size) * 2**20

    needed = needed_at(size)
    workers = f"{cores} worker{'s' if cores > 1 else ''}"
    found = f"{name} at {size} px: {needed / GB:.1f} GB with {workers}, {total / GB:.1f} GB there"
    largest = next((px for px in range(size, network.minimum_size - 1, -1) if needed_at(px) <= total), None)
    smaller = f"take images of {largest} px or fewer" if largest else "take a smaller network"
    return _check("network", needed <= total, found, f"{smaller}, or a machine or container with {needed / GB:.1f} GB")


def check_cluster() -> Check:
    """Memory for a cluster of two workers (``helpers.spark.StandaloneCluster``) beside a notebook; not one of
    ``checks()``, as one notebook alone needs it.
    """
    total = spark.available_memory() * 2**20
    needed = f"{CLUSTER_MEMORY_NEEDED // GB} GB"
    fix = f"run it on a machine or in a container with {needed} or more (docker run --memory {needed[0]}g)"
    return _check("cluster", total >= CLUSTER_MEMORY_NEEDED, f"{total / GB:.1f} GB of memory, {needed} needed", fix)


def check_cores() -> Check:
    """Cores this process may use, by its affinity and its container's quota."""
    cores = spark.available_cores()
    fix = "one core works at half the speed; give the machine or container two (docker run --cpus 2)"
    return _check("cores", cores >= CORES_NEEDED, str(cores), fix)


def check_package(name: str, *packages: str) -> Check:
    """Installed version of the first of ``packages`` that this machine should have, against the course's own range."""
    course = _course()
    if course is None:
        return Check(name, False, f"{DISTRIBUTION} is not installed in {sys.prefix}", REINSTALL)
    wanted = [
        requirement
        for requirement in map(Requirement, course.requires or [])
        if requirement.name in packages
        and (requirement.marker is None or requirement.marker.evaluate({"extra": "course"}))
    ]
    if not wanted:
        return Check(name, False, f"{DISTRIBUTION} asks for no {' or '.join(packages)} on this system", REINSTALL)
    package, versions = wanted[0].name, wanted[0].specifier
    fix = f"{sys.executable} -m pip install '{package}{versions}'"
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Check(name, False, f"{package} is not installed", fix)
    return _check(name, versions.contains(version), f"{package} {version}", fix)


def _restore(folder: str) -> str:
    """What brings back a file that ships with the course."""
    if networks.data_folder().name == "_data":  # an installed wheel
        return f"install the wheel of {DISTRIBUTION} again: pip install --force-reinstall --no-deps <its file>"
    return f"git checkout -- data/{folder}"


def check_weights() -> Check:
    """The embedded weights: the file is there and every part of it has the checksum stored beside it (CRC-32)."""
    path = networks.glyph_weights()
    fix = _restore("weights")
    if not path.is_file():
        return Check("weights", False, f"{path} is missing", fix)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        return Check("weights", False, f"{path} is no weights file, or a part of one", fix)
    if damaged:
        return Check("weights", False, f"{path} is damaged at {damaged}", fix)
    return Check("weights", True, f"{path.name}, {path.stat().st_size / 1e6:.1f} MB", "")


def check_data() -> Check:
    """The sample: every image its tables list is there and not empty."""
    from helpers.numtadb import SAMPLE  # here, as it imports Spark, 55 MiB that other checks do not need

    fix = _restore("sample")
    tables = sorted(SAMPLE.glob("training-?.csv"))
    if not tables:
        return Check("data", False, f"no sample at {SAMPLE}", fix)
    listed = 0
    missing: list[Path] = []
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                image = table.with_suffix("") / row["filename"]
                listed += 1
                if not image.is_file() or image.stat().st_size == 0:
                    missing.append(image)
    if missing:
        return Check("data", False, f"{len(missing)} of {listed} sample images are missing, {missing[0]} first", fix)
    return _check("data", listed > 0, f"{listed} sample images", fix)


def check_disk(build: str | Path = "build") -> Check:
    """Room where results go: free bytes of the disk that holds ``build``, which need not exist yet."""
    folder = Path(build).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    fix = f"free {DISK_NEEDED // GB} GB on the disk of {folder} (make clean removes what earlier runs left)"
    return _check("disk", free >= DISK_NEEDED, f"{free / GB:.0f} GB free at {folder}", fix)


def checks(build: str | Path = "build") -> list[Check]:
    """Every check, in the order one would mend things.

    Args:
        build: folder that results will go to; it need not exist yet.
    """
    return [
        check_python(),
        check_java(),
        check_memory(),
        check_cores(),
        check_package("Arrow", "pyarrow"),
        check_package("Spark", "pyspark"),
        check_package("Keras", "keras"),
        check_package("backend", "tensorflow-cpu", "tensorflow"),
        check_package("OpenVINO", "openvino"),
        check_weights(),
        check_data(),
        check_disk(build),
    ]


# -- what a notebook asks besides --------------------------------------------------------------------------------------


def pass_by_the_rest() -> None:
    """From the next cell on, cells of this notebook do nothing until its kernel is restarted.

    Nothing is raised, so Run All, papermill and nbval come to the end of the notebook.
    """
    from IPython import get_ipython

    if (shell := get_ipython()) is not None:
        shell.input_transformers_cleanup.append(lambda lines: [])


MAIN_CLASSES = {
    "org.apache.spark.deploy.master.Master": "master",
    "org.apache.spark.deploy.worker.Worker": "workers",
    "org.apache.spark.executor.CoarseGrainedExecutorBackend": "executors",
}


def pss(pid: int) -> float:
    """Proportional set size of a process in MiB (private pages in full, a page that n processes share as an n-th); 0
    for one that has ended or belongs to somebody else, and where the system is no Linux.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (ProcessLookupError, PermissionError, FileNotFoundError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def kind_of(process: psutil.Process) -> str:
    """What a process is in a Spark program: JVM, the daemon that forks Python workers, a worker, and what drives them;
    of a standalone cluster's JVMs ``"master"``, ``"workers"`` and ``"executors"``.

    Spark's Python side is known by its parents, whatever modules it runs: the daemon is the Python that the JVM
    started, a worker the Python that the daemon did.
    """
    try:
        command, name = process.cmdline(), process.name()
        if name == "java":
            return next((kind for main, kind in MAIN_CLASSES.items() if main in command), "JVM")
        if "python" not in name and not any("python" in Path(word).name for word in command[:1]):
            return "other"
        parent = process.parent()
        if parent is not None and parent.name() == "java":
            # without a daemon (Windows, spark.python.use.daemon=false) the JVM starts workers itself
            return "Python workers" if command[1:3] == ["-m", "pyspark.worker"] else "pyspark daemon"
        above = parent.parent() if parent is not None else None
        if above is not None and above.name() == "java":
            return "Python workers"
    except psutil.NoSuchProcess:
        return "other"
    said = " ".join(command)
    for sign, kind in (
        ("ipykernel", "notebook kernel"),
        ("helpers.networks", "export of the graph"),
        ("jupyter", "jupyter"),
        ("nbconvert", "jupyter"),
        ("papermill", "jupyter"),
    ):
        if sign in said:
            return kind
    return "driver and other Python"


def memory_of(roots: Iterable[psutil.Process]) -> list[tuple[str, float]]:
    """(kind, PSS in MiB) of the processes ``roots`` and all below them."""
    family = []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += [root, *root.children(recursive=True)]
    return [(kind_of(process), size) for process in family if (size := pss(process.pid))]


def main() -> int:
    """Print every check; 0 where all are OK, else 1."""
    parser = argparse.ArgumentParser(description="Is this machine ready for the course?")
    parser.add_argument("--network", metavar="NAME", help=f"also: does its memory hold {', '.join(networks.NETWORKS)}")
    parser.add_argument("--image-size", metavar="PX", type=int, help="height and width the network gets, in pixels")
    options = parser.parse_args()
    done = checks()
    if options.network or options.image_size:
        try:
            done.append(check_network(options.network or "InceptionV3", options.image_size))
        except ValueError as problem:
            parser.error(str(problem))
    for check in done:
        print(check)
    failed = [check.name for check in done if not check.ok]
    print(f"\nTo mend: {', '.join(failed)}." if failed else "\nThis machine is ready.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
