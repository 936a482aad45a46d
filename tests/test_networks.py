"""Networks, their weights and layers, and the graphs exported from them."""

import json
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import FAST

from helpers import featurizer, networks
from helpers.networks import (
    NETWORKS,
    Recipe,
    WeightsUnavailable,
    article,
    build_network,
    export_graph,
    layer_names,
    recipe,
)

ROOT = Path(__file__).resolve().parents[1]
ONE_LINE = r"^[^\n]+$"


def keras_network(name: str, size: int, **more):
    import keras

    return getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(size, size, 3), **more)


# -- what is known of a network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_said_of_a_network_is_what_keras_has(name):
    import keras

    net = NETWORKS[name]
    assert getattr(keras.applications, name)(weights=None).input_shape == (None, net.image_size, net.image_size, 3)
    smallest = keras_network(name, net.minimum_size)
    assert smallest.layers[-1].name == net.last_layer
    with pytest.raises(ValueError):
        keras_network(name, net.minimum_size - 1)
    module = {"InceptionV3": "inception_v3"}.get(name, name.lower())
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 3, 3, 3)).astype(np.float32)
    expected = getattr(keras.applications, module).preprocess_input(pixels.copy())
    own = {"tf": pixels / 127.5 - 1, "caffe": pixels[..., ::-1] - np.float32(networks.CAFFE_MEAN_BGR)}
    assert np.allclose(own[net.preprocessing], expected, atol=1e-4)


def test_names_and_sizes_that_are_wrong():
    with pytest.raises(ValueError, match="no network 'inceptionv3'; did you mean InceptionV3"):
        networks.network("inceptionv3")
    with pytest.raises(ValueError, match="known: InceptionV3, Xception, ResNet50, VGG16, VGG19"):
        networks.network("###")
    with pytest.raises(ValueError, match="Xception needs images of at least 71 pixels, not imageSize=70"):
        networks.check_size("Xception", 70)
    assert [networks.check_size("Xception", size) for size in (None, 71, 500)] == [299, 71, 500]


@pytest.mark.parametrize("name", ["InceptionV3", "ResNet50"])
def test_layers_have_their_usual_names_however_many_networks_there_are(name):
    import keras

    keras.utils.clear_session()
    fresh = [layer.name for layer in keras_network(name, 75).layers]
    assert len(set(fresh)) == len(fresh)
    second = [layer.name for layer in keras_network(name, 75).layers]
    assert second != fresh, "Keras numbers them on, or this shows nothing"
    model = build_network(name, "random", image_size=75)
    assert [layer.name for layer in model.layers] == fresh
    assert model.get_layer(fresh[5]) is model.layers[5]
    assert layer_names(name) == fresh


# -- weights -----------------------------------------------------------------------------------------------------------


def test_random_weights_are_seeded():
    first = build_network("InceptionV3", "random", image_size=75).get_weights()
    with_head = build_network("InceptionV3", "random", include_top=True, image_size=75).get_weights()
    assert len(with_head) == len(first) + 2, "the head comes on top"
    assert all(np.array_equal(a, b) for a, b in zip(first, with_head, strict=False))
    kernels = [w for w in first if w.ndim == 4]
    for kernel in kernels:
        expected = np.sqrt(2 / np.prod(kernel.shape[:3]))
        assert kernel.std() == pytest.approx(expected, rel=0.15) and abs(kernel.mean()) < 0.15 * expected
    assert not np.array_equal(kernels[3].ravel()[:9], kernels[4].ravel()[:9])


@pytest.fixture(scope="module")
def files(tmp_path_factory, weights_file) -> Path:
    """Files that hold weights of VGG16, others, half of them or none."""
    import keras

    folder = tmp_path_factory.mktemp("weights")
    build_network("VGG16", "random", image_size=32).save(folder / "vgg16.keras")
    (folder / "vgg16.weights.h5").symlink_to(weights_file)
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(3)(inputs)).save_weights(folder / "other.weights.h5")
    whole = (folder / "vgg16.weights.h5").read_bytes()
    (folder / "half.weights.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "text.weights.h5").write_text("no weights")
    (folder / "empty.weights.h5").touch()
    (folder / "some.txt").write_text("no weights")
    return folder


@pytest.mark.parametrize("file", ["vgg16.weights.h5", "vgg16.keras"])
def test_weights_from_a_file(files, file):
    loaded = build_network("VGG16", str(files / file), image_size=48).get_weights()
    expected = build_network("VGG16", "random", image_size=48).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(loaded, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("VGG19", "vgg16.weights.h5"),
        ("VGG16", "other.weights.h5"),
        ("VGG16", "half.weights.h5"),
        ("VGG16", "text.weights.h5"),
        ("VGG16", "empty.weights.h5"),
        ("VGG16", "some.txt"),
    ],
)
def test_files_that_hold_other_weights_or_none(files, name, file):
    with pytest.raises(ValueError, match=ONE_LINE) as told:
        build_network(name, str(files / file), image_size=32)
    assert f"{files / file} does not hold weights of {name} without its head" in str(told.value)


