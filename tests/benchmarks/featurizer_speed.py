"""Warm featurization in Spark against a plain Keras loop, in one run: ``python tests/benchmarks/featurizer_speed.py``.

InceptionV3 at 299 px, last layer, seeded weights, all cores. Keras gets its best batch size, chosen first. Then pairs
of measurements, one of each, take turns, so that a busy machine slows both; the ratio of a pair is what counts.
Pictures lie in memory on both sides (a cached frame, an array), at the network's size.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

NETWORK, SIZE = "InceptionV3", 299


def image_rows(images: np.ndarray) -> list[tuple]:
    """Rows of Spark's image struct from uint8 (n, h, w, 3), blue, green, red."""
    n, height, width, channels = images.shape
    return [((f"memory:{i}", height, width, channels, 16, bytearray(images[i].tobytes())),) for i in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192, help="images in one measurement (default 192)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of measurements (default 5)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[8, 16, 32, 64], help="batch sizes Keras may choose from"
    )
    options = parser.parse_args()

    from helpers.featurizer import DeepImageFeaturizer
    from helpers.networks import image_network
    from helpers.numtadb import IMAGE_TYPE
    from helpers.spark import available_cores, start_spark

    images = np.random.default_rng(0).integers(0, 256, (options.images, SIZE, SIZE, 3), dtype=np.uint8)
    spark = start_spark()
    schema = f"image {IMAGE_TYPE.simpleString()}"
    frame = spark.createDataFrame(image_rows(images), schema).repartition(4 * available_cores()).cache()
    frame.count()
    featurized = DeepImageFeaturizer(modelName=NETWORK, weights="random").transform(frame).select("features")
    keras_network = image_network(NETWORK, "random")

    def spark_rate() -> float:
        started = time.perf_counter()
        featurized.write.format("noop").mode("overwrite").save()
        return options.images / (time.perf_counter() - started)

    def keras_rate(batch: int) -> float:
        started = time.perf_counter()
        keras_network.predict(images, batch_size=batch, verbose=0)
        return options.images / (time.perf_counter() - started)

    rates = {}
    for batch in options.batches:
        keras_network.predict(images[: 2 * batch], batch_size=batch, verbose=0)  # traced
        rates[batch] = keras_rate(batch)
        print(f"Keras, batch {batch:3d}: {rates[batch]:6.2f} images/s")
    best = max(rates, key=rates.get)
    spark_rate()  # workers started, network loaded

    pairs = []
    for number in range(options.pairs):
        ours, plain = spark_rate(), keras_rate(best)
        pairs.append(ours / plain)
        print(f"pair {number + 1}: Spark {ours:6.2f} images/s, Keras {plain:6.2f} images/s, ratio {pairs[-1]:.2f}")
    print(f"cores: {available_cores()}")
    print(f"median ratio of {options.pairs} pairs: {statistics.median(pairs):.2f}")
    spark.stop()


if __name__ == "__main__":
    main()
