"""The article's related technologies on our digits: ``python tests/benchmarks/related.py [NAME …] [--record]``.

Each has an environment of its own under ``build/related``, built here from its lock in ``notebooks/related`` where it
is not there yet, and a runner beside the lock. All read the same: the drawn digits' features and pixels as Parquet,
their files, and the recipe's network as a TensorFlow graph. Every task runs in a process of its own, and the peak of
memory is that of its whole tree. Prints a line a task; with ``--record`` the results become
``notebooks/related/NAME.json``, and notebook 09, which shows them, is executed anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import ROOT, machine
from memory import peak_of

if TYPE_CHECKING:
    import tensorflow as tf

    from helpers.networks import Recipe

RUNNERS = ROOT / "notebooks" / "related"
BUILD = ROOT / "build" / "related"
DATA = BUILD / "data"
EXECUTE = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", "--log-level=WARN"]
EXECUTE += ["--ExecutePreprocessor.record_timing=False"]
# What an environment's Python is asked.
ASK = """
import importlib.metadata, json, platform, sys
names = sys.argv[1:]
print(json.dumps({"python": platform.python_version(), "packages": len(list(importlib.metadata.distributions())),
                  "versions": {name: importlib.metadata.version(name) for name in names}}))
"""


@dataclass(frozen=True)
class Technology:
    """One of them: what it is called, the package that gives its version, the tasks of its runner, the Pythons that it
    runs on (the locks are made for the first), and packages whose versions are recorded.
    """

    title: str
    package: str
    tasks: tuple[str, ...]
    pythons: tuple[str, ...]
    shown: tuple[str, ...]


TECHNOLOGIES = {
    "elephas": Technology("Elephas", "elephas", ("head", "cnn"), ("3.11", "3.12"), ("pyspark", "tensorflow", "keras")),
    "tensorflowonspark": Technology(
        "TensorFlowOnSpark",
        "tensorflowonspark",
        ("head", "cnn"),
        ("3.11", "3.12", "3.13"),
        ("pyspark", "tensorflow-cpu", "keras"),
    ),
    "bigdl": Technology(
        "BigDL DLlib", "bigdl-dllib-spark3", ("images", "head", "cnn"), ("3.9", "3.8"), ("pyspark", "bigdl-core")
    ),
    "ours": Technology(
        "this course", "numtadb-transfer", ("images", "head", "cnn"), (), ("pyspark", "keras", "openvino")
    ),
}


class NotBuilt(RuntimeError):
    """An environment cannot be built here; the message says what to do."""


# -- environments ----------------------------------------------------------------------------------------------------


def python_of(name: str) -> Path:
    """The Python of a technology's environment, there or not."""
    return Path(sys.executable) if name == "ours" else BUILD / name / "bin" / "python"


def is_built(name: str) -> bool:
    """Whether its environment is there and was built from the lock as it is."""
    if name == "ours":
        return True
    built = BUILD / name / "requirements.lock"
    lock = (RUNNERS / f"{name}.lock").read_bytes()
    return built.exists() and python_of(name).exists() and built.read_bytes() == lock


