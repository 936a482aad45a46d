"""Features kept and resumed: a network runs once over an image, however often its features are asked for.

A store is a folder of Parquet files, one sub-folder a featurizer: its name holds everything that changes a feature
(network, digest of the weights, layers, pooling, size, versions of what computes them), and so does each file. In it,
features are keyed by the image itself (SHA-256 of its shape and bytes), so that labels, paths and splits may change
without anything being computed again.

A worker writes the features of each Arrow batch (64 images) as a file of its own, whole or not at all, as soon as they
are computed. Whatever is killed then, driver or worker, what was finished is found by the next run. When all are there
the driver puts the small files of a run together into one.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.errors import PythonException
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from helpers.featurizer import check_input
from helpers.spark import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql.types import StructType

    from helpers.featurizer import DeepImageFeaturizer

PACKAGES = ("openvino", "keras", "pillow")  # whose versions change what a feature is
FORMAT = 2  # of the files; raised when they, or how features are computed here, change
SETTINGS = b"numtadb.settings"  # where a file's metadata keep the fingerprint it was made with
KEY = "__image_key"  # column beside those of the caller's frame
SCHEMA = pa.schema({"image_key": pa.string(), "features": pa.list_(pa.float32())})  # of the files
GROUP = 256  # rows of a row group in a file put together from small ones; Spark unpacks one a task into its heap
SUPERSEDED_AFTER = 24 * 3600  # seconds that small files stay for frames that still read them

# -- what is in a store ----------------------------------------------------------------------------------------------


def fingerprint(featurizer: DeepImageFeaturizer) -> dict[str, object]:
    """Everything that changes a feature of this featurizer."""
    return {
        "network": featurizer.getModelName(),
        "weights": featurizer.weights_digest(),
        "layer": featurizer.getLayer(),
        "pooling": featurizer.getPooling(),
        "image_size": featurizer.image_size(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES} | {"store": FORMAT},
    }


def _settings(featurizer: DeepImageFeaturizer) -> str:
    return json.dumps(fingerprint(featurizer), sort_keys=True)


def folder_of(path: str | Path, featurizer: DeepImageFeaturizer) -> Path:
    """The sub-folder of the store at ``path`` that holds this featurizer's features."""
    digest = hashlib.sha256(_settings(featurizer).encode()).hexdigest()
    return Path(path).resolve() / f"{featurizer.getModelName()}-{digest[:16]}"


def _files(folder: Path) -> list[Path]:
    """The files of features in force: a run's one file put together, or its small ones.

    Names are RUN.parquet and RUN-TASK-BATCH.parquet; what is being written begins with a dot.
    """
    names = {file.stem: file for file in (folder / "features").glob("[!.]*.parquet")}
    return [file for name, file in sorted(names.items()) if "-" not in name or name.partition("-")[0] not in names]


def _write(groups: Iterable[pa.Table], file: Path, settings: str) -> None:
    """Write a file of the store, a row group a table, whole or not at all; a machine may stop right after."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}.unfinished")
    try:
        with open(unfinished, "xb") as out:
            with pq.ParquetWriter(out, SCHEMA.with_metadata({SETTINGS: settings}), write_page_checksum=True) as writer:
                for table in groups:
                    writer.write_table(table)
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(file: Path, settings: str, columns: list[str] | None = None) -> pa.Table:
    """A file of the store.

    Raises:
        OSError, pyarrow.ArrowException: it is torn or damaged.
        ValueError: its features were made with other settings.
    """
    table = pq.read_table(file, columns=columns, page_checksum_verification=True)
    if (table.schema.metadata or {}).get(SETTINGS, b"").decode() != settings:
        raise ValueError("it was made with other settings")
    return table


def _keys(folder: Path, settings: str) -> set[str]:
    """Keys of all features in the store."""
    return {key for file in _files(folder) for key in _read(file, settings, ["image_key"])["image_key"].to_pylist()}


def _sound_keys(folder: Path, settings: str) -> set[str]:
    """Keys of all features in the store, after a look at every file: what is damaged or foreign is set aside."""
    keys: set[str] = set()
    for file in _files(folder):
        try:
            keys.update(_read(file, settings)["image_key"].to_pylist())
        except (OSError, pa.ArrowException, ValueError, KeyError) as problem:
            aside = folder / "damaged" / file.name
            aside.parent.mkdir(exist_ok=True)
            os.replace(file, aside)
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            warnings.warn(
                f"{file} cannot be used ({reason}); it was moved to {aside.parent}, and what is missing is computed "
                "again",
                stacklevel=3,
            )
    return keys


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of at least ``GROUP``, but for the last."""
    together: list[pa.Table] = []
    for table in tables:
        together.append(table)
        if sum(map(len, together)) >= GROUP:
            yield pa.concat_tables(together)
            together = []
    if together:
        yield pa.concat_tables(together)


