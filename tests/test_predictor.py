"""The predictor against plain Keras, and the names it gives."""

import numpy as np
import pytest
from conftest import image_frame, picture
from PIL import Image
from pyspark.ml.linalg import VectorUDT

from helpers import networks
from helpers.featurizer import DeepImagePredictor

SETTINGS = {"modelName": "InceptionV3", "weights": "random", "imageSize": 75}
SHAPES = [(75, 75, 3), (20, 31, 1), (50, 9, 4)]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [picture(i, *shape) for i, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def probabilities(images) -> np.ndarray:
    """From Keras' own network with its head."""
    import keras

    weights = networks.build_network("InceptionV3", "random", include_top=True, image_size=75).get_weights()
    model = keras.applications.InceptionV3(weights=None, input_shape=(75, 75, 3))
    model.set_weights(weights)
    rgb = [np.asarray(image.convert("RGB").resize((75, 75), Image.Resampling.BILINEAR), np.float32) for image in images]
    x = keras.applications.inception_v3.preprocess_input(np.stack(rgb))
    return np.asarray(model(x, training=False))


def predicted(frame) -> list:
    return [row.predicted for row in sorted(frame.select("number", "predicted").collect(), key=lambda row: row.number)]


def test_probabilities_are_keras(spark, images, probabilities):
    out = DeepImagePredictor(**SETTINGS).transform(image_frame(spark, images))
    assert out.schema["predicted"].dataType == VectorUDT()
    ours = np.stack([vector.toArray() for vector in predicted(out)])
    assert ours.shape == (3, 1000) and np.allclose(ours.sum(axis=1), 1, atol=1e-5)
    assert np.abs(ours - probabilities).max() <= 1e-4 * probabilities.max()
    assert np.abs(ours - probabilities[[1, 2, 0]]).max() > 1e-2 * probabilities.max()


def test_the_most_probable_classes_by_name(spark, images, probabilities):
    stage = DeepImagePredictor(decodePredictions=True, topK=3, errorCol="why", **SETTINGS)
    out = stage.transform(image_frame(spark, [*images, None])).cache()
    kind = out.schema["predicted"].dataType.simpleString()
    assert kind == "array<struct<class:string,description:string,probability:float>>"
    *rows, none = predicted(out)
    assert none is None
    assert out.where("why IS NOT NULL").first().why == "there is no image"
    for row, expected in zip(rows, probabilities, strict=True):
        best = np.argsort(-expected)[:3]
        assert [entry["class"] for entry in row] == [str(i) for i in best]
        assert [entry.description for entry in row] == [f"class {i}" for i in best]
        assert np.allclose([entry.probability for entry in row], expected[best], rtol=1e-3)


def test_classes_go_to_the_predictions_of_their_places(monkeypatch):
    """ImageNet's names, whose download other tests try: a stand-in of the same shape."""
    from helpers import featurizer

    monkeypatch.setattr(networks, "imagenet_classes", lambda: [(f"n{i:08d}", f"thing {i}") for i in range(1000)])
    _, to_arrow = DeepImagePredictor(decodePredictions=True, topK=2)._output()
    row = np.zeros(1000, np.float32)
    row[[7, 4]] = 0.75, 0.25
    assert to_arrow([row, None]).to_pylist() == [
        [
            {"class": "n00000007", "description": "thing 7", "probability": 0.75},
            {"class": "n00000004", "description": "thing 4", "probability": 0.25},
        ],
        None,
    ]
    assert featurizer.top_classes([("a", "A")], 5)([np.ones(1, np.float32)]).to_pylist() == [
        [{"class": "a", "description": "A", "probability": 1.0}]
    ]


def test_params_saved_and_loaded(spark, tmp_path):
    stage = DeepImagePredictor(topK=2, decodePredictions=True, **SETTINGS)
    stage.save(str(tmp_path / "stage"))
    again = DeepImagePredictor.load(str(tmp_path / "stage"))
    assert again.uid == stage.uid and again.extractParamMap() == stage.extractParamMap()
    assert (again.getTopK(), again.getDecodePredictions()) == (2, True)
    assert again.setParams(topK=4).setDecodePredictions(False).getTopK() == 4
    assert DeepImagePredictor().getOutputCol() == "predicted"
    with pytest.raises(TypeError):
        DeepImagePredictor(topK=0)


@pytest.mark.skipif(not networks.glyph_weights().is_file(), reason="the embedded weights are not made yet")
def test_the_embedded_weights_name_their_own_classes(spark):
    classes = networks.class_names("InceptionV3", "glyphs")
    stage = DeepImagePredictor(weights="glyphs", imageSize=75, decodePredictions=True, topK=len(classes))
    (row,) = predicted(stage.transform(image_frame(spark, [picture(0)])))
    assert sorted((entry["class"], entry.description) for entry in row) == sorted(classes)
    assert sum(entry.probability for entry in row) == pytest.approx(1, abs=1e-4)