def test_weights_that_are_not_there(tmp_path):
    for ask in (networks.weights_digest, build_network, export_graph):
        with pytest.raises(WeightsUnavailable, match=r'no weights file .*none\.h5; weights takes "imagenet", "glyphs"'):
            ask("VGG16", str(tmp_path / "none.h5"))
    with pytest.raises(WeightsUnavailable, match="no weights file"):
        networks.weights_digest("VGG16", str(tmp_path))
    with pytest.raises(ValueError, match='"glyphs" are for InceptionV3; for VGG16 use "imagenet"'):
        build_network("VGG16", "glyphs")


def test_digests_tell_weights_apart(tmp_path):
    file = tmp_path / "some.weights.h5"
    file.write_bytes(b"a")
    first = networks.weights_digest("VGG16", str(file))
    assert first == "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    file.write_bytes(b"bb")
    second = networks.weights_digest("VGG16", str(file))
    assert len({first, second, *(networks.weights_digest("VGG16", w) for w in ("random", "imagenet"))}) == 4


@pytest.mark.skipif(not networks.glyph_weights().is_file(), reason="the embedded weights are not made yet")
def test_the_embedded_weights():
    bare, whole = (build_network("InceptionV3", "glyphs", top, 75).get_weights() for top in (False, True))
    assert len(whole) == len(bare) + 2
    assert all(np.array_equal(a, b) for a, b in zip(bare, whole, strict=False))
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in whole)
    assert all(w.std() > 0 for w in whole if w.ndim == 4)
    classes = networks.class_names("InceptionV3", "glyphs")
    assert len(classes) == len(set(classes)) == whole[-1].size > 100
    assert all(len(pair) == 2 and all(pair) for pair in classes)
    digest = networks.weights_digest("InceptionV3", "glyphs")
    assert digest == networks.weights_digest("InceptionV3", str(networks.glyph_weights()))


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_a_recipe_makes_its_two_stages():
    mine = Recipe("mine", "Xception", "random", ("block4_pool", "block5_add"), "max", 96, 7, 0.25, 0.5)
    stage = mine.featurizer(outputCol="x", batchSize=2)
    assert (stage.getModelName(), stage.getWeights(), stage.getLayer()) == ("Xception", "random", list(mine.layer))
    assert (stage.getPooling(), stage.getImageSize(), stage.getOutputCol(), stage.getBatchSize()) == ("max", 96, "x", 2)
    with pytest.raises(AttributeError):
        mine.max_iter = 8


def test_the_courses_graphs_are_ready_once_they_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(networks, "_exported", lambda *how: asked.append(how) or Path("graph.xml"))
    networks.export_course()
    ready = asked[:]
    asked.clear()
    ours = networks.recipe("glyphs")
    blocks = [
        replace(ours, weights=weights, layer=tuple(networks.block_ends("InceptionV3")))
        for weights in ("glyphs", "random")
    ]
    searched = passes_of_notebook_05()
    random = [article("random", name) for name in networks.NETWORKS]
    others = [ours.replaced(image_size=75), replace(ours, layer=("mixed9",), pooling="flatten")]
    for settings in (article("glyphs"), ours, *blocks, *random, *searched, *others):
        settings.featurizer().graph()
    assert ready == asked and len(ready) == 15, "not what the featurizers ask for"


def passes_of_notebook_05() -> list[Recipe]:
    """Each pass of the network over the notebook's choices, with the layers of all that share it."""
    notebook = nbformat.read(ROOT / "notebooks" / "05_tune_on_spark.ipynb", as_version=4)
    cells = [c.source for c in notebook.cells if c.source.startswith(("MORE_LAYERS = ", "def name_of"))]
    said = {"ours": recipe("glyphs"), "NETWORK": "InceptionV3", "NETWORKS": NETWORKS, "replace": replace, "pd": pd}
    exec("\n".join(cells), said)
    layers = {}
    for choice in said["choices"].values():
        layers.setdefault(replace(choice, layer=None), []).extend(choice.layer)
    return [replace(shared, layer=tuple(dict.fromkeys(names))) for shared, names in layers.items()]


