"""Spark ML stages that run a network over images: what sparkdl's were, on Spark 4 and Keras 3.

``DeepImageFeaturizer`` gives the pooled output of any layer as an ML vector, ``DeepImagePredictor`` the class
probabilities, ``KerasImageTransformer`` what any other Keras model gives, and ``register_sql`` makes a function of SQL
of a stage that names classes. All take Spark's image struct (bytes in rows from the top, blue before green before red,
1, 3 or 4 channels).

**What happens to an image.** Grey becomes three equal channels, a fourth channel (alpha) is dropped, as Keras' own
``load_img`` does. Then one resize is the definition: Pillow's ``Image.resize((size, size), Image.Resampling.BILINEAR)``
on uint8, which averages over the source pixels when it makes an image smaller and does not keep the aspect ratio; an
image of the right size stays as it is. Then the network's own preprocessing and layers, in float32
(``helpers.networks.image_network`` and ``model_network``).

**What runs where.** Only the image column goes to Python; all others stay in the JVM. The driver exports the network
once (``export_graph`` and ``export_model`` there), and Spark's file service takes it to every executor, which need
neither internet nor a shared disk, only this package. A worker loads it once, lets go of it when there is nothing to
do, and uses as many threads as the task has cores. Features are the same to the last bit whatever the batch, the
partition or the number of workers.
"""

from __future__ import annotations

import ctypes
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyspark import SparkFiles, TaskContext, keyword_only
from pyspark.errors import PySparkException
from pyspark.ml import Transformer
from pyspark.ml.classification import LogisticRegression, LogisticRegressionModel
from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from helpers import networks
from helpers.spark import ship_package

IMAGE_FIELDS = {
    "height": T.IntegerType(),
    "width": T.IntegerType(),
    "nChannels": T.IntegerType(),
    "data": T.BinaryType(),
}

# -- in the worker ---------------------------------------------------------------------------------------------------


def pixels(height: int, width: int, channels: int, data: bytes | memoryview, size: int) -> np.ndarray:
    """One image of Spark's image struct as the network takes it: uint8 (size, size, 3), blue, green, red.

    Raises:
        ValueError: an image without pixels, with other than 1, 3 or 4 channels, or with too few or too many bytes.
    """
    if height <= 0 or width <= 0 or len(data) == 0:
        raise ValueError("the image is empty")
    if channels not in (1, 3, 4):
        raise ValueError(f"the image has {channels} channels, not 1, 3 or 4")
    if len(data) != height * width * channels:
        raise ValueError(f"the image has {len(data)} bytes, not {height} x {width} x {channels}")
    array = np.frombuffer(data, dtype=np.uint8).reshape(height, width, channels)
    array = array[:, :, 0] if channels == 1 else np.ascontiguousarray(array[:, :, :3])
    if (height, width) != (size, size):
        array = np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BILINEAR))
    return np.repeat(array[:, :, None], 3, axis=2) if channels == 1 else array


IDLE = 0.5  # seconds without a task before a worker lets go of its networks
_loaded: dict[tuple[str, int], tuple[Any, int]] = {}
_guard = threading.Lock()  # of _loaded
_idle: threading.Timer | None = None


@contextmanager
def graph_in_use(graph: str, threads: int, task: int) -> Iterator[Any]:
    """The compiled network, for one Arrow batch of images.

    Spark keeps workers that have nothing to do, and each would hold some 200 MiB. So a process lets go of its networks
    when there was no task for ``IDLE`` seconds; to load one again takes about as long.
    """
    global _idle
    if _idle is not None:
        _idle.cancel()
    with _guard:
        fresh = (graph, threads) not in _loaded
        network = load_graph(graph, threads, task)
    try:
        yield network
    finally:
        if fresh:
            _forget_file(graph)
        _watch()


def _watch() -> None:
    global _idle
    _idle = threading.Timer(IDLE, _let_go)
    _idle.daemon = True
    _idle.start()


def _let_go() -> None:
    if TaskContext.get() is not None:  # its next images are slow to come
        _watch()
        return
    with _guard:
        _loaded.clear()


def _forget_file(graph: str) -> None:
    """Take the file of weights out of this process's memory, where it stays mapped after OpenVINO has made a copy in
    the order it computes in: 83 MiB that no one reads again. What is read all the same comes from the file.
    """
    if sys.platform == "linux":
        name = Path(graph).with_suffix(".bin").name
        for line in Path("/proc/self/maps").read_text(encoding="utf8", errors="replace").splitlines():
            if line.endswith(name):
                start, end = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 4)  # MADV_DONTNEED


