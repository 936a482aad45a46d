"""Real clusters: executors with a JVM and Python workers of their own, and a master with workers on this machine."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import psutil
import pyspark
import pytest
from conftest import FAST, HASTY_JAVA, image_frame, picture

from helpers import spark as spark_module
from helpers.featurizer import DeepImageFeaturizer
from helpers.spark import SECRET, ClusterDied, StandaloneCluster, find_java

# Nothing in the executors' Python knows this package before it is shipped to them.
DRIVER = """
import json, os, sys
from helpers.featurizer import DeepImageFeaturizer
from helpers.spark import start_spark

frame, settings, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
spark = start_spark(
    master="local-cluster[2,1,1024]",
    spark_driver_extraJavaOptions=sys.argv[4],
    spark_executor_extraJavaOptions=sys.argv[4],
    spark_scheduler_minRegisteredResourcesRatio="1.0",
    spark_scheduler_maxRegisteredResourcesWaitingTime="100s",
)
context = spark.sparkContext

def known(_):
    import importlib.util
    return importlib.util.find_spec("helpers") is not None

def with_place(rows):
    for row in rows:
        yield os.path.basename(os.getcwd()), [row.number, row.features and list(row.features), row.why]

before = context.parallelize(range(4), 4).map(known).collect()
stage = DeepImageFeaturizer(errorCol="why", **settings)
featurized = stage.transform(spark.read.parquet(frame).repartition(4))
os.rename(settings["weights"], settings["weights"] + ".away")  # the executors have the graph, and need no weights
rows = featurized.select("number", "features", "why").rdd.mapPartitions(with_place).collect()
os.rename(settings["weights"] + ".away", settings["weights"])
found = {
    "known": before,
    "executors": len(context._jsc.sc().statusTracker().getExecutorInfos()),
    "rows": sorted(row for _, row in rows),
    "places": sorted({place for place, _ in rows}),
}
with open(out, "w") as file:
    json.dump(found, file)
spark.stop()
"""


def spark_home(folder: Path) -> Path:
    """The installed Spark by links: a cluster of this kind writes its work folder into SPARK_HOME."""
    folder.mkdir()
    for entry in Path(pyspark.__file__).parent.iterdir():
        (folder / entry.name).symlink_to(entry)
    return folder


def executors_python(file: Path) -> Path:
    """This Python without the paths that `.pth` files add, so without an editable installation of this package."""
    packages = sysconfig.get_paths()["purelib"]
    file.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{packages}" exec "{sys.executable}" -S "$@"\n')
    file.chmod(0o755)
    return file


def test_two_executors_give_the_bits_of_one_session(spark, weights_file, tmp_path):
    frame = image_frame(spark, [*(picture(number) for number in range(8)), None]).coalesce(1)
    frame.write.parquet(str(tmp_path / "frame"))
    home = spark_home(tmp_path / "spark")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK", "PYSPARK"))}
    environment |= {"SPARK_HOME": str(home), "PYSPARK_PYTHON": str(executors_python(tmp_path / "python"))}
    settings = json.dumps(FAST | {"weights": str(weights_file)})
    command = [
        sys.executable,
        "-c",
        DRIVER,
        str(tmp_path / "frame"),
        settings,
        str(tmp_path / "found.json"),
        HASTY_JAVA,
    ]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())

    local = DeepImageFeaturizer(errorCol="why", **FAST).transform(frame).select("number", "features", "why").collect()
    expected = sorted([row.number, row.features and list(row.features), row.why] for row in local)
    assert expected[8] == [8, None, "there is no image"] and all(features for _, features, _ in expected[:8])
    assert found["rows"] == expected
    assert found["known"] == [False] * 4
    assert found["executors"] == 3, "two and the driver"
    assert found["places"] == ["0", "1"], "both had rows to do"
    (application,) = (home / "work").iterdir()
    for executor in ("0", "1"):
        assert len(list((application / executor).glob("VGG16-*.xml"))) == 1, "the graph came over the network"


# -- a master and workers on this machine ------------------------------------------------------------------------------

# Two jobs. In the first a task kills its executor, and no other process. In the second a task says on which worker it
# runs, and waits for its end.
ON_A_CLUSTER = """
import json, os, sys, threading, time
from pathlib import Path
import psutil, pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import functions as F
from helpers.featurizer import DeepImageFeaturizer
from helpers.numtadb import IMAGE_TYPE
from helpers.spark import StandaloneCluster, start_spark

