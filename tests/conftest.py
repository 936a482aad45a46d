"""What the tests share: one Spark session, pictures, Spark's image struct, small data sets, a count of network runs."""

import csv
import importlib
import io
import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before anything imports TensorFlow

import numpy as np
import pytest
from PIL import Image

from helpers import featurizer, networks, numtadb
from helpers.spark import start_spark

# The cheapest featurizer: a graph of 7 MB and 256 features. Tests that need just any network share it.
FAST = {"modelName": "VGG16", "weights": "random", "layer": "block3_pool", "imageSize": 32}
# Many small jobs: a JVM that compiles little and has one thread for garbage takes half the processor time over them.
HASTY_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
BANDS = {1: "L", 3: "RGB", 4: "RGBA"}


def pytest_configure(config: pytest.Config) -> None:
    # Keras' own: how its variables become arrays, and what it says before it refuses a weights file
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:Skipping nested container")


@pytest.fixture(scope="session")
def spark():
    session = start_spark("tests", spark_driver_extraJavaOptions=HASTY_JAVA)
    yield session
    session.stop()


@pytest.fixture
def benchmark(monkeypatch):
    """A module of tests/benchmarks by name; its siblings are found as when it runs as a program."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory) -> Path:
    """Random weights of VGG16 in a file, as Keras writes it."""
    file = tmp_path_factory.mktemp("weights") / "vgg16.weights.h5"
    networks.build_network("VGG16", "random", image_size=FAST["imageSize"]).save_weights(file)
    return file


def picture(number: int, height: int = 40, width: int = 30, channels: int = 3) -> Image.Image:
    """A picture that no other number has: its own colour, a ramp and noise, so that channels and pictures differ."""
    rng = np.random.default_rng(number)
    colour = rng.integers(20, 236, channels)
    ramp = np.linspace(-60, 60, width)[None, :, None] * rng.uniform(-1, 1, channels)
    noise = rng.normal(0, 25, (height, width, channels))
    pixels = np.clip(colour + ramp + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, BANDS[channels])


def struct(image: Image.Image, origin: str = "here") -> tuple:
    """Spark's image struct of a picture, made apart from the project's own code: OpenCV's order of channels."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    channels = pixels.shape[2]
    bgr = pixels[:, :, [2, 1, 0, 3][:channels]] if channels > 1 else pixels
    return origin, image.height, image.width, channels, {1: 0, 3: 16, 4: 24}[channels], bgr.tobytes()


def image_frame(spark, images: Iterable[Image.Image | tuple | None], partitions: int = 2):
    """Rows number, image: pictures, image structs as they are, or null."""
    rows = [(i, struct(im) if isinstance(im, Image.Image) else im) for i, im in enumerate(images)]
    schema = f"number int, image {numtadb.IMAGE_TYPE.simpleString()}"
    return spark.createDataFrame(rows, schema).repartition(partitions)


def file_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def write_table(file: Path, columns: str, rows: Iterable[Iterable[object]], delimiter: str = ",", **how: str) -> None:
    """A CSV file; ``how`` goes to ``open``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", **{"encoding": "utf8", "newline": ""} | how) as out:
        writer = csv.writer(out, delimiter=delimiter)
        writer.writerow(columns.split(","))
        writer.writerows(rows)


def write_pictures(folder: Path, names: Iterable[str], first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, first):
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        (folder / name).write_bytes(file_bytes(picture(number), kind))


@pytest.fixture
def network_runs(monkeypatch, tmp_path) -> Callable[[], list[tuple[int, int, int]]]:
    """What ran in Spark's workers since it was last asked: (process, images, networks loaded for them) of every batch.

    The featurizer's function goes to the workers by value, and so does what it calls where that is not its module's.
    """
    log = tmp_path / "network_runs"
    log.touch()
    run, file = featurizer.run_network, str(log)

    @contextmanager
    def counted_use(graph, threads, task):
        from helpers.featurizer import _loaded, graph_in_use  # the worker's own, with what it keeps

        there = (graph, threads) in _loaded
        with graph_in_use(graph, threads, task) as network:
            note(0, 0 if there else 1)
            yield network

    def counted_run(network, images, size, batch_size):
        note(len(images), 0)
        return run(network, images, size, batch_size)

    def note(images, loads):
        with open(file, "a", encoding="ascii") as out:
            out.write(f"{os.getpid()} {images} {loads}\n")

    monkeypatch.setattr(featurizer, "graph_in_use", counted_use)
    monkeypatch.setattr(featurizer, "run_network", counted_run)

    def runs() -> list[tuple[int, int, int]]:
        lines = log.read_text(encoding="ascii").splitlines()
        log.write_text("")
        return [tuple(map(int, line.split())) for line in lines]

    runs.log = log
    return runs
