"""The course's pipeline as a script for ``spark-submit``: digits in; features, a model and its answers out.

    spark-submit [--master URL] notebooks/submit.py --out URL [--data FOLDER] [--weights glyphs|imagenet|random|FILE]
                            [--network NAME] [--layer NAME[,NAME…]] [--per-class N] [--image-size PX]

It stands beside the notebooks, as one of them without its prose, and not in the package: a script is what you copy and
change for your own images. Three folders under ``--out`` are written anew, ``features`` and ``answers`` (Parquet) and
``model`` (a PipelineModel); ``--out`` is any address that Spark writes to, on a cluster one that all machines see, as
is ``--data``. The driver's Python needs this package, the executors' what the README names. Exit code 0 where all was
written, 1 where Spark failed, 2 for bad arguments.
"""

from __future__ import annotations

import argparse

from pyspark.ml import PipelineModel

from helpers.evaluation import evaluate
from helpers.networks import WeightsUnavailable, recipe
from helpers.numtadb import read_digits, sample_per_class, train_test_split
from helpers.spark import start_spark


def main() -> None:
    """Run the pipeline as the command line says, and print what the test images say of it."""
    parser = argparse.ArgumentParser(description="Features of digits, and a classifier trained on them, by Spark.")
    parser.add_argument("--out", required=True, help="where features, answers and model go, an address Spark writes to")
    parser.add_argument("--data", help="a folder that all machines see; default: the sample of the course")
    parser.add_argument("--weights", default="glyphs", help="glyphs, imagenet, random or a Keras weights file")
    parser.add_argument("--network", default="InceptionV3", help="the network; default: InceptionV3")
    parser.add_argument("--layer", help="layer to take features from, or several with commas between")
    parser.add_argument("--per-class", type=int, help="images of each class; default: all")
    parser.add_argument("--image-size", type=int, help="height and width the network gets, in pixels")
    options = parser.parse_args()

    try:
        layers = options.layer.split(",") if options.layer else None
        settings = recipe(options.weights, options.network).replaced(layers, options.image_size)
        spark = start_spark("digits")  # the master, and what else the cluster needs, is spark-submit's affair
        digits = read_digits(options.data)
        if options.per_class is not None:
            digits = sample_per_class(digits, options.per_class)
        featurized = settings.featurizer().transform(digits).drop("image")
    except (FileNotFoundError, ValueError, WeightsUnavailable) as problem:
        parser.error(str(problem))

    # once through the network; what follows reads
    featurized.write.mode("overwrite").parquet(f"{options.out}/features")
    features = spark.read.parquet(f"{options.out}/features").where("features IS NOT NULL")
    # one partition and one order, so that the last digits of the model do not depend on the cluster
    train, test = (part.repartition(1).sortWithinPartitions("path") for part in train_test_split(features))
    classifier = settings.classifier().fit(train.cache())
    PipelineModel(stages=[settings.featurizer(), classifier]).write().overwrite().save(f"{options.out}/model")
    answers = classifier.transform(test).select("path", "label", "prediction", "probability")
    answers.write.mode("overwrite").parquet(f"{options.out}/answers")
    print(evaluate(answers))
    spark.stop()


if __name__ == "__main__":
    main()
