#!/usr/bin/env python3
"""Draw ``data/sample``: 500 handwritten-looking Bengali digits laid out as Kaggle ships NumtaDB.

    python data/make_sample.py [--out data/sample] [--seed 2019]

Needs numpy, scipy and Pillow, nothing else: no font, no picture, no network.

Nothing here is photographed or traced. Every digit is *written*: an allograph (one of the ways people write that
digit, a handful of pen positions) becomes a smooth trajectory, a writer's hand gives it size, slant, speed and tremor,
a pen inks it on a piece of paper, and a scanner looks at the paper. Five sources imitate the five of NumtaDB:

======  =========  ======================================================================================
source  per class  look
======  =========  ======================================================================================
a       25         180 x 180 RGB, lavender-pink paper, brown-black ballpoint
b       2          about 108 x 106 RGB in many shapes, white paper, black or blue pen
c       15         180 x 180, white to yellowish paper, blue, black or grey pen, some box lines, some greyscale
d       5          180 x 180 RGB, poor scans: shadow, blur, faint ink, cut-off digits, stray marks, show-through
e       3          greyscale, binary, white on black, tight crop, 77 to 200 px in many shapes
======  =========  ======================================================================================

Every writer writes every digit once, and each image depends on (seed, source, writer, digit) alone, so any of them
can be drawn again by itself: see :func:`draw`.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates, shift
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]

SEED = 2019
FRAME = 180  # pixels, side of a scan of sources a, c and d
TEXTURE_STEP = 2  # grey levels to which paper is rounded
WRITERS = {"a": 25, "b": 2, "c": 15, "d": 5, "e": 3}

_ABC = [
    "filename", "original filename", "scanid", "digit", "database name original", "contributing team", "database name",
]  # fmt: skip
COLUMNS = {
    "a": _ABC,
    "b": _ABC,
    "c": _ABC,
    "d": ["original filename", "scanid", "digit", "num", "database name original", "database name", "filename"],
    "e": [
        "filename", "original filename", "districtid", "institutionid", "gender", "age", "datestamp", "scanid", "digit",
        "database name original", "database name",
    ],
}  # fmt: skip

# Allographs: (how common, pen positions). Positions are hundredths of the digit's box, x to the right and y down;
# "*" marks a corner, where the pen stops and turns; "/" lifts the pen.
ALLOGRAPHS: dict[int, list[tuple[float, str]]] = {
    0: [
        (3, "45,2 15,18 4,52 20,86 50,99 80,84 95,50 82,16 52,2 38,8"),
        (2, "22,6 50,0 84,14 97,50 80,86 50,99 18,84 5,50 18,18 52,8 80,16"),
        (1, "60,22 45,2 15,20 4,56 22,90 52,99 84,82 95,46 78,14 48,4"),
        (1, "50,0* 22,38 12,72 32,97 60,99 86,76 80,40 50,0"),
        (0.5, "52,0 18,14 4,50 18,86 50,99 82,88 96,54 88,22 70,8"),
        (0.8, "30,12 62,0 92,24 96,60 72,94 34,97 8,72 8,36 32,10 60,14 62,34"),
    ],
    1: [
        (3, "4,0 42,22 80,46 98,70 80,92 48,100 16,94 10,80 32,68 62,74"),
        (2.5, "0,14 40,4 82,12 99,44 84,80 50,98 18,88 18,70 42,62 60,76 48,94"),
        (2, "8,26 24,6 54,0 88,20 92,56 72,90 38,98 16,84 28,66 52,66 58,84 44,96"),
        (0.4, "26,18 46,0 74,8 88,40 76,76 48,98 14,100 18,84 46,78"),
        (2, "0,6 40,16 88,40 92,62 66,84 40,96 24,84 40,74 54,86"),
        (0.3, "2,10 44,4 88,24 94,52 70,78 36,90 8,94"),
        (1.5, "18,0 14,20 48,32 90,48 92,72 62,96 26,98 14,82 36,70 56,82"),
        (1.5, "10,4 48,12 76,36 84,66 66,94 36,98 22,82 38,66 60,74 56,92"),
    ],
    2: [
        (3, "4,12 30,0 54,12 46,36 4,62* 44,74 98,96"),
        (2, "2,26 20,4 48,4 56,30 36,66 6,95* 48,92 99,98"),
        (0.6, "6,12 32,0 56,16 44,46 16,68 2,60 16,50 44,66 98,100"),
        (0.7, "14,0 56,12 60,32 2,54* 40,52 58,70 84,100"),
        (1, "2,4 74,6* 10,58* 98,88"),
        (0.6, "6,16 38,0 62,18 40,50 12,78 36,95 84,94"),
        (1.5, "12,8 48,0 66,16 50,38 4,64* 38,66 70,92"),
        (1, "0,6 34,8 56,20 52,38 10,58* 40,72 90,98"),
    ],
    3: [
        (3, "4,2 6,56 40,98 88,80 96,40 76,18 56,36 62,58 80,52 78,36"),  # open curl
        (2, "0,0 26,58 58,96 92,80 96,48 76,30 58,46 66,64 82,58"),  # slanting start
        (0.5, "2,12 6,66 40,99 86,80 96,34 76,12 58,30 66,44"),  # only a hook inside
        (1, "54,0 16,24 4,64 34,98 84,90 96,60 70,42 52,58 66,74 80,62"),  # like a 6
        (2, "6,4 10,62 40,98 84,88 94,56 76,40 62,52 72,62 76,54"),  # small tight curl
        (0.5, "34,8 6,46 24,92 74,96 96,56 80,14 48,16 40,48 60,62 70,42"),  # spiral
        (1, "0,30 30,84 62,98 94,70 90,34 66,34 62,60 82,62"),  # wide
        (1.5, "4,0 8,52 34,96 78,94 96,62 78,40 58,56 70,70 80,56"),  # low curl
        (1.2, "2,8 10,64 44,98 80,88 96,58 86,36 72,42 76,54 84,48"),  # curl filled with ink
        (1, "4,0 14,66 46,98 84,82 98,44 86,22 70,30 76,44"),
        (1, "0,12 8,70 46,98 88,80 98,50 84,38 60,58 58,66 80,56"),  # flat curl
        (1.2, "2,0 10,58 42,98 86,88 96,58 80,40 66,52 74,66 84,60 76,50"),
    ],
    4: [
        (3, "84,14 52,0 18,18 44,48 84,76 52,99 14,80 46,48 82,18"),
        (1.5, "92,26 62,0 22,12 28,40 70,62 84,84 50,100 14,84 36,56 82,34"),
        (1, "50,16 24,2 10,26 48,50 80,78 50,99 18,78 54,44 90,20 74,0 52,14"),
        (0.6, "10,8 92,6* 50,50 14,84 50,99 82,84 48,50 10,10"),
        (0.4, "74,10 44,0 18,18 38,44 74,72 50,99 14,82 40,52 100,30"),
        (1.5, "62,4 34,4 26,24 50,44 70,24 58,4 / 50,44 20,66 18,90 52,99 84,86 72,60 48,44"),
        (1, "30,4 62,0 80,16 56,42 18,72 36,99 76,92 74,68 38,44 20,18 36,2"),
        (1, "80,8 44,0 16,20 46,46 82,72 58,99 20,86 42,54 78,24 70,6"),
    ],
    5: [
        (2.5, "96,92 50,99 10,76 10,30 46,3 90,12* 62,40 58,70 72,86 100,78"),
        (0.5, "96,14 60,68 30,94 3,56 28,6 54,28 66,70 100,94"),
        (1.2, "84,34 50,34 30,0* 2,54 26,96 66,99 99,78* 68,88 60,60 68,24"),
        (1.5, "92,14 50,0 8,40 12,82 52,99 88,84* 54,64 50,40 92,14"),
        (1.2, "100,20 56,0 6,44 28,97 80,88* 54,62 66,34 84,26"),
        (0.6, "74,82 32,95 3,52 28,8 64,22 60,52 70,80 99,90"),
        (2, "88,22* 62,20 44,0* 8,40 8,80 48,99 96,86* 66,78 56,54 88,22"),
        (1.5, "94,90 48,99 8,74 12,28 50,2 84,18* 54,44 56,68 92,84"),
        (1.5, "84,12* 44,6 10,34 8,72 44,98 94,88* 62,76 52,50 84,12"),
        (1.2, "98,24* 62,26 34,0* 4,46 22,92 62,99 94,80* 66,72 56,46 80,22"),
        (1.2, "98,10* 58,22 28,4 4,40 10,92* 50,99 74,92 60,60 66,36 92,10 / 70,88 100,82"),
        (1.2, "96,30* 70,26 40,0* 4,42 16,90 60,99 84,84 60,72 58,48 96,30 / 74,86 100,90"),
    ],
    6: [
        (2, "0,10 14,62 48,99 98,76* 62,66* 70,40 86,0"),  # pointed hook
        (2, "2,16 12,70 46,99 88,92 96,68 64,56 64,34 88,4"),  # smooth hook
        (1.2, "0,0 34,84 54,99 96,66* 64,60* 74,32 88,8"),  # V
        (0.3, "0,98 52,84 95,52* 46,42* 72,0"),  # like a y
        (1, "0,32 8,78 46,99 99,82* 56,72 54,40 62,8"),  # low hook
        (1.5, "2,0 8,66 40,99 84,94 92,68 60,62 54,4"),  # like a b
        (0.8, "8,0 4,56 26,96 66,97 97,84* 58,70 64,46 92,10"),
        (1.5, "0,18 10,68 40,99 74,92 98,52* 66,66 60,44 64,12"),  # high point
        (1.5, "0,6 22,66 46,99 76,88 98,40* 68,60* 64,34 74,10"),
        (2, "4,14 8,66 40,99 80,94 96,66* 68,62 58,40 66,4"),
        (1, "0,26 20,84 48,99 84,84 99,50 72,52 64,66 68,40 78,14"),  # round
        (1.5, "4,6 6,60 36,97 76,94 96,72 84,56 62,62 56,36 60,8"),
        (1.2, "0,8 14,64 46,98 80,84 98,32* 72,58* 58,46 54,6"),  # arm as high as the stem
        (0.8, "0,20 22,74 50,98 82,78 98,36* 74,54* 66,22"),
    ],
    7: [
        (3, "82,34 46,52 10,34 40,2 80,16 88,60 82,100"),
        (1.5, "99,34 50,48 10,34 36,0 68,18 76,60 72,100"),
        (1.5, "74,22 44,46 10,30 40,0 80,20 74,64 52,100"),
        (1, "82,30 8,44* 48,2 84,28 92,100"),
        (1, "76,48 30,58 6,38 48,2 88,24 94,100"),
        (0.6, "80,14 44,0 10,22 38,46 80,18* 84,60 74,96 92,92"),
        (1.5, "84,36 50,50 16,34 34,4 66,2 84,30 82,70 66,100"),
    ],
    8: [
        (3, "12,0 10,52 14,92 32,99 44,80 32,58 12,54* 54,52 100,44"),
        (2, "20,0 22,50 40,84 26,99 8,90 20,60 46,52 100,44"),
        (0.4, "12,0 10,98* 14,56* 100,50"),
        (0.6, "0,10 24,0 34,18 16,46 40,70 34,96 10,98 6,80 20,56 100,50"),
        (0.7, "8,0 10,56 20,97 42,92 44,66 14,58* 100,16"),
        (1, "10,0 12,50 12,90 40,99 56,78 44,56 14,54* 60,50 100,48"),
        (0.6, "22,0 14,48 6,92 28,99 42,78 24,56* 98,40"),
        (2, "10,0 8,56 12,94 34,97 40,74 26,58 12,60* 60,54 100,50"),
        (1.5, "14,0 12,48 14,86 30,98 40,82 28,62 14,58* 56,54 100,44"),
    ],
    9: [
        (1, "10,24 6,10 32,0 66,6 84,42 98,92* 80,58 60,50 44,66 20,99 34,84 46,62"),  # loop on the base line
        (1.8, "6,6 44,4 86,28 96,60 84,97* 66,66 44,58 18,74 22,90 42,74"),  # small loop
        (1.2, "10,10 58,8 95,44 82,86 60,96* 54,70 34,62 14,80 22,92 36,76"),
        (0.8, "20,0 30,28 90,50 94,72 70,97* 50,66 26,70 6,96"),  # bent top
        (0.4, "64,0 92,54 90,94 66,96 54,68 38,50 10,60 10,82 30,74"),  # straight right side
        (1.2, "18,10 60,0 96,34 82,78 66,99* 58,70 38,66 18,96"),  # no loop
        (0.5, "62,0 24,6 20,26 62,36 92,60 86,97* 60,66 30,66 4,99 12,80 36,76"),  # S top
        (0.9, "0,8 46,0 88,20 99,56 80,98* 62,66 34,62 14,92"),
        (1.2, "14,0 50,18 94,48 90,76 66,98 54,80 40,64 16,74 14,92 32,92 42,78"),  # round foot
        (1.2, "8,2 52,14 92,42 96,70 74,94* 58,68 38,62 18,78 28,92 42,80"),
        (1.2, "4,8 50,4 92,36 90,74 68,96 54,86 48,68 30,60 8,80"),
        (1.2, "12,0 46,14 90,44 88,72 62,94* 54,74 38,62 16,74 4,96"),
        (2, "36,0 70,22 96,48 84,74 52,98* 58,74 46,56 24,60 6,76"),  # foot drawn back to the middle
        (1.6, "30,0 70,24 94,54 76,84 42,99* 54,78 50,60 30,52 8,66 16,80 34,66"),  # the same with a loop
        (1.6, "24,4 82,14 98,42 80,76 44,99* 56,74 44,56 20,64 4,78"),
        (1.5, "14,10 62,0 96,34 84,74 50,98* 58,70 40,52 12,64 10,78 28,78 40,64"),
        (1.2, "44,0 84,26 94,62 66,94 30,97* 52,80 48,60 28,50 8,62 12,76"),
    ],
}

# Usual height and width of a digit in pixels of a 180-pixel frame, the pen's own width not counted.
BOX = {0: (56, 50), 1: (58, 52), 2: (68, 62), 3: (57, 67), 4: (62, 48), 5: (57, 60), 6: (52, 67), 7: (74, 52),
       8: (62, 68), 9: (64, 64)}  # fmt: skip

BLACK, BLUE, BROWN, GREY = (52, 48, 56), (48, 56, 128), (92, 72, 82), (104, 100, 106)


def generator(seed: int, *names: object) -> np.random.Generator:
    """Random generator that depends on ``seed`` and the names alone, on every platform and in every process."""
    return np.random.default_rng([seed, *(zlib.crc32(str(n).encode()) for n in names)])


@dataclass(frozen=True)
class Hand:
    """What one writer brings to every digit; lengths are in units of the digit's box where not said otherwise."""

    size: float  # factor on the median box
    aspect: float  # factor on width over height
    slant: float  # horizontal shift per unit of height
    rotation: float  # radians
    haste: float  # 0 careful to 1 hasty: rounds corners, drops details, overshoots
    wobble: float  # standard deviation of a pen position
    tremor: float  # pixels
    pen: float  # stroke width, pixels of a 180-pixel frame
    pressure: float  # 0 to 1, darkness of the ink
    colour: tuple[float, float, float]  # RGB of full ink
    mottle: float  # 0 even ink to 1 patchy ink
    offset: tuple[float, float]  # where in the frame this writer writes, pixels from the usual place
    faithful: float  # probability of writing a digit the favourite way


