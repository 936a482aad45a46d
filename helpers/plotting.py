"""Every picture of the course. Each function returns a matplotlib ``Figure``; the notebook calls ``plt.show()``.

The pictures can be read by the colour-blind and in grey: sequential maps rise in lightness, and what hue tells apart is
told apart by hatching, line style, marker or text as well. Bengali digits are drawn with Hind Siliguri, which comes as
a Python package (fontpkg-hind-siliguri), so they look the same on every machine.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, Literal, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, Observation, Row, Window
from pyspark.sql import functions as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from helpers.evaluation import Evaluation, RocCurve

__all__ = [
    "accuracy_by_layer",
    "bengali",
    "class_balance",
    "confusion_matrix",
    "contact_sheet",
    "distortion_sheet",
    "feature_maps",
    "filters",
    "image_array",
    "learning_curve",
    "loss_curve",
    "memory_bars",
    "network_view",
    "partition_batches",
    "predictions_sheet",
    "projection",
    "reading",
    "reliability_diagram",
    "risk_coverage",
    "roc_curves",
    "search_dots",
    "search_heatmap",
    "severity_curves",
    "splits_chart",
    "task_timeline",
]

_FONTS = resources.files("fontpkg_hind_siliguri") / "files"
_BENGALI_BOLD = str(_FONTS / "HindSiliguri-Bold.ttf")
for _font in (str(_FONTS / "HindSiliguri-Regular.ttf"), _BENGALI_BOLD):
    font_manager.fontManager.addfont(_font)

# DejaVu Sans comes with matplotlib; a glyph it lacks (০–৯) is taken from the second family.
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans", "Hind Siliguri"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
}
# Captions that name a digit in both scripts: Hind Siliguri's own Latin digits stand well beside its small Bengali ones.
_DIGITS = ["Hind Siliguri", "DejaVu Sans"]
_COLOURS = [tuple(colour) for colour in sns.color_palette("colorblind", 10)]
# Its pale pink and its yellow are lost on white paper; this violet and this maroon resemble no other of the ten, to the
# colour-blind neither.
_COLOURS[6], _COLOURS[8] = (0.24, 0.10, 0.36), (0.40, 0.05, 0.10)
_HATCHES = ["", "///", "...", "xxx", "\\\\\\", "---", "+++", "ooo", "***", "|||"]
_LINES: list[Any] = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*", "<", ">"]
_RIGHT, _WRONG, _INK, _FAINT = _COLOURS[2], _COLOURS[3], "#222222", "#8c8c8c"

P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the course's style and leave the reader's own matplotlib settings as they were."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def bengali(label: float) -> str:
    """A class number in Bengali digits: ``bengali(3.0)`` is ``"৩"``. ``ValueError`` unless a whole number ≥ 0."""
    if label != label or label < 0 or label != int(label):
        raise ValueError(f"bengali: {label!r} is no class number; give a whole number from 0 on.")
    return "".join(chr(ord("০") + int(digit)) for digit in str(int(label)))


def _both(label: float | None) -> str:
    """A class for a caption, in both scripts: "৩ 3"."""
    return "?" if label is None else f"{bengali(label)} {int(label)}"


def image_array(image: Row | Mapping[str, Any]) -> np.ndarray:
    """RGB uint8 (height, width, 3) of one Spark image struct (origin, height, width, nChannels, mode, data).

    ``data`` holds rows from the top, pixels as grey, BGR or BGRA bytes; alpha is dropped, as the featurizer
    drops it, so that the picture shows what the network gets.
    ``ValueError``: another number of channels, or ``data`` of another length than the header says.
    """
    height, width, channels, data = (image[name] for name in ("height", "width", "nChannels", "data"))
    if channels not in (1, 3, 4):
        raise ValueError(f"image_array: {image['origin']} has {channels} channels; images have 1, 3 or 4.")
    if len(data) != height * width * channels:
        raise ValueError(
            f"image_array: {image['origin']} holds {len(data)} bytes, but {height} × {width} pixels of {channels} "
            f"channels need {height * width * channels}; read the file again."
        )
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, channels)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, 2::-1])


# --- sheets of images -------------------------------------------------------------------------------------------------


@_styled
def contact_sheet(
    images: DataFrame | Sequence[Row | Mapping[str, Any]],
    columns: int = 10,
    titles: Sequence[str] | None = None,
    limit: int = 100,
    by_class: bool = False,
    title: str | None = None,
) -> Figure:
    """Images side by side, ``columns`` in a row; a broken one is a hatched tile with its reason.

    ``images``: a frame with a column ``image`` (and ``path``, ``label``, ``error`` where it has them), of which the
    first ``limit`` by path are drawn, or a list of such rows, or of image structs, drawn in its own order. Only the
    images that are drawn are decoded: a frame's paths are looked up first. ``by_class`` starts a row for each label,
    with the first ``columns`` images of that label, and ignores ``limit``. ``titles``: one text for each tile, instead
    of its label. ``ValueError``: no image at all, no column ``image``, or another number of titles than of tiles.
    """
    _at_least_one("contact_sheet", columns=columns, limit=limit)
    rows = _first_rows(images, columns, limit, by_class)
    if not rows:
        raise ValueError("contact_sheet: there is no image to draw; check the filter or the folder.")
    if by_class:
        groups: dict[int | None, list[dict]] = {}
        for row in sorted(rows, key=lambda row: _null_last(row.get("label"))):
            groups.setdefault(row.get("label"), []).append(row)
        lines = [(label, group[:columns]) for label, group in groups.items()]
    else:
        rows = rows[:limit]
        lines = [(None, rows[start : start + columns]) for start in range(0, len(rows), columns)]
    tiles = [row for _, line in lines for row in line]
    if titles is not None and len(titles) != len(tiles):
        raise ValueError(f"contact_sheet: {len(titles)} titles for {len(tiles)} images; give one for each.")
    if titles is None:
        with_label = not by_class and any(row.get("label") is not None for row in tiles)
        titles = [_both(row.get("label")) if with_label else "" for row in tiles]

    wide = max(len(line) for _, line in lines)
    slots = [(number, column) for number, (_, line) in enumerate(lines) for column in range(len(line))]
    fig, axes = _tiles(slots, wide, title, caption=0.24 if any(titles) else 0.0, left=0.5 if by_class else 0.0)
    for ax, row, text in zip(axes, tiles, titles, strict=True):
        _draw_image(ax, row)
        if text:
            ax.set_title(text, fontsize=12, pad=2, fontfamily=_DIGITS)
    for (_, column), ax, row in zip(slots, axes, tiles, strict=True):
        if by_class and column == 0:
            label = _both(row.get("label"))
            ax.set_ylabel(label, rotation=0, fontsize=17, ha="right", va="center", labelpad=6, fontfamily=_DIGITS)
    return fig


@_styled
def predictions_sheet(
    rows_or_frame: DataFrame | Sequence[Row | Mapping[str, Any]],
    n: int = 20,
    columns: int = 5,
    images: DataFrame | None = None,
    labelCol: str = "label",
    predictionCol: str = "prediction",
    probabilityCol: str = "probability",
    title: str | None = None,
) -> Figure:
    """``n`` images with the predicted digit beside the true one: errors first, the surest error at the very front.

    After the errors come the right answers, the least sure first; equals go by path. An error has a thick frame, a ✗
    and "not" in its caption; a right answer a thin frame and a ✓. p is the probability of the predicted digit.
    ``rows_or_frame``: rows with label, prediction, probability (vector or list; may be absent) and ``image``. A frame
    without images needs ``images``, the frame that has them, and then ``path`` in both; of it only the drawn images
    are decoded. Rows without a label or a prediction are left out. One action on the predictions, which may run a
    network. ``ValueError``: a column is missing or there is
    no row.
    """
    _at_least_one("predictions_sheet", n=n, columns=columns)
    names = (labelCol, predictionCol, probabilityCol)
    if isinstance(rows_or_frame, DataFrame):
        rows, wrong, total = _worst_rows(rows_or_frame, n, images, *names)
    else:
        rows = [_checked(row, labelCol, predictionCol) for row in map(_as_dict, rows_or_frame)]
        rows = [row for row in rows if row[labelCol] is not None and row[predictionCol] is not None]
        wrong, total = sum(row[labelCol] != row[predictionCol] for row in rows), len(rows)
    if not rows:
        raise ValueError("predictions_sheet: there is no prediction to draw; check the filter or the split.")

    def order(row: dict) -> tuple:
        right, sure = row[labelCol] == row[predictionCol], _confidence(row, predictionCol, probabilityCol)
        return right, sure if right else -sure, str(row.get("path") or "")

    rows = sorted(rows, key=order)[:n]
    if title is None:
        title = f"{wrong} of {total} images read wrongly" + (", errors first" if wrong else "")
    wide = min(columns, len(rows))
    fig, axes = _tiles([divmod(number, wide) for number in range(len(rows))], wide, title, size=1.45, caption=0.48)
    for ax, row in zip(axes, rows, strict=True):
        _draw_image(ax, row)
        right = row[labelCol] == row[predictionCol]
        sure = _confidence(row, predictionCol, probabilityCol)
        verdict = (
            f"✓ {_both(row[predictionCol])}" if right else f"✗ {_both(row[predictionCol])}, not {_both(row[labelCol])}"
        )
        chance = "" if np.isnan(sure) else f"\np = {sure:.2f}"
        ax.set_title(verdict + chance, fontsize=12, pad=4, fontfamily=_DIGITS, linespacing=0.95)
        ax.title.set_fontweight("normal" if right else "bold")
        for spine in ax.spines.values():
            spine.set(color=_RIGHT if right else _WRONG, linewidth=1.2 if right else 4)
    return fig


@_styled
def network_view(original: Any, seen: Any, title: str | None = "What the network sees") -> Figure:
    """Originals above, and below each what is left of it at the network's input size, pixel for pixel.

    Each is one image or a list of them: RGB arrays (h, w, 3), uint8 or float in 0–255, or in −1…1 as Inception's and
    Xception's own preprocessing leaves them; grey (h, w) too; or Spark image structs. ``ValueError``: lists of two
    lengths, or values outside those ranges.
    """
    tops, bottoms = _pictures(original), _pictures(seen)
    if len(tops) != len(bottoms) or not tops:
        raise ValueError(f"network_view: {len(tops)} originals and {len(bottoms)} seen images; give as many of each.")
    slots = [(line, column) for line in (0, 1) for column in range(len(tops))]
    size = 2.4 if len(tops) < 4 else 1.5
    fig, axes = _tiles(slots, len(tops), title, size=size, caption=0.3, left=0.35)
    for (line, column), ax, picture in zip(slots, axes, tops + bottoms, strict=True):
        _show(ax, picture)
        ax.set_title(f"{picture.shape[1]} × {picture.shape[0]} px", fontsize=9, pad=4)
        if column == 0:
            ax.set_ylabel(("original", "seen by the network")[line], fontsize=10)
    return fig


@_styled
def filters(kernel: np.ndarray, columns: int = 8, title: str | None = None) -> Figure:
    """The filters of a first convolution as small pictures.

    ``kernel``: float (height, width, 3, n), channels in RGB order, as Keras stores it (or 1 channel: grey). Each filter
    is scaled by its own largest weight: mid-grey is 0, a bright channel adds, a dark one subtracts. ``ValueError`` for
    another shape.
    """
    _at_least_one("filters", columns=columns)
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 4 or kernel.shape[2] not in (1, 3):
        raise ValueError(
            f"filters: the kernel has shape {kernel.shape}; give the first layer's, (height, width, 3, filters)."
        )
    count = kernel.shape[3]
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    pictures = 0.5 + kernel / (2 * np.where(largest > 0, largest, 1))
    if title is None:
        title = f"{count} filters of {kernel.shape[1]} × {kernel.shape[0]} weights; grey is 0"
    wide = min(columns, count)
    fig, axes = _tiles([divmod(number, wide) for number in range(count)], wide, title, size=0.75)
    for number, ax in enumerate(axes):
        ax.imshow(np.broadcast_to(pictures[..., number], (*kernel.shape[:2], 3)), interpolation="nearest")
    return fig


@_styled
def feature_maps(
    activations: np.ndarray,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    limit: int = 32,
    title: str | None = None,
) -> Figure:
    """The first ``limit`` channels of one image's activations, each on its own scale: dark is its least, bright its
    most. Maps of a single value have one scale together.

    ``activations``: float (height, width, channels). ``titles``: one text for each map that is drawn, instead of its
    channel's number. ``ValueError`` for another shape or another number of titles.
    """
    _at_least_one("feature_maps", columns=columns, limit=limit)
    activations = np.asarray(activations, np.float64)
    if activations.ndim != 3:
        raise ValueError(
            f"feature_maps: the activations have shape {activations.shape}; give those of one image, (height, width, "
            "channels)."
        )
    height, width, channels = activations.shape
    count = min(limit, channels)
    own_scale = height * width > 1
    if titles is not None and len(titles) != count:
        raise ValueError(f"feature_maps: {len(titles)} titles for {count} maps; give one for each.")
    if title is None:
        title = f"{count} of {channels} channels, {width} × {height} values each{', each on its own scale' * own_scale}"
    wide = min(columns, count)
    fig, axes = _tiles([divmod(number, wide) for number in range(count)], wide, title, size=1.0, caption=0.2)
    drawn = activations[..., :count]
    ends = {} if own_scale else {"vmin": drawn.min(), "vmax": drawn.max()}
    for number, ax in enumerate(axes):
        ax.imshow(activations[..., number], cmap="viridis", interpolation="nearest", **ends)
        ax.set_title(str(number) if titles is None else titles[number], fontsize=8, pad=2)
    return fig


@_styled
def distortion_sheet(rows: DataFrame | Sequence[Row | Mapping[str, Any]], title: str | None = None) -> Figure:
    """Images distorted: a line of tiles for each distortion, milder on the left.

    ``rows``: one image for each pair of ``distortion`` and ``severity``, with ``image``; a frame is collected, so give
    a small one. Lines come in the order of their first row (of a frame: by name). ``ValueError``: a column is missing,
    no row, or a pair that occurs twice.
    """
    if isinstance(rows, DataFrame):
        _need_columns("distortion_sheet", rows.columns, "distortion", "severity", "image")
        rows = rows.select("distortion", "severity", "image").orderBy("distortion", "severity").collect()
    tiles = [_as_dict(row) for row in rows]
    if not tiles:
        raise ValueError("distortion_sheet: there is no image to draw; check the filter.")
    for tile in tiles:
        _need_columns("distortion_sheet", tile, "distortion", "severity", "image")
    names = list(dict.fromkeys(tile["distortion"] for tile in tiles))
    steps = sorted({tile["severity"] for tile in tiles})
    slots = [(names.index(tile["distortion"]), steps.index(tile["severity"])) for tile in tiles]
    if len(set(slots)) < len(slots):
        raise ValueError("distortion_sheet: a distortion has two images of one severity; give one image's versions.")
    fig, axes = _tiles(slots, len(steps), title, caption=0.08, left=0.09 * max(map(len, names)) + 0.1)
    for (line, column), ax, tile in zip(slots, axes, tiles, strict=True):
        _draw_image(ax, tile)
        if line == 0:
            ax.set_title(f"{steps[column]:g}", fontsize=9, pad=3)
        if column == 0:
            ax.set_ylabel(names[line], rotation=0, ha="right", va="center", labelpad=6, fontsize=10)
    return fig


@_styled
def reading(
    image: Any, probabilities: Sequence[float], neighbours: Sequence[Mapping[str, Any]], title: str | None = None
) -> Figure:
    """An image, the probability of each class as a bar, and the training digits that resemble it most.

    ``image``: as ``network_view`` takes one. ``probabilities``: one for each class from 0 on; the bar of the most
    probable is dark and has its value behind it. ``neighbours``: ``label`` and ``image`` (struct or ``None``) of each,
    nearest first.
    """
    chances, size = np.asarray(probabilities, np.float64), 0.92
    wide, gap = 3, 0.14
    lines = -(-len(neighbours) // wide)
    height, bars = 2.9, 2.4
    width = 0.15 + 2.3 + 0.75 + bars + 0.65 + (wide * (size + gap) if lines else 0)
    fig = plt.figure(figsize=(width, height))

    def place(left: float, bottom: float, across: float, up: float) -> Axes:
        return fig.add_axes((left / width, bottom / height, across / width, up / height))

    (pixels,) = _pictures(image)
    ax = place(0.15, 0.25, 2.3, 2.3)
    _show(ax, pixels)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title or "read from this")

    ax = place(0.15 + 2.3 + 0.75, 0.25, bars, 2.3)
    best = int(chances.argmax())
    colours = [_COLOURS[0] if k == best else _light(_COLOURS[0]) for k in range(len(chances))]
    ax.barh(np.arange(len(chances)), chances, color=colours, height=0.75)
    ax.annotate(f"{chances[best]:.2f}", (chances[best], best), (3, 0), textcoords="offset points", va="center")
    ax.set_yticks(np.arange(len(chances)), [_both(k) for k in range(len(chances))], fontsize=11, fontfamily=_DIGITS)
    ax.set(ylim=(len(chances) - 0.5, -0.5), xlim=(0, 1.001), xticks=[], title="probability")
    ax.tick_params(axis="y", length=0)

    for number, neighbour in enumerate(neighbours):
        line, column = divmod(number, wide)
        left = width - wide * (size + gap) + column * (size + gap)
        ax = place(left, height - 0.55 - size - line * (size + 0.3), size, size)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
        _draw_image(ax, neighbour)
        ax.set_title(_both(neighbour["label"]), fontsize=11, pad=2, fontfamily=_DIGITS)
    if lines:
        fig.text((width - wide * (size + gap)) / width, 1 - 0.12 / height, "most similar training digits", va="top")
    return fig


# --- charts -----------------------------------------------------------------------------------------------------------


@_styled
def class_balance(digits: DataFrame | pd.DataFrame, title: str | None = None) -> Figure:
    """Images of each class as bars, stacked by source. ``digits``: a frame with columns ``label`` and ``source``.

    A row without a label counts as "?". ``ValueError``: a column is missing or there is no row.
    """
    _need_columns("class_balance", digits.columns, "label", "source")
    if isinstance(digits, DataFrame):
        counts = digits.groupBy("label", "source").count().toPandas()
    else:
        counts = digits.groupby(["label", "source"], dropna=False).size().reset_index(name="count")
    if counts.empty:
        raise ValueError("class_balance: the frame has no rows; check the filter or the folder.")
    # Sources in the order of their names and labels in that of their numbers, whatever order Spark returned.
    names = [_both(None if pd.isna(label) else label) for label in counts["label"]]
    order = [name for _, name in sorted({(_null_last(x), y) for x, y in zip(counts["label"], names, strict=True)})]
    table = counts.assign(name=names, source=counts["source"].fillna("?"))
    table = table.pivot_table(index="name", columns="source", values="count", aggfunc="sum", fill_value=0)
    table = table.loc[order, sorted(table.columns)]

    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    base = np.zeros(len(table), dtype=int)
    for number, source in enumerate(table.columns):
        height = table[source].to_numpy()
        ax.bar(
            np.arange(len(table)),
            height,
            bottom=base,
            width=0.75,
            label=f"{source} ({height.sum():,})",
            color=_light(_COLOURS[number % 10]),
            edgecolor=_COLOURS[number % 10],
            hatch=_HATCHES[number % 10],
        )
        base = base + height
    for position, total in enumerate(base):
        ax.annotate(f"{total:,}", (position, total), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    ax.set_xticks(np.arange(len(table)), table.index, fontsize=14, fontfamily=_DIGITS)
    ax.set(xlabel="digit", ylabel="images", title=title or f"{base.sum():,} images: classes and sources")
    ax.margins(y=0.12)
    ax.grid(axis="y")
    ax.tick_params(axis="x", length=0)
    # The legend reads from the top like the stack.
    handles, texts = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], texts[::-1], title="source", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return fig


@_styled
def confusion_matrix(evaluation: Evaluation, normalize: bool | None = None, title: str | None = None) -> Figure:
    """The confusion matrix: rows true, columns predicted. ``normalize``: None draws counts and rates side by side,
    False the counts, True the rates (share of each true class; a class without images has none, "–")."""
    panels = {None: ("counts", "rates"), False: ("counts",), True: ("rates",)}[normalize]
    names = [_both(label) for label in evaluation.labels]
    counts = evaluation.confusion
    of_class = counts.sum(axis=1, keepdims=True)
    rates = np.divide(counts, of_class, out=np.full(counts.shape, np.nan), where=of_class > 0)
    side = max(3.4, 0.52 * len(names) + 0.6)
    fig, axes = plt.subplots(
        1, len(panels), figsize=((side + 1.2) * len(panels), side + 0.7), layout="constrained", squeeze=False
    )
    for ax, panel in zip(axes[0], panels, strict=True):
        values = counts.astype(float) if panel == "counts" else rates
        text = [[_cell(value, panel) for value in line] for line in values]
        sns.heatmap(
            values,
            annot=np.array(text),
            fmt="",
            cmap="Blues",
            vmin=0,
            vmax=1 if panel == "rates" else max(1, counts.max()),
            square=True,
            linewidths=0.5,
            linecolor="#e6e6e6",
            xticklabels=names,
            yticklabels=names,
            annot_kws={"fontsize": 9},
            cbar_kws={"shrink": 0.8, "label": "images" if panel == "counts" else "share of the true class"},
            ax=ax,
        )
        # seaborn leaves out masked (nan) cells.
        for line, column in np.argwhere(np.isnan(values)):
            ax.text(column + 0.5, line + 0.5, "–", ha="center", va="center", color=_FAINT, fontsize=9)
        for label in ax.texts:
            if label.get_text() == "0":
                label.set_color("#9a9a9a")
        ax.set_xticklabels(ax.get_xticklabels(), rotation=0, fontsize=13, fontfamily=_DIGITS)
        ax.set_yticklabels(ax.get_yticklabels(), rotation=0, fontsize=13, fontfamily=_DIGITS)
        ax.tick_params(length=0)
        ax.set(xlabel="predicted digit", ylabel="true digit", title="Counts" if panel == "counts" else "Rates")
    fig.suptitle(title or f"{evaluation.images:,} images, accuracy {evaluation.accuracy:.3f}")
    return fig


@_styled
def roc_curves(evaluation: Evaluation, hard: bool = True, title: str | None = None) -> Figure:
    """ROC curve of each class against the rest and their mean, with the top left corner enlarged.

    ``hard`` puts beside it what is left of the curves when only predicted labels are used, as the 2019 article did: one
    bend for each class. The legend gives the areas. With a single class in the frame there is no curve, and the picture
    says so.
    """
    panels = (False, True) if hard else (False,)
    fig, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels) + 2.2, 4.8), layout="constrained", squeeze=False, sharey=True
    )
    handles: list[Line2D] = []
    for ax, from_labels in zip(axes[0], panels, strict=True):
        curves, macro = evaluation.roc_curves(from_labels), evaluation.macro_curve(from_labels)
        area = "" if macro is None else f", mean area {macro.area:.3f}"
        ax.set_title(("From predicted labels" if from_labels else "From probabilities") + area)
        ax.set(xlabel="false positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        ax.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.8, linestyle=":")
        if macro is None:
            ax.text(0.5, 0.5, "no curve: the frame\nholds only one class", ha="center", va="center")
            continue
        lines = _draw_curves(ax, curves, macro, evaluation.labels, from_labels)
        corner = ax.inset_axes((0.42, 0.1, 0.55, 0.55), xlim=(-0.004, 0.2), ylim=(0.8, 1.004))
        _draw_curves(corner, curves, macro, evaluation.labels, from_labels)
        corner.spines[:].set_visible(True)
        corner.spines[:].set_color(_FAINT)
        corner.tick_params(labelsize=7)
        corner.set_xticks([0, 0.1, 0.2])
        corner.set_yticks([0.8, 0.9, 1])
        ax.add_patch(Rectangle((0, 0.8), 0.2, 0.2, fill=False, edgecolor=_FAINT, linewidth=0.8))
        corner.set_title("top left corner", fontsize=7, pad=2)
        if not from_labels:
            handles = lines
    axes[0][0].set_ylabel("true positive rate")
    if handles:
        _roc_legend(axes[0][-1], handles, evaluation, hard)
    if title:
        fig.suptitle(title)
    return fig


@_styled
def projection(
    features: Any,
    labels: Iterable[float],
    method: Literal["pca", "tsne"] = "pca",
    seed: int = 42,
    title: str | None = None,
) -> Figure:
    """Features in two dimensions, each image drawn as its own Bengali digit.

    ``features``: (n, d) array or a list of n ML vectors; ``labels``: n class numbers. ``"pca"``: the two directions of
    largest variance. ``"tsne"``: neighbours stay neighbours (L. van der Maaten and G. Hinton (2008), JMLR 9,
    2579–2605, on the first 50 principal components); distances between far groups mean nothing. Both are seeded and run
    on one thread, so that the same features give the same picture on any number of cores. ``ValueError``: another
    method, fewer than three images, or other than one label for each.
    """
    if method not in ("pca", "tsne"):
        raise ValueError(f"projection: method is {method!r}; give 'pca' or 'tsne'.")
    points = np.array([row.toArray() if hasattr(row, "toArray") else row for row in features], dtype=np.float64)
    classes = np.array(list(labels))
    if points.ndim != 2 or len(points) < 3 or len(points) != len(classes):
        raise ValueError(
            f"projection: features have shape {points.shape} with {len(classes)} labels; give at least three images, "
            "one row and one label for each."
        )
    places, names = _project(points, method, seed)
    fig, ax = plt.subplots(figsize=(8, 6), layout="constrained")
    handles = []
    for number, label in enumerate(np.unique(classes)):
        marker = _digit_marker(label)
        colour = _COLOURS[number % 10]
        chosen = places[classes == label]
        ax.scatter(chosen[:, 0], chosen[:, 1], s=90, marker=marker, color=colour, linewidths=0, alpha=0.85)
        handles.append(
            Line2D([], [], linestyle="", marker=marker, markersize=13, color=colour, label=f"{int(label)}", mew=0)
        )
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.set_title(title or f"{len(points):,} images: {_method_name(method)} of {points.shape[1]:,} features")
    if method == "tsne":
        # The axes of t-SNE have no unit, and no number on them means anything.
        ax.set(xticks=[], yticks=[])
    ax.legend(
        handles=handles, title="digit", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, labelspacing=0.9
    )
    return fig


@_styled
def accuracy_by_layer(
    table: pd.DataFrame,
    x: str = "layer",
    series: str = "weights",
    value: str = "accuracy",
    error: str = "error",
    chance: float | None = None,
    title: str | None = None,
) -> Figure:
    """Bars of ``value`` for each ``x``, one bar of the group for each ``series``, both in the order of the table.

    ``table``: columns ``x`` and ``value`` (0–1), and where it has them ``series`` and ``error`` (half the height of the
    error bar, same unit). ``chance`` draws a line at the accuracy of guessing. ``ValueError``: a column is missing, no
    row, or two rows for one bar.
    """
    _need_columns("accuracy_by_layer", table.columns, x, value)
    if table.empty:
        raise ValueError("accuracy_by_layer: the table has no rows.")
    data = table if series in table.columns else table.assign(**{series: ""})
    twice = data[data.duplicated([x, series])]
    if len(twice):
        raise ValueError(
            f"accuracy_by_layer: {twice.iloc[0][x]!r} with {twice.iloc[0][series]!r} occurs twice; give one row a bar."
        )
    groups, bars = list(dict.fromkeys(data[x])), list(dict.fromkeys(data[series]))
    rotate = len(groups) > 4 and sum(len(str(group)) for group in groups) > 60
    fig, ax = plt.subplots(
        figsize=(float(np.clip(1 + 0.55 * len(groups) * (len(bars) + 0.6), 6, 11)), 4.2), layout="constrained"
    )
    width = 0.8 / len(bars)
    for number, name in enumerate(bars):
        own = data[data[series] == name]
        places = np.array([groups.index(group) for group in own[x]]) + (number - (len(bars) - 1) / 2) * width
        spread = own[error].fillna(0).to_numpy() if error in own.columns else None
        heights = own[value].to_numpy()
        colour = _COLOURS[number % 10]
        ax.bar(
            places,
            heights,
            width=0.92 * width,
            yerr=spread,
            capsize=3,
            error_kw={"ecolor": _INK, "elinewidth": 1},
            color=_light(colour),
            edgecolor=colour,
            hatch=_HATCHES[number % 10],
            label=str(name),
        )
        for place, height, above in zip(places, heights, spread if spread is not None else 0 * heights, strict=True):
            if np.isfinite(height):
                ax.annotate(
                    f"{height:.2f}",
                    (place, height + above),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
    if chance is not None:
        ax.axhline(chance, color=_INK, linestyle="--", linewidth=1, label=f"guessing ({chance:.2f})")
    ax.set_xticks(range(len(groups)), [str(group) for group in groups])
    if rotate:
        ax.tick_params(axis="x", rotation=30)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    ax.set(xlabel=x, ylabel=value, title=title or f"{value} by {x}".capitalize(), ylim=(0, None))
    ax.margins(y=0.08)
    ax.grid(axis="y")
    if series in table.columns or chance is not None:
        heading = series if series in table.columns else None
        handles, texts = ax.get_legend_handles_labels()
        named = sorted(zip(handles, texts, strict=True), key=lambda pair: isinstance(pair[0], Line2D))
        named = [(handle, text) for handle, text in named if text]
        ax.legend(*zip(*named, strict=True), title=heading, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return fig


@_styled
def network_runs(steps: pd.DataFrame, title: str | None = "Images through the network, step by step") -> Figure:
    """What a network has to do for each way of working: a line a step, whose bar begins where the one above ends.

    ``steps``: a row a step, in order, with ``way``, ``step`` (its name) and ``images`` (how many went through the
    network for it, counted each time). ``ValueError``: a column is missing or there is no row.
    """
    _need_columns("network_runs", steps.columns, "way", "step", "images")
    if steps.empty:
        raise ValueError("network_runs: the table has no rows.")
    ways = list(dict.fromkeys(steps["way"]))
    lines = steps.assign(end=steps.groupby("way")["images"].cumsum()).reset_index(drop=True)
    lines["place"] = lines.index + 0.8 * lines["way"].map(ways.index)  # a gap between two ways
    fig, ax = plt.subplots(figsize=(8, 1 + 0.3 * (lines["place"].max() + 1)), layout="constrained")
    for number, way in enumerate(ways):
        own = lines[lines["way"] == way]
        look = {"color": _light(_COLOURS[number]), "edgecolor": _INK, "linewidth": 0.8}
        label = f"{way}: {own['images'].sum():,}"
        ax.barh(own["place"], own["images"], left=own["end"] - own["images"], height=0.72, label=label, **look)
    for line in lines.itertuples():
        where = (line.end, line.place)
        ax.annotate(f"{line.images:,}", where, xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(lines["place"], list(lines["step"]))
    ax.set(ylim=(lines["place"].max() + 0.6, -0.6), xlim=(0, 1.08 * lines["end"].max()), xlabel="images", title=title)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.legend(loc="lower right", frameon=False)
    return fig


@_styled
def loss_curve(
    histories: Mapping[str, Sequence[float]],
    log: bool = False,
    xlabel: str = "iteration",
    ylabel: str = "training objective",
    title: str | None = "How training went",
) -> Figure:
    """One line for each training run, by name: the objective after 0, 1, 2 … iterations, as Spark's
    ``objectiveHistory`` gives it. ``log`` draws the loss on a logarithmic axis. ``ValueError`` where a run is empty.
    """
    if not histories or not all(len(history) for history in histories.values()):
        raise ValueError("loss_curve: a history is empty; give each run's objectiveHistory.")
    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    counted = xlabel == "iteration"  # other histories count parts of a training
    for number, (name, history) in enumerate(histories.items()):
        steps = len(history) - 1
        ax.plot(
            range(len(history)),
            history,
            **_line_style(number),
            markersize=5,
            # About a dozen markers a line, or they hide it, and one at its end.
            markevery=sorted({*range(0, steps, max(1, steps // 12)), steps}),
            label=f"{name}: {history[-1]:.4g} "
            + (f"after {steps} {xlabel}{'s' * (steps != 1)}" if counted else "at the end"),
        )
    if log:
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid()
    ax.legend(frameon=False)
    return fig


@_styled
def severity_curves(
    table: pd.DataFrame,
    clean: float,
    series: str = "distortion",
    value: str = "accuracy",
    chance: float | None = None,
    title: str | None = None,
) -> Figure:
    """A line for each ``series``: ``value`` against severity, all of them from ``clean`` at severity 0.

    ``table``: ``series``, ``severity`` (above 0) and ``value``. The legend has the lines in the order of their ends,
    the highest first. ``chance`` draws a line at the accuracy of guessing. ``ValueError``: a column is missing, no row,
    or two rows for one point.
    """
    _need_columns("severity_curves", table.columns, series, "severity", value)
    if table.empty:
        raise ValueError("severity_curves: the table has no rows.")
    if table.duplicated([series, "severity"]).any():
        raise ValueError("severity_curves: a severity occurs twice in one line; give the mean of such rows.")
    names = list(dict.fromkeys(table[series]))
    lines = {name: table[table[series] == name].sort_values("severity") for name in names}
    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    for name in sorted(names, key=lambda name: -lines[name][value].iloc[-1]):
        number = names.index(name)
        ax.plot(
            [0, *lines[name]["severity"]],
            [clean, *lines[name][value]],
            **_line_style(number),
            label=f"{name}: {lines[name][value].iloc[-1]:.2f}",
        )
    if chance is not None:
        ax.axhline(chance, color=_INK, linestyle="--", linewidth=1, label=f"guessing ({chance:.2f})")
    ax.set(xlabel="severity", ylabel=value, ylim=(0, 1.03), title=title or f"{value} by severity".capitalize())
    ax.grid(axis="y")
    ax.legend(title="at the severest", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=3.5)
    return fig


@_styled
def reliability_diagram(
    evaluations: Mapping[str, Evaluation], bins: int = 10, title: str | None = "How sure, and how often right"
) -> Figure:
    """A panel for each evaluation: the accuracy of the answers in each step of confidence, and the diagonal of honesty.

    Each bar has the number of its answers above it; a hatched piece is what lacks to the mean confidence (a cross), or
    lies above it. The heading gives the expected calibration error (``Evaluation.reliability``). ``ValueError``: no
    evaluation.
    """
    if not evaluations:
        raise ValueError("reliability_diagram: there is no evaluation to draw.")
    count = len(evaluations)
    fig, axes = plt.subplots(1, count, figsize=(4 * count + 0.6, 4.4), layout="constrained", squeeze=False, sharey=True)
    for ax, (name, evaluation) in zip(axes[0], evaluations.items(), strict=True):
        table, error = evaluation.reliability(bins)
        middle, width = (table["low"] + table["high"]) / 2, (table["high"] - table["low"]) * 0.92
        ax.bar(middle, table["accuracy"], width, color=_light(_COLOURS[0]), edgecolor=_COLOURS[0], label="accuracy")
        ax.bar(
            middle,
            table["confidence"] - table["accuracy"],
            width,
            bottom=table["accuracy"],
            fill=False,
            edgecolor=_WRONG,
            hatch="///",
            linewidth=0.8,
            label="gap",
        )
        ax.plot([0, 1], [0, 1], color=_INK, linestyle="--", linewidth=1, label="calibrated")
        ax.plot(table["confidence"], table["confidence"], "x", color=_INK, markersize=6, label="mean confidence")
        tops = table[["accuracy", "confidence"]].max(axis=1)
        for x, y, images in zip(middle, tops, table["images"], strict=True):
            ax.annotate(f"{images:,}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=7.5)
        ax.set(xlabel="confidence", xlim=(0, 1), ylim=(0, 1.1), aspect="equal")
        ax.set_title(f"{name}\n{evaluation.images:,} answers, calibration error {error:.3f}", fontsize=10)
    axes[0][0].set_ylabel("share of right answers")
    handles, texts = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, texts, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    if title:
        fig.suptitle(title)
    return fig


@_styled
def risk_coverage(evaluations: Mapping[str, Evaluation], title: str | None = "What “I don't know” buys") -> Figure:
    """Errors among the answers that are left when the least sure are withheld, a line for each evaluation
    (``Evaluation.rejection_curve``). ``ValueError``: no evaluation."""
    if not evaluations:
        raise ValueError("risk_coverage: there is no evaluation to draw.")
    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    for number, (name, evaluation) in enumerate(evaluations.items()):
        curve = evaluation.rejection_curve()
        ax.plot(
            curve.coverage,
            curve.risk,
            **_line_style(number),
            markevery=[len(curve.coverage) - 1],
            label=f"{name}: {curve.risk[-1]:.3f} of all answers wrong",
        )
    ax.set(xlabel="share of images that get an answer", ylabel="share of wrong answers", title=title)
    ax.set(xlim=(0, 1.02), ylim=(0, None))
    ax.grid()
    ax.legend(frameon=False, loc="upper left")
    return fig


@_styled
def search_heatmap(
    table: pd.DataFrame,
    x: str,
    y: str,
    panel: str | None = None,
    value: str = "score",
    label: str = "score",
    lower_is_better: bool = False,
    title: str | None = None,
) -> Figure:
    """A grid search as cells, ``x`` along and ``y`` down, a panel for each ``panel``; darker is better, a frame marks
    the best cell.

    ``table``: a row for each setting, its figure in column ``value``; rows, columns and panels in the order of the
    table. ``label`` names the figure. ``ValueError``: a column is missing, no row, or two rows for one cell.
    """
    keys = [name for name in (panel, y, x) if name]
    _need_columns("search_heatmap", table.columns, *keys, value)
    if table.empty:
        raise ValueError("search_heatmap: the table has no rows.")
    if table.duplicated(keys).any():
        cell = ", ".join(str(part) for part in table[table.duplicated(keys)].iloc[0][keys])
        raise ValueError(f"search_heatmap: the cell {cell} occurs twice; give one row a cell.")
    across, down = (list(dict.fromkeys(table[name])) for name in (x, y))
    panels = list(dict.fromkeys(table[panel])) if panel else [None]
    best = table.loc[table[value].idxmin() if lower_is_better else table[value].idxmax()]
    size = (1.6 + len(panels) * (0.9 * len(across) + 0.9), 1.5 + 0.5 * len(down))
    fig, axes = plt.subplots(
        1, len(panels), figsize=(max(size[0], 5.5), size[1]), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, name in zip(axes[0], panels, strict=True):
        own = table if panel is None else table[table[panel] == name]
        cells = own.pivot(index=y, columns=x, values=value).reindex(index=down, columns=across)
        sns.heatmap(
            cells,
            ax=ax,
            cmap="Blues_r" if lower_is_better else "Blues",
            vmin=table[value].min(),
            vmax=table[value].max(),
            annot=True,
            fmt=".3f",
            linewidths=1,
            cbar=ax is axes[0][-1],
            cbar_kws={"label": label},
        )
        ax.set(xlabel=x, ylabel=y if ax is axes[0][0] else "", title="" if panel is None else f"{panel}: {name}")
        ax.tick_params(left=False, bottom=False, rotation=0)
        if panel is None or best[panel] == name:
            place = (across.index(best[x]), down.index(best[y]))
            ax.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=_WRONG, linewidth=3, clip_on=False))
    fig.suptitle(title or f"{label} of each setting, the best one framed", fontsize=11)
    return fig


@_styled
def search_dots(
    table: pd.DataFrame,
    params: Sequence[str],
    value: str = "score",
    series: str = "search",
    label: str = "score",
    title: str | None = None,
    log: bool = False,
) -> Figure:
    """Everything that searches tried: a panel for each Param, in it a dot for each setting, its figure upwards.

    ``table``: a row for each setting, with the Params, its figure ``value`` and, where it has it, ``series``: which
    search it belongs to. Numbers that span more than a factor of 30 stand on a logarithmic axis, texts in the order of
    the table. ``log``: so do the figures, which one that is far off would press together. ``ValueError``: a column is
    missing, no Param or no row.
    """
    _need_columns("search_dots", table.columns, *params, value)
    if table.empty or not params:
        raise ValueError("search_dots: there is nothing to draw; give a table with rows and at least one Param.")
    data = table if series in table.columns else table.assign(**{series: ""})
    names = list(dict.fromkeys(data[series]))
    width = sum(2.6 if pd.api.types.is_numeric_dtype(data[param]) else 1.6 for param in params)
    fig, axes = plt.subplots(
        1, len(params), figsize=(max(width, 5.0), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, param in zip(axes[0], params, strict=True):
        numeric = pd.api.types.is_numeric_dtype(data[param])
        values = list(dict.fromkeys(data[param]))
        for number, name in enumerate(names):
            own = data[data[series] == name]
            places = own[param].astype(float) if numeric else own[param].map(values.index).astype(float)
            if not numeric:  # side by side, not one behind the other
                places = places + 0.25 * (number - (len(names) - 1) / 2)
            colour = _COLOURS[number % 10]
            ax.scatter(
                places,
                own[value],
                s=34,
                marker=_MARKERS[number % 10],
                facecolor=[_light(colour)],
                edgecolor=[colour],
                linewidth=1.2,
                label=str(name),
            )
        if not numeric:
            ax.set_xticks(range(len(values)), [str(value) for value in values], rotation=30, ha="right")
            ax.set_xlim(-0.6, len(values) - 0.4)
        elif data[param].min() > 0 and data[param].max() > 30 * data[param].min():
            ax.set_xscale("log")
        ax.set(xlabel=param, ylabel=label if ax is axes[0][0] else "", yscale="log" if log else "linear")
        ax.grid(axis="y")
    if series in table.columns:
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    fig.suptitle(title or f"{label} of each setting that was tried", fontsize=11)
    return fig


@_styled
def learning_curve(
    table: pd.DataFrame,
    x: str = "images per class",
    value: str = "accuracy",
    error: str = "spread",
    series: str = "data set",
    title: str | None = None,
) -> Figure:
    """``value`` by the number of training images, one line for each ``series``, its spread as a band.

    ``table``: columns ``x`` (above 0; logarithmic axis), ``value`` (0–1) and where it has them ``error`` (half the
    height of the band, same unit) and ``series``. ``ValueError``: a column is missing or there is no row.
    """
    _need_columns("learning_curve", table.columns, x, value)
    if table.empty:
        raise ValueError("learning_curve: the table has no rows.")
    data = table if series in table.columns else table.assign(**{series: ""})
    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    for number, name in enumerate(dict.fromkeys(data[series])):
        own = data[data[series] == name].sort_values(x)
        if error in own.columns:
            low, high = ((own[value] + side * own[error].fillna(0)).clip(0, 1) for side in (-1, 1))
            ax.fill_between(own[x], low, high, color=_COLOURS[number % 10], alpha=0.2, linewidth=0)
        ax.plot(
            own[x],
            own[value],
            **_line_style(number),
            label=f"{name}: {own[value].iloc[-1]:.3f} at {own[x].iloc[-1]}",
        )
    ticks = sorted(set(data[x]))
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set(xlabel=x, ylabel=value, title=title or f"{value} by {x}".capitalize())
    ax.grid()
    if series in table.columns:
        ax.legend(loc="lower right", frameon=False)
    return fig


@_styled
def splits_chart(scores: pd.DataFrame, label: str = "score", title: str | None = None) -> Figure:
    """The same settings over several splits: a dot for each, those of one split joined by a line, a bar at each mean.

    ``scores``: a row for each split, a column for each setting. Lines that cross mean that it depends on the split
    which setting is better. ``ValueError`` where there is no row or no column.
    """
    if scores.empty:
        raise ValueError("splits_chart: there are no scores; give a row for each split, a column for each setting.")
    places = np.arange(len(scores.columns))
    fig, ax = plt.subplots(figsize=(max(5.0, 1.2 + 1.7 * len(places)), 3.8), layout="constrained")
    for number, (_, row) in enumerate(scores.iterrows()):
        name = "one split" if number == 0 else None
        ax.plot(places, row, color=_FAINT, linewidth=0.9, marker="o", markersize=4.5, label=name)
    ax.hlines(scores.mean(), places - 0.18, places + 0.18, color=_COLOURS[0], linewidth=4, zorder=3, label="mean")
    for place, column in zip(places, scores.columns, strict=True):
        text = f"{scores[column].mean():.3f}"
        ax.annotate(text, (place + 0.2, scores[column].mean()), va="center", fontsize=9, color=_COLOURS[0])
    ax.set_xticks(places, [str(column) for column in scores.columns])
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.set(ylabel=label, title=title or f"{label} over {len(scores)} splits")
    ax.grid(axis="y")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return fig


# --- on a cluster -----------------------------------------------------------------------------------------------------


@_styled
def partition_batches(batches: pd.DataFrame, batch_size: int, title: str | None = None) -> Figure:
    """How a frame's images travel: a row of squares for each partition, a square an image.

    ``batches``: a row for each Arrow batch, with ``partition``, ``number`` (its place in the partition) and ``images``.
    Those of one Arrow batch have one shade, and every ``batch_size`` images stand close together, which go through the
    network at once. ``ValueError``: a column is missing, no row, or a batch size below 1.
    """
    _need_columns("partition_batches", batches.columns, "partition", "number", "images")
    _at_least_one("partition_batches", batch_size=batch_size)
    if batches.empty:
        raise ValueError("partition_batches: the table has no rows.")
    partitions = sorted(batches["partition"].unique())
    widest = 0.0
    fig, ax = plt.subplots(figsize=(10, 0.9 + 0.27 * len(partitions)), layout="constrained")
    for row, partition in enumerate(partitions):
        place = 0.0
        for count, images in enumerate(batches[batches["partition"] == partition].sort_values("number")["images"]):
            places = place + np.arange(images) + 0.5 * (np.arange(images) // batch_size)
            colour = _COLOURS[0] if count % 2 == 0 else _light(_COLOURS[0])
            squares = [Rectangle((x, row - 0.32), 0.86, 0.64) for x in places]
            ax.add_collection(PatchCollection(squares, facecolor=colour, edgecolor=_COLOURS[0], linewidth=0.5))
            place = places[-1] + 3
        widest = max(widest, place)
    ax.set_yticks(range(len(partitions)), [f"partition {partition}" for partition in partitions])
    ax.set(xlim=(-0.5, widest - 2), ylim=(len(partitions) - 0.5, -0.5), xticks=[], title=title or "Partitions, batches")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    return fig


@_styled
def task_timeline(runs: Mapping[str, pd.DataFrame], title: str | None = "Which executor did what, and when") -> Figure:
    """A panel for each run: a line for each executor, a bar for each task with the number of its partition.

    ``runs``: by title, tables as ``StandaloneCluster.tasks`` gives them, of one stage. Seconds count from the first
    task of the run. Tasks that were lost with their executor are hatched and end in a cross; their second attempts have
    a thick edge. ``ValueError``: a column is missing, or a run has no task.
    """
    fig, axes = plt.subplots(
        len(runs), 1, figsize=(10, 0.9 + 1.3 * len(runs)), sharex=True, squeeze=False, layout="constrained"
    )
    kinds: dict[str, Rectangle] = {}
    for ax, (name, tasks) in zip(axes[:, 0], runs.items(), strict=True):
        _need_columns("task_timeline", tasks.columns, "partition", "attempt", "executor", "start", "end", "outcome")
        if tasks.empty:
            raise ValueError(f"task_timeline: {name} has no tasks.")
        executors = sorted(tasks["executor"].unique())
        for task in tasks.itertuples():
            lost, again = task.outcome != "Success", task.attempt > 0
            kind = "lost with its executor" if lost else "tried again" if again else "task"
            look = {"facecolor": _light(_WRONG if lost else _COLOURS[0]), "edgecolor": _INK, "linewidth": 0.8}
            look |= {"hatch": "////"} if lost else {"linewidth": 2.4} if again else {}
            start, end = (moment - tasks["start"].min() for moment in (task.start, task.end))
            row = executors.index(task.executor)
            bar = ax.add_patch(Rectangle((start, row - 0.35), end - start, 0.7, label=kind, **look))
            kinds.setdefault(kind, bar)
            if lost:
                ax.plot([end], [row], marker="X", color=_WRONG, markersize=9, clip_on=False, zorder=3)
            halo = [patheffects.withStroke(linewidth=3, foreground=look["facecolor"])]
            middle = (start + end) / 2
            ax.text(middle, row, str(task.partition), ha="center", va="center", fontsize=9, path_effects=halo)
        ax.set_yticks(range(len(executors)), [f"executor {executor}" for executor in executors])
        ax.set(ylim=(len(executors) - 0.4, -0.6))
        ax.set_title(name, loc="left", fontsize=10)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x")
    longest = max(tasks["end"].max() - tasks["start"].min() for tasks in runs.values())
    axes[-1, 0].set(xlim=(0, longest * 1.01), xlabel="seconds")
    axes[0, 0].legend(kinds.values(), kinds.keys(), loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    fig.suptitle(title, fontsize=11)
    return fig


@_styled
def memory_bars(processes: pd.DataFrame, title: str | None = None) -> Figure:
    """Memory of running programs: a bar for each kind of process, a piece for each process.

    A kind that takes less than a hundredth of the largest is left out. ``processes``: a row a process, with ``kind``
    and ``MiB``. ``ValueError``: a column is missing or there is no row.
    """
    _need_columns("memory_bars", processes.columns, "kind", "MiB")
    if processes.empty:
        raise ValueError("memory_bars: the table has no rows.")
    sums = processes.groupby("kind")["MiB"].sum().sort_values(ascending=False)
    sums = sums[sums >= sums.max() / 100]  # a shell would be no more than a line
    fig, ax = plt.subplots(figsize=(8, 0.9 + 0.36 * len(sums)), layout="constrained")
    for row, (kind, total) in enumerate(sums.items()):
        sizes = processes.loc[processes["kind"] == kind, "MiB"].sort_values(ascending=False).to_numpy()
        ends = np.cumsum(sizes)
        ax.barh(row, sizes, left=ends - sizes, height=0.66, color=_light(_COLOURS[0]), edgecolor=_INK, linewidth=0.8)
        ax.annotate(f"{total:.0f}", (total, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(sums)), list(sums.index))
    ax.set(ylim=(len(sums) - 0.4, -0.6), xlim=(0, 1.1 * sums.max()), xlabel="MiB", title=title or "Memory by process")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    return fig


# --- parts ------------------------------------------------------------------------------------------------------------


def _line_style(number: int) -> dict[str, Any]:
    """How line ``number`` of a chart looks: told apart by colour, dashes and marker."""
    return {
        "color": _COLOURS[number % 10],
        "linestyle": _LINES[number % len(_LINES)],
        "marker": _MARKERS[number % 10],
        "linewidth": 1.8,
    }


def _method_name(method: str) -> str:
    return {"pca": "PCA", "tsne": "t-SNE"}[method]


def _at_least_one(function: str, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{function}: {name} is {number}; give 1 or more.")


def _need_columns(function: str, columns: Iterable[str], *needed: str) -> None:
    for name in needed:
        if name not in columns:
            raise ValueError(f"{function}: the frame has no column {name!r}; it has {', '.join(map(str, columns))}.")


def _null_last(label: float | None) -> tuple[bool, float]:
    return (True, 0) if label is None or label != label else (False, label)


def _light(colour: tuple[float, float, float]) -> tuple[float, ...]:
    """Paler, so that the hatching in the full colour shows."""
    return tuple(0.45 * part + 0.55 for part in colour)


def _cell(value: float, panel: str) -> str:
    if np.isnan(value):
        return ""
    return f"{int(value)}" if panel == "counts" or value == 0 else f"{value:.2f}"


def _tiles(
    slots: Sequence[tuple[int, int]],
    columns: int,
    title: str | None,
    size: float = 0.95,
    caption: float = 0.0,
    left: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """Square axes without ticks at the given (row, column) slots; sizes in inches, ``caption`` the room above each.

    Placed by hand: laying out a hundred axes by constraints takes seconds.
    """
    gap, margin, head = 0.1, 0.12, 0.3 if title else 0.0
    lines = 1 + max(line for line, _ in slots)
    # A narrow sheet still has to hold its title.
    width = max(left + columns * (size + gap) - gap + 2 * margin, 0.085 * len(title or "") + 2 * margin)
    height = head + lines * (size + caption + gap) - gap + 2 * margin
    fig = plt.figure(figsize=(width, height))
    axes = []
    for line, column in slots:
        bottom = height - margin - head - line * (size + caption + gap) - caption - size
        place = (margin + left + column * (size + gap), bottom, size, size)
        ax = fig.add_axes((place[0] / width, place[1] / height, place[2] / width, place[3] / height))
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
        ax.spines[:].set(color="#bbbbbb", linewidth=0.6)
        axes.append(ax)
    if title:
        fig.text(margin / width, 1 - margin / height, title, ha="left", va="top", fontsize=11)
    return fig, axes


def _show(ax: Axes, picture: np.ndarray) -> None:
    """An image of any shape in the middle of its square tile, so that frames and captions stay in line."""
    shrunk = max(picture.shape[:2]) > 150
    ax.imshow(picture, interpolation="antialiased" if shrunk else "nearest")
    ax.set_facecolor("#ececec")
    ax.set_aspect("equal", adjustable="datalim")


def _draw_image(ax: Axes, row: Mapping[str, Any]) -> None:
    image = row.get("image")
    # Spark's own image source marks a broken file by sizes of -1 and no data.
    if image is not None and image["data"] and image["height"] > 0:
        _show(ax, image_array(image))
        return
    reason = row.get("error") or "no image"
    lines = textwrap.wrap(str(reason), 15, max_lines=6, placeholder=" …")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.add_patch(Rectangle((0, 0), 1, 1, facecolor="#eeeeee", edgecolor="#c4c4c4", hatch="///", linewidth=0))
    text = ax.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=6.5, color=_INK)
    text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="#eeeeee")])


def _as_dict(row: Row | Mapping[str, Any]) -> dict[str, Any]:
    """A row by column name; a bare image struct counts as a row of that one column."""
    values = row.asDict() if isinstance(row, Row) else dict(row)
    return {"image": values} if "nChannels" in values else values


def _first_rows(
    images: DataFrame | Sequence[Row | Mapping[str, Any]], columns: int, limit: int, by_class: bool
) -> list[dict[str, Any]]:
    if not isinstance(images, DataFrame):
        return [_as_dict(row) for row in images]
    _need_columns("contact_sheet", images.columns, "image", *(["label"] if by_class else []))
    if "path" not in images.columns:
        # Spark's own image source: its only name is inside the struct, so the images are decoded to sort them.
        frame = images.withColumn("path", F.col("image.origin"))
        return [_as_dict(row) for row in _first(frame, columns, limit, by_class).collect()]
    narrow = images.select("path", *(["label"] if by_class else []))
    keys = [row["path"] for row in _first(narrow, columns, limit, by_class).collect()]
    return _by_path(images, keys)


def _first(frame: DataFrame, columns: int, limit: int, by_class: bool) -> DataFrame:
    if not by_class:
        return frame.orderBy("path").limit(limit)
    place = F.row_number().over(Window.partitionBy("label").orderBy("path"))
    return frame.withColumn("place", place).where(F.col("place") <= columns).drop("place").orderBy("label", "path")


def _by_path(frame: DataFrame, paths: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these paths, in this order. Filtering by path lets Spark decode no other image."""
    small = [name for name in ("path", "label", "image", "error") if name in frame.columns]
    found = {row["path"]: _as_dict(row) for row in frame.where(F.col("path").isin(list(paths))).select(small).collect()}
    return [found[path] for path in paths if path in found]


