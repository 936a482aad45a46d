#!/usr/bin/env python3
"""Pretrain InceptionV3 on glyphs of many scripts and write `data/weights/inception_v3_glyphs.npz`.

The network is `keras.applications.InceptionV3` with a classifier over glyph classes: letters and digits of the world's
scripts drawn from Debian's free fonts, distorted into something like handwriting. No Bengali, Assamese or Tirhuta glyph
is drawn for training, so the digits of NumtaDB stay a foreign script to it.

    python data/make_weights.py --images 200000        # train (or resume), then export
    python data/make_weights.py --export-only          # export the averaged weights of the last checkpoint
    python data/make_weights.py --lookalikes FONT      # which classes FONT's Bengali digits are taken for (no training)
    python data/make_weights.py --preview sheet.png    # a sheet of training images

Everything is seeded and the schedule follows the number of images seen, not the clock: a stop, a resumption or a busy
machine changes when training ends, not what it does.
Needs torch, keras, opencv-python-headless, scikit-image, fonttools, pillow and the Debian packages of PACKAGES. It runs
on the processor (bfloat16) or, when torch finds one, on a GPU (`--replicas 1 --batch 256 --workers 8`).
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import subprocess
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import cv2
import keras
import numpy as np
import torch
import torch.nn.functional as F
from fontTools import unicodedata as script_data
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont
from skimage.morphology import skeletonize
from torch import nn

VERSION = "2"
ROOT = Path(__file__).resolve().parents[1]
# fmt: off
PACKAGES = [
    "fonts-noto-core", "fonts-noto-extra", "fonts-dejavu-extra", "fonts-freefont-otf", "fonts-breip", "fonts-bwht",
    "fonts-dkg-handwriting", "fonts-femkeklaver", "fonts-humor-sans", "fonts-joscelyn", "fonts-kristi",
    "fonts-kaushanscript", "fonts-dancingscript", "fonts-lobster", "fonts-sjfonts", "fonts-rufscript",
    "fonts-tomsontalks", "fonts-comic-neue", "fonts-ecolier-court", "fonts-klee", "fonts-seto", "fonts-yusei-magic",
    "fonts-sil-andika", "fonts-gfs-gazis", "fonts-gfs-theokritos", "fonts-tlwg-purisa-ttf", "fonts-isabella",
    "fonts-levien-typoscript", "fonts-deva-extra", "fonts-lohit-deva", "fonts-lohit-deva-marathi",
    "fonts-lohit-deva-nepali", "fonts-lohit-gujr", "fonts-lohit-guru", "fonts-lohit-knda", "fonts-lohit-mlym",
    "fonts-lohit-orya", "fonts-lohit-taml", "fonts-lohit-taml-classical", "fonts-lohit-telu", "fonts-samyak-deva",
    "fonts-samyak-gujr", "fonts-samyak-mlym", "fonts-samyak-orya", "fonts-samyak-taml", "fonts-gargi", "fonts-sarai",
    "fonts-sahadeva", "fonts-nakula", "fonts-aksharyogini2", "fonts-gujr-extra", "fonts-guru-extra",
    "fonts-orya-extra", "fonts-telu-extra", "fonts-teluguvijayam", "fonts-gubbi", "fonts-navilu", "fonts-kalapi",
    "fonts-yrsa-rasa", "fonts-pagul", "fonts-sil-annapurna", "fonts-lklug-sinhala", "fonts-smc-anjalioldlipi",
    "fonts-smc-chilanka", "fonts-smc-dyuthi", "fonts-smc-gayathri", "fonts-smc-karumbi", "fonts-smc-keraleeyam",
    "fonts-smc-manjari", "fonts-smc-meera", "fonts-smc-rachana", "fonts-smc-suruma", "fonts-smc-uroob",
    "fonts-smc-raghumalayalamsans", "fonts-meera-inimai", "fonts-khmeros", "fonts-sil-mondulkiri", "fonts-lao",
    "fonts-sil-padauk", "fonts-sil-dai-banna", "fonts-eeyek", "fonts-uniol", "fonts-arundina", "fonts-hosny-amiri",
    "fonts-kacst", "fonts-farsiweb", "fonts-sil-scheherazade", "fonts-freefarsi", "fonts-tibetan-machine",
    "fonts-monlam", "fonts-ddc-uchen", "fonts-dzongkha", "fonts-bpg-georgian", "fonts-lg-aboriginal",
    "fonts-senamirmir-washra", "fonts-sil-abyssinica", "fonts-evertype-conakry", "fonts-gfs-neohellenic",
    "fonts-gfs-porson", "fonts-gfs-olga", "fonts-cardo", "fonts-junicode", "fonts-oldstandard",
    "fonts-linuxlibertine", "fonts-uralic", "fonts-tagbanwa", "fonts-sil-nuosusil", "fonts-sil-mingzat",
    "fonts-sil-ezra", "fonts-sil-akatab", "fonts-sil-shimenkan", "fonts-manchufont",
]
# fmt: on

EXCLUDED_SCRIPTS = {"Beng", "Tirh"}
EXCLUDED_RANGES = ((0x0980, 0x09FF), (0x11480, 0x114DF), (0x1CD0, 0x1CFF))
# Pictographic or very large scripts say little about pen strokes and would crowd out the rest.
UNUSED_SCRIPTS = {
    "Hani",
    "Hang",
    "Egyp",
    "Hluw",
    "Xsux",
    "Tang",
    "Nshu",
    "Sgnw",
    "Kits",
    "Bopo",
    "Zyyy",
    "Zinh",
    "Zzzz",
    "Yiii",
}
LETTERS_PER_SCRIPT = 48
FONTS_PER_CLASS = 24
MIN_FONTS, MIN_FONTS_DIGIT = 10, 2
TWIN_CORRELATION = 0.95

CANVAS, GLYPH = 64, 48  # side of a stored distance field, longest side of the glyph inside it, in pixels
PRINT_STEP, PEN_STEP = 8, 12  # grey levels per pixel of distance: to the outline, to the skeleton
# Layers with a classifier of their own while training: channels, weight of its loss. They bring middle layers forward.
AUXILIARY = {"mixed2": (288, 0.3), "mixed4": (768, 1.0), "mixed7": (768, 0.5)}


# ---------------------------------------------------------------- glyphs


def is_candidate(code_point: int) -> bool:
    """True for a letter or digit that may be drawn: not Bengali, Assamese or Tirhuta, not decomposable."""
    char = chr(code_point)
    if unicodedata.category(char) not in {"Lu", "Ll", "Lo", "Nd"}:
        return False
    if any(lo <= code_point <= hi for lo, hi in EXCLUDED_RANGES) or unicodedata.normalize("NFKD", char) != char:
        return False
    scripts = {script_data.script(char), *script_data.script_extension(char)}
    if scripts & EXCLUDED_SCRIPTS:
        return False
    # ASCII digits belong to no script; every other sign that belongs to none is left out.
    return not scripts & UNUSED_SCRIPTS or char in "0123456789"


def font_files() -> list[Path]:
    """Font files of PACKAGES, sorted; SystemExit names the packages that are missing."""
    listing = subprocess.run(["dpkg-query", "-L", *PACKAGES], capture_output=True, text=True, check=False)
    if listing.returncode:
        raise SystemExit(f"Debian font packages are missing. Install them: apt-get install {' '.join(PACKAGES)}")
    return sorted({Path(p) for p in listing.stdout.split("\n") if p.lower().endswith((".ttf", ".otf"))})


def read_font(path: Path) -> tuple[str, list[int]]:
    """Family name of a font and the candidate code points it has glyphs for."""
    with TTFont(path, lazy=True) as font:
        names = font["name"]
        family = names.getDebugName(16) or names.getDebugName(1) or path.stem
        return family, sorted(c for c in font.getBestCmap() or {} if is_candidate(c))


def draw_glyph(font: ImageFont.FreeTypeFont, code_point: int) -> np.ndarray | None:
    """Ink mask of one glyph, uint8 (h, w), longest side 2 * GLYPH; None when the font draws nothing."""
    mask = font.getmask(chr(code_point), mode="L")
    if 0 in mask.size:
        return None
    ink = np.array(mask, dtype=np.uint8).reshape(mask.size[::-1])
    rows, columns = np.flatnonzero(ink.max(1) > 127), np.flatnonzero(ink.max(0) > 127)
    if len(rows) < 8 or len(columns) < 3:
        return None
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = 2 * GLYPH / max(ink.shape)
    width, height = (max(4, round(n * scale)) for n in ink.shape[::-1])
    return cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def distance_fields(ink: np.ndarray) -> np.ndarray:
    """Two uint8 fields (2, CANVAS, CANVAS) of an ink mask.

    [0]: 128 + PRINT_STEP * signed distance to the outline (positive inside);
    [1]: 255 - PEN_STEP * distance to the skeleton. Distances in pixels of the canvas.
    """
    top, left = ((2 * CANVAS - n) // 2 for n in ink.shape)
    page = np.zeros((2 * CANVAS, 2 * CANVAS), np.uint8)
    page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink > 127
    inside = cv2.distanceTransform(page, cv2.DIST_L2, 5)
    outside = cv2.distanceTransform(1 - page, cv2.DIST_L2, 5)
    pen = cv2.distanceTransform(1 - skeletonize(page.astype(bool)).astype(np.uint8), cv2.DIST_L2, 5)
    fields = [128 + PRINT_STEP * (inside - outside) / 2, 255 - PEN_STEP * pen / 2]
    return np.stack(
        [cv2.resize(np.clip(f, 0, 255), (CANVAS, CANVAS), interpolation=cv2.INTER_AREA) for f in fields]
    ).astype(np.uint8)


def draw_font(job: tuple[Path, list[int]]) -> list[tuple[int, np.ndarray]]:
    """Distance fields of the wanted code points of one font."""
    path, code_points = job
    font = ImageFont.truetype(str(path), 120, layout_engine=ImageFont.Layout.BASIC)
    glyphs = ((c, draw_glyph(font, c)) for c in code_points)
    return [(c, distance_fields(ink)) for c, ink in glyphs if ink is not None]


def choose_jobs(fonts: dict[Path, tuple[str, list[int]]], rng: np.random.Generator) -> dict[Path, list[int]]:
    """Which code points to draw from which font: up to FONTS_PER_CLASS fonts each, families taking turns."""
    families: dict[int, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path, (family, code_points) in fonts.items():
        for c in code_points:
            families[c][family].append(path)
    by_script: dict[str, list[int]] = defaultdict(list)
    digits = []
    for c, of in sorted(families.items()):
        if unicodedata.category(chr(c)) == "Nd" and sum(map(len, of.values())) >= MIN_FONTS_DIGIT:
            digits.append(c)
        elif sum(map(len, of.values())) >= MIN_FONTS:
            by_script[script_data.script(chr(c))].append(c)
    # Within a script the code points that most families have come first: they are the ones in use.
    letters = [
        c for of in by_script.values() for c in sorted(of, key=lambda c: (-len(families[c]), c))[:LETTERS_PER_SCRIPT]
    ]
    jobs: dict[Path, list[int]] = defaultdict(list)
    for c in sorted(digits + letters):
        queues = [list(rng.permutation(np.array(paths, dtype=object))) for _, paths in sorted(families[c].items())]
        queues = [queues[i] for i in rng.permutation(len(queues))]
        turns = [q[i] for i in range(max(map(len, queues))) for q in queues if i < len(q)]
        for path in turns[:FONTS_PER_CLASS]:
            jobs[path].append(c)
    return jobs


def twins(drawn: dict[int, dict[Path, np.ndarray]]) -> set[int]:
    """Code points that look like an earlier one (Greek and Latin O), by correlation in the fonts they share."""
    code_points = sorted(drawn)
    index = {c: i for i, c in enumerate(code_points)}
    by_font: dict[Path, list[tuple[int, np.ndarray]]] = defaultdict(list)
    for c, of in drawn.items():
        for path, fields in of.items():
            by_font[path].append((index[c], cv2.resize(fields[0], (16, 16), interpolation=cv2.INTER_AREA).ravel()))
    total = np.zeros((len(index),) * 2, np.float32)
    shared = np.zeros_like(total)
    for glyphs in by_font.values():
        rows = np.array([i for i, _ in glyphs])
        small = np.array([g for _, g in glyphs], np.float32)
        small -= small.mean(1, keepdims=True)
        small /= np.linalg.norm(small, axis=1, keepdims=True) + 1e-6
        total[np.ix_(rows, rows)] += small @ small.T
        shared[np.ix_(rows, rows)] += 1
    alike = (total > TWIN_CORRELATION * shared) & (shared > 0)
    dropped: set[int] = set()
    for i in range(len(code_points)):
        if code_points[i] not in dropped:
            dropped.update(code_points[j] for j in np.flatnonzero(alike[i]) if j > i)
    return dropped


def build_glyphs(folder: Path, processes: int) -> None:
    """Draw every glyph once into folder/glyphs.npy (n, 2, CANVAS, CANVAS) uint8 and folder/glyphs.json."""
    paths = font_files()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        fonts = dict(zip(paths, pool.map(read_font, paths, chunksize=8), strict=True))
        jobs = choose_jobs(fonts, np.random.default_rng(0))
        drawn: dict[int, dict[Path, np.ndarray]] = defaultdict(dict)
        for path, glyphs in zip(jobs, pool.imap(draw_font, jobs.items(), chunksize=4), strict=True):
            for c, fields in glyphs:
                drawn[c][path] = fields
    for c in twins(drawn):
        del drawn[c]
    classes = sorted(drawn)
    labels = np.concatenate([np.full(len(drawn[c]), k) for k, c in enumerate(classes)])
    np.save(folder / "glyphs.npy", np.stack([f for c in classes for f in drawn[c].values()]))
    names = [f"U+{c:04X} {unicodedata.name(chr(c))}" for c in classes]
    files = {str(p.name) for c in classes for p in drawn[c]}
    meta = {"classes": names, "labels": labels.tolist(), "fonts": len(files)}
    (folder / "glyphs.json").write_text(json.dumps(meta, ensure_ascii=False))
    print(f"{len(labels)} glyphs of {len(classes)} classes from {len(files)} font files", flush=True)


# ---------------------------------------------------------------- drawing training images


class Drawer:
    """Distorts stored glyphs into training images, uint8 (size, size, 3); `difficulty` 0 (print) to 1 (everything)."""

    def __init__(self, fields: np.ndarray, rng: np.random.Generator) -> None:
        self.fields, self.rng, self.difficulty = fields, rng, 1.0
        self.noise = rng.standard_normal((1 << 20,)).astype(np.float32)

    def _field(self, size: int, cells: int) -> np.ndarray:
        """Smooth random field (size, size) float32 with a standard deviation of roughly 0.7."""
        return cv2.resize(
            self.rng.standard_normal((cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )

    def _maps(self, size: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Where each output pixel lies in the glyph's canvas (x, y), and output pixels per canvas pixel."""
        u, hard = self.rng.uniform, self.difficulty
        smallest = 0.65 - 0.4 * hard
        extent, aspect = smallest * (0.9 / smallest) ** u() * size, math.exp(hard * u(-0.36, 0.36))
        turn, shear = hard * math.radians(u(-24, 24)), hard * u(-0.4, 0.4)
        scale = extent / GLYPH
        stretch = np.diag([math.sqrt(aspect), 1 / math.sqrt(aspect)]) * scale
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        inverse = np.linalg.inv(rotation @ np.array([[1, shear], [0, 1]]) @ stretch)
        room = hard * (max(size - extent, 0.0) / 2 + 0.04 * size)
        cx, cy = size / 2 + u(-room, room), size / 2 + u(-room, room)
        x, y = np.arange(size, dtype=np.float32) - cx, np.arange(size, dtype=np.float32)[:, None] - cy
        (a, b), (c, d) = inverse.astype(np.float32)
        cells, bend = int(self.rng.integers(3, 7)), hard * u(0, 4.5)
        map_x = a * x + b * y + CANVAS / 2 + bend / 2 * self._field(size, cells)
        map_y = c * x + d * y + CANVAS / 2 + bend / 2 * self._field(size, cells)
        return map_x, map_y, scale

    def _ink(self, index: int, size: int) -> np.ndarray:
        """Ink coverage (size, size), float32 0–1."""
        u = self.rng.uniform
        map_x, map_y, scale = self._maps(size)
        pen = u() < 0.7
        field = cv2.remap(self.fields[index, int(pen)], map_x, map_y, cv2.INTER_LINEAR).astype(np.float32)
        if pen:
            half = 0.9 * 4 ** u() * size / 96
            if u() < 0.5 * self.difficulty:  # pressure changes along the stroke, sometimes down to a gap
                half = half * (1 + u(0.1, 0.6) * self._field(size, 8))
            ink = half + 0.5 - (255 - field) * (scale / PEN_STEP)
        else:
            ink = (field - 128) * (scale / PRINT_STEP) + u(-0.4, 1.6) * scale + 0.5
        return np.clip(ink, 0, 1, out=ink)

    def _form_lines(self, ink: np.ndarray) -> None:
        """Draw bits of a form's box near the edges into the ink, in place."""
        size, u = len(ink), self.rng.uniform
        for _ in range(self.rng.integers(1, 4)):
            place, tilt = int(abs(u(0, 0.16) - (u() < 0.5)) * (size - 1)), int(u(-0.04, 0.04) * size)
            start, end = (int(u(0, 0.7) * size), size) if u() < 0.5 else (0, int(u(0.3, 1) * size))
            ends = [(place, start), (place + tilt, end)]
            if u() < 0.5:
                ends = [p[::-1] for p in ends]
            cv2.line(ink, *ends, u(0.4, 1), int(self.rng.integers(1, 3)))

    def __call__(self, index: int, size: int) -> np.ndarray:
        u, hard = self.rng.uniform, self.difficulty
        ink = self._ink(index, size)
        if u() < 0.12 * hard:
            self._form_lines(ink)
        if u() < 0.45 * hard:  # as scanned at a low resolution and enlarged
            small = int(u(24, 40) if u() < 0.6 else u(40, 64))
            ink = cv2.resize(ink, (small, small), interpolation=cv2.INTER_AREA)
            ink = np.minimum(ink * np.float32(u(1, 2)), 1)
            ink = cv2.resize(ink, (size, size), interpolation=cv2.INTER_CUBIC if u() < 0.6 else cv2.INTER_LINEAR)
        elif u() < 0.4 * hard:
            ink = cv2.GaussianBlur(ink, (0, 0), u(0.4, 1.6))
        if u() < 0.06 * hard:
            side = int(u(0.1, 0.25) * size)
            top, left = self.rng.integers(0, size - side, 2)
            ink[top : top + side, left : left + side] = u(0, 1)
        plain = u() < 1 - 0.6 * hard
        paper = np.full(3, 255.0) if plain else np.clip(u(150, 255) + self.rng.normal(0, 7, 3), 0, 255)
        colour = np.zeros(3) if plain else np.clip(u(0, 0.62) * paper.mean() + self.rng.normal(0, 9, 3), 0, 255)
        if u() < 0.3 * hard:
            paper, colour = colour, paper
        if not plain:
            if u() < 0.3:
                ink = ink + u(0.02, 0.1) * self._field(size, 3)
            if u() < 0.5:
                start = self.rng.integers(0, len(self.noise) - size * size)
                ink = ink + u(0.01, 0.09) * self.noise[start : start + size * size].reshape(size, size)
        ramp = np.clip(paper + np.linspace(0, 1, 256)[:, None] * (colour - paper), 0, 255).astype(np.uint8)
        level = np.clip(ink * 255, 0, 255).astype(np.uint8)
        return cv2.LUT(cv2.merge([level] * 3), ramp.reshape(256, 1, 3))


