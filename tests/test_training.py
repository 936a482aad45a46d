"""Training on arrays: the same every time, fairly compared, and on what it says it is."""

import os
import signal
import subprocess
import sys
import unicodedata
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pytest
from conftest import image_frame, picture
from pyspark.ml.functions import array_to_vector
from pyspark.sql import functions as F

from helpers import networks, training
from helpers.featurizer import KerasImageTransformer
from helpers.numtadb import train_test_split

ONE_SENTENCE = r"^[^\n]+$"


def blobs(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 16, 16, 1) of a bright square on the left or on the right, with noise, and which."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 0.3, (n, 16, 16, 1)).astype(np.float32)
    y = np.arange(n) % 2
    for image, label in zip(x, y, strict=True):
        if label:
            image[4:12, 4:12] += 0.6
        else:
            image[7:9, 2:14] += 0.6
    return x, y


@pytest.fixture(scope="module")
def digits(spark):
    frame = image_frame(spark, [picture(i, 20 + i, 30, (1, 3, 4)[i % 3]) for i in range(12)] + [None])
    return frame.withColumn("label", (F.col("number") % 2).cast("int")).withColumn(
        "path", F.concat(F.lit("z"), (100 - F.col("number")).cast("string"))
    )


# -- arrays from Spark -----------------------------------------------------------------------------------------------


def test_the_arrays_are_what_the_stage_gives_a_model(spark, digits):
    import keras

    as_it_is = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    stage = KerasImageTransformer(model=as_it_is, preprocess="unit")
    rows = stage.transform(digits.where("image IS NOT NULL")).orderBy("path").collect()
    x, y, paths = training.grey_arrays(digits, 8)
    assert x.shape == (12, 8, 8, 1) and x.dtype == np.float32
    assert paths == [row.path for row in rows] and y.tolist() == [row.label for row in rows]
    assert np.allclose(x.reshape(12, -1), [row.predicted.toArray() for row in rows], atol=1e-6)


def test_features_come_in_the_order_of_paths(digits):
    features = digits.withColumn("features", array_to_vector(F.array(F.col("number").cast("double"))))
    assert training.feature_arrays(features, ["z95", "z100", "z91"]).tolist() == [[5.0], [0.0], [9.0]]


def test_the_splits_are_the_courses_own(digits):
    _, _, paths = training.grey_arrays(digits, 8)
    known = digits.where("image IS NOT NULL")
    for seed, (learn, ask) in zip((3, 4), training.split_rows(digits, paths, (3, 4), 0.5), strict=True):
        assert sorted([*learn, *ask]) == list(range(12)) and len(ask) == 6
        expected = {row.path for row in train_test_split(known, 0.5, seed)[1].collect()}
        assert {paths[row] for row in ask} == expected


# -- training --------------------------------------------------------------------------------------------------------

TRAINED = """
import os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))
import hashlib
import numpy as np
from helpers import training
training.steady(1)
rng = np.random.default_rng(0)
x, y = rng.random((40, 16, 16, 1), dtype=np.float32), np.arange(40) % 3
model = training.small_cnn(3, 16, 8)
losses = training.train(model, x, y, 12, 3e-3, shift=2)
print(hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest(), losses[-1])
"""


def script(text: str, *arguments: str) -> str:
    """What a program prints; its last line on stderr where it fails."""
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", text, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def test_the_same_weights_to_the_last_bit_on_any_number_of_cores():
    one, several = script(TRAINED, "1"), script(TRAINED, "16")
    assert len(one.split()) == 2 and one == several