def _put_together(folder: Path, run: str, settings: str) -> None:
    """One file of all that a run computed; its small files go a day later, as frames may still read them."""
    small = [file for file in _files(folder) if file.stem.partition("-")[0] == run]
    if len(small) > 1:
        tables = (_read(file, settings) for file in small)
        _write(_grouped(tables), folder / "features" / f"{run}.parquet", settings)
    in_force = set(_files(folder))
    for file in [*(folder / "features").glob("*.parquet"), *(folder / "features").glob(".*.unfinished")]:
        if file not in in_force and time.time() - file.stat().st_mtime > SUPERSEDED_AFTER:
            file.unlink(missing_ok=True)


# -- in the worker ---------------------------------------------------------------------------------------------------


def image_keys(images: pa.StructArray) -> list[str | None]:
    """SHA-256 of each image's shape and bytes; ``None`` where there is no image."""
    height, width, channels, data = (
        images.field(images.type.get_field_index(name)) for name in ("height", "width", "nChannels", "data")
    )
    keys: list[str | None] = []
    for row in range(len(images)):
        if not images[row].is_valid:
            keys.append(None)
            continue
        shape = f"{height[row].as_py()} {width[row].as_py()} {channels[row].as_py()} "
        keys.append(hashlib.sha256(shape.encode() + (data[row].as_py() or b"")).hexdigest())
    return keys


@lru_cache(maxsize=1)
def _found(folder: str, settings: str, run: str, attempt: int) -> set[str]:
    """Keys in the store as a worker finds them: once a run, and again where a task is tried again."""
    return _keys(Path(folder), settings)


def storing_function(
    run_network: Callable[[pa.StructArray], tuple[list, list]], folder: str, settings: str, run: str
) -> Callable[[pa.Array], pa.Array]:
    """The function a Spark worker runs over its Arrow batches of images: it adds the features that the store lacks and
    gives each image's key and whether its features are there.
    """

    def store(images: pa.Array) -> pa.Array:
        task = TaskContext.get()
        there = _found(folder, settings, run, task.attemptNumber() and task.taskAttemptId())
        keys = image_keys(images)
        rows = [row for row, key in enumerate(keys) if key is not None and keys.index(key) == row and key not in there]
        name = f"{run}-{task.partitionId()}-{uuid.uuid4().hex[:12]}"
        if rows:
            outputs, _ = run_network(images.take(pa.array(rows)))
            made = {keys[row]: output for row, output in zip(rows, outputs, strict=True) if output is not None}
            if made:
                table = pa.table([list(made), list(made.values())], schema=SCHEMA)
                _write([table], Path(folder) / "features" / f"{name}.parquet", settings)
                there.update(made)
        _tell(Path(folder) / "progress" / run, task.partitionId(), task.taskAttemptId(), len(images))
        stored = pa.array([key in there for key in keys])
        return pa.StructArray.from_arrays([pa.array(keys, pa.string()), stored], names=["key", "stored"])

    return store


def _tell(folder: Path, partition: int, attempt: int, images: int) -> None:
    """Say how many images more a task is done with: in a file's name, an attempt after the other."""
    if folder.is_dir():  # a driver is listening
        (folder / f"{partition} {attempt} {images} {uuid.uuid4().hex}").touch()


# -- on the driver ---------------------------------------------------------------------------------------------------


def on_screen() -> bool:
    """Is someone looking? In a notebook with a reader in front of it, or in a terminal.

    nbval, papermill and nbconvert run a notebook without anybody to answer a question, and say so to the kernel.
    """
    if "IPython" in sys.modules:
        from IPython import get_ipython

        kernel = getattr(get_ipython(), "kernel", None)
        if kernel is not None:
            return bool(getattr(kernel, "_allow_stdin", False))
    return sys.stderr.isatty()