def load_graph(graph: str, threads: int, task: int) -> Any:
    """The compiled network, loaded once in a process and used by all its tasks.

    A network that the running task has not used yet goes when another one is loaded, so that a process keeps one of
    them in memory, or as many as one task needs.
    """
    import openvino

    if (graph, threads) not in _loaded:
        for other in [key for key, (_, last) in _loaded.items() if last != task]:
            del _loaded[other]
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # left alone it takes bfloat16 where the processor has it
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # pinned, the workers of a machine would all sit on its first core
        }
        network = openvino.Core().compile_model(graph, "CPU", settings)
    else:
        network, _ = _loaded[graph, threads]
    _loaded[graph, threads] = network, task
    return network


def run_network(network: Callable, images: pa.StructArray, size: int, batch_size: int) -> tuple[list, list]:
    """Outputs (float32 rows, ``None`` for an image that cannot be used) and reasons (``None`` where there is nothing to
    tell).
    """
    fields = [images.field(images.type.get_field_index(name)) for name in IMAGE_FIELDS]
    outputs: list = [None] * len(images)
    reasons: list = [None] * len(images)
    batch: list[np.ndarray] = []
    rows: list[int] = []

    def flush() -> None:
        if rows:
            for row, output in zip(rows, network([np.stack(batch)])[0], strict=True):
                outputs[row] = output
            batch.clear()
            rows.clear()

    for row in range(len(images)):
        if not images[row].is_valid:
            reasons[row] = "there is no image"
            continue
        height, width, channels, data = (field[row] for field in fields)
        try:
            batch.append(
                pixels(height.as_py() or 0, width.as_py() or 0, channels.as_py() or 0, data.as_buffer() or b"", size)
            )
        except ValueError as problem:
            reasons[row] = str(problem)
            continue
        rows.append(row)
        if len(rows) == batch_size:
            flush()
    flush()
    return outputs, reasons


def vectors_to_arrow(outputs: list) -> pa.Array:
    """Rows of numbers as an Arrow list<float> array."""
    return pa.array(outputs, pa.list_(pa.float32()))


CLASSES_TYPE = "array<struct<class: string, description: string, probability: float>>"


def top_classes(classes: list[tuple[str, str]], top: int) -> Callable[[list], pa.Array]:
    """Rows of probabilities to Arrow lists of their ``top`` most probable (class, description, probability)."""
    kind = pa.list_(pa.struct([("class", pa.string()), ("description", pa.string()), ("probability", pa.float32())]))

    def to_arrow(outputs: list) -> pa.Array:
        rows = [
            None if p is None else [(*classes[i], float(p[i])) for i in np.argsort(-p, kind="stable")[:top]]
            for p in outputs
        ]
        return pa.array(rows, kind)

    return to_arrow


def best_class(classes: list[tuple[str, str]]) -> Callable[[list], pa.Array]:
    """Rows of probabilities to the description of the most probable class of each."""
    return lambda outputs: pa.array(
        [None if p is None else classes[int(np.argmax(p))][1] for p in outputs], pa.string()
    )


# -- on the driver ---------------------------------------------------------------------------------------------------


def to_layers(value: object) -> list[str] | None:
    """Param converter of ``layer``: ``None``, a name or a list of names."""
    if value is None:
        return None
    names = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"layer takes a layer's name or a list of names, not {value!r}")
    return names or None


def to_handling(value: object) -> str:
    """Param converter of ``handleInvalid``: ``"keep"`` or ``"skip"``."""
    if value not in ("keep", "skip"):
        raise TypeError(f"handleInvalid takes 'keep' or 'skip', not {value!r}")
    return value


def to_size(value: object) -> int:
    """Param converter of whole numbers above 0."""
    number = TypeConverters.toInt(value)
    if number < 1:
        raise TypeError(f"{value!r} is not a number above 0")
    return number


