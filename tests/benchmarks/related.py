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


if __name__ == "__main__":
    prepare(DATA)