frame, settings, signal, out = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
cluster = StandaloneCluster(workers=2, cores=1)
spark = start_spark(master=cluster.url, **cluster.settings)

def killer(images: pa.Array) -> pa.Array:
    import psutil
    if TaskContext.get().partitionId() == 2 and not signal.with_suffix(".killed").exists():
        signal.with_suffix(".killed").touch()
        psutil.Process().parent().parent().kill()
    return images

def waiter(images: pa.Array) -> pa.Array:
    if TaskContext.get().partitionId() == 2 and not signal.exists():
        unfinished = signal.with_suffix(".unfinished")
        unfinished.write_text(os.getcwd())
        unfinished.rename(signal)
        time.sleep(60)
    return images

def kill_its_worker():
    while not signal.exists():
        time.sleep(0.02)
    cluster.kill_worker(int(Path(signal.read_text()).relative_to(cluster.folder / "work").parts[0]))

def featurized(description, trouble):
    spark.sparkContext.setJobDescription(description)
    images = spark.read.parquet(frame).repartition(4)
    images = images.withColumn("image", F.arrow_udf(trouble, IMAGE_TYPE)("image"))
    made = DeepImageFeaturizer(errorCol="why", **settings).transform(images).select("number", "features", "why")
    return sorted([row.number, row.features and list(row.features), row.why] for row in made.collect())

found = {"workers": [w["state"] for w in cluster.state()["workers"]], "executor killed": featurized("executor", killer)}
found["alive after an executor's end"] = len(cluster.alive())
ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
ours = [process for process in ours if process.status() != psutil.STATUS_ZOMBIE]  # the launcher's shell
found["commands"] = [" ".join(process.cmdline()) for process in ours]
listening = [c.laddr.ip for p in ours for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
found["listening"] = sorted({address.removeprefix("::ffff:") for address in listening})
thread = threading.Thread(target=kill_its_worker)
thread.start()
found["worker killed"] = featurized("worker", waiter)
thread.join()
found["alive after a worker's end"] = len(cluster.alive())
application = spark.sparkContext.applicationId
spark.stop()
tasks = cluster.tasks(application)
tasks["lost"] = tasks["outcome"] != "Success"
found["lost"] = tasks[tasks["lost"]].groupby("description")["partition"].agg(list).to_dict()
found["secret"] = cluster.settings["spark.authenticate.secret"]
found["log"] = (cluster.folder / "events" / application).read_text()
spark = start_spark(master=cluster.url, **cluster.settings)
found["still works"] = spark.sparkContext.parallelize(range(4), 2).map(lambda number: number * 2).collect()
found["folder"] = str(cluster.folder)
found["processes"] = [process.pid for process in psutil.Process().children(recursive=True)]
unfinished = out.with_suffix(".unfinished")
unfinished.write_text(json.dumps(found))
unfinished.rename(out)
time.sleep(600)  # until it is killed
"""


def running(pids: list[int]) -> list[str]:
    """Names of those processes that run."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.name()} {pid}")
        except psutil.NoSuchProcess:
            continue
    return found


def within(seconds: float, question) -> bool:
    """Whether the answer becomes true in that time."""
    last = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < last:
        time.sleep(0.05)
    return bool(answer)


