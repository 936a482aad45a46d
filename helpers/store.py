"""Features kept and resumed: a network runs once over an image, however often its features are asked for.

A store is a folder of Parquet files, one sub-folder a featurizer: its name holds everything that changes a feature
(network, digest of the weights, layers, pooling, size, versions of what computes them). In it, features are keyed by
the image itself (SHA-256 of its shape and bytes), so that labels, paths and splits may change without anything being
computed again. What is missing is computed in parts, each added whole or not at all.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from helpers.featurizer import check_input
from helpers.spark import write_atomically

if TYPE_CHECKING:
    from helpers.featurizer import DeepImageFeaturizer

PACKAGES = ("openvino", "keras", "pillow")  # whose versions change what a feature is


def fingerprint(featurizer: DeepImageFeaturizer) -> dict[str, object]:
    """Everything that changes a feature of this featurizer."""
    return {
        "network": featurizer.getModelName(),
        "weights": featurizer.weights_digest(),
        "layer": featurizer.getLayer(),
        "pooling": featurizer.getPooling(),
        "image_size": featurizer.image_size(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


def folder_of(path: str | Path, featurizer: DeepImageFeaturizer) -> Path:
    """The sub-folder of the store at ``path`` that holds this featurizer's features."""
    settings = json.dumps(fingerprint(featurizer), sort_keys=True)
    return Path(path).resolve() / f"{featurizer.getModelName()}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"


@contextmanager
def _watched(spark: SparkSession, images: int, say: Callable[[int], None]) -> Iterator[None]:
    """While the body's one job runs, ``say`` about how many of ``images`` are done: the share of its tasks that are.

    The job is known by its group; a group that the caller has set comes back at the end.
    """
    context = spark.sparkContext
    tracker = context.statusTracker()
    group, over = f"featurize-{uuid.uuid4().hex}", threading.Event()
    before = {name: context.getLocalProperty(name) for name in ("spark.jobGroup.id", "spark.job.description")}

    def watch() -> None:
        said = 0
        while not over.wait(0.5):
            jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
            stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
            tasks = sum(stage.numTasks for stage in stages if stage)
            done = images * sum(stage.numCompletedTasks for stage in stages if stage) // tasks if tasks else 0
            if done > said and not over.is_set():
                said = done
                say(done)

    watcher = threading.Thread(target=watch, daemon=True)
    context.setJobGroup(group, "features")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        for name, value in before.items():
            context.setLocalProperty(name, value)


def featurize(
    digits: DataFrame,
    featurizer: DeepImageFeaturizer,
    path: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> DataFrame:
    """``digits`` with features, from the store at ``path``; what it lacks is computed and added first.

    Args:
        digits: frame with the featurizer's input column (image struct) and any others.
        featurizer: the stage; its ``errorCol`` is not used.
        path: folder of the store, made where it is not there, at the same path on every executor.
        progress: called with the number of images that have features and the number of all, now and then while features
            are computed (from another thread, going by Spark's finished tasks) and once at the end.

    Returns:
        The columns of ``digits`` but the image, and the featurizer's output column; null features where an image gave
        none. Read from the
        store: no action on it runs the network.

    Raises:
        ValueError: a missing column, one that holds no images, an output that is there already, or no image at all.
    """
    image, output = featurizer.getInputCol(), featurizer.getOutputCol()
    check_input(digits, image)
    if output in digits.columns:
        raise ValueError(f"there is a column {output!r} already; choose another outputCol, or drop it")
    folder = folder_of(path, featurizer)
    parts = folder / "features"
    spark = digits.sparkSession
    content = F.struct(*[F.col(f"`{image}`.{name}") for name in ("height", "width", "nChannels")])
    key = F.when(
        F.col(f"`{image}`").isNotNull(),
        F.sha2(F.concat(F.to_json(content).cast("binary"), F.col(f"`{image}`.data")), 256),
    )
    keyed = digits.withColumn("image_key", key)

    # labels and keys are small: brought to the driver once, so that no later action reads or decodes a picture again
    small = keyed.drop(image).toPandas()
    wanted = set(small["image_key"].dropna())
    there = set()
    if any(parts.glob("*.parquet")):  # an interrupted run leaves the folder without a whole file in it
        there = {row.image_key for row in spark.read.parquet(str(parts)).select("image_key").collect()}
    if missing := wanted - there:
        fresh = keyed.where(F.col("image_key").isNotNull()).select("image_key", image)
        if there:
            known = spark.createDataFrame([(k,) for k in sorted(there)], "image_key string")
            fresh = fresh.join(F.broadcast(known), "image_key", "left_anti")
        started = time.perf_counter()
        computed = (
            featurizer.copy({featurizer.errorCol: None})
            .transform(fresh)
            .select("image_key", F.col(f"`{output}`").alias("features"))
        )
        if progress is None:
            computed.write.mode("append").parquet(str(parts))
        else:
            ready = len(wanted & there)
            with _watched(spark, len(missing), lambda done: progress(ready + done, len(wanted))):
                computed.write.mode("append").parquet(str(parts))
        seconds = time.perf_counter() - started
        write_atomically(folder / "settings.json", json.dumps(fingerprint(featurizer), indent=1, sort_keys=True))
        run = {"images": len(missing), "seconds": seconds}
        write_atomically(folder / "runs" / f"{time.time():.3f}-{uuid.uuid4().hex[:8]}.json", json.dumps(run))
    if progress is not None:
        progress(len(wanted), len(wanted))
    schema = keyed.drop(image).schema
    rows = spark.createDataFrame(small.astype(object).where(small.notna(), None), schema)
    if not any(parts.glob("*.parquet")):
        raise ValueError("there is no image in this frame that could be featurized")
    features = spark.read.parquet(str(parts)).dropDuplicates(["image_key"]).withColumnRenamed("features", output)
    # one order of rows whatever computed them, so that what is printed of them does not wobble
    return (
        rows.join(features, "image_key", "left")
        .orderBy("path" if "path" in rows.columns else "image_key")
        .drop("image_key")
    )


def timing(path: str | Path, featurizer: DeepImageFeaturizer) -> dict[str, float]:
    """Images, seconds and images per second of the runs that computed this featurizer's features in the store at
    ``path``.
    """
    runs = [
        json.loads(p.read_text(encoding="utf8")) for p in sorted((folder_of(path, featurizer) / "runs").glob("*.json"))
    ]
    images, seconds = sum(r["images"] for r in runs), sum(r["seconds"] for r in runs)
    return {"images": images, "seconds": seconds, "images_per_second": images / seconds if seconds else float("nan")}