def check_input(dataset: DataFrame, column: str) -> None:
    """Raise ``ValueError`` unless ``column`` is there and holds Spark's image struct."""
    if column not in dataset.columns:
        raise ValueError(f"there is no column {column!r}; the columns are {', '.join(dataset.columns)}")
    kind = dataset.schema[column].dataType
    fields = {f.name: f.dataType for f in kind.fields} if isinstance(kind, T.StructType) else {}
    if any(fields.get(name) != wanted for name, wanted in IMAGE_FIELDS.items()):
        raise ValueError(
            f"column {column!r} holds {kind.simpleString()}, not Spark's image struct; "
            'read images by helpers.numtadb.read_digits or spark.read.format("image")'
        )


def ship(spark: SparkSession, graph: Path) -> str:
    """Give the package and the graph to Spark's file service, once an application; the name workers ask for."""
    ship_package(spark)
    there = {Path(name).name for name in spark.sparkContext.listFiles}
    for path in (graph.with_suffix(".bin"), graph):
        if path.name not in there:
            spark.sparkContext.addFile(str(path))
    return graph.name


def read_params(stage: _ImageStage, path: str, metadata: dict[str, Any]) -> None:
    """Set a stage's uid and params from what was saved at ``path``.

    Raises:
        ValueError: another version of this package, with other params, saved it.
    """
    saved = metadata["paramMap"].keys() | metadata["defaultParamMap"].keys()
    stage._resetUid(metadata["uid"])
    try:
        if unknown := sorted(saved - {param.name for param in stage.params}):
            raise TypeError(f"{type(stage).__name__} has no param {unknown[0]!r}")
        DefaultParamsReader.getAndSetParams(stage, metadata)
    except TypeError as problem:
        raise ValueError(
            f"{path} was saved by another version of this package: {problem}; load it with that version, or make the "
            "stage anew and save it"
        ) from problem


class _WeightsWriter(MLWriter):
    """Saves the params and, beside them, what the weights were."""

    def __init__(self, stage: _NetworkStage) -> None:
        super().__init__()
        self.stage = stage

    def saveImpl(self, path: str) -> None:
        DefaultParamsWriter.saveMetadata(
            self.stage, path, self.sparkSession, extraMetadata={"weightsDigest": self.stage.weights_digest()}
        )


