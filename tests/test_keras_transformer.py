"""Any Keras model as a stage of Spark ML and as a function of SQL, against plain Keras on the same pixels."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import image_frame, picture, struct
from PIL import Image
from pyspark.errors import PythonException
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import functions as F

from helpers import networks
from helpers.featurizer import DeepImagePredictor, KerasImageTransformer, register_sql

SIZE = 24
SHAPES = [(24, 24, 3), (20, 31, 1), (50, 9, 4), (1, 1, 3), (24, 24, 1)]
PICTURES = [picture(i, *shape) for i, shape in enumerate(SHAPES)]
NAMES = ["nought", "one", "two", "three"]


def prepared(images: list[Image.Image], preprocess: str, channels: int, size: int = SIZE) -> np.ndarray:
    """Pictures as a model sees them, by Pillow and Keras' own preprocessing: float32 (n, size, size, channels)."""
    import keras

    rgb = [np.asarray(im.convert("RGB").resize((size, size), Image.Resampling.BILINEAR), np.float32) for im in images]
    x = np.stack(rgb)
    if channels == 1 and preprocess == "tf":  # Keras' own is for colours
        return x @ np.array([[0.299], [0.587], [0.114]], np.float32) / 127.5 - 1
    if channels == 1:
        x = x @ np.array([[0.299], [0.587], [0.114]], np.float32)
    if preprocess in ("none", "unit"):
        return x / 255 if preprocess == "unit" else x
    return keras.applications.imagenet_utils.preprocess_input(x, mode=preprocess)


def small(channels: int = 3, size: int | None = SIZE, top: str = "flatten", preprocess: str = "none"):
    """A seeded model of convolution, normalisation and a head that is neither sure nor undecided about pictures."""
    import keras

    keras.utils.set_random_seed(7)
    layers = [keras.Input((size, size, channels))]
    layers += [keras.layers.Conv2D(6, 3, padding="same", activation="relu"), keras.layers.BatchNormalization()]
    layers += [keras.layers.MaxPooling2D(), keras.layers.Conv2D(5, 3, activation="relu")]
    if top == "map":
        return keras.Sequential(layers)
    layers += [keras.layers.Flatten() if top == "flatten" else keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*layers, keras.layers.Dense(4, activation="softmax")])
    features = np.asarray(keras.Sequential(layers)(prepared(PICTURES, preprocess, channels)))
    kernel, _ = model.layers[-1].get_weights()
    kernel = kernel / (features @ kernel).std(axis=0)
    model.layers[-1].set_weights([kernel, -(features @ kernel).mean(axis=0)])
    return model


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return PICTURES


def keras_output(model, images: list[Image.Image], preprocess: str = "none", size: int = SIZE) -> np.ndarray:
    """From Keras' own model and preprocessing (TensorFlow): (n, numbers)."""
    x = prepared(images, preprocess, model.input_shape[-1], size)
    return np.asarray(model(x, training=False)).reshape(len(images), -1)


def output(frame, column: str = "predicted") -> list:
    rows = sorted(frame.select("number", column).collect(), key=lambda row: row.number)
    return [row[column] for row in rows]


def vectors(frame) -> np.ndarray:
    return np.stack([vector.toArray() for vector in output(frame)])


CASES = [
    ("none", 3, SIZE, "flatten"),
    ("unit", 1, SIZE, "flatten"),
    ("tf", 3, SIZE, "avg"),
    ("torch", 3, None, "avg"),
    ("caffe", 3, SIZE, "map"),
    ("tf", 1, SIZE, "map"),
]


@pytest.mark.parametrize(("preprocess", "channels", "size", "top"), CASES, ids=str)
def test_the_output_is_keras(spark, images, preprocess, channels, size, top):
    """max |a - b| <= 1e-4 max |b|; swapped colours or pictures miss it by a factor of hundreds."""
    model = small(channels, size, top, preprocess)
    stage = KerasImageTransformer(model=model, preprocess=preprocess, imageSize=None if size else SIZE)
    out = stage.transform(image_frame(spark, images))
    assert out.schema["predicted"].dataType == VectorUDT()
    ours, expected = vectors(out), keras_output(model, images, preprocess)
    assert ours.shape == expected.shape == (len(images), 4 if top != "map" else 5 * 10 * 10)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    wrong = [keras_output(model, images[1:] + images[:1], preprocess)]
    if channels == 3:
        flipped = [Image.fromarray(np.asarray(im.convert("RGB"))[:, :, ::-1].copy()) for im in images]
        wrong.append(keras_output(model, flipped, preprocess))
    for other in wrong:
        assert np.abs(ours - other).max() > 1e-2 * np.abs(expected).max()


