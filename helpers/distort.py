"""Harder digits: the ways in which NumtaDB's own testers made its digits difficult, drawn again, from mild to severe.

NumtaDB's augmented test sets (testing-auga, testing-augc; S. Alam et al., "NumtaDB – Assembled Bengali Handwritten
Digits", arXiv:1806.02452) hold digits that were turned, sheared, blurred, sprinkled with noise, partly covered, or
written over by what shows through from the reverse page; its source e is binary, white on black and cropped to the ink.
How strong those were is not published: the full strengths here (``DISTORTIONS``) are this course's own choice.

A distortion takes a *severity* from 0 (the image as it is, byte for byte) to 1 (hard for people too). What is left to
chance (the side to which a digit turns, where a block lies, which pixels are hit) is drawn from the image's path and
the distortion's name alone: the same on every machine, and the same for every severity, so that a severer version is
the milder one gone further.

``distort_images`` does it to the image column of a Spark frame. What comes out is Spark's image struct again, and the
featurizer, or a saved pipeline, takes it like any other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFilter
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from helpers.numtadb import ARROW_IMAGE, IMAGE_TYPE
from helpers.spark import ship_package

__all__ = ["DISTORTIONS", "distort", "distort_images"]

FRAME = 180  # px, the side of NumtaDB's scans: lengths below are meant for it and grow with the image
TURN = 60.0  # degrees
SHEAR = 0.8  # px to the side for each px down
BLUR = 9.0  # px, standard deviation of the Gaussian
SPRINKLED = 0.15  # share of the pixels
COVERED = 0.7  # side of the block, as a share of the digit's larger side
OPACITY = 0.4  # of the reverse page's ink


def distort(pixels: np.ndarray, name: str, severity: float, key: str) -> np.ndarray:
    """One image, harder.

    Args:
        pixels: uint8 (height, width) or (height, width, channels) with 1, 3 or 4 channels, dark ink on light paper or
            light on dark; of 4, the last (alpha) is distorted like the others.
        name: one of ``DISTORTIONS``.
        severity: 0 to 1; 0 gives the image as it is.
        key: what chance is drawn from, with ``name``; the image's path within its data set.

    Returns:
        uint8, as many axes and channels, a copy. Only ``"source e"`` changes height and width.

    Raises:
        ValueError: another name, a severity outside 0 to 1, pixels of another shape or type, or an empty image.
    """
    check(name, severity)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ValueError(
            f"distort takes uint8 pixels of (height, width) or (height, width, channels), at least one, not "
            f"{pixels.dtype} of {pixels.shape}"
        )
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
        raise ValueError(f"the image has {pixels.shape[2]} channels, not 1, 3 or 4")
    if severity == 0:
        return pixels.copy()
    seed = hashlib.sha256(f"{name}\n{key}".encode()).digest()
    chance = np.random.default_rng(int.from_bytes(seed[:8], "little"))
    changed = DISTORTIONS[name](pixels.reshape(*pixels.shape[:2], -1), float(severity), chance)
    return np.ascontiguousarray(changed if pixels.ndim == 3 else changed[:, :, 0])


def check(name: str, severity: float) -> None:
    """Raise ``ValueError`` unless there is such a distortion and such a severity."""
    if name not in DISTORTIONS:
        raise ValueError(f"there is no distortion {name!r}; there are {', '.join(DISTORTIONS)}")
    if not 0 <= severity <= 1:
        raise ValueError(f"severity={severity} is not between 0 and 1")


def distort_images(
    images: DataFrame, versions: Sequence[tuple[str, float]], inputCol: str = "image", keyCol: str = "path"
) -> DataFrame:
    """Every image in every version: a row for each pair.

    Args:
        images: frame with Spark's image struct and, in ``keyCol``, a text that tells images apart.
        versions: pairs of distortion and severity.
        inputCol: the image column; its images are replaced.
        keyCol: what chance is drawn from.

    Returns:
        The columns of ``images`` and ``distortion`` (string), ``severity`` (double). A null image, and one whose bytes
        do not fit its header, stays as it is, so that the featurizer can say what is wrong with it.

    Raises:
        ValueError: no version, one that ``distort`` refuses, or a column that is missing, there already, or no image.
    """
    if not versions:
        raise ValueError("distort_images needs at least one pair of distortion and severity")
    for name, severity in versions:
        check(name, severity)
    for column in (inputCol, keyCol):
        if column not in images.columns:
            raise ValueError(f"there is no column {column!r}; the columns are {', '.join(images.columns)}")
    for column in ("distortion", "severity"):
        if column in images.columns:
            raise ValueError(f"there is a column {column!r} already; rename or drop it")
    kind = images.schema[inputCol].dataType
    if [field.name for field in getattr(kind, "fields", [])] != IMAGE_TYPE.names:
        raise ValueError(
            f"column {inputCol!r} holds {kind.simpleString()}, not Spark's image struct; read images by "
            "helpers.numtadb.read_digits"
        )
    ship_package(images.sparkSession)
    listed = F.array(
        *[F.struct(F.lit(name).alias("name"), F.lit(float(much)).alias("much")) for name, much in versions]
    )
    change = F.arrow_udf(_distort_batch, IMAGE_TYPE)
    return (
        images.withColumn("distortion", F.explode(listed))
        .withColumn("severity", F.col("distortion.much"))
        .withColumn("distortion", F.col("distortion.name"))
        .withColumn(
            inputCol, change(F.col(f"`{inputCol}`"), F.col("distortion"), F.col("severity"), F.col(f"`{keyCol}`"))
        )
    )


def _distort_batch(images: pa.Array, names: pa.Array, severities: pa.Array, keys: pa.Array) -> pa.Array:
    rows = zip(images.to_pylist(), names.to_pylist(), severities.to_pylist(), keys.to_pylist(), strict=True)
    return pa.array([_distort_struct(*row) for row in rows], ARROW_IMAGE)


def _distort_struct(image: dict[str, Any] | None, name: str, severity: float, key: str | None) -> dict | None:
    shape = [] if image is None else [image["height"] or 0, image["width"] or 0, image["nChannels"] or 0]
    sound = bool(shape) and min(shape) > 0 and shape[2] in (1, 3, 4)
    if not sound or len(image["data"] or b"") != math.prod(shape):
        return image
    pixels = np.frombuffer(image["data"], np.uint8).reshape(shape)
    changed = distort(pixels, name, severity, key or "")
    return image | {"height": changed.shape[0], "width": changed.shape[1], "data": changed.tobytes()}


# -- the distortions: pixels (height, width, channels), severity above 0, chance ---------------------------------------


def _grey(pixels: np.ndarray) -> np.ndarray:
    """float64 (height, width): the mean of the colours; alpha is none."""
    return pixels[:, :, :3].mean(axis=2)


def _paper(pixels: np.ndarray) -> np.ndarray:
    """The paper's value in each channel: the median, since ink covers little."""
    return np.median(pixels, axis=(0, 1))


