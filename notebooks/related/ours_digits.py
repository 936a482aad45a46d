"""This course: a pretrained network as a stage of pyspark.ml, run by OpenVINO in Spark's Python workers, and Spark's
logistic regression. A network of one's own is trained by Keras in one process; Spark's predict_batch_udf asks it.
"""

from __future__ import annotations

import os
import tempfile

from pyspark.ml import Pipeline
from pyspark.ml.functions import array_to_vector, predict_batch_udf
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType
from shared import answers, main, timed

from helpers import training
from helpers.networks import recipe
from helpers.spark import start_spark


def digits(data):
    return start_spark().read.parquet(str(data / "digits.parquet")).repartition(2, "file")


def measured(stage, frame):
    fitted, seconds = timed(lambda: stage.fit(frame.where("NOT test")))

    def ask(part):
        rows = fitted.transform(part).select("label", "prediction").collect()
        return [(row.label, row.prediction) for row in rows]

    return {"fit_seconds": seconds, **answers(ask, frame, frame.where("test"))}


def images(data):
    labels = digits(data).select("file", "label", "test")
    pictures = labels.sparkSession.read.format("image").load(str(data / "images"))
    name = F.element_at(F.split("image.origin", "/"), -1)
    frame = pictures.withColumn("file", name).join(F.broadcast(labels), "file")
    settings = recipe("glyphs")
    return measured(Pipeline(stages=[settings.featurizer(), settings.classifier()]), frame)


def head(data):
    frame = digits(data).select("label", "test", array_to_vector("features").alias("features")).cache()
    return measured(recipe("glyphs").classifier(), frame)


def cnn(data):
    frame = digits(data).select("label", "test", "pixels").cache()
    learn = frame.where("NOT test").select("label", "pixels").toArrow()
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "cnn.keras")
        x = learn["pixels"].combine_chunks().flatten().to_numpy().reshape(-1, 1024)
        _, seconds = timed(lambda: training.apart(train, x, learn["label"].to_numpy(), file))
        classes = predict_batch_udf(
            lambda: loaded(file), return_type=FloatType(), batch_size=100, input_tensor_shapes=[[1024]]
        )

        def ask(part):
            rows = part.select("label", classes("pixels").alias("prediction")).collect()
            return [(row.label, row.prediction) for row in rows]

        return {"fit_seconds": seconds, **answers(ask, frame, frame.where("test"))}


def train(x, y, file):
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((1024,)),
            layers.Reshape((32, 32, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=20, epochs=20, verbose=0)
    model.save(file)


def loaded(file):
    os.environ["KERAS_BACKEND"] = "openvino"
    import keras

    model = keras.saving.load_model(file, safe_mode=True)
    return lambda x: model.predict_on_batch(x).argmax(axis=1).astype("float32")


if __name__ == "__main__":
    main({"images": images, "head": head, "cnn": cnn})