def test_the_same_whatever_batch_and_partitions(spark, model, images):
    runs = [
        vectors(KerasImageTransformer(model=model, batchSize=batch).transform(image_frame(spark, images, partitions)))
        for batch, partitions in ((1, 1), (3, 1), (4, 3))
    ]
    assert np.array_equal(runs[0], runs[1]) and np.array_equal(runs[0], runs[2])


def test_classes_by_name(spark, model, images):
    expected = keras_output(model, images)
    stage = KerasImageTransformer(model=model, classes=NAMES, decodePredictions=True, topK=2)
    for row, probabilities in zip(output(stage.transform(image_frame(spark, images))), expected, strict=True):
        best = np.argsort(-probabilities)[:2]
        assert [(e["class"], e.description) for e in row] == [(str(i), NAMES[i]) for i in best]
        assert np.allclose([e.probability for e in row], probabilities[best], rtol=1e-3)
    (first, *_) = output(stage.setClasses(None).transform(image_frame(spark, images)))
    assert first[0].description == str(expected[0].argmax())


def test_null_and_broken_images(spark, model):
    broken = ("x", 4, 4, 3, 16, bytes(47))
    frame = image_frame(spark, [picture(0), None, broken])
    out = KerasImageTransformer(model=model, errorCol="why").transform(frame).cache()
    assert [vector is None for vector in output(out)] == [False, True, True]
    assert output(out, "why") == [None, "there is no image", "the image has 47 bytes, not 4 x 4 x 3"]
    out.unpersist()


def test_a_model_with_a_head_of_its_own_of_the_course(spark, images):
    """A network of keras.applications, as anyone would fine-tune it."""
    import keras

    keras.utils.set_random_seed(3)
    base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    model = keras.Model(base.input, keras.layers.Dense(4, activation="softmax")(x))
    ours = vectors(KerasImageTransformer(model=model, preprocess="tf").transform(image_frame(spark, images)))
    expected = keras_output(model, images, "tf", 32)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


# -- what is refused -------------------------------------------------------------------------------------------------


def bad_models(folder: Path) -> dict[str, tuple[object, str]]:
    import keras

    def of(*layers, shape=(SIZE, SIZE, 3)):
        return keras.Sequential([keras.Input(shape), *layers, keras.layers.Flatten(), keras.layers.Dense(2)])

    text = folder / "text.keras"
    text.write_text("no model")
    pickled = folder / "pickled.keras"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    hidden = folder / "hidden.keras"  # a Lambda inside a model inside a model
    inner = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Lambda(lambda x: x * 2, name="double")])
    of(inner).save(hidden)
    foreign = folder / "foreign.keras"
    of().save(foreign)
    renamed = rewritten(foreign, lambda text: text.replace('"class_name": "Dense"', '"class_name": "Secret"'))
    a, b = keras.Input((SIZE, SIZE, 3)), keras.Input((SIZE, SIZE, 3))
    two = keras.Model([a, b], keras.layers.Flatten()(keras.layers.Add()([a, b])))
    unbuilt = folder / "unbuilt.keras"
    with pytest.warns(UserWarning, match="has not yet been built"):
        keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)]).save(unbuilt)
    some = r"the model '\w+' "
    return {
        "no file": (folder / "none.keras", "there is no model file .*none.keras; save a Keras model by"),
        "text": (text, "text.keras is no .keras file"),
        "pickle": (pickled, "pickled.keras is no .keras file"),
        "lambda": (of(keras.layers.Lambda(lambda x: x * 2, name="twice")), "has a Lambda layer 'twice', which is Pyth"),
        "hidden lambda": (hidden, "hidden.keras has a Lambda layer 'double'"),
        "foreign class": (renamed, "cannot be loaded in Keras' safe mode: .*Secret"),
        "rows of numbers": (
            keras.Sequential([keras.Input((9,)), keras.layers.Dense(2)]),
            some + r"takes \(9,\); a stage feeds square images, channels last",
        ),
        "oblong": (of(shape=(24, 32, 3)), some + r"takes \(24, 32, 3\); a stage feeds square"),
        "channels first": (of(shape=(3, 24, 24)), some + r"takes \(3, 24, 24\); a stage"),
        "two inputs": (two, some + "has 2 inputs and 1 outputs"),
        "unbuilt": (unbuilt, "unbuilt.keras|was never built"),
        "any size": (small(size=None, top="avg"), "takes images of any size; give one as imageSize"),
    }


