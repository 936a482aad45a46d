"""The article's related technologies on our digits."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "build" / "related" / "data"


def prepare(folder: Path) -> None:
    """Write what every technology reads: ``digits.parquet``, ``images/`` and ``network.pb``."""
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
        "grey": list(images.reshape(len(images), -1)),
    }
    pq.write_table(pa.table(columns), folder / "digits.parquet")
    training.apart(freeze, str(folder / "network.pb"), settings)


def freeze(path: str, settings) -> None:
    """The recipe's network as a frozen TensorFlow graph."""
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from helpers.networks import build_network, resolve_layers

    size = settings.image_size
    base = build_network(settings.model_name, settings.weights, False, size)
    maps = keras.Model(base.input, resolve_layers(base, settings.layer))
    pooled = [keras.layers.GlobalAveragePooling2D()(y) for y in maps.outputs]
    network = keras.Model(base.input, keras.layers.Concatenate()(pooled))
    call = tf.function(lambda x: network(x, training=False))
    frozen = convert_variables_to_constants_v2(
        call.get_concrete_function(tf.TensorSpec((1, size, size, 3), tf.float32))
    )
    graph = frozen.graph.as_graph_def()
    from collections import Counter
    print(Counter(n.op for n in graph.node), [n.name for n in graph.node if n.op == "Placeholder"], graph.node[-1])
    Path(path).write_bytes(graph.SerializeToString())


if __name__ == "__main__":
    prepare(DATA)