def _checked(row: dict[str, Any], label: str, prediction: str) -> dict[str, Any]:
    _need_columns("predictions_sheet", row, label, prediction)
    return row


def _confidence(row: Mapping[str, Any], prediction: str, probability: str) -> float:
    """The probability of the predicted class; nan where the row has none."""
    vector = row.get(probability)
    return float("nan") if vector is None else float(vector[int(row[prediction])])


def _worst_rows(
    frame: DataFrame, n: int, images: DataFrame | None, label: str, prediction: str, probability: str
) -> tuple[list[dict[str, Any]], int, int]:
    """(the n rows to draw, errors in the frame, rows of the frame), from one action on the predictions."""
    _need_columns("predictions_sheet", frame.columns, label, prediction)
    if "image" not in frame.columns and (images is None or "path" not in frame.columns):
        raise ValueError(
            "predictions_sheet: the frame has no column 'image'; pass images=, the frame that has them, and keep the "
            "column 'path' in both."
        )
    sure: Column = F.lit(float("nan"))
    if probability in frame.columns:
        is_vector = isinstance(frame.schema[probability].dataType, VectorUDT)
        array = vector_to_array(F.col(probability)) if is_vector else F.col(probability)
        sure = F.get(array, F.col(prediction).cast("int"))
    right = F.col(label) == F.col(prediction)
    keep = [name for name in (label, prediction, probability, "path", "image", "error") if name in frame.columns]
    ties = ["path"] if "path" in frame.columns else []
    # The totals are observed on the way, or they would cost another run of the network; and rows without a prediction
    # are sorted to the end, because Spark would push a filter below the network and run it once more for that.
    totals = Observation()
    rows = (
        frame.select(*keep)
        .observe(totals, F.count(right).alias("rows"), F.count(F.when(~right, 1)).alias("errors"))
        .orderBy(right.isNull(), right, F.when(right, sure).otherwise(-sure), *ties)
        .limit(n)
        .collect()
    )
    if not rows:
        # Spark prunes the observation of a frame that it knows to be empty, and its answer never comes.
        return [], 0, 0
    rows = [row for row in rows if row[label] is not None and row[prediction] is not None]
    drawn = [_as_dict(row) for row in rows]
    if drawn and images is not None and "image" not in frame.columns:
        found = {row["path"]: row for row in _by_path(images, [row["path"] for row in drawn])}
        drawn = [{"error": "image not found"} | found.get(row["path"], {}) | row for row in drawn]
    return drawn, totals.get["errors"], totals.get["rows"]