def rewritten(file: Path, change) -> Path:
    """A copy of a .keras file with another description of its model."""
    out = file.with_name(f"changed-{file.name}")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name).decode()) if name == "config.json" else old.read(name))
    return out


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> dict[str, tuple[object, str]]:
    return bad_models(tmp_path_factory.mktemp("models"))


BAD_MODELS = ["no file", "text", "pickle", "lambda", "hidden lambda", "foreign class", "rows of numbers", "oblong"]
BAD_MODELS += ["channels first", "two inputs", "unbuilt", "any size"]


@pytest.mark.parametrize("which", BAD_MODELS)
def test_models_that_are_refused_in_one_sentence(spark, refused, which):
    model, sentence = refused[which]
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as told:
        KerasImageTransformer(model=model).transform(image_frame(spark, [picture(0)]))
    assert "\n" not in str(told.value)


MISTAKES = {
    "preprocessing": ({"preprocess": "tff"}, "there is no preprocessing 'tff'; did you mean tf"),
    "size": ({"imageSize": 32}, "takes images of 24 pixels, not imageSize=32"),
    "names": ({"classes": ["a"]}, "classes has 1 names, and the model gives 4 numbers"),
    "column": ({"inputCol": "picture"}, "there is no column 'picture'"),
    "output there": ({"outputCol": "number"}, "there is a column 'number' already"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(spark, model, mistake):
    settings, sentence = MISTAKES[mistake]
    with pytest.raises(ValueError, match=sentence):
        KerasImageTransformer(**{"model": model} | settings).transform(image_frame(spark, [picture(0)]))


def test_means_of_three_channels_for_one(spark):
    with pytest.raises(ValueError, match="preprocess='caffe' is for three channels, and this model takes one"):
        KerasImageTransformer(model=small(1), preprocess="caffe").transform(image_frame(spark, [picture(0)]))


def test_no_model_and_no_model_at_all(spark):
    with pytest.raises(ValueError, match="model is not set"):
        KerasImageTransformer().transform(image_frame(spark, [picture(0)]))
    for value in (3, lambda x: x):
        with pytest.raises(TypeError, match=r"model takes the path of a \.keras file or a Keras model, not"):
            KerasImageTransformer(model=value)
    with pytest.raises(TypeError, match="classes takes a list of names, not 'one'"):
        KerasImageTransformer(classes="one")


# -- saved and loaded ------------------------------------------------------------------------------------------------


def test_saved_and_loaded_with_the_pipeline(spark, model, images, tmp_path):
    """The model's file travels inside the folder: what it was made from may go."""
    file = tmp_path / "mine.keras"
    model.save(file)
    stage = KerasImageTransformer(model=file, classes=NAMES, preprocess="tf", errorCol="why", topK=3)
    frame = image_frame(spark, images)
    expected = vectors(stage.transform(frame))
    fitted = Pipeline(stages=[stage]).fit(frame)
    fitted.save(str(tmp_path / "pipeline"))
    fitted.write().overwrite().save(str(tmp_path / "pipeline"))
    file.unlink()
    (inside,) = (tmp_path / "pipeline").rglob("model.keras")
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "pipeline").rglob("part-*"))

    loaded = PipelineModel.load(str(tmp_path / "pipeline"))
    (again,) = loaded.stages
    assert again.uid == stage.uid and (again.getClasses(), again.getPreprocess()) == (NAMES, "tf")
    loaded.write().overwrite().save(str(tmp_path / "pipeline"))  # over the folder that it was loaded from
    inside.unlink()
    assert np.array_equal(vectors(loaded.transform(frame)), expected)


