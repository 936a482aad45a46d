"""Warm featurization in Spark against a plain Keras loop and against numpy's sgemm, in one run.

    python tests/benchmarks/featurizer_speed.py             # all cores
    python tests/benchmarks/featurizer_speed.py --cores 1   # one core, one worker

InceptionV3 at 299 px, last layer, float32, seeded weights. Keras gets its best threads and batch size, chosen first.
Then rounds of measurements, one of each, so that a busy machine slows all; the median ratio of a round is what counts.
Pictures lie in memory on both sides (a cached frame, an array), at the network's size. Against sgemm means: the
multiply-adds of the network's convolutions, done as fast as numpy multiplies large matrices, would give 1.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from keras_loop import NETWORK, SIZE, best_loop, random_images
from measuring import Figure, cores_here, local_spark, median_ratio, run, script, sgemm, take_turns

BATCHES = (16, 32)


def image_rows(images: np.ndarray) -> list[tuple]:
    """Rows of Spark's image struct from uint8 (n, h, w, 3), blue, green, red."""
    n, height, width, channels = images.shape
    return [((f"memory:{i}", height, width, channels, 16, bytearray(images[i].tobytes())),) for i in range(n)]


def measure(options: argparse.Namespace) -> list[Figure]:
    from helpers.featurizer import DeepImageFeaturizer
    from helpers.numtadb import IMAGE_TYPE

    cores = cores_here()
    images = options.images or 48 * cores
    loop, batch = best_loop(cores, tuple(options.batches), images=32)
    spark = local_spark()
    schema = f"image {IMAGE_TYPE.simpleString()}"
    frame = spark.createDataFrame(image_rows(random_images(images)), schema).repartition(4 * cores).cache()
    frame.count()
    featurized = DeepImageFeaturizer(modelName=NETWORK, weights="random").transform(frame).select("features")
    run(featurized)  # workers started, network loaded
    rates = take_turns(
        {
            "Spark, images/s": lambda: images / run(featurized),
            "Keras, images/s": lambda: loop.rate(max(32 * cores // batch, 1) * batch, batch),
            "sgemm, GFLOP/s": sgemm,
        },
        options.pairs,
    )
    spark.stop()
    loop.close()
    ours, plain, products = rates.values()
    ideal = [rate * 1e9 / loop.flops for rate in products]
    where = f"{cores} core{'s' if cores > 1 else ''}"
    spark_rate, keras_rate, sgemm_rate = (f"{statistics.median(values):.1f}" for values in (ours, plain, ideal))
    print(f"{NETWORK} at {SIZE} px: {loop.flops / 1e9:.2f} GFLOP an image, {sgemm_rate} images/s at sgemm's rate")
    gemm = statistics.median(products)
    return [
        Figure(
            f"speed, {where}: Spark against Keras",
            median_ratio(ours, plain),
            "x",
            ">= 1.1",
            f"{spark_rate} : {keras_rate} images/s ({loop}, batch {batch})",
            gemm,
        ),
        Figure(
            f"speed, {where}: Spark against sgemm",
            median_ratio(ours, ideal),
            "x",
            ">= 0.90",
            f"{spark_rate} : {sgemm_rate} images/s ({loop.flops / 1e9:.1f} GFLOP an image)",
            gemm,
        ),
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, help="images in one measurement (48 a core)")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of measurements (5)")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="batch sizes Keras may choose from")


if __name__ == "__main__":
    script(measure, __doc__, arguments)
