"""TensorFlowOnSpark: a TensorFlow cluster inside the executors of a Spark cluster, fed from a Spark frame.

Each executor runs a TensorFlow worker that trains together with the others; the trained model answers in all of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["PYSPARK_PYTHON"] = sys.executable

import pyspark
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from shared import answers, main, timed
from tensorflowonspark.pipeline import TFEstimator

BATCH, WORKERS = 20, 2


@contextmanager
def cluster(folder):
    """A session on a standalone cluster of two workers with one core each, on this machine."""
    launcher = Path(pyspark.__file__).parent / "bin" / "spark-class"
    with ExitStack() as running:

        def start(kind, said, *arguments):
            """Start a master or a worker, and wait for what it says when it is ready."""
            log = Path(folder, f"{kind.lower()}{time.time_ns()}.log")
            main_class = f"org.apache.spark.deploy.{kind.lower()}.{kind}"
            with log.open("w") as output:
                command = [launcher, main_class, "--host", "127.0.0.1", "--webui-port", "0", *arguments]
                process = subprocess.Popen(command, stdout=output, stderr=output)
            running.callback(process.wait)
            running.callback(process.terminate)
            return wait_for(log, said)

        url = start("Master", r"spark://127\.0\.0\.1:\d+", "--port", "0")
        for _ in range(WORKERS):
            start("Worker", "Successfully registered", "-c", "1", "-m", "1g", "-d", os.path.join(folder, "work"), url)
        spark = (
            SparkSession.builder.master(url)
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.executor.memory", "512m")
            .config("spark.task.maxFailures", 1)
            .config("spark.executorEnv.PYTHONPATH", str(Path(__file__).parent))  # train is found by name
            .getOrCreate()
        )
        spark.sparkContext.setLogLevel("ERROR")
        running.callback(spark.stop)
        yield spark


def wait_for(log, pattern, seconds=60):
    for _ in range(seconds * 10):
        if found := re.search(pattern, log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"{log} does not say {pattern!r} after {seconds} seconds")


def head_model():
    import keras

    return keras.Sequential([keras.Input((1536,), name="x"), keras.layers.Dense(10, activation="softmax")])


def cnn_model():
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((1024,), name="x"),
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


def train(args, ctx):
    """What each TensorFlow worker runs: the same steps at the same time as the others, on its own part of the frame.

    Keras 3's own ``fit`` and ``save`` do not go with a strategy of several workers, hence a loop and ``export``.
    """
    import keras
    import tensorflow as tf
    from tensorflowonspark import TFNode

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    feed = TFNode.DataFeed(ctx.mgr, input_mapping=args.input_mapping)

    def rows():
        while not feed.should_stop():
            batch = feed.next_batch(1)
            if batch["x"]:
                yield batch["x"][0], batch["y"][0]

    types = (tf.TensorSpec((args.length,), tf.float32), tf.TensorSpec((), tf.int32))
    data = tf.data.Dataset.from_generator(rows, output_signature=types).batch(BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    with strategy.scope():
        keras.utils.set_random_seed(42)
        model = args.build()
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(y, model(x, training=True))
            loss = tf.reduce_sum(losses) / BATCH
        optimizer.apply(tape.gradient(loss, model.trainable_variables))

    together = tf.function(lambda x, y: strategy.run(step, (x, y)))
    # Workers wait for each other: the one with fewer rows must not run out of them.
    steps = int(0.9 * args.rows * args.epochs / BATCH)
    batches = iter(strategy.experimental_distribute_dataset(data.with_options(options)))
    for _ in range(steps):
        together(*next(batches))
    feed.terminate()
    if ctx.job_name == "chief":
        model.export(args.export_dir)


def measured(data, column, length, build, epochs):
    with tempfile.TemporaryDirectory() as folder, cluster(folder) as spark:
        frame = spark.read.parquet(str(data / "digits.parquet")).repartition(WORKERS, "file").cache()
        learn = frame.where("NOT test").select(F.col(column).alias("x"), "label")
        estimator = (
            TFEstimator(train, {"build": build, "rows": learn.count(), "length": length})
            .setInputMapping({"x": "x", "label": "y"})
            .setClusterSize(WORKERS)
            .setMasterNode("chief")
            .setEpochs(epochs)
            .setBatchSize(BATCH)
            .setExportDir(os.path.join(folder, "model"))
            .setGraceSecs(5)
        )
        model, seconds = timed(lambda: estimator.fit(learn))
        model.setInputMapping({"x": "x"}).setOutputMapping({"output_0": "probabilities"})
        model.setSignatureDefKey("serving_default").setBatchSize(BATCH)

        def ask(part):
            # Only what it computed comes back, not the frame's own columns: labels are joined by position.
            labels = [row.label for row in part.select("label").collect()]
            rows = model.transform(part.select(F.col(column).alias("x"))).collect()
            return [(y, max(range(10), key=row.probabilities.__getitem__)) for y, row in zip(labels, rows, strict=True)]

        return {"fit_seconds": seconds, **answers(ask, frame, frame.where("test"))}


def head(data):
    return measured(data, "features", 1536, head_model, epochs=10)


def cnn(data):
    return measured(data, "pixels", 1024, cnn_model, epochs=20)


if __name__ == "__main__":
    main({"head": head, "cnn": cnn})