def _ink(pixels: np.ndarray) -> np.ndarray:
    """The ink's value in each channel: the mean of the hundredth of the pixels that differs most from the paper."""
    distance = np.abs(_grey(pixels) - _grey(_paper(pixels)[None, None]))
    return pixels[distance >= np.quantile(distance, 0.99)].mean(axis=0)


def _otsu(grey: np.ndarray) -> float:
    """The grey above which a pixel is light, chosen so that dark and light differ most between and least within.

    The variance between them, w₀ w₁ (μ₀ − μ₁)², is largest there: N. Otsu (1979), "A threshold selection method from
    gray-level histograms", IEEE Transactions on Systems, Man, and Cybernetics 9 (1), 62–66.
    """
    counts = np.bincount(np.rint(grey).astype(np.int64).ravel(), minlength=256).astype(np.float64)
    levels = np.arange(256)
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * levels)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(np.argmax(np.nan_to_num(between)))


def _is_ink(pixels: np.ndarray) -> np.ndarray:
    """bool (height, width): the side of Otsu's threshold with fewer pixels."""
    grey = np.rint(_grey(pixels))
    light = grey > _otsu(grey)
    return light if light.mean() < 0.5 else ~light


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) around the pixels of ``mask``, ends exclusive; the whole frame without any."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, mask.shape[0], 0, mask.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _side(chance: np.random.Generator) -> int:
    return 1 if chance.random() < 0.5 else -1