def runs(python: Path, version: str) -> bool:
    """Whether a file is a Python of that version, ``"3.9"``, that can make environments."""
    ask = f"import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != {tuple(map(int, version.split('.')))})"
    try:
        return subprocess.run([python, "-c", ask], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def candidates(version: str) -> Iterator[Path]:
    """Where a Python of that version may be: on PATH, and where pyenv and uv put them."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    yield from (folder / f"python{version}" for folder in [*folders, Path("/usr/local/bin"), Path("/usr/bin")])
    home = Path.home()
    for folder in (home / ".pyenv" / "versions", home / ".local" / "share" / "uv" / "python"):
        yield from sorted(folder.glob(f"*{version}.*/bin/python{version}"))


def find_python(name: str) -> Path:
    """A Python that a technology runs on.

    Raises:
        NotBuilt: there is none.
    """
    technology = TECHNOLOGIES[name]
    for version in technology.pythons:
        for python in candidates(version):
            if python.is_file() and runs(python, version):
                return python
    versions = " or ".join(technology.pythons)
    raise NotBuilt(
        f"{technology.title} needs Python {versions}, and none was found on PATH or in the folders of pyenv and uv. "
        f"Type .venv/bin/python -m uv python install {technology.pythons[0]} (or pyenv install "
        f"{technology.pythons[0]}), then make related-{name} again."
    )


def build(name: str) -> None:
    """Build a technology's environment from its lock, unless it is there.

    Raises:
        NotBuilt: no Python for it, or its packages could not be installed; nothing half-made stays.
    """
    if is_built(name):
        return
    python, folder, lock = find_python(name), BUILD / name, RUNNERS / f"{name}.lock"
    print(f"Building {folder.relative_to(ROOT)} with {python}: once, a few minutes.", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    install = [folder / "bin" / "python", "-m", "pip", "install", "-qq", "--require-hashes", "--requirement", lock]
    try:
        subprocess.run([python, "-m", "venv", folder], check=True)
        subprocess.run(install, check=True)
        (folder / "seconds").write_text(f"{time.perf_counter() - started:.0f}", encoding="ascii")
        shutil.copyfile(lock, folder / "requirements.lock")  # the last: what passes for a ready environment
    except (subprocess.CalledProcessError, KeyboardInterrupt) as problem:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(problem, KeyboardInterrupt):
            raise
        raise NotBuilt(f"{folder.relative_to(ROOT)} could not be built; the lines above say why.") from problem


def environment(name: str) -> dict:
    """What an environment is: versions, number of packages, MB on disk, seconds that it took to build (``None`` for the
    course's own, which is not built here).
    """
    technology, python = TECHNOLOGIES[name], python_of(name)
    command = [python, "-c", ASK, technology.package, *technology.shown]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    folder = python.parent.parent
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    seconds = folder / "seconds"
    return {
        "title": technology.title,
        "version": found["versions"].pop(technology.package),
        **found,
        "disk_mb": round(size / 1e6),
        "install_seconds": int(seconds.read_text(encoding="ascii")) if seconds.exists() else None,
    }


# -- what all of them read -------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write what every technology reads: the recipe's sample, split as in notebook 04.

    ``digits.parquet`` has a row an image: ``file``, ``label`` (int), ``test`` (is it a test image?), ``features``
    (1,536 float32, standardised on the training images) and ``pixels`` (32 × 32 float32: each pixel's distance from its
    image's mean grey, in the image's own deviations). ``images/`` holds the files, ``network.pb`` is what ``freeze``
    makes.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from helpers import training
    from helpers.networks import data_folder, recipe
    from helpers.numtadb import read_digits, sample_per_class, train_test_split
    from helpers.spark import end_spark, start_spark
    from helpers.store import featurize

    start_spark()
    digits = sample_per_class(read_digits(), 50)
    settings = recipe("glyphs")
    images, labels, paths = training.grey_arrays(digits, training.SIDE)
    frame = featurize(digits, settings.featurizer(), ROOT / "build" / "features")
    features = training.feature_arrays(frame, paths)
    test = {row.path for row in train_test_split(digits.select("label", "path"))[1].collect()}
    end_spark()

    in_test = np.array([path in test for path in paths])
    features -= features[~in_test].mean(axis=0)
    features /= np.maximum(features[~in_test].std(axis=0), 1e-6)
    images = np.abs(images - images.mean(axis=(1, 2, 3), keepdims=True)) / images.std(axis=(1, 2, 3), keepdims=True)
    files = [path.replace("/", "_") for path in paths]
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    for path, file in zip(paths, files, strict=True):
        shutil.copyfile(data_folder() / "sample" / path, folder / "images" / file)
    columns = {
        "file": files,
        "label": pa.array(labels, pa.int32()),
        "test": in_test,
        "features": list(features),
        "pixels": list(images.reshape(len(images), -1)),
    }
    pq.write_table(pa.table(columns), folder / "digits.parquet")
    training.apart(freeze, str(folder / "network.pb"), settings)


def freeze(path: str, settings: Recipe) -> None:
    """The recipe's network as the frozen TensorFlow graph that BigDL can load: ``x``, float32 (n, size, size, 3), RGB
    from -1 to 1, to the node ``features``, float32 (n, 1536).

    BigDL knows the operations of TensorFlow 1. So each normalisation is folded into its convolution, ``AddV2`` goes by
    its old name, axes count from the front, and a mean is over one axis at a time (of two it takes the wrong second).
    """
    import keras
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    from tensorflow.python.grappler import tf_optimizer

    from helpers.networks import build_network, resolve_layers

    size = settings.image_size
    base = build_network(settings.model_name, settings.weights, False, size)
    network = keras.Model(base.input, resolve_layers(base, settings.layer))

    def features(x: tf.Tensor) -> tf.Tensor:
        pools = [tf.reduce_mean(tf.reduce_mean(maps, [2]), [1]) for maps in network(x, training=False)]
        return tf.identity(tf.concat(pools, 1), "features")

    called = tf.function(features).get_concrete_function(tf.TensorSpec((None, size, size, 3), tf.float32, "x"))
    graph = convert_variables_to_constants_v2(called).graph
    meta = tf.compat.v1.train.export_meta_graph(graph_def=graph.as_graph_def(), graph=graph)
    meta.collection_def["train_op"].node_list.value.append("features")
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.optimizers.append("constfold")
    config.graph_options.rewrite_options.min_graph_nodes = -1  # however small the graph is
    folded = tf_optimizer.OptimizeGraph(config, meta)
    nodes = {node.name: node for node in folded.node}
    for node in list(folded.node):
        if node.op == "AddV2":
            node.op = "BiasAdd"
            shift = nodes[node.input[1]].attr["value"].tensor
            shift.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(shift).ravel()))
        if node.op in ("Conv2D", "BiasAdd"):  # a constant behind an identity was how TensorFlow 1 wrote a variable
            read = folded.node.add(name=f"{node.name}/read", op="Identity", input=[node.input[1]])
            read.attr["T"].type = tf.float32.as_datatype_enum
            node.input[1] = read.name
    Path(path).write_bytes(folded.SerializeToString())


# -- running ---------------------------------------------------------------------------------------------------------


def run(name: str, task: str) -> dict:
    """What a runner's task measured, with the peak of its processes' memory in MiB.

    Raises:
        RuntimeError: it failed; the message says where its output is.
    """
    log, result = BUILD / f"{name}-{task}.log", BUILD / f"{name}-{task}.json"
    result.unlink(missing_ok=True)
    command = [str(python_of(name)), str(RUNNERS / f"{name}_digits.py"), task, str(DATA), str(result)]
    # The other environments must not see this one's packages; our own runner finds the package in this checkout.
    settings = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "SPARK_HOME")
    }
    if name == "ours":
        settings["PYTHONPATH"] = str(ROOT)
    with log.open("wb") as output:
        peak = peak_of(
            command, env=settings, cwd=BUILD, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    if peak.status or not result.exists():
        last = log.read_text(encoding="utf8", errors="replace").strip().splitlines()[-15:]
        told = "\n".join(last)
        raise RuntimeError(f"{name}, {task}: exit status {peak.status}; the end of {log.relative_to(ROOT)}:\n{told}")
    found = json.loads(result.read_text(encoding="utf8"))
    return {**found, "peak_mib": round(peak.total), "processes": sum(peak.processes.values())}


def measured(name: str) -> dict:
    """All of a technology's tasks, a line printed for each, and what it runs on."""
    tasks = {}
    for task in TECHNOLOGIES[name].tasks:
        tasks[task] = run(name, task)
        print(f"{TECHNOLOGIES[name].title}, {task}: {tasks[task]}", flush=True)
    return {
        **environment(name),
        "tasks": tasks,
        "machine": machine(),
        "date": date.today().isoformat(),
        "command": f"python tests/benchmarks/related.py {name} --record",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TECHNOLOGIES)}; all without one")
    parser.add_argument("--record", action="store_true", help="keep the results, and execute notebook 09 anew")
    options = parser.parse_args()
    if unknown := set(options.names) - TECHNOLOGIES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(TECHNOLOGIES)}")
    if platform.system() != "Linux":
        parser.error("memory is measured as Linux counts it, so this runs on Linux alone")
    failed = []
    prepare(DATA)
    for name in options.names or TECHNOLOGIES:
        try:
            build(name)
            found = measured(name)
        except (NotBuilt, RuntimeError) as problem:
            print(problem, file=sys.stderr, flush=True)
            failed.append(TECHNOLOGIES[name].title)
            continue
        if options.record:
            file = RUNNERS / f"{name}.json"
            file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    if options.record and not failed:
        subprocess.run([*EXECUTE, str(ROOT / "notebooks" / "09_related_technologies.ipynb")], check=True)
    if failed:
        print(f"Not measured: {', '.join(failed)}; what stands above says why.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