def test_a_cnn_is_the_same_on_a_processor_of_another_kind(monkeypatch):
    x, y = blobs(6)
    weights, losses = training.apart(training.trained_cnn, x, y)
    assert {array.dtype for array in weights} == {np.dtype("float32")} and len(losses) == 150
    # what an old processor has; in single precision this alone gives another network
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    again, _ = training.apart(training.trained_cnn, x, y)
    assert all(np.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(weights, again, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each call imports TensorFlow anew")
def test_copies_of_one_process_give_what_fresh_ones_give(monkeypatch):
    monkeypatch.setattr(training, "_ready", None)
    x, y = blobs(6)
    weights, losses = training.apart(training.trained_cnn, x, y)
    first = training.apart(os.getpid)
    training.stay_ready()
    try:
        again, same = training.apart(training.trained_cnn, x, y)
        assert same == losses and all(np.array_equal(a, b) for a, b in zip(weights, again, strict=True))
        parents = {training.apart(os.getppid) for _ in range(2)}
        assert len(parents) == 1 and parents.isdisjoint({os.getpid(), first}), "copies of one process"
        assert training.apart(os.getpid) != training.apart(os.getpid)
        with pytest.raises(ZeroDivisionError):
            training.apart(divmod, 1, 0)
        os.kill(parents.pop(), signal.SIGINT)  # a notebook interrupted while nothing is trained
        with pytest.raises(KeyboardInterrupt):
            training.apart(signal.raise_signal, signal.SIGINT)  # and while something is
        assert training.apart(divmod, 7, 2) == (3, 1)
        with pytest.raises(BrokenProcessPool):
            training.apart(os._exit, 9)
        assert training._ready is None and training.apart(divmod, 7, 2) == (3, 1)
    finally:
        if training._ready is not None:
            training._ready.shutdown()


def test_steady_comes_first():
    late = "import tensorflow as tf\ntf.ones(3) + 1\nfrom helpers.training import steady\nsteady()"
    assert (
        script(late) == "RuntimeError: TensorFlow runs on several threads already; call steady() before anything else"
    )
    other = "import os\nos.environ['KERAS_BACKEND'] = 'openvino'\nfrom helpers.training import steady\nsteady()"
    assert "Keras runs on openvino; set KERAS_BACKEND=tensorflow before importing it" in script(other)


def test_training_learns_and_starts_over_from_the_weights_it_finds():
    import keras

    keras.utils.set_random_seed(1)
    x, y = blobs()
    model = training.small_cnn(2, 16, 8)
    start = model.get_weights()
    losses = training.train(model, x, y, 60, 3e-3, shift=1)
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert training.accuracy(model, *blobs(60, seed=1)) > 0.9
    model.set_weights(start)
    assert np.allclose(training.train(model, x, y, 60, 3e-3, shift=1)[:5], losses[:5], rtol=1e-3), "no moments are left"
    model.set_weights(start)
    assert not np.allclose(training.train(model, x, y, 60, 3e-3, shift=1, seed=2)[:5], losses[:5], rtol=1e-3)


def test_every_image_comes_once_before_any_comes_again():
    x = np.arange(10, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 1), np.float32)
    batches = training._batches(x, np.arange(10), 5, 1, 0)
    for _ in range(3):
        seen = [next(batches) for _ in range(2)]
        assert sorted(np.concatenate([labels for _, labels in seen])) == list(range(10))
        assert all((images == labels[:, None, None, None]).all() for images, labels in seen), "constant images stay"


def test_a_shift_moves_images_and_repeats_their_border():
    x = np.zeros((1, 5, 5, 1), np.float32)
    x[0, 2, 2] = 1
    x[0, :, 0] = 0.5
    batches = training._batches(x, np.array([0]), 1, 1, 0)
    places = set()
    for _ in range(60):
        image = next(batches)[0][0, :, :, 0]
        ((row, column),) = np.argwhere(image == 1)
        places.add((int(row), int(column)))
        assert (image[:, 0] == 0.5).all() or column == 1
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}


def test_a_fresh_head_on_a_trained_body(monkeypatch):
    x, y = blobs(4)
    body = training.small_cnn(7, 16).get_weights()
    began = []
    monkeypatch.setattr(training, "train", lambda model, *_, **__: began.append(model.get_weights()) or [])
    given, _ = training.trained_cnn(x, y, 0, body)
    assert given[-1].shape == (2,) and len(began) == 1
    for weights, start, old in zip(given[:-2], began[0][:-2], body[:-2], strict=True):
        assert np.array_equal(weights, old) and np.array_equal(start, old)
    training.trained_cnn(x, y, 1)
    assert not np.array_equal(began[1][0], body[0]), "without a start everything is fresh"


def test_a_table_is_the_same_whoever_trains_beside_whom(monkeypatch):
    """Images of nothing: what is right by chance depends on every weight."""
    rng = np.random.default_rng(0)
    x, y = rng.random((200, 16, 16, 1), dtype=np.float32), rng.integers(0, 5, 200)
    splits = {n: [(np.arange(k, k + n), np.arange(100, 200)) for k in (0, 20)] for n in (20, 40)}
    monkeypatch.setattr(training, "available_cores", lambda: 2)
    monkeypatch.setattr(training, "available_memory", lambda: 24_000)
    table = training.cnn_table(x, y, splits)
    assert list(table) == [20, 40] and len({score for scores in table.values() for score in scores}) > 1
    again = {n: [training._score_cnn(x, y, *split, k, None) for k, split in enumerate(splits[n])] for n in (40, 20)}
    assert again == table


def test_light_on_dark_is_dark_on_light():
    x, _ = blobs(4)
    model = training.small_cnn(3, 16, 8)
    given = training.outputs(model, x)
    assert np.ptp(given, axis=0).max() > 0.05, "images differ"
    assert np.allclose(training.outputs(model, 1 - x), given, atol=1e-5)
    # fainter ink: all but Keras' epsilon beside its variance
    assert np.allclose(training.outputs(model, 0.2 + 0.5 * (1 - x)), given, atol=0.01)


