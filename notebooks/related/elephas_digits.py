"""Elephas: a Keras model trained on the partitions of a Spark frame, as an estimator of pyspark.ml.

Each epoch, every worker trains a copy of the model on its partition; the driver averages what they changed.
"""

from __future__ import annotations

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["PYSPARK_PYTHON"] = sys.executable

import keras
from elephas.ml_model import ElephasEstimator
from pyspark.ml.functions import array_to_vector
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from shared import answers, main, timed


def digits(data, column):
    spark = SparkSession.builder.master("local[2]").config("spark.driver.memory", "1g").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    frame = spark.read.parquet(str(data / "digits.parquet")).repartition(2, "file")
    return frame.select(
        "test", F.col("label").cast("double").alias("label"), array_to_vector(column).alias("x")
    ).cache()


def trained(model, frame, epochs, rate):
    estimator = ElephasEstimator(
        keras_model_config=model.to_json(),
        optimizer_config=keras.optimizers.serialize(keras.optimizers.Adam(rate)),
        loss="categorical_crossentropy",
        metrics=["acc"],
        categorical=True,
        nb_classes=10,
        featuresCol="x",
        labelCol="label",
        outputCol="probabilities",
        mode="synchronous",
        num_workers=2,
        epochs=epochs,
        batch_size=20,
        verbose=0,
    )
    return timed(lambda: estimator.fit(frame.where("NOT test").select("x", "label")))


def measured(model, frame, epochs, rate):
    fitted, seconds = trained(model, frame, epochs, rate)

    def ask(part):
        rows = fitted.transform(part.select("x", "label")).select("label", "probabilities").collect()
        return [(row.label, max(range(10), key=row.probabilities.__getitem__)) for row in rows]

    return {"fit_seconds": seconds, **answers(ask, frame, frame.where("test"))}


def head(data):
    keras.utils.set_random_seed(42)
    model = keras.Sequential([keras.Input((1536,)), keras.layers.Dense(10, activation="softmax")])
    return measured(model, digits(data, "features"), epochs=10, rate=1e-3)


def cnn(data):
    keras.utils.set_random_seed(42)
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
    return measured(model, digits(data, "pixels"), epochs=20, rate=1e-3)


if __name__ == "__main__":
    main({"head": head, "cnn": cnn})