class _WeightsReader(MLReader):
    """Loads a stage and holds it to the weights it was saved with."""

    def __init__(self, cls: type[_NetworkStage]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> _NetworkStage:
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        stage = self.cls()
        read_params(stage, path, metadata)
        stage._saved_digest = metadata.get("weightsDigest")
        try:
            stage.weights_digest()
        except networks.WeightsUnavailable as problem:
            warnings.warn(stage._lost(problem), stacklevel=2)
        return stage


class _ImageStage(Transformer, HasInputCol, HasOutputCol, MLReadable, MLWritable):
    """What all stages share: params, checks, the way to the workers."""

    imageSize: Param[int] = Param(
        Params._dummy(), "imageSize", "height and width in pixels the network sees; None: the network's own", to_size
    )
    batchSize: Param[int] = Param(
        Params._dummy(), "batchSize", "images that go through the network together; None: by their size", to_size
    )
    errorCol: Param[str] = Param(
        Params._dummy(),
        "errorCol",
        "column for the reason where an image gave nothing; None: no such column",
        TypeConverters.toString,
    )

    handleInvalid: Param[str] = Param(
        Params._dummy(), "handleInvalid", "rows whose image gave nothing: keep them, or skip them", to_handling
    )

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(inputCol="image", imageSize=None, batchSize=None, errorCol=None, handleInvalid="keep")

    # Spark's style of getters and setters
    def getImageSize(self) -> int | None:
        return self.getOrDefault(self.imageSize)

    def getBatchSize(self) -> int | None:
        return self.getOrDefault(self.batchSize)

    def getErrorCol(self) -> str | None:
        return self.getOrDefault(self.errorCol)

    def getHandleInvalid(self) -> str:
        return self.getOrDefault(self.handleInvalid)

    def setInputCol(self, value: str) -> _ImageStage:
        return self._set(inputCol=value)

    def setOutputCol(self, value: str) -> _ImageStage:
        return self._set(outputCol=value)

    def setImageSize(self, value: int | None) -> _ImageStage:
        return self._set(imageSize=value) if value is not None else self._clear_and_return(self.imageSize)

    def setBatchSize(self, value: int | None) -> _ImageStage:
        return self._set(batchSize=value) if value is not None else self._clear_and_return(self.batchSize)

    def setErrorCol(self, value: str | None) -> _ImageStage:
        return self._set(errorCol=value) if value is not None else self._clear_and_return(self.errorCol)

    def setHandleInvalid(self, value: str) -> _ImageStage:
        return self._set(handleInvalid=value)

    def _clear_and_return(self, param: Param) -> _ImageStage:
        self.clear(param)
        return self

    def image_size(self) -> int:
        """Height and width in pixels the network sees."""
        raise NotImplementedError

    def batch_size(self) -> int:
        """Images that go through the network together: as many as was said, or as suits their size."""
        return self.getBatchSize() or networks.batch_size(self.image_size())

    def graph(self) -> Path:
        """The network as the graph that workers run (``helpers.networks``), made where it is not in the cache."""
        raise NotImplementedError

    def _check(self, dataset: DataFrame) -> None:
        check_input(dataset, self.getInputCol())
        if not self.isDefined(self.outputCol):
            raise ValueError("outputCol is not set")
        added = [name for name in (self.getOutputCol(), self.getErrorCol()) if name is not None]
        there = {name.lower() for name in dataset.columns}  # names differ by more than case, as Spark has it
        taken = [name for name in added if name.lower() in there]
        if taken:
            raise ValueError(
                f"there is a column {taken[0]!r} already; choose another outputCol or errorCol, or drop it"
            )
        if len(set(added)) < len(added):
            raise ValueError("outputCol and errorCol must differ")
        self.image_size()

    def _output(self) -> tuple[T.DataType, Callable[[list], pa.Array]]:
        """Type of the workers' output and the way to it."""
        return T.ArrayType(T.FloatType()), vectors_to_arrow

    def _column(self, output: Column) -> Column:
        """The output column from what the workers gave."""
        return F.when(output.isNotNull(), array_to_vector(output))

    def network_function(self, spark: SparkSession) -> Callable[[pa.StructArray], tuple[list, list]]:
        """What a worker runs over an Arrow batch of images, its network on the way to the executors: outputs (float32
        rows, ``None`` for an image that cannot be used) and reasons (``None`` where there is nothing to tell).
        """
        graph = ship(spark, self.graph())
        size, batch_size = self.image_size(), self.batch_size()
        threads = int(spark.conf.get("spark.task.cpus", "1"))

        def run(images: pa.StructArray) -> tuple[list, list]:
            with graph_in_use(SparkFiles.get(graph), threads, TaskContext.get().taskAttemptId()) as network:
                return run_network(network, images, size, batch_size)

        return run

    def _transform(self, dataset: DataFrame) -> DataFrame:
        self._check(dataset)
        kind, to_arrow = self._output()
        run = self.network_function(dataset.sparkSession)

        def featurize(images: pa.Array) -> pa.Array:
            outputs, reasons = run(images)
            columns = [to_arrow(outputs), pa.array(reasons, pa.string())]
            return pa.StructArray.from_arrays(columns, names=["output", "error"])

        result = T.StructType([T.StructField("output", kind), T.StructField("error", T.StringType())])
        made = f"{self.uid}__output"
        frame = dataset.withColumn(made, F.arrow_udf(featurize, result)(F.col(f"`{self.getInputCol()}`")))
        frame = frame.withColumn(self.getOutputCol(), self._column(F.col(f"`{made}`.output")))
        inner, skip = f"{self.uid}__error", self.getHandleInvalid() == "skip"
        why = self.getErrorCol() or inner
        if self.getErrorCol() is not None or skip:
            # a filter on this column would be pushed below the network, which then ran twice, but not past a regular
            # expression
            reason = F.col(f"`{made}`.error")
            frame = frame.withColumn(why, F.when(reason.rlike(""), reason))
        if skip:
            frame = frame.where(F.col(f"`{why}`").isNull())
        return frame.drop(made, inner)


class _NetworkStage(_ImageStage):
    """What featurizer and predictor share: a network of ``keras.applications`` by name, its weights, save and load."""

    modelName: Param[str] = Param(
        Params._dummy(), "modelName", f"network: {', '.join(networks.NETWORKS)}", TypeConverters.toString
    )
    weights: Param[str] = Param(
        Params._dummy(),
        "weights",
        "imagenet, glyphs, random or the path of a Keras weights file",
        TypeConverters.toString,
    )

    def __init__(self) -> None:
        super().__init__()
        self._saved_digest: str | None = None
        self._setDefault(modelName="InceptionV3", weights="imagenet")

    def getModelName(self) -> str:
        return self.getOrDefault(self.modelName)

    def getWeights(self) -> str:
        return self.getOrDefault(self.weights)

    def setModelName(self, value: str) -> _NetworkStage:
        return self._set(modelName=value)

    def setWeights(self, value: str) -> _NetworkStage:
        return self._set(weights=value)

    def write(self) -> MLWriter:
        """Spark ML's writer: ``stage.write().overwrite().save(path)``."""
        return _WeightsWriter(self)

    @classmethod
    def read(cls) -> MLReader:
        """Spark ML's reader."""
        return _WeightsReader(cls)

    def image_size(self) -> int:
        """Height and width in pixels the network sees: ``imageSize``, or the network's own."""
        return networks.check_size(self.getModelName(), self.getImageSize())

    def weights_digest(self) -> str:
        """What tells this stage's weights from others (``helpers.networks.weights_digest``).

        Raises:
            WeightsUnavailable: their file is not there.
            ValueError: they are not the weights this stage was saved with.
        """
        digest = networks.weights_digest(self.getModelName(), self.getWeights())
        if self._saved_digest not in (None, digest):
            raise ValueError(
                f"weights={self.getWeights()!r} ({digest}) are not the weights this stage was saved with "
                f"({self._saved_digest}); give it those by setWeights(path)"
            )
        return digest

    def _lost(self, problem: Exception) -> str:
        saved = f"this stage was saved with weights of digest {self._saved_digest}"
        return f"{problem}; {saved}: give it their file by setWeights(path)"

    def _check(self, dataset: DataFrame) -> None:
        super()._check(dataset)
        try:
            self.weights_digest()
        except networks.WeightsUnavailable as problem:
            raise networks.WeightsUnavailable(self._lost(problem) if self._saved_digest else str(problem)) from None

    def _graph(self) -> dict[str, Any]:
        """Arguments of ``helpers.networks.export_graph``."""
        return {"name": self.getModelName(), "weights": self.getWeights(), "image_size": self.getImageSize()}

    def graph(self) -> Path:
        return networks.export_graph(**self._graph())


class DeepImageFeaturizer(_NetworkStage):
    """Features of images: the pooled output of one or more layers of a pretrained network, as an ML vector.

    Args (each a Param, with getter and setter in Spark's style):
        inputCol: column of Spark's image struct.
        outputCol: column for the features, an ML vector of doubles that hold float32 values.
        modelName: InceptionV3, Xception, ResNet50, VGG16 or VGG19.
        weights: ``"imagenet"``, ``"glyphs"``, ``"random"`` or the path of a Keras weights file of that network.
        layer: any layer by name, or a list of them (their features side by side); ``None`` is the last one.
        pooling: ``"avg"`` or ``"max"`` over the map, or ``"flatten"``: all of it (at the last layer what sparkdl gave).
        imageSize: height and width in pixels the network sees; ``None`` is the network's own size.
        batchSize: images that go through the network together, which features do not depend on; ``None`` is what suits
            their size (``helpers.networks.batch_size``).
        errorCol: column for the reason where an image gave null features; ``None`` is no such column.
        handleInvalid: ``"keep"`` a row whose image gave none, with null features, or ``"skip"`` it, as a classifier
            behind this stage in a Pipeline needs it.

    An image that cannot be used (null, empty, bytes that do not fit) gets null features, and the job goes on.

    Raises, in ``transform`` and on the driver:
        ValueError: a missing column, one that holds no images, an output that is there already; an unknown network,
            layer or pooling; a size too small for the network.
        WeightsUnavailable: weights that cannot be had here.
    """

    layer: Param[list[str] | None] = Param(
        Params._dummy(),
        "layer",
        "layer or list of layers whose outputs are the features; None: the last one",
        to_layers,
    )
    pooling: Param[str] = Param(
        Params._dummy(),
        "pooling",
        f"how a map becomes numbers: {', '.join(networks.POOLINGS)}",
        TypeConverters.toString,
    )

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "image",
        outputCol: str = "features",
        modelName: str = "InceptionV3",
        weights: str = "imagenet",
        layer: str | list[str] | None = None,
        pooling: str = "avg",
        imageSize: int | None = None,
        batchSize: int | None = None,
        errorCol: str | None = None,
        handleInvalid: str = "keep",
    ) -> None:
        super().__init__()
        self._setDefault(outputCol="features", layer=None, pooling="avg")
        self._set(**self._input_kwargs)

    @keyword_only
    def setParams(self, **kwargs: object) -> DeepImageFeaturizer:
        """Set any of the params."""
        return self._set(**self._input_kwargs)

    def getLayer(self) -> list[str] | None:
        return self.getOrDefault(self.layer)

    def getPooling(self) -> str:
        return self.getOrDefault(self.pooling)

    def setLayer(self, value: str | list[str] | None) -> DeepImageFeaturizer:
        return self._set(layer=value) if value is not None else self._clear_and_return(self.layer)

    def setPooling(self, value: str) -> DeepImageFeaturizer:
        return self._set(pooling=value)

    def _graph(self) -> dict[str, Any]:
        return super()._graph() | {"layers": self.getLayer() or (), "pooling": self.getPooling()}