def test_the_probe_is_sparks_logistic_regression(spark):
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = rng.normal(size=(90, 6)) * [1, 10, 0.1, 1, 1, 1] + labels[:, None] * [1, 0, 0.1, 0, 0, 1]
    settings = networks.recipe("glyphs")
    kernel, bias = training.linear_probe(features, labels, np.arange(60), settings)
    rows = [(float(label), row.tolist()) for label, row in zip(labels[:60], features[:60], strict=True)]
    frame = spark.createDataFrame(rows, "label double, row array<double>")
    model = settings.classifier(tol=1e-10).fit(frame.withColumn("features", array_to_vector("row")))
    ours, theirs = features @ kernel + bias, features @ model.coefficientMatrix.toArray().T + model.interceptVector
    centred = [scores - scores.mean(axis=1, keepdims=True) for scores in (ours, theirs)]
    # Spark divides by the sample's deviation (n - 1), scikit-learn by the population's (n)
    assert np.abs(centred[0] - centred[1]).max() < 0.02 * np.abs(centred[1]).max()
    shares = training.probe_table(features, labels, {60: [(np.arange(60), np.arange(60, 90))]}, settings)
    assert shares == {60: [(ours[60:].argmax(axis=1) == labels[60:]).mean()]}


# -- glyphs ----------------------------------------------------------------------------------------------------------


def test_glyphs_of_many_scripts_and_none_of_them_bengali():
    classes = training.glyph_classes(12)
    assert len(classes) > 100 and all(classes.values())
    names = [unicodedata.name(character) for character in classes]
    assert not any(word in name for name in names for word in ("BENGALI", "TIRHUTA"))
    for beginning in training.GLYPHS:
        assert 1 <= sum(name.startswith(f"{beginning} ") for name in names) <= 12
    assert {file.parent.name for files in classes.values() for file in files} == {"ttf"}, "matplotlib's own"


def test_drawings_are_repeatable_and_differ():
    classes = dict(list(training.glyph_classes(1).items())[:4])
    images, labels = training.draw_glyphs(classes, 5, 16)
    again, _ = training.draw_glyphs(classes, 5, 16)
    assert images.shape == (20, 16, 16, 1) and images.dtype == np.float32 and np.array_equal(images, again)
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    assert images.min() >= 0 and images.max() <= 1 and (images.std(axis=(1, 2, 3)) > 0.02).all(), "there is ink"
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20
    assert not np.array_equal(images, training.draw_glyphs(classes, 5, 16, seed=1)[0])


# -- the last block --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return networks.build_network("VGG16", "random", image_size=32)


def test_the_block_is_the_end_of_the_network(network):
    import keras

    block = training.last_block(network, "block4_pool")
    x = np.random.default_rng(0).normal(0, 50, (3, 32, 32, 3)).astype(np.float32)
    maps = np.asarray(keras.Model(network.input, network.get_layer("block4_pool").output)(x))
    assert np.allclose(training.outputs(block, maps), np.asarray(network(x)), rtol=1e-4, atol=1e-4)
    block.set_weights([weights * 0 for weights in block.get_weights()])
    assert np.asarray(network(x)).any(), "it is a copy"


def test_blocks_that_cannot_be_cut(network):
    with pytest.raises(ValueError, match="there is no layer 'block4_pol' in vgg16; did you mean block4_pool"):
        training.last_block(network, "block4_pol")
    inception = networks.build_network("InceptionV3", "random", image_size=75)
    with pytest.raises(ValueError, match=ONE_SENTENCE) as told:
        training.last_block(inception, "activation_85")
    assert "cannot be cut behind 'activation_85': there is a way around it" in str(told.value)


def test_tuning_starts_at_the_frozen_model_and_each_split_starts_anew(network):
    settings = replace(
        networks.recipe("glyphs"), model_name="VGG16", weights="random", layer="block4_pool", image_size=32
    )
    rng = np.random.default_rng(0)
    labels = np.arange(42) % 3
    maps = rng.random((42, 2, 2, 512)).astype(np.float32)
    maps += 0.3 * np.eye(3, 512)[labels][:, None, None].astype(np.float32)
    split = (np.arange(20), np.arange(20, 42))
    flat = maps.reshape(42, -1)  # as pooling="flatten" gives it
    untouched = training.block_table(settings, "block4_pool", flat, labels, [split], steps=0)
    pooled = training.outputs(training.last_block(network, "block4_pool"), maps).mean(axis=(1, 2))
    assert untouched["frozen"].tolist() == training.probe_table(pooled, labels, {20: [split]}, settings)[20]
    assert untouched["frozen"].equals(untouched["tuned"])
    both = training.block_table(settings, "block4_pool", flat, labels, [split, split], steps=3, learning_rate=1e-3)
    assert both["frozen"].tolist() == [untouched["frozen"][0]] * 2, "what one split learned is gone"