def hand_of(seed: int, source: str, writer: int) -> Hand:
    """The hand of writer number ``writer`` (0-based) of ``source``."""
    r = generator(seed, "hand", source, writer)
    inks = {"a": [BROWN], "b": [BLACK, BLUE], "c": [BLUE, BLACK, GREY], "d": [BLACK, BLUE, BROWN, GREY], "e": [BLACK]}
    ink = np.array(inks[source][r.integers(len(inks[source]))]) + r.normal(0, 5, 3) + r.normal(0, 6)
    return Hand(
        size=float(np.exp(r.normal(0, 0.15))),
        aspect=float(np.exp(r.normal(0, 0.12))),
        slant=float(r.normal(0.04, 0.11)),
        rotation=float(r.normal(0, 0.09)),
        haste=float(r.beta(1.6, 2.2)),
        wobble=float(r.uniform(0.01, 0.028)),
        tremor=float(r.uniform(0, 0.5)),
        pen=float(np.clip(r.normal(4.8, 0.6), 3.8, 6.2)),
        pressure=float(r.uniform(0.78, 1)),
        colour=(float(ink[0]), float(ink[1]), float(ink[2])),
        mottle=float(r.beta(2, 2)),
        offset=(float(r.normal(0, 6)), float(r.normal(0, 7))),
        faithful=0.8,
    )


