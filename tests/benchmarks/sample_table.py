#!/usr/bin/env python3
"""Is the drawn sample like real handwriting, and about as hard? Accuracy across the two and within each.

    python tests/benchmarks/sample_table.py --digits digits.npz

`digits.npz` holds real digits as `recipe_table.py` takes them (28 x 28, ink 0-20). Features are the recipe's of the
embedded weights, standardised on the training part; logistic regression has the recipe's penalty. In the first three
rows every image is 28 x 28 pixels of ink, full frame, scaled up again the same way; in the last two the sample has its
own resolution. All draws are seeded.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from recipe_table import ROOT, accuracies, featurize, read_folder, read_npz
from scipy.ndimage import percentile_filter
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.networks import recipe

SIDE = 28
LEARN, ASK = 40, 200  # real digits a class to learn from, and to be asked about


def to_ink(image: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3) as the real digits are: grey (28, 28) uint8, dark ink on white paper, full frame.

    The paper is estimated by a high percentile of the neighbourhood and taken away; the darkest ink becomes black.
    """
    grey = Image.fromarray(image).convert("L")
    levels = np.asarray(grey, np.float32)
    if np.median(levels) < 60:  # white on black
        ink = levels / 255
    else:
        coarse = percentile_filter(np.asarray(grey.resize((36, 36), Image.Resampling.BOX), np.float32), 75, 9)
        paper = np.asarray(Image.fromarray(coarse).resize(grey.size, Image.Resampling.BILINEAR))
        darker = paper - levels
        most = np.percentile(darker, 99.3)
        ink = np.clip((darker - 0.2 * most) / (0.6 * most), 0, 1)
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX))
    return np.uint8(255 - 255 * np.clip(small / max(small.max(), 1e-6), 0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True, help=".npz of real digits")
    parser.add_argument("--sample", type=Path, default=ROOT / "data" / "sample", help="folder in NumtaDB's layout")
    parser.add_argument("--splits", type=int, default=20)
    args = parser.parse_args()

    ours = recipe("glyphs")
    drawn, drawn_labels = read_folder(args.sample)
    rows = {t.stem[-1]: len(t.read_text("utf8").splitlines()) - 1 for t in sorted(args.sample.glob("training-*.csv"))}
    sources = np.repeat(list(rows), list(rows.values()))
    real, real_labels = read_npz(args.digits, "all")
    rng = np.random.default_rng(7)
    per_class = LEARN + ASK + 50
    picked = [rng.choice(np.flatnonzero(real_labels == k), per_class, replace=False) for k in range(10)]
    parts = [np.split(rows_of_class, [LEARN, LEARN + ASK]) for rows_of_class in picked]
    learn, ask, fifty = (np.concatenate(part) for part in zip(*parts, strict=True))
    size = ours.image_size

    def features(images: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(featurize(images, "glyphs", size, list(ours.layer), "f32").values()), axis=1)

    def large(images: list[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(Image.fromarray(i).resize((180, 180), Image.Resampling.BICUBIC)) for i in images]

    of_real = features(large([real[i] for i in np.concatenate([learn, ask, fifty])]))
    learnt, asked, others = np.split(of_real, np.cumsum([len(learn), len(ask)]))
    of_small = features(large([to_ink(image) for image in drawn]))

    def answers(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        model = LogisticRegression(C=1 / (len(train) * ours.reg_param), max_iter=ours.max_iter)
        return make_pipeline(StandardScaler(), model).fit(train, labels).predict(test)

    print("trained on | tested on | accuracy")
    right = answers(of_small, drawn_labels, asked) == real_labels[ask]
    print(f"the sample, {len(drawn)} | {len(ask):,} real digits | {right.mean():.3f}")
    right = answers(learnt, real_labels[learn], of_small) == drawn_labels
    by_source = ", ".join(f"{s} {right[sources == s].mean():.2f}" for s in np.unique(sources))
    print(f"{len(learn)} real digits | the sample, {len(drawn)} | {right.mean():.3f} ({by_source})")
    right = answers(learnt, real_labels[learn], asked) == real_labels[ask]
    print(f"{len(learn)} real digits | {len(ask):,} other real digits | {right.mean():.3f}")
    for name, found, labels in (
        (f"8:2 of the sample, full resolution, {args.splits} stratified splits", features(drawn), drawn_labels),
        (f"8:2 of {len(fifty)} real digits, likewise", others, real_labels[fifty]),
    ):
        scores = accuracies(found, labels, [np.arange(len(labels))], args.splits, ours.reg_param, ours.max_iter)
        print(f"{name} | the rest | {scores.mean():.3f} ± {scores.std():.3f}")


if __name__ == "__main__":
    main()
