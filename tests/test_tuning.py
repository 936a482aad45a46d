"""Features of several choices side by side, and what a search found as a table."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import image_frame, picture
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder, TrainValidationSplit
from pyspark.sql import functions as F

from helpers.networks import Recipe
from helpers.spark import forget_finished_jobs
from helpers.tuning import feature_columns, search_table

VGG = Recipe("", "VGG16", "random", ("block2_pool",), "avg", 32, 5, 0.1, 0.0)
CHOICES = {
    "two": VGG,
    "three_two": replace(VGG, layer=("block3_pool", "block2_pool")),
    "two_max": replace(VGG, pooling="max"),
    "last": replace(VGG, layer=None, pooling="flatten"),
}


@pytest.fixture(scope="module")
def images(spark):
    """Six pictures and a null."""
    frame = image_frame(spark, [*map(picture, range(6)), None])
    return frame.select("number", F.format_string("%d.png", "number").alias("path"), "image").cache()


def rows(frame) -> list:
    return frame.orderBy("path").collect()


def test_each_choice_has_the_features_of_its_own_featurizer(spark, images, tmp_path, network_runs):
    found = rows(feature_columns(images, CHOICES, tmp_path))
    assert sum(count for _, count, _ in network_runs()) == 3 * 6, "one pass for each pooling and size"
    assert found[0].__fields__ == ["number", "path", *CHOICES]
    assert [row.path for row in found] == [f"{i}.png" for i in range(6)], "an image without features is left out"
    for name, choice in CHOICES.items():
        alone = rows(choice.featurizer().transform(images.where("image IS NOT NULL")))
        np.testing.assert_allclose(
            np.stack([row[name].toArray() for row in found]),
            np.stack([row.features.toArray() for row in alone]),
            rtol=1e-4,
            atol=1e-5,
        )
    assert [len(found[0][name]) for name in CHOICES] == [128, 256 + 128, 128, 512]
    network_runs()
    assert rows(feature_columns(images, CHOICES, tmp_path)) == found
    assert network_runs() == [], "from the store the second time"


def test_what_feature_columns_say_of_their_input(images, tmp_path):
    with pytest.raises(ValueError, match="there is no choice"):
        feature_columns(images, {}, tmp_path)
    with pytest.raises(ValueError, match="no column 'path'; the columns are number, image"):
        feature_columns(images.drop("path"), CHOICES, tmp_path)
    with pytest.raises(ValueError, match="a column 'number' already"):
        feature_columns(images, {"number": VGG}, tmp_path)


def test_a_search_as_a_table(spark):
    rng = np.random.default_rng(0)
    data = [(i % 2, i % 3, Vectors.dense(rng.normal(i % 2, 1, 2))) for i in range(60)]
    frame = spark.createDataFrame(data, ["label", "fold", "features"]).coalesce(1).cache()
    classifier = LogisticRegression(maxIter=5)
    grid = ParamGridBuilder().addGrid(classifier.regParam, [0.01, 10.0]).addGrid(classifier.elasticNetParam, [0.0, 1.0])
    evaluator = MulticlassClassificationEvaluator(metricName="logLoss")
    search = {"estimator": classifier, "estimatorParamMaps": grid.build(), "evaluator": evaluator}
    model = CrossValidator(**search, numFolds=3, foldCol="fold", parallelism=2).fit(frame)
    kept = spark.sparkContext._jsc.sc().dagScheduler().activeQueryToJobs()
    assert kept.size() > 0, "Spark forgets finished jobs by itself now: forget_finished_jobs can go"
    forget_finished_jobs(spark)
    assert kept.size() == 0
    table = search_table(model)
    assert list(table) == ["regParam", "elasticNetParam", "score", "spread"]
    assert table["regParam"].tolist() == [0.01, 0.01, 10.0, 10.0]
    figures = []
    for fold in range(3):
        fitted = classifier.copy({classifier.regParam: 0.01, classifier.elasticNetParam: 1.0}).fit(
            frame.where(F.col("fold") != fold)
        )
        figures.append(evaluator.evaluate(fitted.transform(frame.where(F.col("fold") == fold))))
    assert table["score"][1] == pytest.approx(np.mean(figures)) and table["spread"][1] == pytest.approx(np.std(figures))
    assert table["score"][3] == pytest.approx(np.log(2), abs=0.01), "nothing but the intercept is left"
    once = search_table(TrainValidationSplit(**search, seed=1).fit(frame))
    assert list(once) == ["regParam", "elasticNetParam", "score"] and len(once) == 4
    with pytest.raises(ValueError, match="LogisticRegression is no fitted CrossValidator"):
        search_table(classifier)
    frame.unpersist()