class _Classes(_ImageStage):
    """What stages share whose output are probabilities of classes that have names."""

    decodePredictions: Param[bool] = Param(
        Params._dummy(), "decodePredictions", "give the most probable classes by name", TypeConverters.toBoolean
    )
    topK: Param[int] = Param(Params._dummy(), "topK", "how many classes decodePredictions gives", to_size)

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(outputCol="predicted", decodePredictions=False, topK=5)

    def getDecodePredictions(self) -> bool:
        return self.getOrDefault(self.decodePredictions)

    def getTopK(self) -> int:
        return self.getOrDefault(self.topK)

    def setDecodePredictions(self, value: bool) -> _Classes:
        return self._set(decodePredictions=value)

    def setTopK(self, value: int) -> _Classes:
        return self._set(topK=value)

    def class_names(self) -> list[tuple[str, str]]:
        """(class, description) of each output of the network."""
        raise NotImplementedError

    def _output(self) -> tuple[T.DataType, Callable[[list], pa.Array]]:
        if not self.getDecodePredictions():
            return super()._output()
        return T._parse_datatype_string(CLASSES_TYPE), top_classes(self.class_names(), self.getTopK())

    def _column(self, output: Column) -> Column:
        return output if self.getDecodePredictions() else super()._column(output)


class DeepImagePredictor(_Classes, _NetworkStage):
    """Class probabilities of images from a network with its classification head.

    Args: as ``DeepImageFeaturizer`` has them, without layer and pooling, and
        decodePredictions: give the most probable classes, array<struct<class, description, probability>> in falling
            order, instead of the vector of all probabilities.
        topK: how many of them.

    ImageNet's class names are downloaded by Keras; ``weights="glyphs"`` carry their own. A weights file is taken to
    have ImageNet's classes.
    """

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "image",
        outputCol: str = "predicted",
        modelName: str = "InceptionV3",
        weights: str = "imagenet",
        imageSize: int | None = None,
        batchSize: int | None = None,
        errorCol: str | None = None,
        handleInvalid: str = "keep",
        decodePredictions: bool = False,
        topK: int = 5,
    ) -> None:
        super().__init__()
        self._set(**self._input_kwargs)

    @keyword_only
    def setParams(self, **kwargs: object) -> DeepImagePredictor:
        """Set any of the params."""
        return self._set(**self._input_kwargs)

    def _graph(self) -> dict[str, Any]:
        return super()._graph() | {"include_top": True}

    def class_names(self) -> list[tuple[str, str]]:
        return networks.class_names(self.getModelName(), self.getWeights()) or networks.imagenet_classes()