def test_graphs_made_one_after_the_other_are_those_made_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMTADB_CACHE", str(tmp_path / "together"))
    subprocess.run([sys.executable, "-m", "helpers.networks"], check=True, cwd=ROOT)
    monkeypatch.setenv("NUMTADB_CACHE", str(tmp_path / "apart"))
    for settings in (recipe("glyphs"), article("random", "ResNet50")):
        apart = settings.graph()
        together = tmp_path / "together" / "graphs" / apart.name
        assert apart.with_suffix(".bin").read_bytes() == together.with_suffix(".bin").read_bytes()
        size, _ = networks.graph_shape(apart)
        images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
        one, other = (featurizer.load_graph(str(graph), 1, 0)([images])[0] for graph in (apart, together))
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_what_is_known_of_a_network_is_keras(name):
    known = networks.NETWORKS[name]
    assert networks._bare(name, False, known.minimum_size, 1000).count_params() == known.parameters
    ends = networks.block_ends(name)
    assert len(ends) >= 5 and ends[-1] == known.last_layer


def test_settings_with_parts_replaced():
    ours = networks.recipe("glyphs")
    assert ours.replaced() == ours
    assert ours.replaced(layer="mixed1").layer == ("mixed1",)
    assert ours.replaced(["mixed1", "mixed2"], 128) == replace(ours, layer=("mixed1", "mixed2"), image_size=128)


def test_the_classifier_of_a_recipe(spark):
    classifier = article("random").classifier(featuresCol="x")
    assert (classifier.getMaxIter(), classifier.getRegParam(), classifier.getElasticNetParam()) == (5, 0.03, 0.5)
    assert (classifier.getFamily(), classifier.getFeaturesCol()) == ("multinomial", "x")
    assert article("random").classifier(maxIter=9).getMaxIter() == 9


@pytest.mark.parametrize("name", NETWORKS)
def test_recipes_fit_their_networks(name):
    names = set(layer_names(name))
    for weights in ("glyphs", "imagenet", "random"):
        for made in (article(weights, name), networks.recipe(weights, name)):
            assert (made.model_name, made.weights) == (name, weights)
            assert set(made.layer or ()) <= names
            assert networks.check_size(name, made.image_size)
    with pytest.raises(ValueError, match="no network"):
        networks.recipe(weights, "AlexNet")


