"""What could run the network in Spark's workers, measured beside each other: ``make runtimes``.

    make runtimes RUNTIMES_OPTIONS=--record

The network of a setting, as Keras defines it, is exported for every runtime, and each runs it in a process of its own
on one thread, in float32. How long from the start of the process to the first image; how many images/s with the batch
size that suits it, in rounds, one of each; its memory (PSS); how far its numbers are from those of Keras called on one
image, against the largest of them; and whether an image gets the same bits in every batch and at every place of it,
which is what lets features not depend on how Spark cuts a frame into partitions. What the course's environment does not
have comes from one beside it, with its lock in ``tests/benchmarks/runtimes``. ``--record`` writes the table into the
README.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

STARTED = time.time()

import numpy as np  # noqa: E402 (the clock starts before what a worker imports, too)

MARKS = ("<!-- runtimes, by tests/benchmarks/runtimes.py --record -->", "<!-- end of runtimes -->")
BATCHES = (1, 2, 8)
IMAGES = 8  # a multiple of each batch
Run = Callable[[np.ndarray], np.ndarray]  # uint8 (n, size, size, 3) to float32 (n, features)


def openvino(folder: Path) -> Run:
    from openvino import Core

    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    network = Core().compile_model(folder / "graph.xml", "CPU", how)
    return lambda images: network([images])[0]


def onnx_runtime(folder: Path) -> Run:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    network = InferenceSession(folder / "graph.onnx", options, providers=["CPUExecutionProvider"])
    name = network.get_inputs()[0].name
    return lambda images: network.run(None, {name: images})[0]


def litert(folder: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(folder / "graph.tflite"), num_threads=1)
    (taken,), (given,) = network.get_input_details(), network.get_output_details()
    network.allocate_tensors()

    def run(images: np.ndarray) -> np.ndarray:
        if network.get_input_details()[0]["shape"][0] != len(images):
            network.resize_tensor_input(taken["index"], images.shape)
            network.allocate_tensors()
        network.set_tensor(taken["index"], images)
        network.invoke()
        return network.get_tensor(given["index"])

    return run


def mnn(folder: Path) -> Run:
    from MNN import expr, nn

    manager = nn.create_runtime_manager(({"backend": "CPU", "numThread": 1, "precision": "high"},))
    network = nn.load_module_from_file(str(folder / "graph.mnn"), [], [], runtime_manager=manager)

    def run(images: np.ndarray) -> np.ndarray:
        given = network.forward([expr.const(images, list(images.shape), expr.NCHW, expr.uint8)])[0]
        return np.array(expr.convert(given, expr.NCHW).read())

    return run


def keras(folder: Path) -> Run:
    from helpers.networks import image_network

    wanted = json.loads((folder / "setting.json").read_text(encoding="utf8"))
    network = image_network(*wanted)
    network.jit_compile = False  # as in keras_loop
    return network.predict_on_batch


RUNTIMES = {  # by name: package whose version is shown, how its network is loaded
    "OpenVINO": ("openvino", openvino),
    "ONNX Runtime": ("onnxruntime", onnx_runtime),
    "LiteRT": ("ai-edge-litert", litert),
    "MNN": ("mnn", mnn),
    "Keras on TensorFlow": ("tensorflow-cpu", keras),
}


# -- a runtime's process -----------------------------------------------------------------------------------------------


def serve(name: str, folder: Path) -> None:
    """Say when the first image was through, then answer questions: rate with a batch size, or what else is measured."""
    import psutil

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some say things of their own
    images = np.load(folder / "images.npy")
    run = RUNTIMES[name][1](folder)

    def by(batch: int, order: slice = slice(None)) -> np.ndarray:
        given = images[order]
        return np.concatenate([run(given[start : start + batch]) for start in range(0, IMAGES, batch)])[order]

    run(images[:1])
    print(json.dumps({"first": time.time() - STARTED}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if batch := question.get("batch"):
            by(batch)
            started, rounds = time.perf_counter(), 0
            while (passed := time.perf_counter() - started) < question["seconds"]:
                by(batch)
                rounds += 1
            answer = {"rate": rounds * IMAGES / passed}
        else:
            keras_says = np.load(folder / "keras.npy")
            found = [by(batch, order) for batch in BATCHES for order in (slice(None), slice(None, None, -1))]
            answer = {
                "difference": float(np.abs(found[0] - keras_says).max() / np.abs(keras_says).max()),
                "same": all(np.array_equal(found[0], other) for other in found[1:]),
                "pss": psutil.Process().memory_full_info().pss / 2**20,
            }
        print(json.dumps(answer), file=answers, flush=True)


# -- the graphs --------------------------------------------------------------------------------------------------------


def export(setting: str, folder: Path) -> None:
    """Write a setting's network for every runtime, images, and what Keras gives for each image alone."""
    import tensorflow as tf
    from keras_loop import random_images
    from measuring import settings_of

    from helpers.networks import image_network

    settings = settings_of(setting)
    size = settings.featurizer().image_size()
    wanted = [settings.model_name, settings.weights, settings.layer or (), settings.pooling, size]
    (folder / "setting.json").write_text(json.dumps(wanted), encoding="utf8")
    images = random_images(IMAGES, size)
    np.save(folder / "images.npy", images)
    network = image_network(*wanted)
    # called, and not by predict, which computes in bfloat16 where the processor has it
    np.save(folder / "keras.npy", np.concatenate([network(image[None], training=False) for image in images]))
    network.export(folder / "graph.onnx", format="onnx", verbose=False)
    network.export(folder / "saved", format="tf_saved_model", verbose=False)
    (folder / "graph.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved")).convert())
    # what lies beneath MNN's own command, which installs a package and reports to its maker; not beside TensorFlow
    convert = [sys.executable, "-c", "import sys, _tools; _tools.mnnconvert(sys.argv)", "-f", "ONNX", "--bizCode", "0"]
    subprocess.run([*convert, "--modelFile", folder / "graph.onnx", "--MNNModel", folder / "graph.mnn"], check=True)
    graph = settings.graph()
    for suffix in (".xml", ".bin"):
        shutil.copy(graph.with_suffix(suffix), folder / f"graph{suffix}")