class FeatureClassifier(LogisticRegression):
    """Spark's logistic regression, which says how many rows have null features where it cannot be fitted for them.

    Raises, in ``fit``:
        ValueError: null features.
    """

    def _fit(self, dataset: DataFrame) -> LogisticRegressionModel:
        try:
            return super()._fit(dataset)
        except PySparkException:
            column = self.getFeaturesCol()
            if not (nulls := dataset.where(F.col(column).isNull()).count()):
                raise
            raise ValueError(
                f"column {column!r} is null in {nulls} of {dataset.count()} rows, whose images gave no features; "
                f'leave them out by .where("{column} IS NOT NULL"), or in a Pipeline by handleInvalid="skip" of the '
                "featurizer"
            ) from None


# -- any other Keras model -------------------------------------------------------------------------------------------

MODEL_FILE = "model.keras"  # of a stage, in the folder it is saved in


@lru_cache(maxsize=1)
def _models_folder() -> tempfile.TemporaryDirectory:
    """Folder of this process for models that have no file of their own, removed when it ends."""
    return tempfile.TemporaryDirectory(prefix="keras-models-")


def _new_model_file() -> Path:
    return Path(tempfile.mkdtemp(dir=_models_folder().name)) / MODEL_FILE


def to_model_file(value: object) -> str:
    """Param converter of ``model``: the path of a ``.keras`` file, or a Keras model, which is written into one."""
    if isinstance(value, str | Path):
        return str(value)
    keras = sys.modules.get("keras")  # whoever has a Keras model has imported it
    if keras is None or not isinstance(value, keras.Model):
        raise TypeError(f"model takes the path of a .keras file or a Keras model, not {type(value).__name__}")
    file = _new_model_file()
    value.save(file)
    return str(file)


