"""The drawn sample under data/sample: layout, columns, look, and that its script draws it again."""

import csv
import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(__file__).resolve().parents[1] / "data"
SAMPLE = DATA / "sample"
# Kaggle's own columns, written out here so that a slip in the script shows.
COLUMNS = {
    **dict.fromkeys(
        "abc", "filename,original filename,scanid,digit,database name original,contributing team,database name"
    ),
    "d": "original filename,scanid,digit,num,database name original,database name,filename",
    "e": "filename,original filename,districtid,institutionid,gender,age,datestamp,scanid,digit,"
    "database name original,database name",
}


@pytest.fixture(scope="module")
def script():
    """data/make_sample.py as a module."""
    spec = importlib.util.spec_from_file_location("make_sample", DATA / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_sample"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_sample"]


@pytest.fixture(scope="module")
def rows():
    """All CSV rows, each with its source."""
    found = []
    for source in COLUMNS:
        with open(SAMPLE / f"training-{source}.csv", newline="", encoding="utf-8") as handle:
            found += [{"source": source, **row} for row in csv.DictReader(handle)]
    return found


@pytest.fixture(scope="module")
def images(rows):
    """Pixels of every file in the order of ``rows``."""
    pixels = []
    for row in rows:
        with Image.open(SAMPLE / f"training-{row['source']}" / row["filename"]) as file:
            pixels.append(np.asarray(file))
    return pixels


def of_source(rows, images, source):
    return [image for row, image in zip(rows, images, strict=True) if row["source"] == source]


def paper_and_ink(image):
    """Mean RGB of the paper, and the share of the frame that is clearly darker than it."""
    grey = image.mean(axis=2)
    paper = np.median(grey)
    return image[grey > paper - 20].mean(axis=0), float((grey < paper - 45).mean())


def test_layout_is_kaggles():
    names = {p.name for p in SAMPLE.iterdir()}
    assert names == {f"training-{s}" for s in COLUMNS} | {f"training-{s}.csv" for s in COLUMNS}