def allograph_of(seed: int, source: str, writer: int, digit: int, faithful: float) -> list[tuple[Floats, list[int]]]:
    """Strokes of the allograph used this time: pen positions (n, 2) in the unit box, and the corners among them."""
    shapes = ALLOGRAPHS[digit]
    weight = np.array([w for w, _ in shapes])
    favourite = generator(seed, "favourite", source, writer, digit).choice(len(shapes), p=weight / weight.sum())
    r = generator(seed, "allograph", source, writer, digit)
    pick = favourite if r.random() < faithful else r.choice(len(shapes), p=weight / weight.sum())
    strokes = []
    for text in shapes[pick][1].split("/"):
        words = text.split()
        points = np.array([[float(v) / 100 for v in w.rstrip("*").split(",")] for w in words])
        strokes.append((points, [k for k, w in enumerate(words) if w.endswith("*")]))
    return strokes


def smooth_curve(points: Floats, corners: list[int], per_unit: int = 240) -> Floats:
    """Cubic spline through ``points`` (n, 2) that breaks at ``corners``, sampled at equal steps: (m, 2).

    The spline is centripetal (parameter steps are square roots of distances), which keeps it from looping where
    positions lie close together.
    """
    ends = sorted({0, *corners, len(points) - 1})
    pieces = []
    for i, j in pairwise(ends):
        part = points[i : j + 1]
        u = np.concatenate([[0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(part, axis=0), axis=1)) + 1e-6)])
        t = np.linspace(0, u[-1], 40 * len(part))
        if len(part) > 2:
            pieces.append(CubicSpline(u, part, bc_type="natural")(t))
        else:
            pieces.append(np.column_stack([np.interp(t, u, part[:, k]) for k in (0, 1)]))
    path = np.concatenate(pieces)
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    even = np.linspace(0, s[-1], max(8, int(per_unit * s[-1])))
    return np.column_stack([np.interp(even, s, path[:, k]) for k in (0, 1)])