def to_names(value: object) -> list[str] | None:
    """Param converter of ``classes``: a list of names, ``None`` for none."""
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"classes takes a list of names, not {value!r}")
    return list(value)


def _copy_file(spark: SparkSession, source: str, target: str) -> None:
    """Copy a file between any two places that Hadoop knows: this machine, HDFS, an object store."""
    context = spark.sparkContext
    hadoop = context._jvm.org.apache.hadoop.fs
    conf = context._jsc.hadoopConfiguration()
    source, target = hadoop.Path(source), hadoop.Path(target)
    hadoop.FileUtil.copy(source.getFileSystem(conf), source, target.getFileSystem(conf), target, False, True, conf)


class _ModelWriter(MLWriter):
    """Saves the params and, beside them, the model itself as a ``.keras`` file."""

    def __init__(self, stage: KerasImageTransformer) -> None:
        super().__init__()
        self.stage = stage

    def saveImpl(self, path: str) -> None:
        stage = self.stage
        params = {param.name: value for param, value in stage._paramMap.items()} | {"model": MODEL_FILE}
        digest = {"modelDigest": networks.model_digest(stage.getModel())}
        DefaultParamsWriter.saveMetadata(stage, path, self.sparkSession, extraMetadata=digest, paramMap=params)
        file = networks.check_model_file(stage.getModel()).resolve()
        _copy_file(self.sparkSession, file.as_uri(), f"{path.rstrip('/')}/{MODEL_FILE}")