@contextmanager
def _watched(folder: Path, say: Callable[[int], None] | None) -> Iterator[None]:
    """While the body runs, ``say`` how many images its tasks are done with. A task that is tried again counts anew."""
    if say is None:
        yield
        return
    folder.mkdir(parents=True)
    over = threading.Event()

    def watch() -> None:
        said = 0
        while not over.wait(0.3):
            by_task: dict[tuple[str, str], int] = {}
            for name in os.listdir(folder):
                partition, attempt, images, _ = name.split()
                by_task[partition, attempt] = by_task.get((partition, attempt), 0) + int(images)
            best: dict[str, int] = {}
            for (partition, _), images in by_task.items():
                best[partition] = max(best.get(partition, 0), images)
            if (done := sum(best.values())) > said and not over.is_set():
                said = done
                say(done)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


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
        path: folder of the store, made where it is not there; executors on other machines must share it.
        progress: called, from another thread, with the number of images done and the number of all. Without it a bar
            shows images done, images per second and time left where someone looks (``on_screen``).

    Returns:
        The columns of ``digits`` but the image, and the featurizer's output column (ML vector of float32 values); null
        features where an image gave none. Read from the store: no action on it runs the network.

    Raises:
        ValueError: a missing column, one that holds no images, an output that is there already, or no image at all.
        RuntimeError: executors wrote to a folder that this machine does not see.
        OSError: the disk is full; what was finished is kept, and the same call goes on from there.
    """
    image, output = featurizer.getInputCol(), featurizer.getOutputCol()
    check_input(digits, image)
    if output in digits.columns:
        raise ValueError(f"there is a column {output!r} already; choose another outputCol, or drop it")
    spark, folder, settings, run = digits.sparkSession, folder_of(path, featurizer), _settings(featurizer), _new_run()
    network = featurizer.network_function(spark)
    there = _sound_keys(folder, settings)
    started = time.perf_counter()

    # Labels and keys are small: brought to the driver once, so that no later action reads or decodes a picture again.
    store = F.arrow_udf(storing_function(network, str(folder), settings, run), "key string, stored boolean")
    keyed = digits.withColumn("__store", store(F.col(f"`{image}`"))).drop(image)
    keyed = keyed.withColumns({KEY: F.col("__store.key"), "__stored": F.col("__store.stored")}).drop("__store")
    with _told_if_full(folder):
        with _shown(digits, progress) as say, _watched(folder / "progress" / run, say):
            small = keyed.toPandas()
        seconds = time.perf_counter() - started
        _put_together(folder, run, settings)
        stored = small.pop("__stored").astype(bool)
        if computed := set(small.loc[stored, KEY]) - there:
            if lost := computed - _keys(folder, settings):
                raise RuntimeError(
                    f"{len(lost)} images' features are not in {folder}: give a folder that all executors share"
                )
            write_atomically(folder / "settings.json", json.dumps(fingerprint(featurizer), indent=1, sort_keys=True))
            write_atomically(folder / "runs" / f"{run}.json", json.dumps({"images": len(computed), "seconds": seconds}))
    if not stored.any():
        raise ValueError("there is no image in this frame that could be featurized")
    return _joined(small, keyed.drop("__stored").schema, _files(folder), spark, output)


@contextmanager
def _told_if_full(folder: Path) -> Iterator[None]:
    """One clear sentence where a full disk ends what the body does, on the driver or in a worker."""
    try:
        yield
    except (OSError, PythonException) as problem:
        if not any(f"[Errno {number}]" in str(problem) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise
        told = "no space left while features were stored; those that were finished are kept: make room and run it again"
        raise OSError(errno.ENOSPC, told, str(folder)) from None


def _new_run() -> str:
    """Name of a run, in the order of time."""
    return f"{time.time_ns():020d}{uuid.uuid4().hex[:8]}"


@contextmanager
def _shown(digits: DataFrame, progress: Callable[[int, int], None] | None) -> Iterator[Callable[[int], None] | None]:
    """What to call with the number of images done: the caller's function, a bar, or nothing where no one looks."""
    if progress is None and not on_screen():
        yield None
        return
    total = digits.count()  # of rows: no picture is decoded for it
    if progress is not None:
        yield lambda done: progress(done, total)
        progress(total, total)
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit=" images") as bar:
        yield lambda done: bar.update(done - bar.n)
        bar.update(total - bar.n)  # the last batches have not been told; after an error the bar stays where it was


def _joined(small: pd.DataFrame, schema: StructType, files: list[Path], spark: SparkSession, output: str) -> DataFrame:
    """The frame's other columns, as they came with the keys, beside the stored features."""
    rows = spark.createDataFrame(small.astype(object).where(small.notna(), None), schema)
    reader = spark.read.schema("image_key string, features array<float>")
    # Spark takes a path for a pattern
    paths = [re.sub(r"[\\{}\[\]*?]", r"\\\g<0>", str(file)) for file in files]
    stored = reader.option("parquet.page.verify-checksum.enabled", "true").parquet(*paths)
    features = stored.dropDuplicates(["image_key"]).select(
        F.col("image_key").alias(KEY), array_to_vector(F.col("features").cast("array<double>")).alias(output)
    )
    # one order of rows whatever computed them, so that what is printed of them does not wobble
    return rows.join(features, KEY, "left").orderBy("path" if "path" in rows.columns else KEY).drop(KEY)


def timing(path: str | Path, featurizer: DeepImageFeaturizer) -> dict[str, float]:
    """Images, seconds and images per second of the runs that computed this featurizer's features in the store at
    ``path``; reading the pictures is in it.
    """
    runs = [
        json.loads(p.read_text(encoding="utf8")) for p in sorted((folder_of(path, featurizer) / "runs").glob("*.json"))
    ]
    images, seconds = sum(r["images"] for r in runs), sum(r["seconds"] for r in runs)
    return {"images": images, "seconds": seconds, "images_per_second": images / seconds if seconds else float("nan")}