def trajectory(hand: Hand, digit: int, strokes: list[tuple[Floats, list[int]]], r: np.random.Generator) -> list[Floats]:
    """Pen paths of one digit, list of (m, 2), in pixels of a 180-pixel frame with the digit's middle at (0, 0)."""
    paths = []
    slow = hand.haste * r.uniform(0.7, 1.3)
    for points, corners in strokes:
        p = points + r.normal(0, hand.wobble, points.shape)
        # the first and the last movement are the least controlled: long or short, straight or turned
        for end, before in ((0, 1), (-1, -2)):
            arm = (p[end] - p[before]) * np.exp(r.normal(0, 0.18))
            turn = r.normal(0, 0.12)
            p[end] = p[before] + arm @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        path = smooth_curve(p, corners)
        if r.random() < slow * 0.5:  # a hurried pen lifts early
            path = path[: int(len(path) * r.uniform(0.9, 1))]
        # haste rounds corners: low-pass along the path, its ends held by mirroring through them
        width = (0.008 + 0.034 * slow) * 240
        pad = int(4 * width) + 1
        if len(path) > pad + 2:
            padded = np.concatenate([2 * path[0] - path[pad:0:-1], path, 2 * path[-1] - path[-2 : -pad - 2 : -1]])
            path = gaussian_filter1d(padded, width, axis=0)[pad:-pad]
        paths.append(path)
    everything = np.concatenate(paths)
    low, high = everything.min(0), everything.max(0)
    # a smooth deformation of the whole digit: a few plane waves about as long as the digit
    waves = [(r.normal(0, 0.022, 2), r.uniform(-1, 1, 2) * 2 * np.pi * 0.9, r.uniform(0, 2 * np.pi)) for _ in range(4)]
    height, width = BOX[digit]
    size = hand.size * np.exp(r.normal(0, 0.11))
    aspect = np.sqrt(hand.aspect * np.exp(r.normal(0, 0.11)))
    slant = hand.slant + r.normal(0, 0.07)
    angle = hand.rotation + r.normal(0, 0.07)
    # an allograph keeps most of its own proportions; the measured box only sets the size
    own = np.sqrt((high - low)[0] / (high - low)[1]) ** 0.5
    scale = size * np.array([width * aspect * own, height / aspect / own])
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    result = []
    for path in paths:
        q = (path - low) / (high - low) - 0.5
        q = q + sum(np.sin(q @ k + phase)[:, None] * amount for amount, k, phase in waves)
        q[:, 0] -= slant * q[:, 1]
        q = (q * scale) @ turned
        shake = gaussian_filter1d(r.normal(0, 1, (len(q) + 40, 2)), 9, axis=0, mode="wrap")[20:-20]
        result.append(q + shake * hand.tremor * 4)
    everything = np.concatenate(result)
    middle = (everything.min(0) + everything.max(0)) / 2
    return [q - middle for q in result]