class _ModelReader(MLReader):
    """Loads a stage with its model, which is copied: the stage does not need the folder any longer."""

    def __init__(self, cls: type[KerasImageTransformer]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> KerasImageTransformer:
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        file = _new_model_file()
        _copy_file(self.sparkSession, f"{path.rstrip('/')}/{MODEL_FILE}", file.as_uri())
        if networks.model_digest(file) != metadata.get("modelDigest"):
            raise ValueError(f"{MODEL_FILE} in {path} is not the model that this stage was saved with")
        stage = self.cls()
        read_params(stage, path, metadata)
        return stage.setModel(file)


class KerasImageTransformer(_Classes):
    """What a Keras model of your own gives for images: its output as an ML vector, or its classes by name.

    Args (each a Param, with getter and setter in Spark's style):
        inputCol: column of Spark's image struct.
        outputCol: column for the output: features, or probabilities.
        model: path of a ``.keras`` file, or a Keras model, which is written into one at once (later training does not
            change the stage). It takes one square image, channels last, of three channels or one (grey,
            ``helpers.networks.GREY_OF_RGB``), and gives one output; a map becomes one row, channels last.
        preprocess: what becomes of the pixels, 0 to 255, before the model sees them:
            ``helpers.networks.PREPROCESSINGS``; ``"none"`` is for a model that scales them itself.
        classes: names of the classes, in the order of the outputs; ``None`` numbers them from 0.
        imageSize: height and width in pixels for a model that takes any; ``None`` is the model's own size.
        batchSize: images that go through the network together, as in ``DeepImageFeaturizer``.
        errorCol: column for the reason where an image gave nothing; ``None`` is no such column.
        handleInvalid: ``"keep"`` a row whose image gave nothing, or ``"skip"`` it.
        decodePredictions: give the most probable classes, array<struct<class, description, probability>> in falling
            order (``class`` the number, ``description`` the name), instead of the vector. The model's output must be
            probabilities.
        topK: how many of them.

    The model's file is loaded in Keras' safe mode only. It travels with the job as a graph, and inside the folder when
    the stage is saved.

    Raises, in ``transform`` and on the driver:
        FileNotFoundError: there is no such file.
        ValueError: a file that is no ``.keras`` file, that has a Lambda layer or other code; a model that takes or
            gives something else, or that OpenVINO cannot run; an unknown preprocessing; a wrong number of classes; the
            columns, as ``DeepImageFeaturizer``.
    """

    model: Param[str] = Param(
        Params._dummy(), "model", "path of a .keras file, or a Keras model, which is written into one", to_model_file
    )
    preprocess: Param[str] = Param(
        Params._dummy(),
        "preprocess",
        f"what becomes of the pixels: {', '.join(networks.PREPROCESSINGS)}",
        TypeConverters.toString,
    )
    classes: Param[list[str] | None] = Param(
        Params._dummy(), "classes", "names of the classes, in the order of the outputs; None: their numbers", to_names
    )

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "image",
        outputCol: str = "predicted",
        model: str | Path | object = None,
        preprocess: str = "none",
        classes: list[str] | None = None,
        imageSize: int | None = None,
        batchSize: int | None = None,
        errorCol: str | None = None,
        handleInvalid: str = "keep",
        decodePredictions: bool = False,
        topK: int = 5,
    ) -> None:
        super().__init__()
        self._setDefault(preprocess="none", classes=None)
        self._set(**self._input_kwargs)

    @keyword_only
    def setParams(self, **kwargs: object) -> KerasImageTransformer:
        """Set any of the params."""
        return self._set(**self._input_kwargs)

    def getModel(self) -> str:
        return self.getOrDefault(self.model)

    def getPreprocess(self) -> str:
        return self.getOrDefault(self.preprocess)

    def getClasses(self) -> list[str] | None:
        return self.getOrDefault(self.classes)

    def setModel(self, value: str | Path | object) -> KerasImageTransformer:
        return self._set(model=value)

    def setPreprocess(self, value: str) -> KerasImageTransformer:
        return self._set(preprocess=value)

    def setClasses(self, value: list[str] | None) -> KerasImageTransformer:
        return self._set(classes=value) if value is not None else self._clear_and_return(self.classes)

    def write(self) -> MLWriter:
        """Spark ML's writer: ``stage.write().overwrite().save(path)``."""
        return _ModelWriter(self)

    @classmethod
    def read(cls) -> MLReader:
        """Spark ML's reader."""
        return _ModelReader(cls)

    def graph(self) -> Path:
        if not self.isDefined(self.model):
            raise ValueError("model is not set; give the path of a .keras file or a Keras model")
        return networks.export_model(self.getModel(), self.getPreprocess(), self.getImageSize())

    def image_size(self) -> int:
        return networks.graph_shape(self.graph())[0]

    def class_names(self) -> list[tuple[str, str]]:
        _, outputs = networks.graph_shape(self.graph())
        names = self.getClasses() or [str(number) for number in range(outputs)]
        if len(names) != outputs:
            raise ValueError(f"classes has {len(names)} names, and the model gives {outputs} numbers")
        return [(str(number), name) for number, name in enumerate(names)]

    def _check(self, dataset: DataFrame) -> None:
        super()._check(dataset)
        self.class_names()


def register_sql(spark: SparkSession, name: str, stage: _Classes, top: int | None = None) -> None:
    """Make a stage a function of SQL: ``SELECT digit(image) FROM digits``.

    Args:
        spark: the session whose SQL gets the function; there until the session ends.
        name: of the function.
        stage: a ``KerasImageTransformer`` or ``DeepImagePredictor``; its columns, ``decodePredictions`` and ``topK``
            are not used.
        top: ``None`` gives the most probable class by its description, a string; a number so many classes,
            array<struct<class, description, probability>>, most probable first.

    An image that cannot be used gives null.

    Raises:
        ValueError: a name that SQL does not take without quotes, or what the stage itself refuses.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is no name of a function: letters, digits and _, not a digit first")
    if top is not None:
        to_size(top)
    classes = stage.class_names()
    kind, to_arrow = ("string", best_class(classes)) if top is None else (CLASSES_TYPE, top_classes(classes, top))
    run = stage.network_function(spark)

    def classify(images: pa.Array) -> pa.Array:
        if not pa.types.is_struct(images.type) or not IMAGE_FIELDS.keys() <= {field.name for field in images.type}:
            raise ValueError(f"{name} takes Spark's image struct, not {images.type}")
        return to_arrow(run(images)[0])

    spark.udf.register(name, F.arrow_udf(classify, kind))
