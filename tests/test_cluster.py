"""A real cluster of two executors, each with a JVM and Python workers of its own."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyspark
from conftest import FAST, HASTY_JAVA, image_frame, picture

from helpers.featurizer import DeepImageFeaturizer

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