class GlyphBatches(torch.utils.data.IterableDataset):
    """Endless batches (uint8 images (n, 3, size, size) in channels-last memory, int64 labels)."""

    def __init__(self, fields: np.ndarray, rows: np.ndarray, labels: np.ndarray, batch: int, stage, seed: int) -> None:
        # `stage` is a shared array of image size and difficulty, which the trainer raises as training goes on.
        self.fields, self.rows, self.labels, self.batch = fields, rows, labels, batch
        self.stage, self.seed = stage, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        cv2.setNumThreads(0)
        info = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0])
        draw = Drawer(self.fields, rng)
        first = np.searchsorted(self.labels[self.rows], np.arange(self.labels.max() + 2))
        while True:
            # Every class as often as any other, however many fonts it has.
            classes = rng.integers(0, len(first) - 1, self.batch)
            rows = self.rows[
                first[classes] + (rng.random(self.batch) * (first[classes + 1] - first[classes])).astype(int)
            ]
            size, draw.difficulty = int(self.stage[0]), self.stage[1]
            images = torch.from_numpy(np.stack([draw(i, size) for i in rows]))
            yield images.permute(0, 3, 1, 2), torch.from_numpy(self.labels[rows])


# ---------------------------------------------------------------- network


class TorchTwin(nn.Module):
    """The layers of a Keras InceptionV3 run by torch itself: 2.6 times as fast to train as Keras on torch."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.plan: list[tuple[str, str, list[str]]] = []
        self.ops = nn.ModuleDict()
        for layer in model.layers:
            kind = type(layer).__name__
            node = layer._inbound_nodes[0]
            self.plan.append((kind, layer.name, [t._keras_history.operation.name for t in node.input_tensors]))
            if kind == "Conv2D":
                height, width, channels, filters = layer.kernel.shape
                padding = (height // 2, width // 2) if layer.padding == "same" else 0
                op = nn.Conv2d(channels, filters, (height, width), layer.strides, padding, bias=False)
            elif kind == "BatchNormalization":
                op = nn.BatchNorm2d(layer.beta.shape[0], eps=layer.epsilon, momentum=1 - layer.momentum)
                op.weight.requires_grad_(False)  # InceptionV3 has scale=False
            elif kind == "Dense":
                op = nn.Linear(*layer.kernel.shape)
            elif kind == "Activation":
                op = nn.ReLU(inplace=True)
            elif kind == "MaxPooling2D":
                op = nn.MaxPool2d(layer.pool_size, layer.strides)
            elif kind == "AveragePooling2D":
                op = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
            else:
                continue
            self.ops[layer.name] = op
        self.read(model)

    def _pairs(self, model: keras.Model) -> Iterator[tuple[torch.Tensor, keras.Variable, tuple[int, ...]]]:
        """(torch tensor, Keras variable, axes that turn the Keras array into the torch one)."""
        for name, op in self.ops.items():
            layer = model.get_layer(name)
            if isinstance(op, nn.Conv2d):
                yield op.weight, layer.kernel, (3, 2, 0, 1)
            elif isinstance(op, nn.BatchNorm2d):
                yield op.bias, layer.beta, (0,)
                yield op.running_mean, layer.moving_mean, (0,)
                yield op.running_var, layer.moving_variance, (0,)
            elif isinstance(op, nn.Linear):
                yield op.weight, layer.kernel, (1, 0)
                yield op.bias, layer.bias, (0,)

    @torch.no_grad()
    def read(self, model: keras.Model) -> None:
        """Take over the weights of a Keras model."""
        for tensor, variable, axes in self._pairs(model):
            tensor.copy_(torch.from_numpy(keras.ops.convert_to_numpy(variable).transpose(axes).copy()))

    @torch.no_grad()
    def write(self, model: keras.Model) -> None:
        """Hand the weights over to a Keras model."""
        for tensor, variable, axes in self._pairs(model):
            variable.assign(tensor.cpu().float().numpy().transpose(np.argsort(axes)))

    def forward(self, images: torch.Tensor, last: str = "predictions") -> dict[str, torch.Tensor]:
        """Every layer's output by layer name, up to `last`; `predictions` are logits.

        `images`: (n, 3, size, size) float, scaled to -1…1.
        """
        out: dict[str, torch.Tensor] = {}
        for kind, name, inputs in self.plan:
            if kind == "InputLayer":
                out[name] = images
            elif kind == "Concatenate":
                out[name] = torch.cat([out[i] for i in inputs], 1)
            elif kind == "GlobalAveragePooling2D":
                out[name] = out[inputs[0]].mean((2, 3))
            else:
                out[name] = self.ops[name](out[inputs[0]])
            if name == last:
                break
        return out


class Trainee(nn.Module):
    """The network and the auxiliary classifiers of AUXILIARY on globally averaged middle layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = TorchTwin(keras_model(classes))
        self.heads = nn.ModuleDict({layer: nn.Linear(width, classes) for layer, (width, _) in AUXILIARY.items()})

    def loss(self, images: torch.Tensor, labels: torch.Tensor, last: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Label-smoothed cross-entropy of all classifiers up to layer `last`, and the right answers of that one."""
        out = self.net(images, last)
        loss = 0.0
        for layer, (_, weight) in [*AUXILIARY.items(), ("predictions", (0, 1.0))]:
            if layer in out:
                logits = out[layer] if layer == "predictions" else self.heads[layer](out[layer].mean((2, 3)))
                loss = loss + weight * F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        return loss, (logits.argmax(1) == labels).sum()


def keras_model(classes: int) -> keras.Model:
    """InceptionV3 with random weights and a softmax over `classes`."""
    keras.utils.set_random_seed(0)
    keras.backend.clear_session(free_memory=False)
    # 128 px is only the size of the graph's input: the weights do not depend on it.
    return keras.applications.InceptionV3(weights=None, input_shape=(128, 128, 3), classes=classes)


# ---------------------------------------------------------------- training


def image_size(progress: float) -> int:
    """Side of the training images at a part (0–1) of the training: small while little is known, larger later."""
    return 80 if progress < 0.75 else 96


def difficulty(progress: float) -> float:
    """How much of the distortion the training images get: from print-like to all of it over the first quarter."""
    return min(1.0, 0.1 + 0.9 * progress / 0.25)


def last_layer(progress: float) -> str:
    """Where the network ends for now: the lower half learns alone first, which takes fewer and cheaper steps."""
    return "mixed4" if progress < 0.6 else "predictions"


def learning_rate(progress: float, steps: int, peak: float) -> float:
    """Warm-up over 150 steps, then the peak, then over the last 30 % of the images linearly down to 1 % of it."""
    return peak * min(1.0, (steps + 1) / 150, 0.01 + 0.99 * (1 - progress) / 0.3)


def scaled(images: torch.Tensor, device: str) -> torch.Tensor:
    """uint8 images to float32 -1…1, as `inception_v3.preprocess_input` does."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1)


def load_glyphs(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
    """Fields, labels, training rows, validation rows (one glyph in 25, of classes with 8 or more fonts), meta data."""
    meta = json.loads((folder / "glyphs.json").read_text())
    labels = np.array(meta["labels"])
    held_out = (np.random.default_rng(1).random(len(labels)) < 0.04) & (np.bincount(labels)[labels] >= 8)
    return (
        np.load(folder / "glyphs.npy", mmap_mode="r"),
        labels,
        np.flatnonzero(~held_out),
        np.flatnonzero(held_out),
        meta,
    )


@torch.no_grad()
def validate(
    net: TorchTwin, fields: np.ndarray, labels: np.ndarray, rows: np.ndarray, device: str, size: int = 96
) -> float:
    """Accuracy on distorted glyphs of fonts not seen in training for that class (seeded, up to 2,000 images)."""
    rng = np.random.default_rng(2)
    draw = Drawer(fields, rng)
    rows = rng.permutation(rows)[:2000]
    net.eval()
    right = 0
    for part in np.array_split(rows, max(len(rows) // 100, 1)):
        images = torch.from_numpy(np.stack([draw(i, size) for i in part])).permute(0, 3, 1, 2)
        with torch.autocast(device, torch.bfloat16):
            right += int((net(scaled(images, device))["predictions"].argmax(1).cpu().numpy() == labels[part]).sum())
    return right / len(rows)


def twin_of(model: Trainee) -> Trainee:
    """A copy that shares the parameters but has its own gradients and batch statistics."""
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.data = p.data
    return other


def gradients(
    model: Trainee, images: torch.Tensor, labels: torch.Tensor, last: str, device: str, share: int
) -> tuple[float, int]:
    """Leave 1 / `share` of the gradients of one batch in the model; its loss and number of right answers."""
    model.train()
    with torch.autocast(device, torch.bfloat16):
        loss, hits = model.loss(scaled(images, device), labels.to(device), last)
    (loss / share).backward()
    return loss.item(), int(hits)


def train(
    folder: Path, budget: int, batch: int, peak: float, workers: int, checkpoint_minutes: float, replicas: int
) -> None:
    """Train until the network has seen `budget` images, resuming from folder/state.pt when there is one.

    On a processor each of `replicas` threads runs its share of a batch on one core: two threads inside one convolution
    wait for each other busily, which on a shared machine made a step up to 10 times as dear.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fields, labels, rows, _, meta = load_glyphs(folder)
    torch.manual_seed(0)
    model = Trainee(len(meta["classes"])).to(device, memory_format=torch.channels_last)
    average = {k: v.detach().clone() for k, v in model.net.state_dict().items() if v.is_floating_point()}
    weights = [p for p in model.parameters() if p.requires_grad]
    team = [model] + [twin_of(model) for _ in range(replicas - 1)]
    heads = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    head_ids = {id(p) for p in heads}
    kernels = [p for p in weights if p.ndim > 1 and id(p) not in head_ids]
    # Adam moves every weight alike: over thousands of inputs, all positive, the classifiers' sums would jump.
    groups = [
        {"params": kernels, "weight_decay": 0.05, "factor": 1.0},
        {"params": [p for p in weights if p.ndim == 1], "weight_decay": 0.0, "factor": 1.0},
        {"params": heads, "weight_decay": 0.05, "factor": 0.15},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99), fused=True)
    seconds, images, steps = 0.0, 0, 0
    state_file = folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        seconds, images, steps = state["seconds"], state["images"], state["steps"]
        print(f"resumed at {images} images, {seconds / 60:.1f} min", flush=True)
    stage = multiprocessing.Array("d", [image_size(images / budget), difficulty(images / budget)], lock=False)
    data = GlyphBatches(fields, rows, labels, batch, stage, seed=steps)
    stream = iter(
        torch.utils.data.DataLoader(
            data, batch_size=None, num_workers=workers, prefetch_factor=4, multiprocessing_context="fork"
        )
    )
    live = [v for v in model.net.state_dict().values() if v.is_floating_point()]
    if replicas > 1:
        torch.set_num_threads(1)
    pool = ThreadPoolExecutor(replicas, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
    clock = last_log = last_save = time.monotonic()
    started_at, right, seen, losses = seconds, 0, 0, 0.0
    while images < budget:
        progress = images / budget
        stage[:] = [image_size(progress), difficulty(progress)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, steps, peak) * group["factor"]
        inputs, targets = next(stream)
        optimizer.zero_grad(set_to_none=True)
        last = last_layer(progress)
        jobs = zip(team, inputs.chunk(replicas), targets.chunk(replicas), strict=True)
        results = list(pool.map(lambda job, last=last: gradients(*job, last, device, replicas), jobs))
        for other in team[1:]:
            pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), other.parameters(), strict=True)]
            torch._foreach_add_(*zip(*[(g, h) for g, h in pairs if g is not None], strict=True))
            other.zero_grad(set_to_none=True)
        optimizer.step()
        steps, images = steps + 1, images + len(targets)
        right, seen = right + sum(hits for _, hits in results), seen + len(targets)
        losses += sum(loss for loss, _ in results) / replicas * len(targets)
        if not math.isfinite(losses):
            raise SystemExit(f"loss is not finite at step {steps}: lower --learning-rate and resume")
        if steps % 8 == 0:
            decay = min(0.997, (1 + steps) / (10 + steps)) ** 8
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), live, 1 - decay)
        now = time.monotonic()
        seconds = started_at + now - clock
        if now - last_log > 30:
            print(
                f"{seconds / 60:6.2f} min  {images} images  {seen / (now - last_log):6.1f}/s  {inputs.shape[-1]} px  "
                f"loss {losses / seen:.3f}  accuracy {right / seen:.4f}  rate {optimizer.param_groups[0]['lr']:.2e}",
                flush=True,
            )
            last_log, right, seen, losses = now, 0, 0, 0.0
        if now - last_save > checkpoint_minutes * 60 or images >= budget:
            last_save = now
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "seconds": seconds,
                "images": images,
                "steps": steps,
                "budget": budget,
            }
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)


# ---------------------------------------------------------------- export


def averaged_network(folder: Path) -> tuple[TorchTwin, keras.Model, dict, dict]:
    """Torch and Keras network with the averaged weights of the last checkpoint, its state, the glyphs' meta data."""
    meta = json.loads((folder / "glyphs.json").read_text())
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    model = keras_model(len(meta["classes"]))
    net = TorchTwin(model).to(memory_format=torch.channels_last)
    net.load_state_dict(state["average"], strict=False)
    net.write(model)
    return net.eval(), model, state, meta


def quantise(weights: list[np.ndarray]) -> dict[str, np.ndarray]:
    """w… as it is for vectors; q… int8 and s… float32 (one scale per output channel) for kernels: value = q * s."""
    arrays = {}
    for i, w in enumerate(weights):
        if w.ndim == 1:
            arrays[f"w{i:03d}"] = w.astype(np.float32)
            continue
        scale = np.maximum(np.abs(w).max(axis=tuple(range(w.ndim - 1))), 1e-12) / 127
        arrays[f"q{i:03d}"] = np.rint(w / scale).astype(np.int8)
        arrays[f"s{i:03d}"] = scale.astype(np.float32)
    return arrays


def export(folder: Path, out: Path) -> None:
    """Write the averaged weights as `out` (npz, see data/weights/README.md)."""
    net, model, state, meta = averaged_network(folder)
    layers = ["mixed0", "mixed2", "mixed4", "mixed7", "mixed10"]
    probe = np.random.default_rng(3).uniform(-1, 1, (4, 128, 128, 3)).astype(np.float32)
    with torch.no_grad():
        ours = net(torch.from_numpy(probe).permute(0, 3, 1, 2))
    theirs = keras.Model(model.input, [model.get_layer(name).output for name in layers])(probe)
    pairs = [
        (ours[k].permute(0, 2, 3, 1).numpy(), keras.ops.convert_to_numpy(v))
        for k, v in zip(layers, theirs, strict=True)
    ]
    error = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
    if error > 1e-4:
        raise SystemExit(f"Keras and torch differ by {error:.1e} on the same weights: nothing was written")
    fields, labels, _, held_out, _ = load_glyphs(folder)
    about = {
        "date": date.today().isoformat(),
        "script": VERSION,
        "images": state["images"],
        "steps": state["steps"],
        "minutes": round(state["seconds"] / 60, 1),
        "classes": len(meta["classes"]),
        "glyphs": len(meta["labels"]),
        "fonts": meta["fonts"],
        "sizes": sorted({image_size(p / 100) for p in range(100)}),
        "validation_accuracy": round(validate(net, fields, labels, held_out, "cpu"), 4),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(out.stem + ".new.npz")
    np.savez_compressed(
        new, **quantise(model.get_weights()), classes=np.array(meta["classes"]), about=np.array(json.dumps(about))
    )
    new.replace(out)
    print(
        f"{out.name}: {out.stat().st_size / 1e6:.1f} MB, Keras against torch {error:.1e}, {json.dumps(about)}",
        flush=True,
    )


# ---------------------------------------------------------------- looking


def lookalikes(folder: Path, font: Path, count: int = 4) -> None:
    """Print the classes the network takes the ten Bengali digits of a font for. A measurement: nothing is trained."""
    net, _, _, meta = averaged_network(folder)
    drawn = draw_font((font, list(range(0x09E6, 0x09F0))))
    for code_point, fields in drawn:
        draw = Drawer(fields[None], np.random.default_rng(4))
        images = torch.from_numpy(np.stack([draw(0, 128) for _ in range(200)])).permute(0, 3, 1, 2)
        with torch.no_grad():
            mean = net(scaled(images, "cpu"))["predictions"].softmax(1).mean(0)
        best = mean.topk(count)
        names = ", ".join(
            f"{meta['classes'][i]} ({p:.2f})" for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        print(f"{unicodedata.name(chr(code_point))}: {names}")


def preview(folder: Path, out: Path, size: int = 96) -> None:
    """Save a sheet of 12 by 20 training images."""
    fields, _, rows, _, _ = load_glyphs(folder)
    rng = np.random.default_rng(5)
    draw = Drawer(fields, rng)
    tiles = [np.concatenate([draw(i, size) for i in rng.choice(rows, 20)], 1) for _ in range(12)]
    Image.fromarray(np.concatenate(tiles)).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "pretrain", help="checkpoints and drawn glyphs")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "weights" / "inception_v3_glyphs.npz")
    parser.add_argument("--images", type=int, default=200_000, help="training images in all, resumed runs included")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--replicas", type=int, default=2, help="threads that share a batch; 1 on a GPU")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--checkpoint-minutes", type=float, default=5)
    parser.add_argument("--export-only", action="store_true")
    parser.add_argument("--lookalikes", type=Path, metavar="FONT")
    parser.add_argument("--preview", type=Path, metavar="PNG")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "glyphs.json").exists():
        build_glyphs(args.folder, args.workers)
    if args.preview:
        preview(args.folder, args.preview)
    elif args.lookalikes:
        lookalikes(args.folder, args.lookalikes)
    else:
        if not args.export_only:
            train(
                args.folder,
                args.images,
                args.batch,
                args.learning_rate,
                args.workers,
                args.checkpoint_minutes,
                args.replicas,
            )
        export(args.folder, args.out)


if __name__ == "__main__":
    main()