# -- all of them -------------------------------------------------------------------------------------------------------


def measured(setting: str, folder: Path, rounds: int) -> list[list[str]]:
    """Rows of the table: the runtimes with one setting's network."""
    from keras_loop import tensorflow_settings
    from measuring import Talk, median_ratio, take_turns

    one_thread = tensorflow_settings(1)
    me = [sys.executable, str(Path(__file__))]
    exported = subprocess.run(
        [*me, "--export", setting, str(folder)],
        env=os.environ | one_thread,
        capture_output=True,
        text=True,
        check=False,
    )
    if exported.returncode:
        raise SystemExit(f"the network could not be exported:\n{exported.stderr}")
    talks, first, best, others = {}, {}, {}, {}
    for name in RUNTIMES:
        talks[name] = Talk([*me, "--serve", name, str(folder)], one_thread)
        first[name] = talks[name].heard()["first"]
        others[name] = talks[name].ask({})
        by_batch = {batch: talks[name].ask({"batch": batch, "seconds": 1})["rate"] for batch in BATCHES}
        best[name] = max(by_batch, key=by_batch.__getitem__)
        rates_of = ", ".join(f"{batch}: {rate:.1f}" for batch, rate in by_batch.items())
        print(f"{setting}, {name}: images/s by size of batch {rates_of}", flush=True)
    rates = take_turns(
        {name: lambda name=name: talks[name].ask({"batch": best[name], "seconds": 2})["rate"] for name in RUNTIMES},
        rounds,
    )
    for talk in talks.values():
        talk.close()
    size = json.loads((folder / "setting.json").read_text(encoding="utf8"))[-1]
    return [
        [
            f"{setting}, {size} px",
            f"{name} {version(package)}",
            f"{first[name]:.1f}",
            f"{statistics.median(rates[name]):.1f}",
            str(best[name]),
            f"{median_ratio(rates[name], rates['OpenVINO']):.2f} x",
            f"{others[name]['pss']:.0f}",
            f"{others[name]['difference']:.0e}",
            "yes" if others[name]["same"] else "no",
        ]
        for name, (package, _) in RUNTIMES.items()
    ]


HEAD = [
    "network",
    "run by",
    "first image, s",
    "images/s",
    "batch",
    "against OpenVINO",
    "PSS, MiB",
    "from Keras",
    "same bits in any batch",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds over the runtimes (3)")
    parser.add_argument("--record", action="store_true", help="write the table into README.md")
    for task in ("--serve", "--export"):
        parser.add_argument(task, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve[0], Path(options.serve[1]))
    if options.export:
        return export(options.export[0], Path(options.export[1]))
    from measuring import machine
    from recording import README, between_marks, markdown_table

    rows = []
    for setting in ("article", "recipe"):
        with tempfile.TemporaryDirectory() as folder:
            rows += measured(setting, Path(folder), options.rounds)
    table = markdown_table(HEAD, rows)
    print(f"\n{machine()}\n\n{table}")
    if options.record:
        inside = f"`make runtimes` on {datetime.date.today().isoformat()}, one core of {machine()}:\n\n{table}"
        README.write_text(between_marks(README.read_text(encoding="utf8"), MARKS, inside), encoding="utf8")
    return None


if __name__ == "__main__":
    main()
