"""Reading, sampling and splitting digits, from small data sets made here."""

import hashlib
import os
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import file_bytes, picture, struct, write_pictures, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyspark.ml.image import ImageSchema
from pyspark.sql import functions as F

from helpers import numtadb
from helpers.numtadb import assign_folds, list_digits, read_digits, read_file, sample_per_class, train_test_split

COLUMNS_A = "filename,original filename,scanid,digit,database name original,contributing team,database name"
COLUMNS_D = "original filename,scanid,digit,num,database name original,database name,filename"
COLUMNS_E = (
    "filename,original filename,districtid,institutionid,gender,age,datestamp,scanid,digit,"
    "database name original,database name"
)
SPARK_SETTINGS = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tree(root: Path, extra: str = "") -> Path:
    """A data set in Kaggle's layout: three sources of four pictures, their CSV files' columns in three orders."""
    write_pictures(root / extra / "training-a", names := [f"a{i:05d}.png" for i in range(4)])
    rows = [(n, "Scan_58_digit_5_num_8.png", 58, i % 2, "BHDDB", "Buet", "training-a") for i, n in enumerate(names)]
    write_table(root / extra / "training-a.csv", COLUMNS_A, rows)
    write_pictures(root / extra / "training-d", names := ["d00000.png", "d00001.JPG", "a00000.png", "x.jpeg"], first=20)
    rows = [("o.png", 58 + i, 9 - i, 3, "x", "training-d", n) for i, n in enumerate(names)]
    write_table(root / extra / "training-d.csv", COLUMNS_D, rows)
    write_pictures(root / extra / "training-e", names := [f"e{i:05d}.png" for i in range(4)], first=30)
    rows = [(n, "o.png", 1, 2, "male", 30, "2017", "" if i else 7, 3, "x", "training-e") for i, n in enumerate(names)]
    write_table(root / extra / "training-e.csv", COLUMNS_E, rows)
    return root


def only_row(frame):
    (row,) = frame.collect()
    return row


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_the_image_struct_is_sparks(spark):
    sparks = spark.read.format("image").load(str(numtadb.SAMPLE / "training-b")).schema["image"].dataType
    assert read_digits().schema["image"].dataType == numtadb.IMAGE_TYPE == sparks
    for channels, mode in numtadb._CV_MODES.items():
        assert mode == ImageSchema.ocvTypes[f"CV_8UC{channels}"]


def kinds() -> dict[str, bytes]:
    """Files of every kind of pixel that a PNG or JPEG of ours may have."""
    rgb, grey, rgba = (picture(i, 23, 17, channels) for i, channels in enumerate((3, 1, 4)))
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by 90 degrees
    return {
        "rgb.png": file_bytes(rgb),
        "grey.png": file_bytes(grey),
        "rgba.png": file_bytes(rgba),
        "palette.png": file_bytes(rgb.quantize(50)),
        "clear palette.png": file_bytes(rgb.quantize(50), transparency=3),
        "black and white.png": file_bytes(grey.convert("1")),
        "one pixel.png": file_bytes(rgb.crop((0, 0, 1, 1))),
        "rgb.jpg": file_bytes(rgb, "JPEG", quality=95),
        "grey.jpg": file_bytes(grey, "JPEG", quality=95),
        "grey with alpha.png": file_bytes(grey.convert("LA")),
        "sixteen bits.png": file_bytes(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)),
        "turned.jpg": file_bytes(rgb, "JPEG", exif=turned),
        "cmyk.jpg": file_bytes(rgb.convert("CMYK"), "JPEG"),
    }