# -- the cache of graphs -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """A cache of its own; the folder of the graphs in it."""
    monkeypatch.setenv("NUMTADB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


@pytest.fixture
def exports(monkeypatch, cache) -> list[dict]:
    """What was exported; the export itself is a stand-in that writes two small files."""
    done = []

    def stand_in(task, wanted):
        done.append(wanted)
        path = Path(wanted["path"])
        path.write_text(json.dumps(wanted["layers"]))
        path.with_suffix(".bin").write_text("weights")
        return ""

    monkeypatch.setattr(networks, "_run_apart", stand_in)
    return done


def test_a_graph_is_exported_once_and_kept_by_all_that_changes_it(monkeypatch, exports, tmp_path):
    file = tmp_path / "mine.weights.h5"
    file.write_bytes(b"a")
    settings = {"name": "VGG16", "weights": str(file), "layers": ["block1_pool"], "pooling": "avg", "image_size": 32}
    graph = export_graph(**settings)
    assert export_graph(**settings) == graph and len(exports) == 1
    others = [{"layers": ["block2_pool"]}, {"pooling": "max"}, {"image_size": 33}, {"include_top": True}]
    others += [{"name": "VGG19"}, {"weights": "random"}, {"layers": ["block2_pool", "block1_pool"]}]
    graphs = [export_graph(**settings | other) for other in others]
    assert len({graph, *graphs}) == len(exports) == 1 + len(others)
    file.write_bytes(b"others")
    assert export_graph(**settings) not in (graph, *graphs)
    assert export_graph("VGG16", "random") == export_graph("VGG16", "random", image_size=224)

    monkeypatch.setattr(networks.importlib.metadata, "version", lambda package: "0")
    assert export_graph(**settings | {"weights": "random"}) not in graphs, "another Keras may compute otherwise"


def test_a_graph_that_has_lost_a_file_is_exported_again(exports):
    graph = export_graph("VGG16", "random")
    graph.with_suffix(".bin").unlink()
    assert export_graph("VGG16", "random") == graph and graph.with_suffix(".bin").exists()
    assert len(exports) == 2


def test_the_graphs_least_in_use_go_first(monkeypatch, exports, cache):
    monkeypatch.setattr(networks, "GRAPHS_KEPT", 2)
    first, second = (export_graph("VGG16", "random", image_size=size) for size in (32, 33))
    for age, graph in enumerate((first, second), 1):
        networks.os.utime(graph, (age, age))
    assert export_graph("VGG16", "random", image_size=32) == first, "used again, and so the younger one"
    third = export_graph("VGG16", "random", image_size=34)
    assert {*cache.iterdir()} == {g.with_suffix(s) for g in (first, third) for s in (".xml", ".bin")}


KILLED = """
import os, signal, sys
from pathlib import Path
from helpers import networks
def killed(task, wanted):
    Path(wanted["path"]).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
networks._run_apart = killed
networks.export_graph("VGG16", "random")
"""


def test_a_killed_export_leaves_no_graph(exports, cache):
    assert subprocess.run([sys.executable, "-c", KILLED]).returncode == -9
    assert list(cache.glob("*.*")) == []
    assert export_graph("VGG16", "random").read_text() == "[]"


def test_an_export_whose_process_is_killed(monkeypatch, cache, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(networks.sys, "executable", str(program))
    with pytest.raises(RuntimeError, match=r"Keras failed \(exit status -9\)"):
        export_graph("VGG16", "random")
    assert list(cache.iterdir()) == []


def test_two_exports_at_the_same_time(monkeypatch, exports, cache):
    both_here = threading.Barrier(2, timeout=60)
    stand_in = networks._run_apart

    def waiting(task, wanted):
        both_here.wait()
        stand_in(task, wanted)
        both_here.wait()

    monkeypatch.setattr(networks, "_run_apart", waiting)
    graphs = []
    threads = [threading.Thread(target=lambda: graphs.append(export_graph("VGG16", "random"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(exports) == 2 and len(set(graphs)) == 1
    assert {*cache.iterdir()} == {graphs[0], graphs[0].with_suffix(".bin")}
    assert (graphs[0].read_text(), graphs[0].with_suffix(".bin").read_text()) == ("[]", "weights")


def test_the_export_takes_this_package_and_no_other(monkeypatch, cache, tmp_path):
    """Neither the archive on Spark's path, which has no data in it, nor a `helpers` in the current folder."""
    import openvino

    wrong = 'raise SystemExit("the wrong helpers")'
    with zipfile.ZipFile(tmp_path / "shipped.zip", "w") as archive:
        archive.writestr("helpers/__init__.py", wrong)
    (tmp_path / "here" / "helpers").mkdir(parents=True)
    (tmp_path / "here" / "helpers" / "__init__.py").write_text(wrong)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "shipped.zip"))
    layers, size = [FAST["layer"]], FAST["imageSize"]
    network = openvino.Core().compile_model(export_graph("VGG16", "random", layers, image_size=size), "CPU")
    assert network([np.zeros((3, size, size, 3), np.uint8)])[0].shape == (3, 256)
    with pytest.raises(ValueError, match=r"^there is no layer 'block9' in vgg16; did you mean"):
        export_graph("VGG16", "random", ["block9"], image_size=size)


def test_vgg_with_its_head_takes_several_images_and_flattens_as_keras_does(tmp_path):
    import keras
    import openvino

    coarse = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    pixels = coarse.repeat(16, axis=1).repeat(16, axis=2)  # patches, not noise: noise all looks alike to a network
    prepared = keras.applications.vgg16.preprocess_input(pixels[..., ::-1].astype(np.float32))
    model = networks.build_network("VGG16", "random", True, 64)
    last, flat = model.get_layer("predictions"), model.get_layer("fc1")
    logits = (
        keras.Model(model.input, model.get_layer("fc2").output).predict(prepared, verbose=0) @ last.get_weights()[0]
    )
    kernel, bias = last.get_weights()
    last.set_weights([kernel / logits.std(), bias])  # else the softmax says 0 and 1 whatever it is given
    model.save_weights(tmp_path / "vgg16.weights.h5")
    wanted = model.predict(prepared, verbose=0)

    graph = networks.export_graph("VGG16", str(tmp_path / "vgg16.weights.h5"), image_size=64, include_top=True)
    network = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(network([pixels])[0] - wanted).max() <= 1e-4 * wanted.max()

    kernel, bias = flat.get_weights()
    flat.set_weights([kernel.reshape(2, 2, 512, -1).transpose(2, 0, 1, 3).reshape(kernel.shape), bias])
    assert np.abs(model.predict(prepared, verbose=0) - wanted).max() > 0.1 * wanted.max(), "the order can be told"