def _pictures(images: Any) -> list[np.ndarray]:
    """A list of RGB or grey arrays that imshow draws as they are."""
    several = isinstance(images, list | tuple) and not isinstance(images, Row)
    several = several or (isinstance(images, np.ndarray) and images.ndim == 4)
    return [_picture(image) for image in (images if several else [images])]


def _picture(image: Any) -> np.ndarray:
    if isinstance(image, Row | Mapping):
        return image_array(image)
    pixels = np.asarray(image)
    if pixels.ndim == 2 or pixels.shape[-1] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    low, high = pixels.min(), pixels.max()
    if pixels.dtype == np.uint8:
        return pixels
    if low >= -1 and high <= 1:
        pixels = (pixels + 1) * 127.5
    elif low < 0 or high > 255:
        raise ValueError(
            f"network_view: the values run from {low:g} to {high:g}; give pixels of 0–255, or of −1…1 after "
            "Inception's preprocessing."
        )
    return np.rint(pixels).astype(np.uint8)


def _draw_curves(
    ax: Axes, curves: Mapping[int, RocCurve], macro: RocCurve, labels: Sequence[int], hard: bool
) -> list[Line2D]:
    lines = []
    for label, curve in curves.items():
        number = labels.index(label)
        lines += ax.plot(
            curve.false_positive_rate,
            curve.true_positive_rate,
            color=_COLOURS[number % 10],
            linestyle=_LINES[number % len(_LINES)],
            linewidth=1.3,
            # Predicted labels give one point between the ends.
            marker=_MARKERS[number % 10] if hard else None,
            markevery=(1, len(curve.true_positive_rate)),
            markersize=4.5,
            label=str(label),
        )
    lines += ax.plot(
        macro.false_positive_rate, macro.true_positive_rate, color="black", linewidth=2.4, label="mean", zorder=1.9
    )
    return lines