@pytest.fixture(scope="module")
def both(spark, tmp_path_factory) -> dict[str, tuple]:
    """For every kind of file, the image struct as we read it and as Spark's image source does."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, raw in kinds().items():
        (folder / name).write_bytes(raw)
    sparks = {row.image.origin: row.image.asDict() for row in spark.read.format("image").load(str(folder)).collect()}
    ours = {name: read_file(str(folder / name)) for name in kinds()}
    assert all(error is None for _, error in ours.values())
    return {name: (image, sparks[image["origin"]]) for name, (image, _) in ours.items()}


SAME = [
    "rgb.png",
    "grey.png",
    "rgba.png",
    "palette.png",
    "clear palette.png",
    "one pixel.png",
]


@pytest.mark.parametrize("name", SAME)
def test_image_structs_are_sparks_byte_for_byte(both, name):
    ours, sparks = both[name]
    assert ours == sparks


@pytest.mark.parametrize("name", ["rgb.jpg", "grey.jpg"])
def test_jpegs_are_sparks_within_a_few_levels(both, name):
    """Java's and Pillow's decoders round their cosine transforms differently."""
    ours, sparks = both[name]
    assert {**ours, "data": 0} == {**sparks, "data": 0}
    a, b = (np.frombuffer(image["data"], np.uint8).astype(int) for image in both[name])
    assert np.abs(a - b).max() <= 4


def test_where_our_image_structs_differ_from_sparks(both):
    """Kinds that NumtaDB does not have, and where we mean to differ: what the picture looks like wins."""
    shapes = {
        name: tuple((image["height"], image["width"], image["nChannels"]) for image in pair)
        for name, pair in both.items()
    }
    grey = np.asarray(picture(1, 23, 17, 1))
    # one bit a pixel: Java takes its two colours for a palette, and so for RGB
    assert shapes["black and white.png"] == ((23, 17, 1), (23, 17, 3))
    ours, sparks = (image["data"] for image in both["black and white.png"])
    assert set(ours) == {0, 255} and np.repeat(np.frombuffer(ours, np.uint8), 3).tobytes() == sparks
    # grey with alpha: Spark drops alpha, we keep it as four channels; the grey is the same
    assert shapes["grey with alpha.png"] == ((23, 17, 4), (23, 17, 1))
    ours, sparks = (np.frombuffer(image["data"], np.uint8) for image in both["grey with alpha.png"])
    assert np.array_equal(ours[::4], sparks) and np.array_equal(sparks, grey.ravel())
    # sixteen bits: Spark keeps the lower byte, we the upper one (here they are equal)
    assert shapes["sixteen bits.png"] == ((23, 17, 1), (23, 17, 1))
    assert both["sixteen bits.png"][0]["data"] == both["sixteen bits.png"][1]["data"] == grey.tobytes()
    # EXIF's turn: Spark leaves a picture on its side, we set it upright
    assert shapes["turned.jpg"] == ((17, 23, 3), (23, 17, 3))
    # CMYK: both make RGB of it, each by its own rule
    assert shapes["cmyk.jpg"] == ((23, 17, 3), (23, 17, 3))
    assert both["cmyk.jpg"][0]["data"] != both["cmyk.jpg"][1]["data"]


def test_sixteen_bits_keep_the_upper_byte():
    levels = np.array([[0, 255, 256, 257, 65535]], np.uint16)
    assert list(numtadb.decode(file_bytes(Image.fromarray(levels)), "x")["data"]) == [0, 0, 1, 1, 255]


def test_upright_where_exif_says_so():
    image = picture(3, 6, 4)
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        decoded = numtadb.decode(file_bytes(image, exif=exif), "here")
        assert tuple(decoded.values()) == struct(image.transpose(turn))


WHOLE = [file_bytes(picture(1)), file_bytes(picture(2), "JPEG"), file_bytes(picture(3).quantize(9), transparency=1)]


@given(st.sampled_from(WHOLE), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_never_end_a_job(tmp_path_factory, whole, data):
    """Whatever the bytes: a sound image struct or a reason, never an exception."""
    cut = data.draw(st.integers(0, len(whole)))
    raw = bytearray(whole[:cut] if data.draw(st.booleans()) else whole)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)):
        if place < len(raw):
            raw[place] = byte
    file = tmp_path_factory.getbasetemp() / "damaged.png"
    file.write_bytes(raw)
    image, error = read_file(str(file))
    assert (image is None) != (error is None)
    if image:
        assert len(image["data"]) == image["height"] * image["width"] * image["nChannels"] > 0
    else:
        assert error and "\n" not in error


def test_a_broken_file_stays_as_a_row_with_its_reason(spark, tmp_path, monkeypatch):
    good = file_bytes(picture(0))
    folder = tmp_path / "3"
    folder.mkdir()
    for name, raw in {"a.png": good, "b.png": good[:300], "c.png": b"", "d.png": b"some text", "e.png": good}.items():
        (folder / name).write_bytes(raw)
    (folder / "f.png").mkdir()
    digits = read_digits(tmp_path)
    (folder / "e.png").unlink()
    rows = digits.orderBy("path").collect()
    assert [row.path for row in rows] == [f"3/{letter}.png" for letter in "abcdef"]
    assert {row.label for row in rows} == {3}
    assert tuple(rows[0].image)[1:] == struct(picture(0))[1:] and rows[0].error is None
    assert [row.image for row in rows[1:]] == [None] * 5
    errors = [row.error for row in rows[1:]]
    assert errors[0].startswith("the picture is broken: ")
    assert errors[1:] == [
        "the file is empty",
        "the file is no picture that Pillow knows",
        "no such file or directory",
        "is a directory",
    ]
    # root may read everything, so that only a refusal made up here shows what becomes of one
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert read_file(str(folder / "a.png")) == (None, "permission denied")


def test_a_picture_too_large_to_be_honest(monkeypatch, tmp_path):
    write_pictures(tmp_path, ["a.png"])
    for limit in (1000, 100):  # Pillow only warns up to twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert read_file(str(tmp_path / "a.png")) == (None, f"the picture has more than {limit} pixels")


def test_names_with_everything_in_them(spark, tmp_path):
    names = ["a b.png", "50%.png", "no#1.png", "৩.png", 'it\'s, "so".png', "ü%20.png"]
    write_pictures(tmp_path / "set" / "training-a", names)
    rows = [(name, 1, i) for i, name in enumerate(names)]
    write_table(tmp_path / "set" / "training-a.csv", "filename,scanid,digit", rows)
    found = {row.label: row for row in read_digits(tmp_path / "set").collect()}
    assert [found[i].path for i in range(len(names))] == [f"training-a/{name}" for name in names]
    for i in range(len(names)):
        assert tuple(found[i].image)[1:] == struct(picture(i))[1:]
    sparks = spark.read.format("image").load(str(tmp_path / "set" / "training-a")).select("image.origin").collect()
    assert {row.image.origin for row in found.values()} == {row.origin for row in sparks}


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["", "unpacked"])
def test_kaggles_layout(spark, tmp_path, extra):
    rows = read_digits(tree(tmp_path, extra)).orderBy("path").collect()
    before = f"{extra}/" if extra else ""
    expected = [
        *((f"training-a/a{i:05d}.png", i % 2, "training-a", "training-a/58", i) for i in range(4)),
        ("training-d/a00000.png", 7, "training-d", "training-d/60", 22),
        ("training-d/d00000.png", 9, "training-d", "training-d/58", 20),
        ("training-d/d00001.JPG", 8, "training-d", "training-d/59", 21),
        ("training-d/x.jpeg", 6, "training-d", "training-d/61", 23),
        *((f"training-e/e{i:05d}.png", 3, "training-e", "" if i else "training-e/7", 30 + i) for i in range(4)),
    ]
    assert [(r.path, r.label, r.source, r.writer) for r in rows] == [(before + e[0], *e[1:4]) for e in expected]
    for row, (path, *_, number) in zip(rows, expected, strict=True):
        assert row.error is None and (row.image.height, row.image.width, row.image.nChannels) == (40, 30, 3)
        assert row.image.origin == (tmp_path / before / path).resolve().as_uri()
        if path.endswith("png"):
            assert row.image.data == struct(picture(number))[5], "clashing names, and yet each its own picture"


def test_a_folder_inside_the_folder_of_a_source(tmp_path):
    tree(tmp_path)
    shutil.move(tmp_path / "training-a", tmp_path / "moved")
    (tmp_path / "training-a").mkdir()
    shutil.move(tmp_path / "moved", tmp_path / "training-a" / "training-a")
    assert list_digits(tmp_path)[0][4] == "training-a/training-a/a00000.png"


def test_class_folders(spark, tmp_path):
    for label in (0, 3, 9):
        write_pictures(tmp_path / "mine" / str(label), [f"{i}.png" for i in range(2)] + ["z.JPG"], first=10 * label)
    (tmp_path / "mine" / "3" / "notes.txt").touch()
    (tmp_path / "mine" / "3" / "._0.png").touch()  # macOS' own
    write_pictures(tmp_path / "mine" / "10", ["no digit.png"])
    rows = read_digits(tmp_path / "mine").orderBy("path").collect()
    assert [(r.path, r.label) for r in rows] == [
        (f"{d}/{n}", d) for d in (0, 3, 9) for n in ("0.png", "1.png", "z.JPG")
    ]
    assert {(r.source, r.writer, r.error) for r in rows} == {("mine", "", None)}
    assert rows[4].image.data == struct(picture(31))[5]


@pytest.mark.filterwarnings("ignore:the class folder .* has no picture")
def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/none; read_digits takes"):
        read_digits(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_digits(tmp_path / "file")
    for fill in (lambda: None, (tmp_path / "3").mkdir, lambda: write_table(tmp_path / "training-a.csv", COLUMNS_A, [])):
        fill()
        with pytest.raises(ValueError, match=f"^{tmp_path} is no data set: it needs training-a.csv"):
            read_digits(tmp_path)


# -- CSV files ---------------------------------------------------------------------------------------------------------

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cc", "Cs"]), max_size=8)


@given(
    digits=st.lists(st.sampled_from("0123456789"), min_size=1, max_size=6),
    others=st.dictionaries(CELL.filter(lambda name: name.strip()), CELL, max_size=4),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:.* have no picture")
def test_csv_files_however_they_are_written(tmp_path_factory, digits, others, data):
    """Order of columns, further columns, delimiter, line ends and a byte order mark change nothing."""
    known = {name.strip() for name in others} & {"filename", "digit", "scanid"}
    others = {} if known or any(";" in name or "," in name for name in others) else others
    columns = data.draw(st.permutations(["filename", "digit", "scanid", *others]))
    cells = [{"filename": f"{i}.png", "digit": d, "scanid": str(i), **others} for i, d in enumerate(digits)]
    root = tmp_path_factory.getbasetemp() / "csv"
    delimiter, end = data.draw(st.sampled_from(",;")), data.draw(st.sampled_from(["\n", "\r\n"]))
    text = delimiter.join(f'"{c}"'.replace('"', '""')[1:-1] if '"' in c else f'"{c}"' for c in columns) + end
    for row in cells:
        text += delimiter.join('"' + row[c].replace('"', '""') + '"' for c in columns) + end
    text += data.draw(st.sampled_from(["", end, delimiter * (len(columns) - 1) + end]))
    root.mkdir(exist_ok=True)
    (root / "training-a.csv").write_bytes((data.draw(st.sampled_from(["", "\ufeff"])) + text).encode())
    assert list_digits(root) == [
        (str(root / "training-a" / f"{i}.png"), int(d), "training-a", f"training-a/{i}", f"training-a/{i}.png", None)
        for i, d in enumerate(digits)
    ]


def test_labels_that_are_no_digits_stay_with_their_reason(spark, tmp_path):
    bad = ["x", "10", "", "-1", "৩", "3.0"]
    names = [f"{i}.png" for i in range(len(bad) + 1)]
    write_pictures(tmp_path / "training-a", names)
    write_table(tmp_path / "training-a.csv", "filename,digit", zip(names, [*bad, " 7 "], strict=True))
    *rows, good = read_digits(tmp_path).orderBy("path").collect()
    assert (good.label, good.error, good.image.height) == (7, None, 40)
    assert [(r.label, r.image, r.error) for r in rows] == [
        (None, None, f"label {label!r} is not a digit 0 to 9") for label in bad
    ]
    assert sample_per_class(read_digits(tmp_path), 1).count() == 1, "no label, no class"


def test_rows_without_a_file_and_files_without_a_row(spark, tmp_path):
    tree(tmp_path)
    (tmp_path / "training-a" / "a00002.png").unlink()
    write_pictures(tmp_path / "training-a", ["new.png", "newer.JPG"])
    with pytest.warns(UserWarning) as told:
        digits = read_digits(tmp_path)
    assert [str(warning.message).partition(" first")[0] for warning in told] == [
        f"1 of 4 rows of {tmp_path}/training-a.csv have no picture in training-a, a00002.png",
        f"2 pictures in {tmp_path}/training-a have no row in training-a.csv and are left out, new.png",
    ]
    rows = digits.where("source = 'training-a'").orderBy("path").collect()
    assert [row.path[-6:] for row in rows] == ["00.png", "01.png", "02.png", "03.png"]
    assert [row.error for row in rows] == [None, None, "no such file or directory", None]
    assert (rows[2].label, rows[2].image) == (0, None)
    shutil.rmtree(tmp_path / "training-a")
    with pytest.warns(UserWarning, match=r"4 of 4 rows of .*; they stay, with the reason in error$"):
        digits = read_digits(tmp_path)
    assert {r.error for r in digits.where("source = 'training-a'").collect()} == {"no such file or directory"}


@pytest.mark.filterwarnings("ignore:.* have no picture")
def test_a_picture_listed_twice_counts_once(tmp_path):
    write_table(tmp_path / "training-a.csv", "filename,digit", [("a.png", 1), ("b.png", 2), ("a.png", 3)])
    with pytest.warns(UserWarning, match=r"training-a.csv, line 4: a.png is there a second time; its first row counts"):
        assert [(row[1], row[4]) for row in list_digits(tmp_path)] == [(1, "training-a/a.png"), (2, "training-a/b.png")]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"filename,label\na.png,1\n", "has no column 'digit'; its columns are filename, label"),
        (b"", "has no column 'filename'; its columns are none"),
        (b"filename,digit\n,1\n", "line 2: there is no filename"),
        ("filename,digit\nü.png,1\n".encode("latin-1"), "is not in UTF-8"),
        ("filename,digit\na.png,1\n".encode("utf-16"), "is not in UTF-8"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path, raw, message):
    (tmp_path / "training-a.csv").write_bytes(raw)
    with pytest.raises(ValueError, match=f"^{tmp_path}/training-a.csv.*{message}") as told:
        list_digits(tmp_path)
    assert "\n" not in str(told.value)


# -- samples -----------------------------------------------------------------------------------------------------------

LABELS = st.lists(st.integers(0, 3) | st.none(), min_size=1, max_size=60)


def made_up(spark, labels, partitions: int = 1, shuffle: int | None = None):
    """Rows label, path, writer as a data set might have them, in another order for ``shuffle``."""
    rows = [(label, f"training-a/{i}.png", f"training-a/{i % 7}") for i, label in enumerate(labels)]
    if shuffle is not None:
        np.random.default_rng(shuffle).shuffle(rows := [*map(list, rows)])
    return spark.createDataFrame(rows, "label int, path string, writer string").repartition(partitions)


def paths(frame) -> list[str]:
    return sorted(row.path for row in frame.select("path").collect())


def drawn(labels, seed: int) -> dict[int, list[str]]:
    """The draw as it is meant: the rows of each class in the order of SHA-256 of seed and path."""
    lots = {}
    for i, label in enumerate(labels):
        if label is not None:
            lots.setdefault(label, []).append(f"training-a/{i}.png")
    return {
        label: sorted(names, key=lambda path: hashlib.sha256(f"{seed}\n{path}".encode()).hexdigest())
        for label, names in lots.items()
    }


@given(labels=LABELS, n=st.integers(1, 12), seed=st.integers(0, 99))
@SPARK_SETTINGS
@pytest.mark.filterwarnings("ignore:there are fewer than")
def test_a_sample_is_the_same_rows_whatever_their_order_and_partitions(spark, labels, n, seed):
    expected = sorted(path for names in drawn(labels, seed).values() for path in names[:n])
    for frame in (made_up(spark, labels), made_up(spark, labels, 5, 1), made_up(spark, labels, 2, 2).cache()):
        assert paths(sample_per_class(frame, n, seed)) == expected


def test_a_sample_of_the_sample(spark):
    rows = sample_per_class(read_digits(), 10).drop("image", "error").collect()
    assert Counter(row.label for row in rows) == {label: 10 for label in range(10)}
    others = paths(sample_per_class(read_digits(), 10, seed=43))
    assert others != sorted(row.path for row in rows)
    assert paths(sample_per_class(read_digits(), 50)) == paths(read_digits())


def test_what_a_sample_says_of_its_input(spark):
    frame = made_up(spark, [0] * 5 + [1] * 3 + [2] * 2)
    with pytest.warns(UserWarning, match="fewer than 4 images of some classes: 3 of class 1, 2 of class 2$"):
        assert sample_per_class(frame, 4).count() == 4 + 3 + 2
    with pytest.raises(ValueError, match="n=0 images"):
        sample_per_class(frame, 0)
    with pytest.raises(ValueError, match="no column 'path'; the columns are label, writer"):
        sample_per_class(frame.drop("path"), 1)


def test_only_what_is_sampled_is_decoded(spark, tmp_path, monkeypatch):
    """Nothing is read to draw a sample or to count labels, and nothing but the sample to look at it."""
    log = tmp_path / "read"
    log.touch()
    file = str(log)

    def noted(function):
        name = function.__name__

        def reading(paths):
            from helpers import numtadb

            with open(file, "a", encoding="utf8") as out:
                out.writelines(f"{path}\n" for path in paths.to_pylist())
            return getattr(numtadb, name)(paths)

        reading.__annotations__ = {"paths": pa.Array, "return": pa.Array}
        return reading

    for function in (numtadb._read_images, numtadb._read_errors):
        monkeypatch.setattr(numtadb, function.__name__, noted(function))

    def read() -> list[str]:
        lines = log.read_text(encoding="utf8").splitlines()
        log.write_text("")
        return sorted(os.path.relpath(line, numtadb.SAMPLE) for line in lines)

    digits = read_digits()
    sample = sample_per_class(digits, 3)
    train, test = train_test_split(sample, 1 / 3)
    _, apart = train_test_split(digits, 0.1, by_writer=True)
    assert digits.groupBy("label").count().count() == 10
    chosen, held_out, others = paths(sample), paths(test), paths(apart)
    assert read() == []
    assert sample.where("image.height > 0 AND error IS NULL").count() == 30 and set(read()) == set(chosen)
    assert test.agg(F.sum(F.length("image.data"))).first()[0] > 0 and read() == held_out
    assert apart.agg(F.sum(F.length("image.data"))).first()[0] > 0 and read() == others
    assert (len(chosen), len(held_out), train.count()) == (30, 10, 20)
    assert digits.where("error IS NULL").count() == 500 and len(read()) == 500, "each file once"


# -- splits ------------------------------------------------------------------------------------------------------------


@given(labels=LABELS, fraction=st.sampled_from([0.05, 0.2, 0.25, 1 / 3, 0.5, 0.9]), seed=st.integers(0, 99))
@SPARK_SETTINGS
@pytest.mark.filterwarnings("ignore:.*has one image only")
def test_a_split_is_stratified_disjoint_complete_and_the_same_rows(spark, labels, fraction, seed):
    train, test = (paths(side) for side in train_test_split(made_up(spark, labels), fraction, seed))
    classes = drawn(labels, seed)
    assert sorted(train + test) == sorted(path for names in classes.values() for path in names)
    assert not set(train) & set(test)
    for names in classes.values():
        here = set(names) & set(test)
        assert here == set(names[: len(here)])
        share = Fraction(fraction) * len(names)
        if len(names) == 1:
            assert not here
        elif 1 <= share <= len(names) - 1:
            assert abs(len(here) - share) <= Fraction(1, 2)
        else:
            assert len(here) == (1 if share < 1 else len(names) - 1), "no class without training or test"
    for other in (made_up(spark, labels, 4, 3), made_up(spark, labels, 2, 4).cache()):
        assert [paths(side) for side in train_test_split(other, fraction, seed)] == [train, test]


def test_the_sample_splits_eighty_to_twenty(spark):
    train, test = train_test_split(read_digits())
    assert {row["label"]: row["count"] for row in test.groupBy("label").count().collect()} == dict.fromkeys(
        range(10), 10
    )
    assert train.count() == 400
    assert paths(test) != paths(train_test_split(read_digits(), seed=1)[1])


def test_writers_are_kept_apart(spark):
    digits = read_digits().drop("image", "error").cache()
    train, test = train_test_split(digits, 0.2, by_writer=True)
    sides = [{row.writer for row in side.select("writer").distinct().collect()} for side in (train, test)]
    assert not sides[0] & sides[1] and all(sides)
    assert sorted(paths(train) + paths(test)) == paths(digits)
    assert 0.15 < test.count() / digits.count() < 0.25
    again = train_test_split(digits.repartition(7).orderBy(F.rand(1)), 0.2, by_writer=True)
    assert [paths(side) for side in again] == [paths(train), paths(test)]
    assert paths(train_test_split(digits, 0.2, seed=1, by_writer=True)[1]) != paths(test)
    digits.unpersist()


def test_what_a_split_says_of_its_input(spark):
    frame = made_up(spark, [0] * 5 + [1])
    with pytest.warns(UserWarning, match="class 1 has one image only, which goes to training"):
        train, _ = train_test_split(frame)
    assert train.where("label = 1").count() == 1
    for fraction in (0, 1, -0.5, 1.5):
        with pytest.raises(ValueError, match=f"test_fraction={fraction} is not between 0 and 1"):
            train_test_split(frame, fraction)
    with pytest.raises(ValueError, match="no column 'label'"):
        train_test_split(frame.drop("label"))
    with pytest.raises(ValueError, match="by_writer needs a column 'writer'; the columns are label, path"):
        train_test_split(frame.drop("writer"), by_writer=True)
    for unknown in (F.lit(""), F.lit(None).cast("string")):
        some = frame.withColumn("writer", F.when(F.col("path") == "training-a/1.png", unknown).otherwise("w"))
        with pytest.raises(ValueError, match="needs to know who wrote each image, and 1 images have no writer"):
            train_test_split(some, by_writer=True)
    with pytest.raises(ValueError, match="1 writers cannot be split so that the test gets about 20%"):
        train_test_split(frame.withColumn("writer", F.lit("w")), by_writer=True)


# -- folds -------------------------------------------------------------------------------------------------------------


def placed(frame) -> dict[str, int]:
    return {row.path: row.fold for row in frame.select("path", "fold").collect()}


def test_folds_keep_writers_together_and_classes_even(spark):
    """On the sample: fifty writers, who wrote each digit once."""
    digits = read_digits().drop("image", "error").cache()
    folded = assign_folds(digits, 4)
    assert folded.columns == [*digits.columns, "fold"] and folded.schema["fold"].dataType.simpleString() == "int"
    assert sorted(placed(folded)) == paths(digits)
    homes = folded.groupBy("writer").agg(F.collect_set("fold").alias("folds")).collect()
    assert len(homes) == 50 and all(len(row.folds) == 1 for row in homes)
    counts = Counter((row.fold, row.label) for row in folded.select("fold", "label").collect())
    assert set(counts) == {(fold, label) for fold in range(4) for label in range(10)}
    assert max(counts.values()) - min(counts.values()) <= 1
    again = assign_folds(digits.repartition(7).orderBy(F.rand(1)), 4)
    assert placed(again) == placed(folded)
    assert placed(assign_folds(digits, 4, seed=1)) != placed(folded)
    digits.unpersist()


def test_folds_of_unequal_writers(spark):
    """A writer with half of the images has a fold to himself, the others share the rest."""
    rows = [(i % 2, f"{i}.png", "busy" if i < 20 else f"w{i % 10}") for i in range(40)]
    folded = assign_folds(spark.createDataFrame(rows, "label int, path string, writer string"), 2).collect()
    assert {row.fold for row in folded if row.writer == "busy"}.isdisjoint(
        {row.fold for row in folded if row.writer != "busy"}
    )


@given(labels=LABELS, folds=st.integers(2, 5), seed=st.integers(0, 99))
@SPARK_SETTINGS
def test_folds_without_writers_are_stratified_to_the_image(spark, labels, folds, seed):
    classes = drawn(labels, seed)
    images = sum(map(len, classes.values()))
    frame = made_up(spark, labels, 3, 1).drop("writer")
    if images < folds:
        with pytest.raises(ValueError, match=f"{images} images do not fill {folds} folds"):
            assign_folds(frame, folds, seed, by_writer=False)
        return
    found = placed(assign_folds(frame, folds, seed, by_writer=False))
    assert sorted(found) == sorted(path for names in classes.values() for path in names)
    for names in classes.values():
        sizes = [sum(found[path] == fold for path in names) for fold in range(folds)]
        assert max(sizes) - min(sizes) <= 1
    assert placed(assign_folds(made_up(spark, labels, 1, 2), folds, seed, by_writer=False)) == found


def test_what_folds_say_of_their_input(spark):
    frame = made_up(spark, [0] * 9 + [None])
    assert "training-a/9.png" not in placed(assign_folds(frame, 2)), "no label, no fold"
    with pytest.raises(ValueError, match="folds=1: cross-validation takes 2 or more"):
        assign_folds(frame, 1)
    with pytest.raises(ValueError, match="a column 'fold' already"):
        assign_folds(frame.withColumn("fold", F.lit(0)), 2)
    with pytest.raises(ValueError, match="by_writer needs a column 'writer'"):
        assign_folds(frame.drop("writer"), 2)
    with pytest.raises(ValueError, match="9 images have no writer"):
        assign_folds(frame.withColumn("writer", F.lit("")), 2)
    with pytest.raises(ValueError, match="7 writers do not fill 8 folds"):
        assign_folds(frame, 8)


# -- the sample that ships ---------------------------------------------------------------------------------------------


def test_the_sample_is_whole(spark):
    rows = read_digits().selectExpr("label", "source", "writer", "error", "image.nChannels AS channels").collect()
    assert Counter(row.label for row in rows) == dict.fromkeys(range(10), 50)
    assert {row.error for row in rows} == {None}
    assert {row.source for row in rows} == {f"training-{letter}" for letter in "abcde"}
    assert all(row.writer.startswith(f"{row.source}/") for row in rows)