def _resample(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Each place of the result looks ``matrix`` @ (x, y), from the middle of the frame, up; outside there is paper."""
    height, width = pixels.shape[:2]
    middle = np.array([width / 2, height / 2])
    offset = middle - matrix @ middle
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    bands = [
        Image.fromarray(band).transform(
            (width, height), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC, fillcolor=round(paper)
        )
        for band, paper in zip(np.ascontiguousarray(pixels.transpose(2, 0, 1)), _paper(pixels).tolist(), strict=True)
    ]
    return np.stack([np.asarray(band) for band in bands], axis=2)


def _rotate(pixels: np.ndarray, severity: float, chance: np.random.Generator) -> np.ndarray:
    """Turned by up to 60°, to either side."""
    angle = math.radians(_side(chance) * severity * TURN)
    return _resample(pixels, np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]))


def _shear(pixels: np.ndarray, severity: float, chance: np.random.Generator) -> np.ndarray:
    """Leaning to either side, by up to 0.8 px for each px of height."""
    return _resample(pixels, np.array([[1.0, _side(chance) * severity * SHEAR], [0.0, 1.0]]))


def _scale(pixels: np.ndarray) -> float:
    return max(pixels.shape[:2]) / FRAME


def _blur(pixels: np.ndarray, severity: float, chance: np.random.Generator) -> np.ndarray:
    """Out of focus: a Gaussian of up to 9 px."""
    radius = ImageFilter.GaussianBlur(severity * BLUR * _scale(pixels))
    bands = [Image.fromarray(np.ascontiguousarray(pixels[:, :, c])).filter(radius) for c in range(pixels.shape[2])]
    return np.stack([np.asarray(band) for band in bands], axis=2)


def _salt_and_pepper(pixels: np.ndarray, severity: float, chance: np.random.Generator) -> np.ndarray:
    """Up to 15 % of the pixels become white or black, half of them each."""
    drawn, white = chance.random(pixels.shape[:2]), chance.random(pixels.shape[:2]) < 0.5
    hit = drawn < severity * SPRINKLED
    changed = pixels.copy()
    changed[hit] = np.where(white[hit], 255, 0)[:, None]
    return changed


def _occlude(pixels: np.ndarray, severity: float, chance: np.random.Generator) -> np.ndarray:
    """A block of one grey over a part of the digit; its side is up to 0.7 of the digit's."""
    top, bottom, left, right = _box(_is_ink(pixels))
    down, across, grey = chance.random(), chance.random(), chance.integers(0, 256)
    side = max(1, round(severity * COVERED * max(bottom - top, right - left)))
    # about a place inside the digit, and the same one at every severity
    y, x = round(top + down * (bottom - top) - side / 2), round(left + across * (right - left) - side / 2)
    changed = pixels.copy()
    changed[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0), :3] = grey
    return changed


def _show_through(pixels: np.ndarray, severity: float, chance: np.random.Generator) -> np.ndarray:
    """Lines of writing on the reverse page, seen through the paper: mirrored, soft, up to 40 % as strong as the ink."""
    height, width = pixels.shape[:2]
    scale = _scale(pixels)
    page = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(page)
    line_height = 44 * scale
    for baseline in np.arange(chance.uniform(0, line_height), height + line_height, line_height):
        x = -chance.uniform(0, 60 * scale)
        while x < width:  # a word: loops of changing height that move on
            length, size = chance.uniform(30, 80) * scale, chance.uniform(9, 17) * scale
            steps = np.linspace(0, 1, 60)
            turns = 2 * math.pi * (length / (16 * scale)) * steps + chance.uniform(0, 2 * math.pi)
            heights = size * (0.6 + 0.4 * np.sin(chance.uniform(3, 9) * steps + chance.uniform(0, 6)))
            places = np.column_stack(
                [x + length * steps + 0.5 * heights * np.cos(turns), baseline - heights * np.sin(turns)]
            )
            pen.line([tuple(place) for place in places.tolist()], fill=255, width=max(1, round(4 * scale)))
            x += length + chance.uniform(12, 30) * scale
    page = page.transpose(Image.Transpose.FLIP_LEFT_RIGHT).filter(ImageFilter.GaussianBlur(1.2 * scale))
    share = severity * OPACITY * np.asarray(page)[:, :, None] / 255
    # seen through paper, the reverse darkens what is light and leaves the digit's own ink as it is
    ink, paper = _ink(pixels), _paper(pixels)
    mixed = pixels + share * (ink - paper)
    low, high = np.minimum(ink, paper), np.maximum(ink, paper)
    return np.rint(np.clip(mixed, np.minimum(low, pixels), np.maximum(high, pixels))).astype(np.uint8)


def _source_e(pixels: np.ndarray, severity: float, chance: np.random.Generator) -> np.ndarray:
    """As in NumtaDB's source e: binary, white ink on black, and cropped; severity 1 leaves no margin around the ink.

    An image is white on black or it is not: the severity is the share of the margin that is cut away.
    """
    mask = _is_ink(pixels)
    top, bottom, left, right = _box(mask)
    height, width = mask.shape
    first, last = round(severity * top), height - round(severity * (height - bottom))
    start, end = round(severity * left), width - round(severity * (width - right))
    white = np.where(mask[first:last, start:end, None], np.uint8(255), np.uint8(0))
    changed = np.repeat(white, pixels.shape[2], axis=2)
    changed[:, :, 3:] = 255
    return changed


DISTORTIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "rotation": _rotate,
    "shear": _shear,
    "blur": _blur,
    "salt and pepper": _salt_and_pepper,
    "occlusion": _occlude,
    "show-through": _show_through,
    "source e": _source_e,
}