def test_a_cluster_computes_through_deaths_and_leaves_nothing(spark, weights_file, tmp_path):
    frame = image_frame(spark, [*(picture(number) for number in range(11)), None]).coalesce(1)
    frame.write.parquet(str(tmp_path / "frame"))
    settings, found_file = json.dumps(FAST | {"weights": str(weights_file)}), tmp_path / "found.json"
    arguments = [str(tmp_path / "frame"), settings, str(tmp_path / "signal"), str(found_file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK", "PYSPARK"))}
    with open(tmp_path / "said", "wb") as said:
        driver = subprocess.Popen(
            [sys.executable, "-c", ON_A_CLUSTER, *arguments], env=environment, cwd=tmp_path, stdout=said, stderr=said
        )
        try:
            assert within(120, lambda: found_file.exists() or driver.poll() is not None)
            assert found_file.exists(), (tmp_path / "said").read_text()
        finally:
            driver.kill()
            driver.wait()
    found = json.loads(found_file.read_text())
    assert found["workers"] == ["ALIVE", "ALIVE"]

    local = DeepImageFeaturizer(errorCol="why", **FAST).transform(frame).select("number", "features", "why").collect()
    expected = sorted([row.number, row.features and list(row.features), row.why] for row in local)
    assert len(expected) == 12 and all(features for _, features, _ in expected[:11])
    assert found["executor killed"] == expected
    assert found["worker killed"] == expected
    assert (found["alive after an executor's end"], found["alive after a worker's end"]) == (2, 1)
    assert 2 in found["lost"]["executor"] and 2 in found["lost"]["worker"]
    assert found["still works"] == [0, 2, 4, 6], "another application, on the worker that is left"

    assert sum("CoarseGrainedExecutorBackend" in command for command in found["commands"]) == 2
    assert [command for command in found["commands"] if found["secret"] in command] == []
    assert found["secret"] not in found["log"]
    assert found["listening"] == ["127.0.0.1"]

    assert len(found["processes"]) > 5
    assert within(20, lambda: not running(found["processes"])), running(found["processes"])
    assert within(5, lambda: not Path(found["folder"]).exists())


def test_a_cluster_knows_who_takes_part_and_stops(tmp_path):
    with StandaloneCluster(workers=1, cores=2, memory=600) as cluster:
        (worker,) = cluster.state()["workers"]
        assert (worker["host"], worker["cores"], worker["memory"], worker["state"]) == ("127.0.0.1", 2, 600, "ALIVE")
        assert cluster.properties.stat().st_mode & 0o077 == 0 and cluster.folder.stat().st_mode & 0o077 == 0
        known = cluster.alive()
        settings = cluster.properties.read_text()
        cluster.properties.write_text(settings.replace(cluster.settings[SECRET], "a guess"))
        cluster._start("stranger", "worker.Worker", "--cores", "1", "--memory", "512m", cluster.url)
        cluster._wait("stranger", lambda: cluster._found("stranger", "(Failed to connect to master)"))
        assert cluster.alive() == known
        with pytest.raises(ValueError, match="there is no worker 3 to kill, only worker 0"):
            cluster.kill_worker(3)
        with pytest.raises(FileNotFoundError):
            cluster.tasks("app-unknown")
        pids = [child.pid for process in cluster.processes.values() for child in spark_module._descendants(process.pid)]
        pids += [process.pid for process in cluster.processes.values()]
        assert len(running(pids)) >= 6, "three JVMs, each with its guard"
        cluster.processes["master"].send_signal(signal.SIGKILL)
        cluster.processes["master"].wait()
        with pytest.raises(ClusterDied, match="the master of the cluster does not answer"):
            cluster.state()
    assert running(pids) == [] and not cluster.folder.exists()
    cluster.stop()  # once more does no harm


@pytest.mark.parametrize(("main", "name"), [("master.Master", "master"), ("worker.Worker", "worker 0")])
def test_a_process_that_does_not_come_up_is_told_in_one_sentence(monkeypatch, tmp_path, main, name):
    java = tmp_path / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    refuses = f'case "$*" in *launcher.Main*) ;; *{main}*) echo "Error: no room for a heap"; exit 3 ;; esac'
    java.write_text(f'#!/bin/sh\n{refuses}\nexec "{find_java()}/bin/java" "$@"\n')
    java.chmod(0o755)
    monkeypatch.setattr(spark_module, "find_java", lambda: str(tmp_path / "java"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = psutil.Process().children(recursive=True)
    with pytest.raises(ClusterDied) as told:
        StandaloneCluster(workers=1)
    sentence = f"the {name} of the cluster has ended with status 3; its log says: Error: no room for a heap"
    assert str(told.value) == sentence
    left = set(psutil.Process().children(recursive=True)) - set(before)
    _, alive = psutil.wait_procs(left, timeout=30)  # another Spark's JVM may just have asked a shell for something
    assert alive == [] and list(tmp_path.glob("spark-cluster-*")) == []


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cores": 0}, {"memory": 449}])
def test_a_cluster_of_nothing_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"a cluster cannot have {name}={value}; give"):
        StandaloneCluster(**wrong)