def fibres(shape: tuple[int, int], r: np.random.Generator, along: float = 2.0, across: float = 0.7) -> Floats:
    """Horizontal paper texture of standard deviation 1 and mean 0, (rows, columns)."""
    field = gaussian_filter(r.normal(0, 1, shape), (across, along)) * np.sqrt(4 * np.pi * along * across)
    coarse = gaussian_filter(r.normal(0, 1, shape), (1.2, 9)) * np.sqrt(4 * np.pi * 9 * 1.2)
    mixed = field + 0.5 * coarse
    return (mixed - mixed.mean()) / mixed.std()


def clouds(shape: tuple[int, int], r: np.random.Generator, cells: int = 3) -> Floats:
    """Smooth field of a few bumps, about -1 to 1, (rows, columns): shading, ink supply, pressure of the paper."""
    grid = r.normal(0, 0.6, (cells + 2, cells + 2))
    y, x = np.meshgrid(*(np.linspace(0.5, cells + 0.5, n) for n in shape), indexing="ij")
    return map_coordinates(grid, [y, x], order=3, mode="nearest")


def ink_cover(paths: list[Floats], shape: tuple[int, int], hand: Hand, pen: float, r: np.random.Generator) -> Floats:
    """How much ink lies on each pixel, 0 to 1, (rows, columns), for pen paths given in pixels as (x, y)."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    pixels = np.column_stack([columns.ravel(), rows.ravel()]).astype(float)
    grain = gaussian_filter(r.normal(0, 1, shape), 0.8).ravel() * 2.8
    cover = np.zeros(len(pixels))
    for path in paths:
        n = len(path)
        # standard deviation 1 everywhere, its ends too
        noise = {
            w: gaussian_filter1d(r.normal(0, 1, n + 8 * w), w)[4 * w : -4 * w] * np.sqrt(2 * np.sqrt(np.pi) * w)
            for w in (4, 14, 40)
        }
        radius = pen / 2 * (1 + 0.09 * noise[14] + 0.08 * noise[40])
        ink = hand.pressure * (1 - 0.12 * hand.mottle * np.maximum(noise[14] + 0.6 * noise[4], 0))
        end = np.minimum(np.arange(n), np.arange(n)[::-1]) / (pen * 2)
        radius = radius * (1 - 0.35 * hand.haste * np.exp(-end)) + 0.25 * (1 - hand.haste) * np.exp(-end)
        distance, nearest = cKDTree(path).query(pixels, distance_upper_bound=pen + 3)
        on = np.isfinite(distance)
        d, k = distance[on], nearest[on]
        g = grain[on]
        body = np.clip(radius[k] - d + 0.5 + 0.22 * g * (0.4 + hand.mottle), 0, 1)
        # a dry ball leaves a light streak in the middle of the line and skips on the paper's grain
        dry = np.clip(noise[40][k] - 1.1, 0, 1) * hand.mottle
        streak = dry * np.exp(-((d / (0.3 * pen)) ** 2)) * 0.5
        skips = np.clip(g - 1.1 + 0.9 * dry, 0, 1) * (0.15 + 0.45 * hand.mottle)
        layer = body * np.clip(ink[k] + 0.05 * g - streak - skips, 0, 1)
        cover[on] = 1 - (1 - cover[on]) * (1 - layer) if len(paths) == 1 else np.maximum(cover[on], layer)
    field = cover.reshape(shape)
    # specks: the pen spits a little beside its line
    for _ in range(r.poisson(2 + 5 * hand.mottle)):
        path = paths[r.integers(len(paths))]
        x, y = path[r.integers(len(path))] + r.normal(0, pen * 0.8, 2)
        dot = np.clip(r.uniform(0.3, 1.0) - np.hypot(columns - x, rows - y) + 0.5, 0, 1)
        field = np.maximum(field, dot * r.uniform(0.3, 0.8))
    return field


def place(hand: Hand, r: np.random.Generator) -> Floats:
    """Middle of a digit in the 180-pixel frame, (x, y) in pixels: not quite the middle of the frame, rather above."""
    return np.array([88, 84]) + np.array(hand.offset) + r.normal(0, [10, 11])


def box_lines(shape: tuple[int, int], r: np.random.Generator) -> Floats:
    """Remains of a form's printed box along one or two borders of the scan, cover 0 to 1."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    cover = np.zeros(shape)
    for side in r.choice(4, r.integers(1, 3), replace=False):
        inset, tilt, thick = r.uniform(-0.5, 9), r.normal(0, 0.012), r.uniform(0.7, 1.5)
        across = [columns, shape[1] - 1 - columns, rows, shape[0] - 1 - rows][side]
        along = rows if side < 2 else columns
        line = np.clip(thick - np.abs(across - inset - tilt * (along - 90)) + 0.5, 0, 1)
        start, stop = sorted(r.uniform(-60, 240, 2))
        line *= np.clip((along - start) / 4, 0, 1) * np.clip((stop - along) / 4, 0, 1)
        cover = np.maximum(cover, line * r.uniform(0.5, 0.9))
    return cover


