"""Harder digits: what each distortion does to an image, that chance is the path's, and that Spark's frames take it."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import FAST, image_frame, picture, struct
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pyspark.sql import functions as F

from helpers.distort import DISTORTIONS, distort, distort_images
from helpers.featurizer import DeepImageFeaturizer

PAPER, INK = 220, 40


def bar(paper: int = PAPER, ink: int = INK, size: int = 180) -> np.ndarray:
    """A straight upright stroke in the middle, grey (h, w)."""
    page = np.full((size, size), paper, np.uint8)
    page[size // 4 : -size // 4, size // 2 - 3 : size // 2 + 3] = ink
    return page


def digit(channels: int = 3) -> np.ndarray:
    """A ring with a tail, a little out of the middle, colour (h, w, channels)."""
    page = Image.new("L", (180, 180), PAPER)
    pen = ImageDraw.Draw(page)
    pen.ellipse((60, 50, 110, 100), outline=INK, width=5)
    pen.line((105, 90, 125, 135), fill=INK, width=5)
    return np.repeat(np.asarray(page)[:, :, None], channels, axis=2)


def inked(image: np.ndarray) -> np.ndarray:
    return np.argwhere(image.reshape(*image.shape[:2], -1)[:, :, 0] < (PAPER + INK) / 2)


def direction(image: np.ndarray) -> float:
    """Degrees between the long axis of the ink and upright, to either side."""
    rows, columns = inked(image).T
    _, vectors = np.linalg.eigh(np.cov(columns, rows))
    x, y = vectors[:, -1]
    return math.degrees(math.atan2(abs(x), abs(y)))


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_severity_0_is_the_image(name, channels):
    image = digit(channels or 1)
    image = image if channels else image[:, :, 0]
    same = distort(image, name, 0, "a")
    assert same.dtype == np.uint8 and (same == image).all()
    assert same is not image and not np.shares_memory(same, image)
    hard = distort(image, name, 1.0, "a")
    assert hard.ndim == image.ndim and hard.shape[2:] == image.shape[2:]
    assert hard.shape != image.shape or (hard != image).any()
    if channels == 3:  # grey stays grey
        assert (hard == hard[:, :, :1]).all()


@pytest.mark.parametrize("name", DISTORTIONS)
def test_chance_is_the_paths(name):
    """The same path gives the same image; of twenty paths, some differ (source e leaves nothing to chance)."""
    versions = [distort(digit(), name, 0.7, f"{i}.png") for i in range(20)]
    assert (distort(digit(), name, 0.7, "3.png") == versions[3]).all()
    different = {version.tobytes() for version in versions}
    assert len(different) == {"source e": 1, "blur": 1, "rotation": 2, "shear": 2}.get(name, 20)


@pytest.mark.parametrize("name", ["blur", "salt and pepper", "occlusion", "show-through"])  # the others have a geometry
def test_severer_is_farther_from_the_image(name):
    """Mean over ten paths of the difference in grey, at four severities."""
    differences = [
        np.mean([np.abs(distort(digit(), name, s, str(i)).astype(int) - digit()).mean() for i in range(10)])
        for s in (0.1, 0.4, 0.7, 1.0)
    ]
    assert all(later > 1.05 * earlier for earlier, later in itertools.pairwise(differences))


@pytest.mark.parametrize("severity", [0.25, 0.5, 1.0])
def test_rotation_turns(severity):
    assert direction(bar()) == pytest.approx(0, abs=0.5)
    turned = distort(bar(), "rotation", severity, "a")
    assert direction(turned) == pytest.approx(60 * severity, abs=1)
    assert len(inked(turned)) == pytest.approx(len(inked(bar())), rel=0.05)
    assert (turned[0, 0], turned[-1, -1]) == (PAPER, PAPER)  # what comes in from outside is paper


@pytest.mark.parametrize("severity", [0.25, 0.5, 1.0])
def test_shear_leans(severity):
    rows, columns = inked(distort(bar(), "shear", severity, "a")).T
    slope = np.polyfit(rows, columns, 1)[0]
    assert abs(slope) == pytest.approx(0.8 * severity, abs=0.02)
    assert set(np.bincount(rows)[np.bincount(rows) > 0]) <= {5, 6, 7}  # each line of the stroke is as wide as it was


def test_both_sides_occur():
    slopes = [np.polyfit(*inked(distort(bar(), "shear", 1.0, str(i))).T, 1)[0] for i in range(20)]
    assert min(slopes) < -0.7 and max(slopes) > 0.7


def test_blur_spreads_the_ink():
    mild, hard = (distort(digit(), "blur", s, "a").astype(float) for s in (0.3, 1.0))
    assert digit().min() < mild.min() < hard.min() < PAPER
    for blurred in (mild, hard):  # it loses nothing, though: the frame is wide enough
        assert (PAPER - blurred).sum() == pytest.approx((PAPER - digit().astype(float)).sum(), rel=0.05)
    # lengths follow the image: twice the size, the same look
    large = np.asarray(Image.fromarray(digit()).resize((360, 360), Image.Resampling.NEAREST))
    small = Image.fromarray(distort(large, "blur", 1.0, "a")).resize((180, 180), Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(float) - hard).max() < 4


def test_salt_and_pepper():
    earlier = np.zeros((180, 180), bool)
    for severity in (0.25, 0.5, 1.0):
        sprinkled = distort(bar(), "salt and pepper", severity, "a")
        hit = sprinkled != bar()
        assert hit.mean() == pytest.approx(0.15 * severity, abs=0.01)
        assert set(sprinkled[hit]) == {0, 255}
        assert (sprinkled[hit] == 255).mean() == pytest.approx(0.5, abs=0.03)
        assert hit[earlier].all()  # a severer version is the milder one gone further
        earlier = hit
    colours = distort(digit(), "salt and pepper", 1.0, "a")
    assert (colours == colours[:, :, :1]).all()


def test_occlusion_covers_a_part_of_the_digit():
    rows, columns = inked(digit()).T
    box = rows.min(), rows.max(), columns.min(), columns.max()
    size = max(box[1] - box[0], box[3] - box[2]) + 1
    for path in range(20):
        middles = []
        for severity in (0.4, 0.8):
            covered = distort(digit(), "occlusion", severity, str(path))
            places = np.argwhere((covered != digit()).any(axis=2))
            assert len({tuple(covered[y, x]) for y, x in places}) == 1  # one grey
            (top, left), (bottom, right) = places.min(axis=0), places.max(axis=0)
            side = round(severity * 0.7 * size)
            # (where the block has the grey of what it covers, it cannot be told from it)
            assert max(bottom - top, right - left) + 1 <= side
            middles.append(((top + bottom) / 2, (left + right) / 2))
            assert top <= box[1] and bottom >= box[0] and left <= box[3] and right >= box[2]
        assert middles[0] == pytest.approx(middles[1], abs=2)


def test_show_through_darkens_the_paper_and_leaves_the_ink():
    for image in (digit(), 255 - digit()):
        through = distort(image, "show-through", 1.0, "a").astype(int)
        ink, paper = (int(image[image != image[0, 0, 0]].mean()), int(image[0, 0, 0]))
        towards_ink = np.sign(ink - paper)
        assert (towards_ink * (through - image) >= 0).all()
        on_paper = (image == paper).all(axis=2)
        touched = on_paper & (through != image).any(axis=2)
        assert 0.05 < touched.sum() / on_paper.sum() < 0.4
        assert np.abs(through - image)[~on_paper].max() <= 1
        # up to 40 % as strong as the ink
        assert np.abs(through - image).max() == pytest.approx(0.4 * abs(INK - PAPER), abs=3)
        half = distort(image, "show-through", 0.5, "a").astype(int)
        assert np.abs((half - image) * 2 - (through - image)).max() <= 2


@pytest.mark.parametrize("make", [bar, lambda: 255 - bar()], ids=["dark on light", "light on dark"])
def test_source_e_is_white_on_black_and_cropped(make):
    full = distort(make(), "source e", 0.001, "a")
    assert (full == np.where(bar() == INK, 255, 0)).all()
    half, cropped = (distort(make(), "source e", s, "a") for s in (0.5, 1.0))
    rows, columns = inked(bar()).T
    assert cropped.shape == (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1)
    assert (cropped == 255).all()  # the bar fills its box
    assert half.shape == pytest.approx(((180 + cropped.shape[0]) / 2, (180 + cropped.shape[1]) / 2), abs=1)
    assert (half == 255).sum() == (full == 255).sum()


def test_source_e_keeps_alpha_and_images_of_one_grey():
    assert (distort(digit(4), "source e", 1.0, "a")[:, :, 3] == 255).all()
    assert distort(np.full((5, 7), 90, np.uint8), "source e", 1.0, "a").shape == (5, 7)


@given(
    name=st.sampled_from(list(DISTORTIONS)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
    severity=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_any_image_comes_out_as_an_image(name, shape, severity, seed):
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    before = image.copy()
    changed = distort(image, name, severity, str(seed))
    assert changed.dtype == np.uint8 and changed.ndim == 3 and changed.size > 0 and changed.flags.c_contiguous
    assert (image == before).all()
    assert changed.shape == shape or name == "source e"


@pytest.mark.parametrize(
    ("image", "name", "severity", "says"),
    [
        (digit(), "fog", 0.5, "no distortion 'fog'; there are rotation, shear"),
        (digit(), "blur", 1.1, "severity=1.1 is not between 0 and 1"),
        (digit(), "blur", float("nan"), "severity=nan"),
        (digit().astype(float), "blur", 0.5, "not float64"),
        (np.zeros((0, 4), np.uint8), "blur", 0.5, "at least one"),
        (np.zeros((4, 4, 2), np.uint8), "blur", 0.5, "has 2 channels"),
    ],
)
def test_distort_refuses(image, name, severity, says):
    with pytest.raises(ValueError, match=says):
        distort(image, name, severity, "a")


def test_distorting_is_not_featurizing():
    """The module stands alone: importing it loads no featurizer and no network."""
    unwanted = ("helpers.featurizer", "keras", "openvino")
    asks = f"import sys, helpers.distort; print([name for name in {unwanted} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# --- in Spark ---------------------------------------------------------------------------------------------------------

VERSIONS = [("rotation", 0.0), ("rotation", 0.5), ("source e", 1.0), ("salt and pepper", 0.3)]


@pytest.fixture(scope="module")
def frame(spark):
    """Three pictures of 1, 3 and 4 channels, none, and one that lacks bytes."""
    broken = (*struct(picture(9))[:5], b"12345")
    images = image_frame(spark, [picture(0, channels=1), picture(1), picture(2, channels=4), None, broken])
    return images.withColumn("path", F.concat("number", F.lit(".png"))).cache()


def test_every_image_in_every_version(frame):
    rows = distort_images(frame, VERSIONS).collect()
    assert len(rows) == 5 * len(VERSIONS)
    assert {(row.distortion, row.severity) for row in rows} == set(VERSIONS)
    originals = {row.number: row.image for row in frame.collect()}
    for row in rows:
        before = originals[row.number]
        if row.number in (3, 4):  # left for the featurizer to complain of
            assert row.image == before
            continue
        pixels = np.frombuffer(before.data, np.uint8).reshape(before.height, before.width, before.nChannels)
        wanted = distort(pixels, row.distortion, row.severity, row.path)
        assert (row.image.height, row.image.width) == wanted.shape[:2]
        assert (row.image.origin, row.image.mode) == (before.origin, before.mode)
        assert bytes(row.image.data) == wanted.tobytes()


def test_partitions_change_nothing(frame):
    def drawn(partitions):
        rows = distort_images(frame.repartition(partitions), VERSIONS).collect()
        return sorted((row.path, row.distortion, row.severity, str(row.image)) for row in rows)

    assert drawn(1) == drawn(4)


def test_a_featurizer_takes_the_frame_as_it_is(frame):
    stage = DeepImageFeaturizer(**FAST, outputCol="features", errorCol="why")
    plain = {row.number: row.features for row in stage.transform(frame).collect()}
    for row in stage.transform(distort_images(frame, VERSIONS)).collect():
        if row.number == 3:
            assert row.features is None and row.why == "there is no image"
        elif row.number == 4:
            assert row.features is None and "5 bytes" in row.why
        else:
            assert row.why is None
            assert (row.features == plain[row.number]) == (row.severity == 0)


@pytest.mark.parametrize(
    ("change", "versions", "says"),
    [
        (lambda f: f, [], "at least one pair"),
        (lambda f: f, [("fog", 0.5)], "no distortion 'fog'"),
        (lambda f: f, [("blur", 2)], "severity=2"),
        (lambda f: f.drop("path"), VERSIONS, "no column 'path'"),
        (lambda f: f.withColumn("severity", F.lit(1)), VERSIONS, "a column 'severity' already"),
        (lambda f: f.withColumn("image", F.lit("x")), VERSIONS, "holds string, not Spark's image struct"),
    ],
)
def test_distort_images_refuses(frame, change, versions, says):
    with pytest.raises(ValueError, match=says):
        distort_images(change(frame), versions)