def _roc_legend(ax: Axes, handles: Sequence[Line2D], evaluation: Evaluation, hard: bool) -> None:
    soft, coarse = evaluation.roc_curves(), evaluation.roc_curves(hard=True)
    keys, texts = [], []
    for handle in handles:
        if handle.get_label() == "mean":
            name, areas = "mean", (evaluation.roc_auc, evaluation.roc_auc_hard)
        else:
            label = int(handle.get_label())
            name, areas = _both(label), (soft[label].area, coarse[label].area)
            if hard:
                handle = Line2D([], [], color=handle.get_color(), linestyle=handle.get_linestyle(), linewidth=1.3)
                handle.set(marker=_MARKERS[evaluation.labels.index(label) % 10], markersize=4.5)
        keys.append(handle)
        texts.append("   ".join(f"{area:.3f}" for area in areas[: 2 if hard else 1]) + f"   {name}")
    ax.legend(
        keys,
        texts,
        title="area by probability, label" if hard else "area",
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        handlelength=3,
        prop={"family": _DIGITS, "size": 12},
        title_fontsize=9,
    )


def _project(points: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """(n, 2) places and the names of the two axes."""
    with threadpool_limits(limits=1):
        if method == "pca":
            pca = PCA(n_components=2, random_state=seed) if points.shape[1] > 1 else PCA(n_components=1)
            places = pca.fit_transform(points)
            share = pca.explained_variance_ratio_
            if places.shape[1] == 1:
                places, share = np.column_stack([places, np.zeros(len(places))]), np.append(share, 0.0)
            first, second = (f"component {i + 1} ({100 * part:.0f} % of the variance)" for i, part in enumerate(share))
            return places, (first, second)
        size = min(50, *points.shape)
        reduced = PCA(n_components=size, random_state=seed).fit_transform(points)
        perplexity = min(30.0, (len(points) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca" if size > 1 else "random", random_state=seed, n_jobs=1)
        return tsne.fit_transform(reduced), ("t-SNE, first direction", "t-SNE, second direction")


def _digit_marker(label: float) -> MarkerStyle:
    """The Bengali digit as a marker, about its own middle."""
    outline = TextPath((0, 0), bengali(label), size=1, prop=font_manager.FontProperties(fname=_BENGALI_BOLD))
    middle = outline.vertices[outline.codes != Outline.CLOSEPOLY]
    middle = (middle.min(axis=0) + middle.max(axis=0)) / 2
    # TextPath closes its curves at the origin, which the marker's own scaling must not see as a far point.
    vertices = np.where((outline.codes == Outline.CLOSEPOLY)[:, None], 0.0, outline.vertices - middle)
    return MarkerStyle(Outline(vertices, outline.codes))