def scan(cover: Floats, colour: tuple[float, float, float], paper: Floats, grey: Floats, misfit: float) -> Bytes:
    """Colours of a scan, uint8 (rows, columns, 3).

    ``cover`` is ink 0 to 1, ``paper`` the mean RGB, ``grey`` its texture and shading in grey levels. ``misfit`` shifts
    the red and the blue reading of the ink apart by so many rows, as a scanner's three sensor lines do. Texture and
    ink are rounded to a few levels shared by the three channels: hardly visible, and it keeps PNG files small.
    """
    texture = np.round(grey / TEXTURE_STEP) * TEXTURE_STEP
    image = np.empty((*cover.shape, 3))
    for c, rows in enumerate((misfit, 0.0, -misfit)):
        seen = shift(cover, (rows, 0), order=1, mode="nearest") if rows else cover
        seen = np.round(seen * 24) / 24
        image[..., c] = (paper[c] + texture) * (1 - seen) + np.round(colour[c] + 0.4 * texture) * seen
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def draw_clean(seed: int, source: str, writer: int, digit: int, hand: Hand, paths: list[Floats]) -> Bytes:
    """Sources a and c: a fair scan of ballpoint on paper, uint8 (180, 180, 3)."""
    r = generator(seed, "scan", source, writer, digit)
    w = generator(seed, "paper", source, writer)
    shape = (FRAME, FRAME)
    if source == "a":
        paper = np.array([223, 215, 226]) + w.normal(0, 4.5) + w.normal(0, 0.9, 3)
        texture, lines = w.uniform(2.2, 3.2), 0.08
    else:
        kind = [[240, 239, 234], [238, 231, 208], [228, 229, 232]][w.integers(3)]
        paper = np.array(kind) + w.normal(0, 3) + w.normal(0, 1, 3)
        texture, lines = w.uniform(1.2, 2.6), 0.15
    middle = place(hand, r)
    cover = ink_cover([p + middle for p in paths], shape, hand, hand.pen * (0.93 if source == "c" else 1), r)
    if r.random() < lines:
        cover = np.maximum(cover, box_lines(shape, r) * 0.8)
    cover = gaussian_filter(cover, 0.65)
    grey = texture * fibres(shape, r) + 3.0 * clouds(shape, r)
    return scan(cover, hand.colour, paper, grey, 0.45 if source == "a" else 0.2)


def draw_small(seed: int, source: str, writer: int, digit: int, hand: Hand, paths: list[Floats]) -> Bytes:
    """Source b: a small crop of white paper, uint8, about (106, 108, 3) in many shapes."""
    r = generator(seed, "scan", source, writer, digit)
    w = generator(seed, "paper", source, writer)
    shape = (int(np.clip(r.normal(106, 6), 84, 130)), int(np.clip(r.normal(108, 6), 84, 132)))
    middle = np.array([shape[1], shape[0]]) / 2 + r.normal(0, 5, 2)
    cover = ink_cover([p * 0.75 + middle for p in paths], shape, hand, hand.pen * 0.75, r)
    grey = w.uniform(1.0, 2.0) * fibres(shape, r, 1.0, 1.0) + 2.0 * clouds(shape, r)
    return scan(gaussian_filter(cover, 0.6), hand.colour, np.array([236, 236, 233]) + w.normal(0, 4), grey, 0.2)


