"""The store of features: nothing is computed twice, and nothing that is lost or broken stays in the way."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import FAST, HASTY_JAVA, image_frame, picture, struct
from pyspark.sql import functions as F

from helpers import featurizer, store
from helpers.featurizer import DeepImageFeaturizer
from helpers.numtadb import IMAGE_TYPE
from helpers.store import featurize, folder_of, timing

SCHEMA = f"path string, label int, error string, image {IMAGE_TYPE.simpleString()}"


@pytest.fixture
def stage() -> DeepImageFeaturizer:
    return DeepImageFeaturizer(**FAST)


def digits(spark, numbers, label=lambda number: number % 3, image=lambda number: struct(picture(number))):
    rows = [(f"{number:03d}.png", label(number), None, image(number)) for number in numbers]
    return spark.createDataFrame(rows, SCHEMA).coalesce(1)


def computed(network_runs) -> int:
    return sum(images for _, images, _ in network_runs())


def test_what_is_there_is_not_computed_again(spark, stage, tmp_path, network_runs):
    first = featurize(digits(spark, range(5)), stage, tmp_path)
    assert computed(network_runs) == 5
    assert first.columns == ["path", "label", "error", "features"]
    rows = first.collect()
    assert [row.path for row in rows] == [f"{number:03d}.png" for number in range(5)]
    assert [row.label for row in rows] == [0, 1, 2, 0, 1]
    direct = stage.transform(image_frame(spark, [picture(number) for number in range(5)])).orderBy("number")
    assert [row.features for row in rows] == [row.features for row in direct.collect()]
    network_runs()

    assert featurize(digits(spark, range(5)), stage, tmp_path).collect() == rows
    assert computed(network_runs) == 0, "no action on stored features runs the network, neither making nor reading"
    more = featurize(digits(spark, [6, 3, 0, 5]), stage, tmp_path).collect()
    assert computed(network_runs) == 2, "5 and 6 are new"
    assert [row.path for row in more] == ["000.png", "003.png", "005.png", "006.png"]
    assert more[1] == rows[3]
    assert first.collect() == rows

    other = digits(spark, range(7), label=lambda number: 9).withColumn("writer", F.lit("w")).drop("path")
    again = featurize(other, stage, tmp_path).collect()
    assert computed(network_runs) == 0, "labels and paths are no part of an image"
    assert {(row.label, row.writer) for row in again} == {(9, "w")} and len(again) == 7
    assert featurize(other, stage.copy({stage.batchSize: 2, stage.errorCol: "error"}), tmp_path).count() == 7
    renamed = featurize(digits(spark, [4]), stage.copy({stage.outputCol: "x"}), tmp_path)
    assert renamed.columns == ["path", "label", "error", "x"] and renamed.first().x == rows[4].features
    assert computed(network_runs) == 0, "nor are the batch and the names of columns"

    done = timing(tmp_path, stage)
    assert done["images"] == 7 and done["seconds"] > 0
    assert done["images_per_second"] == pytest.approx(7 / done["seconds"])


def test_other_settings_go_to_other_folders(stage, tmp_path):
    changes = [
        {"pooling": "max"},
        {"imageSize": 48},
        {"layer": "block2_pool"},
        {"layer": ["block3_pool", "block2_pool"]},
    ]
    changes += [{"modelName": "VGG19"}]
    stages = [stage, *(DeepImageFeaturizer(**FAST | change) for change in changes)]
    folders = {folder_of(tmp_path, each) for each in stages}
    assert len(folders) == len(stages)
    assert folder_of(tmp_path, DeepImageFeaturizer(outputCol="x", errorCol="e", **FAST)) in folders
    size = DeepImageFeaturizer(modelName="VGG16", weights="random", imageSize=224)
    assert folder_of(tmp_path, size) == folder_of(tmp_path, DeepImageFeaturizer(modelName="VGG16", weights="random"))
    assert np.isnan(timing(tmp_path, stage)["images_per_second"])


def test_images_that_are_none(spark, stage, tmp_path, network_runs):
    bad = {1: None, 2: ("x", -1, -1, -1, -1, b""), 3: ("x", 2, 2, 3, 16, b"123")}
    frame = digits(
        spark, range(5), lambda number: number or None, lambda number: bad.get(number, struct(picture(number)))
    )
    for runs in (4, 2):  # null is not even tried, what cannot be used every time
        rows = featurize(frame, stage, tmp_path).collect()
        assert computed(network_runs) == runs
        assert [row.label for row in rows] == [None, 1, 2, 3, 4]
        assert [row.features is None for row in rows] == [False, True, True, True, False]
    with pytest.raises(ValueError, match="no image in this frame that could be featurized"):
        featurize(digits(spark, [1], image=bad.get), stage, tmp_path / "other")


def test_the_same_image_twice(spark, stage, tmp_path):
    frame = digits(spark, range(4), image=lambda number: struct(picture(number % 2)))
    rows = featurize(frame, stage, tmp_path).collect()
    assert len(rows) == 4 and rows[0].features == rows[2].features != rows[1].features
    assert timing(tmp_path, stage)["images"] == 2


def test_an_interrupted_run_does_not_stand_in_the_way(spark, stage, tmp_path):
    folder = folder_of(tmp_path, stage) / "features"
    folder.mkdir(parents=True)
    (folder / ".1.parquet-0.unfinished").write_bytes(b"PAR1")
    assert featurize(digits(spark, range(2)), stage, tmp_path).where("features IS NOT NULL").count() == 2


def test_progress_and_what_is_kept_beside_the_features(spark, stage, tmp_path):
    said = []
    featurize(digits(spark, range(3)), stage, tmp_path, progress=lambda *now: said.append(now))
    assert said[-1] == (3, 3) and said == sorted(said)
    kept = json.loads((folder_of(tmp_path, stage) / "settings.json").read_text())
    assert (kept["network"], kept["layer"], kept["image_size"]) == ("VGG16", ["block3_pool"], 32)
    assert set(kept["versions"]) == {"openvino", "keras", "pillow", "store"}
    assert list((folder_of(tmp_path, stage) / "progress").iterdir()) == []


def test_what_the_store_refuses(spark, stage, tmp_path):
    frame = digits(spark, range(2))
    with pytest.raises(ValueError, match="no column 'image'; the columns are path, label, error"):
        featurize(frame.drop("image"), stage, tmp_path)
    with pytest.raises(ValueError, match="column 'path' holds string, not Spark's image struct"):
        featurize(frame, stage.copy({stage.inputCol: "path"}), tmp_path)
    with pytest.raises(ValueError, match="there is a column 'label' already"):
        featurize(frame, stage.copy({stage.outputCol: "label"}), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_batches(spark):
    """Two images an Arrow batch, so that a task has several."""
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    usual = spark.conf.get(name)
    spark.conf.set(name, "2")
    yield
    spark.conf.set(name, usual)


def undisturbed(spark, stage, tmp_path, numbers) -> list:
    return [row.features for row in featurize(digits(spark, numbers), stage, tmp_path / "undisturbed").collect()]


@pytest.mark.filterwarnings("ignore:toPandas attempted")
def test_a_killed_worker_loses_its_batch_and_no_more(spark, stage, tmp_path, small_batches, network_runs, monkeypatch):
    expected = undisturbed(spark, stage, tmp_path, range(9))
    once, counted = tmp_path / "once", featurizer.run_network
    once.touch()
    log = network_runs.log

    def killed(network, images, size, batch_size):
        if once.exists() and len(log.read_text().splitlines()) >= 6:  # a line for the network, one for its batch
            once.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return counted(network, images, size, batch_size)

    network_runs()
    monkeypatch.setattr(featurizer, "run_network", killed)
    with pytest.raises(Exception, match="Python worker exited unexpectedly"):
        featurize(digits(spark, range(9)), stage, tmp_path)
    done = computed(network_runs)
    assert not once.exists() and 0 < done < 9
    rows = featurize(digits(spark, range(9)), stage, tmp_path).collect()
    assert computed(network_runs) == 9 - done
    assert [row.features for row in rows] == expected


KILLED_DRIVER = """
import os, pickle, signal, sys
from pathlib import Path
from helpers import featurizer
from helpers.numtadb import IMAGE_TYPE
from helpers.spark import start_spark
from helpers.store import featurize