@pytest.mark.parametrize("source", COLUMNS)
def test_columns_are_the_sources_own(source):
    header = (SAMPLE / f"training-{source}.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == COLUMNS[source]


def test_rows_and_files_match(rows):
    listed = {(f"training-{r['source']}", r["filename"]) for r in rows}
    on_disk = {(p.parent.name, p.name) for p in SAMPLE.glob("*/*")}
    assert len(rows) == len(listed) == 500
    assert listed == on_disk
    assert all(re.fullmatch(rf"{r['source']}\d{{5}}\.png", r["filename"]) for r in rows)
    assert all(r["database name"] == f"training-{r['source']}" for r in rows)


def test_fifty_a_class_and_all_classes_in_every_source(rows):
    assert Counter(r["digit"] for r in rows) == {str(d): 50 for d in range(10)}
    for source in COLUMNS:
        assert {r["digit"] for r in rows if r["source"] == source} == {str(d) for d in range(10)}


def test_at_least_forty_writers(rows):
    written = Counter((r["source"], r["scanid"]) for r in rows)
    assert len(written) >= 40
    assert min(written.values()) >= 10


def test_original_names_carry_writer_and_digit(rows):
    for row in rows:
        if row["source"] == "e":
            assert row["original filename"].endswith(f"_{int(row['scanid']):04d}_{row['digit']}.png")
        else:
            assert row["original filename"].startswith(f"Scan_{row['scanid']}_digit_{row['digit']}_num_")


def test_size():
    assert sum(p.stat().st_size for p in SAMPLE.rglob("*") if p.is_file()) < 12e6
    assert (DATA / "sample_contact_sheet.png").stat().st_size <= 400_000


def test_shapes_of_each_source(rows, images):
    for source in "acd":
        assert {image.shape[:2] for image in of_source(rows, images, source)} == {(180, 180)}
    assert all(image.shape == (180, 180, 3) for s in "ad" for image in of_source(rows, images, s))
    small = [image.shape for image in of_source(rows, images, "b")]
    assert all(shape[2] == 3 and 80 <= min(shape[:2]) <= max(shape[:2]) <= 135 for shape in small)
    assert len(set(small)) > 10
    tight = [image.shape for image in of_source(rows, images, "e")]
    assert all(len(shape) == 2 and 77 <= min(shape) <= max(shape) <= 200 for shape in tight)
    assert len(set(tight)) > 15
    assert sum(image.shape == (180, 180, 3) for image in images) > 350


def test_source_a_has_lavender_paper_and_thin_brown_ink(rows, images):
    found = [paper_and_ink(image) for image in of_source(rows, images, "a")]
    paper, ink = np.array([p for p, _ in found]), np.array([i for _, i in found])
    assert np.abs(paper.mean(axis=0) - [222, 214, 225]).max() < 5
    assert (paper[:, 1] < paper[:, 0]).mean() > 0.95  # green is the weakest channel: lavender
    assert (paper[:, 1] < paper[:, 2]).mean() > 0.95
    assert 0.02 <= np.median(ink) <= 0.05
    assert ink.min() > 0.008
    assert ink.max() < 0.11


def test_source_a_has_horizontal_fibres(rows, images):
    spread, along, across = [], [], []
    for image in of_source(rows, images, "a"):
        grey = image.mean(axis=2)
        paper = np.where(grey > np.median(grey) - 20, grey, np.nan)
        spread.append(np.nanstd(paper))
        along.append(np.nanmean(np.abs(paper[:, 2:] - paper[:, :-2])))
        across.append(np.nanmean(np.abs(paper[2:] - paper[:-2])))
    assert 2.4 <= np.median(spread) <= 3.7
    assert np.median(np.array(across) / along) > 1.2  # it changes faster from row to row than along a row


def test_digits_of_source_a_are_as_large_as_real_ones(rows, images):
    spans = []
    for image in of_source(rows, images, "a"):
        grey = image.mean(axis=2)
        # the innermost 164 pixels: what is left of a form's box lines lies outside
        y, x = np.nonzero((grey < np.median(grey) - 45)[8:-8, 8:-8])
        spans.append(max(np.ptp(y), np.ptp(x)) + 1)
    low, middle, high = np.percentile(spans, [5, 50, 95])
    assert 40 <= low <= 60
    assert 62 <= middle <= 80
    assert 90 <= high <= 130


def test_source_e_is_binary_white_on_black(rows, images):
    for image in of_source(rows, images, "e"):
        assert set(np.unique(image)) == {0, 255}
        assert 0.03 < (image == 255).mean() < 0.4


def test_source_d_is_worse_than_source_a(rows, images):
    def contrast(image):  # between the paper and the darkest half per cent
        grey = image.mean(axis=2)
        return np.median(grey) - np.percentile(grey, 0.5)

    fair = [contrast(image) for image in of_source(rows, images, "a")]
    poor = [contrast(image) for image in of_source(rows, images, "d")]
    assert np.percentile(poor, 10) < 0.75 * np.percentile(fair, 10)


@pytest.mark.parametrize("source", COLUMNS)
def test_script_draws_the_shipped_pixels_again(script, rows, images, source):
    by_name = {row["filename"]: image for row, image in zip(rows, images, strict=True) if row["source"] == source}
    for entry in [e for e in script.entries(script.SEED) if e.source == source][:3]:
        again = script.draw(script.SEED, source, entry.writer, entry.digit)
        shipped = by_name[entry.filename]
        assert again.shape == shipped.shape
        # processors differ in the last bit of a sine, which may tip a rounding here and there
        assert (again != shipped).mean() < 0.002


def test_script_lists_the_shipped_rows_again(script, rows):
    listed = [{"source": e.source, **{k: str(v) for k, v in e.row.items()}} for e in script.entries(script.SEED)]
    assert listed == rows


def test_drawing_depends_on_its_arguments_alone(script):
    first = script.draw(1, "c", 2, 5)
    script.draw(2, "d", 1, 7)
    assert np.array_equal(first, script.draw(1, "c", 2, 5))
    assert not np.array_equal(first, script.draw(2, "c", 2, 5))
    assert not np.array_equal(first, script.draw(1, "c", 3, 5))


@pytest.mark.parametrize(("source", "writer", "digit"), [("f", 0, 1), ("a", 99, 1), ("a", -1, 1), ("a", 0, 10)])
def test_unknown_digit_is_refused(script, source, writer, digit):
    with pytest.raises(ValueError, match="the sample has no digit"):
        script.draw(script.SEED, source, writer, digit)


def test_a_sample_is_replaced_as_a_whole(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "WRITERS", {"b": 1})
    out = tmp_path / "sample"
    out.mkdir()
    (out / "left over.txt").write_text("from before")
    script.write_sample(out, 3)
    assert sorted(p.name for p in out.iterdir()) == ["training-b", "training-b.csv"]
    assert len(list((out / "training-b").iterdir())) == 10
    assert list(tmp_path.iterdir()) == [out]
