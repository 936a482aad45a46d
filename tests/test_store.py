"""The store of features: nothing is computed twice, and nothing that is lost or broken stays in the way."""

import json

import numpy as np
import pytest
from conftest import FAST, image_frame, picture, struct
from pyspark.sql import functions as F

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
    for runs in (4, 0):  # null is not even tried
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
    (folder_of(tmp_path, stage) / "features" / "_temporary" / "0").mkdir(parents=True)
    assert featurize(digits(spark, range(2)), stage, tmp_path).where("features IS NOT NULL").count() == 2


def test_progress_and_what_is_kept_beside_the_features(spark, stage, tmp_path):
    said = []
    featurize(digits(spark, range(3)), stage, tmp_path, progress=lambda *now: said.append(now))
    assert said[-1] == (3, 3) and said == sorted(said)
    kept = json.loads((folder_of(tmp_path, stage) / "settings.json").read_text())
    assert (kept["network"], kept["layer"], kept["image_size"]) == ("VGG16", ["block3_pool"], 32)
    assert set(kept["versions"]) == {"openvino", "keras", "pillow"}
    assert spark.sparkContext.getLocalProperty("spark.jobGroup.id") is None


def test_what_the_store_refuses(spark, stage, tmp_path):
    frame = digits(spark, range(2))
    with pytest.raises(ValueError, match="no column 'image'; the columns are path, label, error"):
        featurize(frame.drop("image"), stage, tmp_path)
    with pytest.raises(ValueError, match="column 'path' holds string, not Spark's image struct"):
        featurize(frame, stage.copy({stage.inputCol: "path"}), tmp_path)
    with pytest.raises(ValueError, match="there is a column 'label' already"):
        featurize(frame, stage.copy({stage.outputCol: "label"}), tmp_path)
    assert list(tmp_path.iterdir()) == []
