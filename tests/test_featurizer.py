"""The featurizer against plain Keras on the same pixels, and what Spark does with it."""

import json
import os
import re
import subprocess
import sys
from functools import cache

import numpy as np
import psutil
import pyarrow as pa
import pytest
from conftest import FAST, HASTY_JAVA, image_frame, picture, struct, write_pictures
from PIL import Image
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import DenseVector, Vectors, VectorUDT
from pyspark.sql import functions as F

from helpers import featurizer, networks
from helpers.featurizer import DeepImageFeaturizer

TOLERANCE = 1e-4  # of the largest feature
# network, imageSize, layer, pooling: every network at its own size and at another one
CASES = [
    ("InceptionV3", None, None, "avg"),
    ("InceptionV3", 96, ["mixed2", "mixed10", "conv2d_3"], "max"),
    ("Xception", None, None, "avg"),
    ("Xception", 71, "block13_sepconv2_act", "flatten"),
    ("ResNet50", None, None, "avg"),
    ("ResNet50", 75, ["conv5_block3_out", "conv2_block1_add"], "avg"),
    ("VGG16", None, None, "max"),
    ("VGG16", 32, "block3_pool", "avg"),
    ("VGG19", None, None, "flatten"),
    ("VGG19", 48, ["block2_pool", "block5_conv1"], "flatten"),
]
MODULES = {name: name.lower() for name in networks.NETWORKS} | {"InceptionV3": "inception_v3"}
SHAPES = [(40, 30, 3), (40, 30, 1), (25, 60, 4), (1, 1, 3), (1, 50, 1), (300, 7, 3), (33, 1, 4)]


@cache
def random_weights(name: str) -> list[np.ndarray]:
    return networks.build_network(name, "random").get_weights()


def keras_features(images: list[Image.Image], name: str, size: int, layer=None, pooling: str = "avg") -> np.ndarray:
    """Features from the network as Keras itself builds, feeds and runs it (TensorFlow): (n, features)."""
    import keras

    assert keras.backend.backend() == "tensorflow"
    weights = random_weights(name)
    keras.utils.clear_session()  # layers are numbered from the start again, so the usual names hold
    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(size, size, 3))
    model.set_weights(weights)
    layers = [layer] if isinstance(layer, str) else layer or [model.layers[-1].name]
    model = keras.Model(model.input, [model.get_layer(each).output for each in layers])
    rgb = [image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for image in images]
    x = np.stack([np.asarray(image, np.float32) for image in rgb])
    maps = model(getattr(keras.applications, MODULES[name]).preprocess_input(x), training=False)
    pool = {
        "avg": lambda y: y.mean((1, 2)),
        "max": lambda y: y.max((1, 2)),
        "flatten": lambda y: y.reshape(len(y), -1),
    }[pooling]
    return np.concatenate([pool(np.asarray(y)) for y in (maps if len(layers) > 1 else [maps])], axis=1)


def apart(ours: np.ndarray, reference: np.ndarray) -> float:
    """max |a - b| / max |b|."""
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def features(frame) -> list[np.ndarray | None]:
    """The features of an ``image_frame`` in the order of its pictures."""
    rows = sorted(frame.select("number", "features").collect())
    return [None if row.features is None else row.features.toArray() for row in rows]


# -- what the features are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size", "layer", "pooling"), CASES, ids=lambda value: str(value))
def test_features_are_keras(spark, name, size, layer, pooling):
    """max |a - b| <= 1e-4 max |b|, which flipped channels or swapped pictures miss by a factor of hundreds."""
    pixels = size or networks.NETWORKS[name].image_size
    shapes = SHAPES if size else SHAPES[:1]
    images = [picture(0, pixels, pixels)] + [picture(i, *shape) for i, shape in enumerate(shapes, 1)]
    stage = DeepImageFeaturizer(modelName=name, weights="random", imageSize=size, layer=layer, pooling=pooling)
    ours = np.stack(features(stage.transform(image_frame(spark, images))))

    flipped = [Image.fromarray(np.asarray(image)[:, :, ::-1].copy()) for image in images[:2]]
    reference, flipped = np.split(keras_features(images + flipped, name, pixels, layer, pooling), [len(images)])
    assert apart(ours, reference) <= TOLERANCE
    assert all(apart(a, b) <= TOLERANCE for a, b in zip(ours, reference, strict=True)), "each picture by its own scale"
    assert apart(ours[:2], flipped) > 100 * TOLERANCE
    assert apart(ours[:2], reference[[1, 0]]) > 100 * TOLERANCE


