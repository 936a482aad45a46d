"""Search among settings: the features of every choice side by side, and what a search found as a table.

A choice of the featurizer (layer, pooling, size) becomes a *column* of features here, and so a value of the
classifier's Param ``featuresCol``. Spark's own CrossValidator and TrainValidationSplit then search it together with the
classifier's settings, and the network runs no more often than there are pairs of pooling and size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
from pyspark.ml.feature import VectorSlicer
from pyspark.ml.tuning import CrossValidatorModel, TrainValidationSplitModel
from pyspark.sql import DataFrame

from helpers.networks import Recipe, network
from helpers.store import featurize


def feature_columns(
    digits: DataFrame,
    choices: Mapping[str, Recipe],
    path: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> DataFrame:
    """``digits`` with a vector column for each choice, from the store at ``path``; what it lacks is computed first.

    Choices that differ in the layer only share one pass of the network, which gives the features of all their layers
    side by side.

    Args:
        digits: frame with ``path`` (one row a path), the image column ``image`` and any others.
        choices: the name of the column for each recipe, of which network, weights, layer, pooling and size count.
        path, progress: as ``helpers.store.featurize`` has them; ``progress`` starts anew for each pass.

    Returns:
        The columns of ``digits`` but the image, and those of the choices. An image that gave no features is left out.

    Raises:
        ValueError: no choice, a column of a choice's name that is there already, no column ``path``, or what
            ``featurize`` says of its input.
    """
    if not choices:
        raise ValueError("feature_columns: there is no choice; give a recipe for each column")
    if "path" not in digits.columns:
        raise ValueError(f"feature_columns: there is no column 'path'; the columns are {', '.join(digits.columns)}")
    if there := [name for name in choices if name in digits.columns]:
        raise ValueError(f"feature_columns: there is a column {there[0]!r} already; give the choice another name")
    passes: dict[Recipe, list[str]] = {}
    for name, choice in choices.items():
        same = Recipe("", choice.model_name, choice.weights, None, choice.pooling, choice.image_size, 0, 0.0, 0.0)
        passes.setdefault(same, []).append(name)
    found = digits.drop("image")
    for shared, names in passes.items():
        layers = {name: choices[name].layer or (network(shared.model_name).last_layer,) for name in names}
        every = tuple(dict.fromkeys(layer for name in names for layer in layers[name]))
        wide = replace(shared, layer=every)
        frame = featurize(digits, wide.featurizer(outputCol="all layers"), path, progress)
        frame = frame.where("`all layers` IS NOT NULL").select("path", "all layers")
        places = dict(_places(wide))
        for name in names:
            indices = [place for layer in layers[name] for place in places[layer]]
            frame = VectorSlicer(inputCol="all layers", outputCol=name, indices=indices).transform(frame)
        found = found.join(frame.drop("all layers"), "path")
    return found.select(*digits.drop("image").columns, *choices)


def _places(choice: Recipe) -> Iterator[tuple[str, range]]:
    """Each layer of a recipe and where its features stand among those of all, as the exported graph has them."""
    import openvino

    layers = choice.layer or ()
    graph = openvino.Core().read_model(choice.graph())
    last = graph.get_results()[0].input_value(0).get_node()
    parts = [last.output(0)] if len(layers) == 1 else last.input_values()
    if len(parts) != len(layers):
        raise RuntimeError(f"the exported graph joins {len(parts)} outputs for {len(layers)} layers")
    start = 0
    for layer, part in zip(layers, parts, strict=True):
        width = part.get_partial_shape()[1].get_length()
        yield layer, range(start, start + width)
        start += width


def search_table(search: CrossValidatorModel | TrainValidationSplitModel) -> pd.DataFrame:
    """What a search tried and found: a row for each param map, in their order.

    Returns:
        A column for each Param that was searched, by its name; ``score`` (float), the evaluator's figure, a mean over
        the folds where there are any, and then ``spread`` (float), their standard deviation (Spark's: over n, not n-1).

    Raises:
        ValueError: ``search`` is not the model of a search.
    """
    if isinstance(search, CrossValidatorModel):
        figures = {"score": search.avgMetrics, "spread": search.stdMetrics}
    elif isinstance(search, TrainValidationSplitModel):
        figures = {"score": search.validationMetrics}
    else:
        kind = type(search).__name__
        raise ValueError(f"search_table: {kind} is no fitted CrossValidator or TrainValidationSplit")
    tried = [{param.name: value for param, value in tried.items()} for tried in search.getEstimatorParamMaps()]
    return pd.DataFrame(tried).assign(**figures)
