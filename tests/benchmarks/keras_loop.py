"""A plain Keras loop in a process of its own, and the count of a network's operations.

``KerasLoop`` starts the process with the threads it is given and asks it for rates; in it ``network.predict_on_batch``
takes one slice of an array of images after the other, which is all that a loop without Spark needs. ``predict`` over
the whole array feeds it by threads of its own, which get in the way of the network's on few cores.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from measuring import Talk

if TYPE_CHECKING:
    import keras

NETWORK, SIZE = "InceptionV3", 299


def random_images(number: int, size: int = SIZE) -> np.ndarray:
    """Seeded pixels, uint8 (number, size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def flops(model: keras.Model) -> int:
    """Floating-point operations of one image in the model's convolutions and dense layers, two per multiply-add.

    A convolution computes, at every place of its output, for each output channel a sum over its window and over the
    input channels of its group; a separable one a depthwise and then a pointwise convolution.

    Raises:
        ValueError: a layer with a kernel that is neither.
    """
    total = 0
    for layer in model.layers:
        if hasattr(layer, "layers"):
            total += flops(layer)
            continue
        kind = type(layer).__name__
        if not hasattr(layer, "kernel") and not hasattr(layer, "depthwise_kernel"):
            continue
        if kind == "Dense":
            total += 2 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
            continue
        if kind not in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D"):
            raise ValueError(f"operations of a {kind} ({layer.name}) cannot be counted")
        first = layer.data_format == "channels_first"
        places = math.prod(layer.output.shape[2:] if first else layer.output.shape[1:-1])
        separable = kind == "SeparableConv2D"
        kernels = [layer.depthwise_kernel, layer.pointwise_kernel] if separable else [layer.kernel]
        total += 2 * places * sum(math.prod(kernel.shape) for kernel in kernels)
    return total


def tensorflow_settings(threads: int) -> dict[str, str]:
    """Environment of a process in which Keras runs on TensorFlow, quietly and on so many threads."""
    return {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_NUM_THREADS": str(threads),
    }


class KerasLoop:
    """The loop in a process with so many ``threads`` within an operation."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.talk = Talk([sys.executable, str(Path(__file__))], tensorflow_settings(threads))
        self.flops = int(self.talk.heard()["flops"])

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"

    def rate(self, images: int, batch: int) -> float:
        """Images/s over so many images."""
        return images / float(self.talk.ask({"images": images, "batch": batch})["seconds"])

    def close(self) -> None:
        self.talk.close()


def best_loop(cores: int, batches: Sequence[int], images: int) -> tuple[KerasLoop, int]:
    """The loop with the faster number of threads (one, or one a core) and its fastest batch size; prints each rate."""

    def tried(loop: KerasLoop, batch: int) -> float:
        loop.rate(batch, batch)  # traced
        rate = loop.rate(max(images // batch, 1) * batch, batch)
        print(f"Keras, {loop}, batch {batch}: {rate:.2f} images/s", flush=True)
        return rate

    loops = [KerasLoop(threads) for threads in sorted({1, cores})]
    first = sorted(batches)[len(batches) // 2]
    rates = [tried(loop, first) for loop in loops]
    best = loops[rates.index(max(rates))]
    for loop in loops:
        if loop is not best:
            loop.close()
    by_batch = {first: max(rates)} | {batch: tried(best, batch) for batch in batches if batch != first}
    return best, max(by_batch, key=by_batch.__getitem__)


def serve() -> None:
    """The process's own part: a line of JSON in, a line of JSON out, until the input ends."""
    import keras

    from helpers.networks import build_network, image_network

    print(json.dumps({"flops": flops(build_network(NETWORK, "random", image_size=SIZE))}), flush=True)
    keras.backend.clear_session()
    network = image_network(NETWORK, "random", image_size=SIZE)
    network.jit_compile = False  # oneDNN's convolutions are faster on a processor than what XLA makes of them
    pictures = random_images(0)
    for line in sys.stdin:
        wanted = json.loads(line)
        if len(pictures) < wanted["images"]:
            pictures = random_images(wanted["images"])
        started = time.perf_counter()
        for start in range(0, wanted["images"], wanted["batch"]):
            network.predict_on_batch(pictures[start : start + wanted["batch"]])
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    serve()
