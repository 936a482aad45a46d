#!/usr/bin/env python3
"""Accuracy of logistic regression on each layer of InceptionV3, by image size and weights: how a recipe is chosen.

    python tests/benchmarks/recipe_table.py                                   # the drawn sample, embedded weights
    python tests/benchmarks/recipe_table.py --digits digits.npz --part first  # choose here ...
    python tests/benchmarks/recipe_table.py --digits digits.npz --part last   # ... and report here
    python tests/benchmarks/recipe_table.py --weights random --sizes 128 299 --layers mixed10

Every accuracy is a mean over `--draws` random draws of `--per-class` digits a class, each split 8:2 `--splits` times
with equal shares of every class. Features are globally averaged, standardised on the training part, and learnt by
scikit-learn's LogisticRegression with an L2 penalty of `--reg-param` on the mean loss, as in Spark ML
(C = 1 / (n * regParam)). All draws and splits are seeded; rows and columns see the same ones.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from helpers import networks  # noqa: E402

ALL_LAYERS = [f"mixed{i}" for i in range(11)]
GREY_PER_INK = 12.75  # a stored ink of 20 and more is black


def read_npz(path: Path, part: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Grey images (h, w) uint8, dark ink on white, and labels of an npz of `images` (ink 0–20) and `labels`."""
    with np.load(path) as stored:
        ink, labels = stored["images"], stored["labels"]
    half = len(labels) // 2
    rows = {"all": slice(None), "first": slice(0, half), "last": slice(half, None)}[part]
    grey = 255 - np.minimum(ink[rows].astype(np.float32) * GREY_PER_INK, 255)
    return list(grey.astype(np.uint8)), labels[rows].astype(int)


def read_folder(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Images (h, w, 3) uint8 and labels of a folder in NumtaDB's layout: training-*/ and training-*.csv."""
    images, labels = [], []
    for table in sorted(path.glob("training-*.csv")):
        with table.open(newline="", encoding="utf8") as file:
            for row in csv.DictReader(file):
                with Image.open(table.with_suffix("") / row["filename"]) as image:
                    images.append(np.asarray(image.convert("RGB")))
                labels.append(int(row["digit"]))
    if not images:
        raise SystemExit(f"no training-*.csv in {path}; give a folder in NumtaDB's layout or an .npz with --digits")
    return images, np.array(labels)


def featurize(
    images: list[np.ndarray], weights: str, size: int, layers: list[str], precision: str
) -> dict[str, np.ndarray]:
    """Globally averaged outputs (n, channels) float32 of each layer, images resized to `size` as the pipeline does."""
    graph = networks.export_graph("InceptionV3", weights, layers, "avg", size)
    core = ov.Core()
    network = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    channels = [256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048]
    widths = [channels[ALL_LAYERS.index(layer)] for layer in layers]
    parts = []
    for start in range(0, len(images), 64):
        resized = [
            np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR).convert("RGB"))
            for i in images[start : start + 64]
        ]
        parts.append(network(np.stack(resized)[..., ::-1].copy())[0])
    return dict(zip(layers, np.split(np.concatenate(parts), np.cumsum(widths)[:-1], axis=1), strict=True))


def draw(labels: np.ndarray, per_class: int, draws: int, seed: int = 0) -> list[np.ndarray]:
    """Row numbers of each draw: `per_class` of every class, without repetition inside a draw."""
    rng = np.random.default_rng(seed)
    fewest = np.bincount(labels).min()
    if fewest < per_class:
        raise SystemExit(f"the smallest class has {fewest} images; --per-class {per_class} is more")
    return [
        np.concatenate([rng.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in np.unique(labels)])
        for _ in range(draws)
    ]


def accuracies(
    features: np.ndarray, labels: np.ndarray, drawn: list[np.ndarray], splits: int, reg_param: float, max_iter: int
) -> np.ndarray:
    """Accuracy of every draw and split, (draws * splits,)."""
    found = []
    for rows in drawn:
        shuffle = StratifiedShuffleSplit(splits, test_size=0.2, random_state=0)
        for train, test in shuffle.split(rows, labels[rows]):
            scaler = StandardScaler().fit(features[rows[train]])
            model = LogisticRegression(C=1 / (len(train) * reg_param), max_iter=max_iter)
            model.fit(scaler.transform(features[rows[train]]), labels[rows[train]])
            found.append(model.score(scaler.transform(features[rows[test]]), labels[rows[test]]))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--digits", type=Path, default=ROOT / "data" / "sample", help=".npz, or folder in NumtaDB's layout"
    )
    parser.add_argument("--part", choices=["all", "first", "last"], default="all", help="half of an .npz")
    parser.add_argument("--weights", nargs="+", default=["glyphs"], help="glyphs, random, imagenet or a .weights.h5")
    parser.add_argument("--sizes", nargs="+", type=int, default=[96, 128])
    parser.add_argument(
        "--layers", nargs="+", default=ALL_LAYERS, help="a layer, or several joined by + (mixed3+mixed5)"
    )
    parser.add_argument("--reg-param", nargs="+", type=float, default=[0.01])
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--max-iter", type=int, default=200)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="of the network")
    args = parser.parse_args()
    single = sorted({layer for row in args.layers for layer in row.split("+")}, key=lambda n: (len(n), n))
    if unknown := set(single) - set(ALL_LAYERS):
        parser.error(f"no such layer: {', '.join(sorted(unknown))}; there are {', '.join(ALL_LAYERS)}")
    is_npz = args.digits.suffix == ".npz"
    images, labels = read_npz(args.digits, args.part) if is_npz else read_folder(args.digits)
    drawn = draw(labels, args.per_class, args.draws)
    used, rows = np.unique(np.concatenate(drawn), return_inverse=True)
    drawn = np.split(rows.ravel(), args.draws)
    images, labels = [images[i] for i in used], labels[used]
    source = f"{args.digits.name}, {args.part}"
    print(f"{args.per_class} per class, {args.draws} draws x {args.splits} splits, {len(used)} images of {source}")
    for weights in args.weights:
        for size in args.sizes:
            start = time.perf_counter()
            features = featurize(images, weights, size, single, args.precision)
            rate = len(images) / (time.perf_counter() - start)
            print(f"\n{Path(weights).name}, {size} px, {rate:.0f} images/s; columns: regParam")
            print(f"{'layer':>16}" + "".join(f"{r:>10g}" for r in args.reg_param))
            for row in args.layers:
                joined = np.concatenate([features[layer] for layer in row.split("+")], axis=1)
                means = [
                    accuracies(joined, labels, drawn, args.splits, r, args.max_iter).mean() for r in args.reg_param
                ]
                print(f"{row:>16}" + "".join(f"{m:>10.4f}" for m in means), flush=True)


if __name__ == "__main__":
    main()