frame, store, log, java = sys.argv[1:5]
spark = start_spark(spark_driver_extraJavaOptions=java, spark_sql_execution_arrow_maxRecordsPerBatch=2)
driver, run = os.getpid(), featurizer.run_network

def killing(network, images, size, batch_size):
    with open(log, "a") as out:
        out.write(f"{len(images)}\\n")
    if len(Path(log).read_text().splitlines()) == 3:
        os.kill(driver, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return run(network, images, size, batch_size)

featurizer.run_network = killing
stage = featurizer.DeepImageFeaturizer.load(sys.argv[5])
featurize(spark.read.parquet(frame).coalesce(1), stage, store)
"""


def test_a_killed_driver_loses_the_batch_in_hand_and_no_more(spark, stage, tmp_path, network_runs):
    expected = undisturbed(spark, stage, tmp_path, range(9))
    frame, saved, log = (str(tmp_path / name) for name in ("frame", "stage", "log"))
    digits(spark, range(9)).write.parquet(frame)
    stage.save(saved)
    arguments = [frame, str(tmp_path), log, HASTY_JAVA, saved]
    done = subprocess.run([sys.executable, "-c", KILLED_DRIVER, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    network_runs()
    rows = featurize(digits(spark, range(9)), stage, tmp_path).collect()
    assert computed(network_runs) == 9 - 4, "two batches of two were finished"
    assert [row.features for row in rows] == expected


def test_torn_and_foreign_files_are_set_aside(spark, stage, tmp_path, network_runs, small_batches, monkeypatch):
    expected = undisturbed(spark, stage, tmp_path, range(8))
    monkeypatch.setattr(store, "_put_together", lambda *of: None)
    featurize(digits(spark, range(8)), stage, tmp_path)
    network_runs()
    torn, flipped, foreign, _ = sorted((folder_of(tmp_path, stage) / "features").iterdir())
    torn.write_bytes(torn.read_bytes()[:-100])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    other = pq.read_table(foreign).replace_schema_metadata({b"numtadb.settings": b"{}"})
    pq.write_table(other, foreign)
    with pytest.warns(UserWarning, match="cannot be used .*; it was moved to .*damaged") as told:
        rows = featurize(digits(spark, range(8)), stage, tmp_path).collect()
    assert len(told) == 3 and "it was made with other settings" in str(told[2].message)
    assert computed(network_runs) == 6
    assert [row.features for row in rows] == expected
    kept = {file.name for file in (folder_of(tmp_path, stage) / "damaged").iterdir()}
    assert kept == {torn.name, flipped.name, foreign.name}


def test_small_files_are_put_together(spark, stage, tmp_path, small_batches, network_runs, monkeypatch):
    folder = folder_of(tmp_path, stage) / "features"
    monkeypatch.setattr(store, "GROUP", 3)
    first = featurize(digits(spark, range(5)), stage, tmp_path)
    assert len(list(folder.iterdir())) == 4, "three small ones, kept for who reads them, and one of all"
    (one,) = store._files(folder.parent)
    groups = pq.ParquetFile(one).metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] in ([4, 1], [3, 2])
    rows = first.collect()
    monkeypatch.setattr(store, "SUPERSEDED_AFTER", -1)
    more = featurize(digits(spark, range(7)), stage, tmp_path)
    assert len(list(folder.iterdir())) == 2 == len(store._files(folder.parent))
    assert more.collect()[:5] == rows == first.collect()
    assert computed(network_runs) == 7


def test_a_store_that_executors_do_not_share(spark, stage, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_keys", lambda folder, settings: set())  # what this machine sees
    with pytest.raises(RuntimeError, match=r"2 images' features are not in .*: give a folder that all executors share"):
        featurize(digits(spark, range(2)), stage, tmp_path)


def test_several_layers_in_one_pass(spark, tmp_path, network_runs):
    stage = DeepImageFeaturizer(**FAST | {"layer": ["block2_pool", "block3_pool"]})
    rows = featurize(digits(spark, range(3)), stage, tmp_path).collect()
    assert {len(row.features) for row in rows} == {128 + 256} and computed(network_runs) == 3


def test_a_bar_where_someone_looks_and_nothing_where_not(spark, stage, tmp_path, monkeypatch, capsys, small_batches):
    featurize(digits(spark, range(4)), stage, tmp_path / "unseen")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(store, "on_screen", lambda: True)
    featurize(digits(spark, range(6)), stage, tmp_path / "seen")
    shown = capsys.readouterr().err
    assert "0/6" in shown and "6/6" in shown and "images/s" in shown


@pytest.mark.parametrize("asks", [True, False])
def test_a_kernel_knows_whether_someone_is_there(monkeypatch, asks):
    import IPython

    class Kernel:
        _allow_stdin = asks

    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": Kernel})())
    assert store.on_screen() is asks


def test_progress_counts_a_task_that_is_tried_again_once(tmp_path):
    said, folder = [], tmp_path / "progress"
    with store._watched(folder, said.append):
        for partition, attempt, images in [(0, 1, 2), (1, 2, 2), (1, 3, 2), (1, 3, 1), (0, 1, 2)]:
            store._tell(folder, partition, attempt, images)
        deadline = time.monotonic() + 30
        while (not said or said[-1] < 7) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert said[-1] == 4 + 3 and said == sorted(said) and not folder.exists()
    store._tell(folder, 0, 1, 2)
    assert not folder.exists(), "no driver is listening any more"