def draw_poor(seed: int, source: str, writer: int, digit: int, hand: Hand, paths: list[Floats]) -> Bytes:
    """Source d: a poor scan with one or two faults, uint8 (180, 180, 3)."""
    r = generator(seed, "scan", source, writer, digit)
    w = generator(seed, "paper", source, writer)
    shape = (FRAME, FRAME)
    paper = np.array([[226, 222, 214], [214, 212, 210], [232, 230, 226]][w.integers(3)]) + w.normal(0, 6)
    kinds, often = ["shadow", "blur", "faint", "cut", "marks", "reverse"], [0.2, 0.2, 0.18, 0.1, 0.16, 0.16]
    faults = r.choice(kinds, r.integers(1, 3), replace=False, p=often)
    middle = place(hand, r)
    if "cut" in faults:  # push the digit over a border, by less than an eighth of itself
        every = np.concatenate(paths)
        side, sign, part = r.integers(2), r.choice([-1, 1]), r.uniform(0.0, 0.12)
        reach = np.ptp(every[:, side])
        middle[side] = FRAME / 2 + sign * (FRAME / 2 - reach / 2 + part * reach)
    cover = ink_cover([p + middle for p in paths], shape, hand, hand.pen, r)
    if "marks" in faults:
        for _ in range(r.integers(1, 4)):
            start = r.uniform(0, FRAME, 2)
            bend = np.cumsum(np.vstack([start, r.normal(0, 9, (3, 2))]), axis=0)
            mark = [smooth_curve(bend / 90, []) * 90]
            cover = np.maximum(cover, 0.8 * ink_cover(mark, shape, hand, r.uniform(1.5, 4), r))
        cover = np.maximum(cover, box_lines(shape, r))
    if "faint" in faults:
        cover *= r.uniform(0.5, 0.75)
    if "reverse" in faults:  # writing of the other side shines through, mirrored
        other = allograph_of(seed, source, writer, int(r.integers(10)), 0.0)
        back = [p * [-1.6, 1.6] + r.uniform(40, 140, 2) for p in trajectory(hand, digit, other, r)]
        cover = np.maximum(cover, gaussian_filter(ink_cover(back, shape, hand, 7.0, r), 2.2) * r.uniform(0.1, 0.2))
    cover = gaussian_filter(cover, r.uniform(1.2, 2.0) if "blur" in faults else 0.7)
    grey = w.uniform(1.5, 3) * fibres(shape, r, 1.2, 0.9) + 5 * clouds(shape, r)
    if "shadow" in faults:
        angle, edge = r.uniform(0, 2 * np.pi), r.uniform(20, 90)
        rows, columns = np.mgrid[0:FRAME, 0:FRAME]
        reach = (columns - 90) * np.cos(angle) + (rows - 90) * np.sin(angle)
        grey = grey - r.uniform(35, 80) / (1 + np.exp(-(reach - edge) / r.uniform(6, 30)))
    return scan(cover, hand.colour, paper, grey, r.uniform(0, 0.6))


def draw_binary(seed: int, source: str, writer: int, digit: int, hand: Hand, paths: list[Floats]) -> Bytes:
    """Source e: thresholded, white on black, cropped to the ink, uint8 (rows, columns), 77 to 200 px a side."""
    r = generator(seed, "scan", source, writer, digit)
    every = np.concatenate(paths)
    span = np.ptp(every, axis=0)
    scale = np.clip(r.normal(138, 22), 100, 185) / span.max()
    pen = np.clip(hand.pen * scale * r.uniform(0.8, 1.1), 6, 15)
    extent = np.clip(span * scale + pen + 8, 77, 200).astype(int)
    shape = (int(extent[1]), int(extent[0]))
    middle = extent / 2 - (every.min(0) + every.max(0)) / 2 * scale
    even = replace(hand, mottle=0.3 * hand.mottle)  # a threshold hides most of what a pen leaves out
    cover = ink_cover([p * scale + middle for p in paths], shape, even, float(pen), r)
    rough = gaussian_filter(cover, 1.0) + 0.08 * gaussian_filter(r.normal(0, 1, shape), 1.0) * 3
    return np.where(rough > 0.45, 255, 0).astype(np.uint8)


DRAW = {"a": draw_clean, "b": draw_small, "c": draw_clean, "d": draw_poor, "e": draw_binary}