@pytest.mark.parametrize("shape", [(7, 9, 1), (7, 9, 3), (7, 9, 4), (1, 1, 3), (1, 50, 1), (300, 7, 4), (24, 24, 3)])
def test_pixels_are_pillows(shape):
    image = picture(3, *shape)
    _, height, width, channels, _, data = struct(image)
    rgb = image.convert("RGB").resize((24, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(featurizer.pixels(height, width, channels, data, 24), np.asarray(rgb)[:, :, ::-1])


def test_the_same_bits_whatever_batch_and_partitions(spark):
    images = [picture(i, *SHAPES[i % len(SHAPES)]) for i in range(11)]
    settings = dict(zip(("modelName", "imageSize", "layer", "pooling"), CASES[1], strict=True)) | {"weights": "random"}
    runs = [
        features(DeepImageFeaturizer(batchSize=batch, **settings).transform(image_frame(spark, images, partitions)))
        for batch, partitions in ((1, 1), (8, 1), (8, 5), (3, 5))
    ]
    for other in runs[1:]:
        assert np.array_equal(np.stack(runs[0]), np.stack(other))


def test_batches_by_the_size_of_their_images():
    assert [networks.batch_size(size) for size in (32, 96, 150, 151, 224, 299, 300, 448, 2000)] == [
        8, 8, 8, 7, 3, 2, 2, 1, 1,
    ]  # fmt: skip
    stage = DeepImageFeaturizer(imageSize=96)
    assert (stage.getBatchSize(), stage.batch_size()) == (None, 8)
    assert (stage.setBatchSize(3).batch_size(), stage.setBatchSize(None).setImageSize(None).batch_size()) == (3, 2)


def test_the_output_is_a_vector(spark):
    frame = DeepImageFeaturizer(**FAST).transform(image_frame(spark, [picture(0)]))
    assert frame.columns == ["number", "image", "features"]
    assert frame.schema["features"].dataType == VectorUDT()
    vector = frame.first().features
    assert isinstance(vector, DenseVector)
    assert np.array_equal(vector.toArray(), vector.toArray().astype(np.float32)), "doubles that hold float32 values"


def test_the_network_is_loaded_once_a_worker_and_runs_once_a_row(spark, network_runs):
    frame = image_frame(spark, [picture(i) for i in range(12)], partitions=6).cache()
    frame.count()
    out = DeepImageFeaturizer(errorCol="why", **FAST).transform(frame)
    for action in (
        lambda: out.collect(),
        lambda: out.where("why IS NULL").collect(),
        lambda: out.where("features IS NOT NULL AND why IS NULL").select("features").collect(),
        lambda: out.agg(F.count("features"), F.count("why")).collect(),
    ):
        action()
        runs = network_runs()
        assert sum(images for _, images, _ in runs) == 12
        workers = {worker for worker, _, _ in runs}
        assert len(runs) > 2 * len(workers), "several tasks a worker, or this shows nothing"
        for worker in workers:
            assert sum(loads for pid, _, loads in runs if pid == worker) <= 1
    out.select("number").collect()
    assert network_runs() == [], "features that no one asks for are not computed"
    frame.unpersist()


def test_images_go_through_the_network_in_batches():
    seen = []

    def network(inputs):
        seen.append(len(inputs[0]))
        return [inputs[0].reshape(len(inputs[0]), -1)[:, :3].astype(np.float32)]

    structs = [struct(picture(i)) for i in range(7)] + [None]
    names = ["origin", "height", "width", "nChannels", "mode", "data"]
    rows = [None if s is None else dict(zip(names, s, strict=True)) for s in structs]
    outputs, reasons = featurizer.run_network(network, pa.array(rows), 30, 3)
    assert seen == [3, 3, 1]
    assert [output is None for output in outputs] == [False] * 7 + [True]
    assert reasons == [None] * 7 + ["there is no image"]


def test_a_worker_lets_go_of_a_network_when_there_is_nothing_to_do(monkeypatch):
    path = DeepImageFeaturizer(**FAST).graph()
    graph, size = str(path), networks.graph_shape(path)[0]
    pixels = np.asarray(picture(0).convert("RGB").resize((size, size)))[None]
    task = object()
    monkeypatch.setattr(featurizer.TaskContext, "get", lambda: task)
    with featurizer.graph_in_use(graph, 1, 0) as network:
        before = network([pixels])[0]
    featurizer._let_go()
    with featurizer.graph_in_use(graph, 1, 0) as same:
        assert same is network, "as long as a task runs, its images may be slow to come"
        monkeypatch.setattr(featurizer.TaskContext, "get", lambda: None)
        featurizer._let_go()
        assert np.array_equal(network([pixels])[0], before), "a network in use stays whole"
    monkeypatch.setattr(featurizer, "IDLE", 0.0)
    with featurizer.graph_in_use(graph, 1, 1) as another:
        assert another is not network
        assert np.array_equal(another([pixels])[0], before)
    featurizer._idle.join()
    assert not featurizer._loaded


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that is told to forget the file")
def test_the_file_of_weights_does_not_stay_in_memory():
    path = DeepImageFeaturizer(**FAST).graph()
    size = networks.graph_shape(path)[0]
    with featurizer.graph_in_use(str(path), 1, 0) as network:
        network([np.zeros((1, size, size, 3), np.uint8)])
    featurizer._idle.cancel()
    weights = path.with_suffix(".bin")
    held = {part.path: part.rss for part in psutil.Process().memory_maps()}
    assert held[str(weights)] < 0.2 * weights.stat().st_size
    featurizer._let_go()


def test_only_the_image_goes_to_python(spark):
    frame = image_frame(spark, [picture(0)]).withColumn("other", F.lit("x"))
    plan = DeepImageFeaturizer(errorCol="why", **FAST).transform(frame)._jdf.queryExecution().executedPlan().toString()
    assert re.findall(r"(\w*EvalPython) \[(\w+)\(([^)]*)\)", plan.split("Initial Plan")[0]) == [
        ("ArrowEvalPython", "featurize", re.search(r"image#\d+", plan)[0])
    ]


# -- images that are none ----------------------------------------------------------------------------------------------

GOOD = struct(picture(5))
BAD = {
    "null": (None, "there is no image"),
    "as Spark reads a broken file": (("x", -1, -1, -1, -1, b""), "the image is empty"),
    "no bytes": (("x", 4, 4, 3, 16, b""), "the image is empty"),
    "null bytes": (("x", 4, 4, 3, 16, None), "the image is empty"),
    "null size": (("x", None, 4, 3, 16, bytes(48)), "the image is empty"),
    "too few bytes": (("x", 4, 4, 3, 16, bytes(47)), "the image has 47 bytes, not 4 x 4 x 3"),
    "too many bytes": (("x", 4, 4, 3, 16, bytes(49)), "the image has 49 bytes, not 4 x 4 x 3"),
    "two channels": (("x", 4, 4, 2, 8, bytes(32)), "the image has 2 channels, not 1, 3 or 4"),
}


def test_bad_images_get_null_features_and_their_reason(spark):
    images = [GOOD, *(image for image, _ in BAD.values()), GOOD]
    out = DeepImageFeaturizer(errorCol="why", **FAST).transform(image_frame(spark, images, partitions=3)).cache()
    reasons = [row.why for row in sorted(out.select("number", "why").collect())]
    assert reasons == [None, *(reason for _, reason in BAD.values()), None]
    (alone,) = features(DeepImageFeaturizer(**FAST).transform(image_frame(spark, [GOOD])))
    first, *none, last = features(out)
    assert np.array_equal(first, alone) and np.array_equal(last, alone)
    assert none == [None] * len(BAD)
    out.unpersist()


def test_frames_of_sparks_image_source(spark, tmp_path):
    write_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "c.png").write_text("no picture")
    frame = spark.read.format("image").load(str(tmp_path)).withColumn("number", F.col("image.origin"))
    out = DeepImageFeaturizer(errorCol="why", **FAST).transform(frame)
    *found, broken = features(out)
    expected = features(DeepImageFeaturizer(**FAST).transform(image_frame(spark, [picture(0), picture(1)])))
    assert broken is None and np.array_equal(found, expected)
    assert [row.why for row in out.orderBy("number").select("why").collect()] == [None, None, "the image is empty"]


# -- mistakes are told at once, on the driver --------------------------------------------------------------------------

MISTAKES = {
    "no such column": ({"inputCol": "picture"}, "there is no column 'picture'; the columns are number, image"),
    "no images": ({"inputCol": "number"}, "column 'number' holds int, not Spark's image struct"),
    "output there": ({"outputCol": "number"}, "there is a column 'number' already"),
    "output there but for case": ({"outputCol": "Image"}, "there is a column 'Image' already"),
    "errorCol there": ({"errorCol": "image"}, "there is a column 'image' already"),
    "one name for two": ({"errorCol": "features"}, "outputCol and errorCol must differ"),
    "network": ({"modelName": "InceptionV2"}, "there is no network 'InceptionV2'; did you mean InceptionV3"),
    "size": ({"imageSize": 31}, "VGG16 needs images of at least 32 pixels, not imageSize=31"),
    "layer": ({"layer": "block3_poool"}, "there is no layer 'block3_poool' in vgg16; did you mean block3_pool"),
    "pooling": ({"pooling": "mean"}, "there is no pooling 'mean'; did you mean|known: avg, max, flatten"),
    "weights": ({"weights": "nowhere.weights.h5"}, "there is no weights file nowhere.weights.h5"),
    "glyphs": ({"weights": "glyphs"}, "are for InceptionV3; for VGG16 use"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_any_job(spark, mistake):
    settings, message = MISTAKES[mistake]
    frame = image_frame(spark, [picture(0)])
    spark.sparkContext.setJobGroup(mistake, mistake)
    try:
        with pytest.raises((ValueError, networks.WeightsUnavailable), match=message) as told:
            DeepImageFeaturizer(**FAST | settings).transform(frame)
        assert "\n" not in str(told.value)
        assert list(spark.sparkContext.statusTracker().getJobIdsForGroup(mistake)) == []
        frame.count()
        assert list(spark.sparkContext.statusTracker().getJobIdsForGroup(mistake)) != [], (
            "jobs are seen where there are"
        )
    finally:
        for name in ("spark.jobGroup.id", "spark.job.description"):
            spark.sparkContext.setLocalProperty(name, None)


@pytest.mark.parametrize(
    "settings",
    [
        {"imageSize": 0},
        {"batchSize": 0},
        {"imageSize": "big"},
        {"layer": [1]},
        {"layer": 3},
        {"pooling": 1},
        {"handleInvalid": "drop"},
    ],
)
def test_params_of_a_wrong_kind(settings):
    with pytest.raises(TypeError):
        DeepImageFeaturizer(**settings)


# -- a stage of Spark ML -----------------------------------------------------------------------------------------------


def test_sparkdls_call():
    stage = DeepImageFeaturizer(inputCol="image", outputCol="features", modelName="InceptionV3")
    assert (stage.getInputCol(), stage.getOutputCol(), stage.getModelName()) == ("image", "features", "InceptionV3")
    assert (stage.getWeights(), stage.getLayer(), stage.getPooling()) == ("imagenet", None, "avg")
    assert (stage.getImageSize(), stage.getErrorCol(), stage.image_size()) == (None, None, 299)


def test_params_set_copied_and_explained():
    stage = DeepImageFeaturizer(layer="mixed3", imageSize=128)
    assert stage.getLayer() == ["mixed3"]
    other = stage.copy({stage.imageSize: 96, stage.errorCol: "why"})
    assert (other.getImageSize(), other.getErrorCol(), other.getLayer()) == (96, "why", ["mixed3"])
    assert (stage.getImageSize(), stage.getErrorCol()) == (128, None)
    assert other.copy({other.errorCol: None}).getErrorCol() is None
    stage.setLayer(["mixed1", "mixed0"]).setPooling("max").setImageSize(75).setBatchSize(2).setErrorCol("e")
    stage.setInputCol("i").setOutputCol("o").setModelName("Xception").setWeights("random").setHandleInvalid("skip")
    assert {param.name: value for param, value in stage.extractParamMap().items()} == {
        "inputCol": "i",
        "outputCol": "o",
        "modelName": "Xception",
        "weights": "random",
        "layer": ["mixed1", "mixed0"],
        "pooling": "max",
        "imageSize": 75,
        "batchSize": 2,
        "errorCol": "e",
        "handleInvalid": "skip",
    }
    stage.setLayer(None).setImageSize(None).setErrorCol(None)
    assert (stage.getLayer(), stage.image_size(), stage.getErrorCol()) == (None, 299, None)
    assert stage.setParams(pooling="flatten", layer=["mixed5"]).getPooling() == "flatten"
    assert stage.getLayer() == ["mixed5"]
    told = stage.explainParams()
    for param in stage.params:
        assert f"{param.name}: {param.doc}" in told
    with pytest.raises(TypeError):
        DeepImageFeaturizer(model="InceptionV3")


LOAD = """
import json, sys
from helpers.spark import start_spark
spark = start_spark(spark_driver_extraJavaOptions=sys.argv[4])
from pyspark.ml import PipelineModel
model = PipelineModel.load(sys.argv[1])
rows = model.transform(spark.read.parquet(sys.argv[2])).orderBy("number").collect()
json.dump([[list(r.features), list(r.probability), r.prediction] for r in rows], open(sys.argv[3], "w"))
"""


def test_a_pipeline_saved_and_loaded_in_a_new_process(spark, weights_file, tmp_path):
    frame = image_frame(spark, [picture(i) for i in range(8)]).withColumn("label", F.col("number") % 2)
    frame.coalesce(1).write.parquet(str(tmp_path / "digits"))
    digits = spark.read.parquet(str(tmp_path / "digits"))
    stage = DeepImageFeaturizer(**FAST | {"weights": str(weights_file)})
    pipeline = Pipeline(stages=[stage, LogisticRegression(maxIter=2)])
    pipeline.save(str(tmp_path / "pipeline"))
    assert Pipeline.load(str(tmp_path / "pipeline")).getStages()[0].extractParamMap() == stage.extractParamMap()
    model = pipeline.fit(digits)
    model.save(str(tmp_path / "model"))
    (metadata,) = (tmp_path / "model" / "stages").glob("0_DeepImageFeaturizer_*/metadata/part-*")
    saved = json.loads(metadata.read_text(encoding="utf8"))
    assert saved["weightsDigest"] == networks.weights_digest("VGG16", str(weights_file))
    assert saved["weightsDigest"].startswith("sha256:") and saved["paramMap"]["weights"] == str(weights_file)

    command = [sys.executable, "-c", LOAD, *(str(tmp_path / name) for name in ("model", "digits", "predicted.json"))]
    command.append(HASTY_JAVA)
    subprocess.run(command, check=True, cwd=tmp_path)
    rows = model.transform(digits).orderBy("number").collect()
    assert len(rows) == 8
    assert json.loads((tmp_path / "predicted.json").read_text()) == [
        [list(row.features), list(row.probability), row.prediction] for row in rows
    ]


def test_weights_that_are_lost_or_changed(spark, weights_file, tmp_path):
    file = tmp_path / "mine.weights.h5"
    os.link(weights_file, file)
    stage = DeepImageFeaturizer(**FAST | {"weights": str(file)})
    stage.write().overwrite().save(str(tmp_path / "stage"))
    frame = image_frame(spark, [picture(0)])
    digest = networks.weights_digest("VGG16", str(weights_file))

    file.unlink()
    with pytest.warns(UserWarning, match=f"no weights file {file}.*{digest}"):
        lost = DeepImageFeaturizer.load(str(tmp_path / "stage"))
    with pytest.raises(networks.WeightsUnavailable, match=f"no weights file {file}.*{digest}.*setWeights") as told:
        lost.transform(frame)
    assert "\n" not in str(told.value)
    found = features(lost.setWeights(str(weights_file)).transform(frame))
    assert np.array_equal(found, features(DeepImageFeaturizer(**FAST).transform(frame))), (
        "the file holds the random ones"
    )

    file.write_bytes(b"others")
    with pytest.raises(ValueError, match="are not the weights this stage was saved with"):
        DeepImageFeaturizer.load(str(tmp_path / "stage"))
    with pytest.raises(ValueError, match="are not the weights this stage was saved with"):
        lost.setWeights(str(file)).transform(frame)


def test_a_pipeline_model_keeps_other_columns(spark):
    frame = image_frame(spark, [picture(i) for i in range(3)]).withColumn("keep", F.struct(F.lit("a").alias("b")))
    model = Pipeline(stages=[DeepImageFeaturizer(**FAST)]).fit(frame)
    assert isinstance(model, PipelineModel)
    out = model.transform(frame)
    assert out.select(frame.columns).exceptAll(frame).count() == 0
    assert Vectors.norm(out.first().features, 2) > 0