def test_a_model_changed_in_the_folder_is_refused(spark, model, tmp_path):
    KerasImageTransformer(model=model).save(str(tmp_path / "stage"))
    file = tmp_path / "stage" / "model.keras"
    changed = rewritten(file, lambda text: json.dumps(json.loads(text) | {"more": 1}))
    changed.replace(file)
    (tmp_path / "stage" / ".model.keras.crc").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"model\.keras in .* is not the model that this stage was saved with"):
        KerasImageTransformer.load(str(tmp_path / "stage"))


def test_the_stage_keeps_the_model_as_it_was(spark, images):
    """Training goes on; the stage has what it was given."""
    model = small()
    stage = KerasImageTransformer(model=model)
    expected = keras_output(model, images)
    model.set_weights([weights * 2 for weights in model.get_weights()])
    assert np.abs(vectors(stage.transform(image_frame(spark, images))) - expected).max() <= 1e-4 * expected.max()
    copied = stage.copy({stage.outputCol: "other", stage.model: model})
    assert copied.getModel() != stage.getModel() and copied.getOutputCol() == "other"


def test_digests_tell_models_apart_and_not_dates(model, tmp_path):
    a, b, c = tmp_path / "a.keras", tmp_path / "b.keras", tmp_path / "c.keras"
    model.save(a)
    with zipfile.ZipFile(a) as old, zipfile.ZipFile(b, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"{}" if name == "metadata.json" else old.read(name))
    small(top="avg").save(c)
    assert networks.model_digest(a) == networks.model_digest(b) != networks.model_digest(c)


# -- SQL -------------------------------------------------------------------------------------------------------------


def test_a_function_of_sql(spark, model, images):
    best = keras_output(model, images).argmax(axis=1)
    image_frame(spark, [*images, None]).createOrReplaceTempView("pictures")
    register_sql(spark, "named", KerasImageTransformer(model=model, classes=NAMES))
    rows = spark.sql("SELECT named(image) AS name FROM pictures ORDER BY number").collect()
    assert [row.name for row in rows] == [*(NAMES[i] for i in best), None]

    register_sql(spark, "numbered", KerasImageTransformer(model=model))
    where = f"SELECT count(*) AS n FROM pictures WHERE numbered(image) = {best[0]}"
    assert spark.sql(where).first().n == (best == best[0]).sum()

    register_sql(spark, "best_two", KerasImageTransformer(model=model, classes=NAMES), top=2)
    first = spark.sql("SELECT best_two(image)[0] AS first FROM pictures WHERE number = 0").first().first
    assert first.description == NAMES[best[0]] and 0.25 < first.probability <= 1
    frame = spark.table("pictures").select(F.expr("named(image)"))
    assert frame.count() == len(images) + 1


def test_the_predictor_as_a_function_of_sql(spark, images):
    register_sql(spark, "imagenet", DeepImagePredictor(weights="random", modelName="InceptionV3", imageSize=75))
    image_frame(spark, images[:1]).createOrReplaceTempView("one_picture")
    assert spark.sql("SELECT imagenet(image) AS name FROM one_picture").first().name.startswith("class ")


def test_mistakes_in_sql(spark, model):
    stage = KerasImageTransformer(model=model)
    with pytest.raises(ValueError, match="'my digit' is no name of a function"):
        register_sql(spark, "my digit", stage)
    with pytest.raises(TypeError, match="0 is not a number above 0"):
        register_sql(spark, "none", stage, top=0)
    with pytest.raises(ValueError, match="classes has 1 names"):
        register_sql(spark, "none", KerasImageTransformer(model=model, classes=["a"]))
    register_sql(spark, "of_image", stage)
    with pytest.raises(PythonException, match="of_image takes Spark's image struct, not int32"):
        image_frame(spark, [struct(picture(0))]).select(F.expr("of_image(number)")).collect()