def draw(seed: int, source: str, writer: int, digit: int) -> Bytes:
    """One image of the sample: uint8 (rows, columns, 3), or (rows, columns) where the source is greyscale.

    ``source`` is a to e, ``writer`` counts from 0 within the source, ``digit`` is 0 to 9. The result depends on the
    four arguments alone. Raises ``ValueError`` for a source, writer or digit the sample does not have.
    """
    if source not in WRITERS or not 0 <= writer < WRITERS[source] or digit not in ALLOGRAPHS:
        raise ValueError(
            f"the sample has no digit {digit!r} by writer {writer!r} in source {source!r}: "
            f"writers per source are {WRITERS}, counted from 0, and digits 0 to 9"
        )
    hand = hand_of(seed, source, writer)
    strokes = allograph_of(seed, source, writer, digit, hand.faithful)
    paths = trajectory(hand, digit, strokes, generator(seed, "write", source, writer, digit))
    image = DRAW[source](seed, source, writer, digit, hand, paths)
    if source == "c" and writer % 7 == 3:  # two writers' scans are greyscale
        image = np.asarray(Image.fromarray(image).convert("L"))
    return image


@dataclass(frozen=True)
class Entry:
    """One file of the sample: where it stands, who wrote it, and its row in the source's CSV."""

    source: str
    writer: int
    digit: int
    filename: str
    row: dict[str, str | int]


def entries(seed: int) -> Iterator[Entry]:
    """The 500 files of the sample in file order."""
    for source, writers in WRITERS.items():
        r = generator(seed, "rows", source)
        scanids = np.sort(r.choice(np.arange(1, 400), writers, replace=False))
        pairs = [(w, d) for w in range(writers) for d in range(10)]
        numbers = {w: r.permutation(10) for w in range(writers)}
        people = [
            (r.integers(1, 9), r.integers(1, 20), r.integers(0, 2), r.integers(8, 30), f"{r.integers(1, 13):02d}16")
            for _ in range(writers)
        ]
        for n, k in enumerate(r.permutation(len(pairs))):
            writer, digit = pairs[k]
            scanid, num = int(scanids[writer]), int(numbers[writer][digit])
            district, institution, gender, age, date = people[writer]
            name = f"{source}{n:05d}.png"
            original = f"Scan_{scanid}_digit_{digit}_num_{num}.png"
            if source == "e":
                original = f"{district:02d}_{institution:04d}_{gender}_{age}_{date}_{scanid:04d}_{digit}.png"
            cells: dict[str, str | int] = {
                "filename": name, "original filename": original, "scanid": scanid, "digit": digit, "num": num,
                "districtid": int(district), "institutionid": int(institution), "gender": int(gender), "age": int(age),
                "datestamp": date, "database name original": "drawn", "contributing team": "drawn",
                "database name": f"training-{source}",
            }  # fmt: skip
            yield Entry(source, writer, digit, name, {c: cells[c] for c in COLUMNS[source]})


def write_sample(out: Path, seed: int) -> int:
    """Write folders and CSV files under ``out``, which is replaced as a whole; returns the bytes written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        new = Path(made) / out.name
        rows: dict[str, list[dict[str, str | int]]] = {}
        for entry in entries(seed):
            folder = new / f"training-{entry.source}"
            folder.mkdir(parents=True, exist_ok=True)
            image = draw(seed, entry.source, entry.writer, entry.digit)
            Image.fromarray(image).save(folder / entry.filename, optimize=True)
            rows.setdefault(entry.source, []).append(entry.row)
        for source, lines in rows.items():
            with open(new / f"training-{source}.csv", "w", newline="", encoding="utf-8") as handle:
                writer = csv.DictWriter(handle, COLUMNS[source], lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)
        size = sum(f.stat().st_size for f in new.rglob("*") if f.is_file())
        if out.exists():
            shutil.move(out, Path(made) / "old")
        shutil.move(new, out)
    return size


def write_contact_sheet(sample: Path, target: Path, seed: int, cell: int = 62) -> None:
    """Picture of 16 digits of each class, a row a class and the sources from left to right, as a small palette PNG."""
    share = {"a": 6, "b": 1, "c": 4, "d": 3, "e": 2}
    sheet = Image.new("RGB", (sum(share.values()) * cell, 10 * cell), (255, 255, 255))
    files = list(entries(seed))
    for digit in range(10):
        chosen = [[e for e in files if (e.source, e.digit) == (source, digit)][:n] for source, n in share.items()]
        for column, entry in enumerate(e for part in chosen for e in part):
            with Image.open(sample / f"training-{entry.source}" / entry.filename) as file:
                image = file.convert("RGB")
            image.thumbnail((cell - 4, cell - 4), Image.Resampling.LANCZOS)
            x, y = column * cell + (cell - image.width) // 2, digit * cell + (cell - image.height) // 2
            sheet.paste(image, (x, y))
    # median cut alone would spend its colours on paper and lose the blue pens; k-means gives them their own
    small = sheet.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE)
    small.save(target, optimize=True)


def main() -> None:
    """Command line: see the module's docstring."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=here / "sample", help="folder to (re)place, default data/sample")
    parser.add_argument("--seed", type=int, default=SEED, help=f"default {SEED}, the one that ships")
    args = parser.parse_args()
    size = write_sample(args.out, args.seed)
    write_contact_sheet(args.out, args.out.with_name(f"{args.out.name}_contact_sheet.png"), args.seed)
    print(f"{sum(1 for _ in entries(args.seed))} images, {size / 1e6:.1f} MB under {args.out}")


if __name__ == "__main__":
    main()
