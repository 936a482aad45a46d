"""Input that no one has looked at: a picture that is none costs its own row, a mistake is told in one sentence."""

import json
import os
import struct as binary
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import FAST, file_bytes, image_frame, picture, struct, write_pictures, write_table
from PIL import Image
from pyspark.errors import PySparkException
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import functions as F
from test_run import run

from helpers.featurizer import DeepImageFeaturizer, FeatureClassifier
from helpers.numtadb import LARGEST_FILE, decode, list_digits, read_digits, read_file
from helpers.store import featurize

ONE_LINE = r"^[^\n]+$"


def features_by_path(frame) -> dict[str, list[float] | None]:
    rows = frame.select("path", "features").collect()
    return {row.path: row.features and row.features.toArray().tolist() for row in rows}


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_jpeg_named_png_is_read_as_a_jpeg(tmp_path):
    raw = file_bytes(picture(1), "JPEG")
    file = tmp_path / "really.png"
    file.write_bytes(raw)
    image, error = read_file(str(file))
    assert error is None and (image["height"], image["width"], image["nChannels"]) == (40, 30, 3)
    assert image == decode(raw, image["origin"])


def test_any_shape_of_picture_gives_features(spark, tmp_path):
    """In one frame: those of the picture made small beforehand, to the last bit."""
    shapes = [(1, 1, 3), (1, 5000, 3), (5000, 1, 1), (10, 10, 4), (500, 4000, 3), (40, 30, 3)]
    pictures = [picture(number, *shape) for number, shape in enumerate(shapes)]
    pictures.append(pictures[-1].resize((4000, 4000)))
    (tmp_path / "3").mkdir()
    for number, image in enumerate(pictures):
        image.save(tmp_path / "3" / f"{number}.png", compress_level=1)
    stage = DeepImageFeaturizer(**FAST)
    found = features_by_path(stage.transform(read_digits(tmp_path)))
    small = [image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR) for image in pictures]
    expected = stage.transform(image_frame(spark, small)).orderBy("number").collect()
    assert [found[f"3/{row.number}.png"] for row in expected] == [row.features.toArray().tolist() for row in expected]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of one bit a pixel, all black, put together by hand; ``chunks`` come before the pixels."""
    packed = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = binary.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    made = [binary.pack(">I", len(d)) + kind + d + binary.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def test_bombs_are_not_unpacked(tmp_path):
    """Small files that would fill the memory: of pixels, and of a text beside them."""
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 * 10**8), 1))
    bombs = {"pixels.png": png(20_000, 20_000), "text.png": png(4, 4, text), "harmless.png": png(4, 4)}
    found = {}
    for name, raw in bombs.items():
        assert len(raw) < 10**6
        (tmp_path / name).write_bytes(raw)
        found[name] = read_file(str(tmp_path / name))
    assert found["pixels.png"] == (None, f"the picture has more than {Image.MAX_IMAGE_PIXELS} pixels")
    assert found["text.png"][0] is None and found["text.png"][1].startswith("the picture is broken: Decompressed data")
    assert found["harmless.png"][1] is None


def test_a_file_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), ["open.png", "shut.png"])
        os.chmod(folder, 0o755)
        os.chmod(Path(folder, "shut.png"), 0)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)  # root may read everything
        try:
            found = [read_file(f"{folder}/{name}.png") for name in ("open", "shut")]
        finally:
            os.seteuid(me)
    assert found[0][1] is None and found[1] == (None, "permission denied")


def test_what_is_no_file_is_not_waited_for(spark, tmp_path):
    """A pipe that no one writes to, a device without end, a link to nowhere or to itself, gigabytes of nothing."""
    folder = tmp_path / "3"
    write_pictures(folder, ["good.png"])
    os.mkfifo(folder / "pipe.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    with open(folder / "large.png", "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    rows = {row.path[2:-4]: row for row in read_digits(tmp_path).collect()}
    assert {name: row.error for name, row in rows.items()} == {
        "good": None,
        "pipe": "is a pipe or a device",
        "endless": "is a pipe or a device",
        "nowhere": "no such file or directory",
        "itself": "too many levels of symbolic links",
        "large": f"the file has {LARGEST_FILE + 1} bytes, more than any picture",
    }
    assert [name for name, row in rows.items() if row.image is not None] == ["good"]
    assert tuple(rows["good"].image)[1:] == struct(picture(0))[1:]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes of any kind on Linux only")
def test_a_name_that_is_not_in_utf_8(spark, tmp_path):
    write_pictures(tmp_path / "3", ["a.png"])
    (tmp_path / "3" / os.fsdecode(b"\xe9t\xe9.png")).write_bytes(file_bytes(picture(1)))
    rows = sorted(read_digits(tmp_path).select("path", "error", F.col("image").isNull().alias("none")).collect())
    assert [tuple(row) for row in rows] == [
        ("3/\\xe9t\\xe9.png", "its name is not in UTF-8; rename the file", True),
        ("3/a.png", None, False),
    ]


# -- folders and tables ------------------------------------------------------------------------------------------------


def test_folders_with_everything_in_their_names(spark, tmp_path, monkeypatch):
    """Of the data, the store, the cache and a saved stage."""
    odd = tmp_path / "my digits #1 ৩৪ 50% [new] {a,b}?*"
    write_pictures(odd / "set" / "3", ["a.png", "b.png"])
    monkeypatch.setenv("NUMTADB_CACHE", str(odd / "cache"))
    stage = DeepImageFeaturizer(**FAST | {"imageSize": 33})  # a graph that no other test has sent to the workers
    digits = read_digits(odd / "set")
    stored = features_by_path(featurize(digits, stage, odd / "store"))
    assert stored.keys() == {"3/a.png", "3/b.png"} and None not in stored.values()
    assert features_by_path(featurize(digits, stage, odd / "store")) == stored
    assert list((odd / "cache" / "graphs").glob("VGG16-*.xml"))
    saved = str(tmp_path / "my stage #1 ৩৪ 50%")
    stage.save(saved)
    assert features_by_path(DeepImageFeaturizer.load(saved).transform(digits)) == stored


def test_an_empty_class_folder_is_named(tmp_path):
    write_pictures(tmp_path / "0", ["a.png"])
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=f"^the class folder {tmp_path}/1 has no picture in it$") as told:
        assert [row[4] for row in list_digits(tmp_path)] == ["0/a.png"]
    assert len(told) == 1


def test_csv_files_that_go_wrong_midway(tmp_path):
    (tmp_path / "training-a.csv").write_text('filename,digit\na.png,1\nb.png,"2\n' + "c.png,3\n" * 20_000)
    with pytest.raises(
        ValueError, match=r"training-a\.csv, near line \d+: field larger.*; is a quotation mark"
    ) as told:
        list_digits(tmp_path)
    assert "\n" not in str(told.value)


def test_rows_and_pictures_that_do_not_go_together(spark, tmp_path):
    """The table of one release of training-e, the pictures of another."""
    write_pictures(tmp_path / "training-e", [f"e{i:05d}.png" for i in range(3, 8)])
    rows = [(f"e{i:05d}.png", i % 10) for i in range(5)]
    write_table(tmp_path / "training-e.csv", "filename,digit", rows)
    with pytest.warns(UserWarning) as told:
        digits = read_digits(tmp_path)
    cure = "; are they of two releases? Take both from one"
    assert [str(warning.message) for warning in told] == [
        f"3 of 5 rows of {tmp_path}/training-e.csv have no picture in training-e, e00000.png first; they stay, "
        f"with the reason in error{cure}",
        f"3 pictures in {tmp_path}/training-e have no row in training-e.csv and are left out, e00005.png first{cure}",
    ]
    assert [row.error for row in digits.orderBy("path").collect()] == ["no such file or directory"] * 3 + [None] * 2


@pytest.mark.filterwarnings("ignore:.*have no picture")
def test_a_row_cannot_name_a_file_elsewhere(spark, tmp_path):
    write_pictures(tmp_path, ["secret.png"])
    names = [str(tmp_path / "secret.png"), "../../secret.png", "a/../../../secret.png", "nul\0.png"]
    write_pictures(tmp_path / "set" / "training-a", ["a.png"])
    write_table(tmp_path / "set" / "training-a.csv", "filename,digit", [(name, 3) for name in ["./a.png", *names]])
    rows = sorted(read_digits(tmp_path / "set").collect(), key=lambda row: row.error or "")
    assert (rows[0].path, rows[0].error) == ("training-a/a.png", None) and rows[0].image is not None
    assert [row.error for row in rows[1:]] == sorted(f"filename {n!r} names no file in training-a" for n in names)
    assert {row.image for row in rows[1:]} == {None}


# -- make run ----------------------------------------------------------------------------------------------------------


def told_by_make_run(capsys, *arguments: str) -> str:
    """What `make run` says at last when it refuses its arguments; no notebook has run then."""
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    return said.err.splitlines()[-1]


def test_make_run_refuses_before_the_first_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "set"
    data.mkdir()
    assert f"{data} is no data set: it needs training-a.csv" in told_by_make_run(capsys, "--data", "set")
    (data / "training-a.csv").write_text("filename,label\na.png,1\n")
    sentence = f"{data}/training-a.csv has no column 'digit'; its columns are filename, label"
    assert told_by_make_run(capsys, "--data", "set").endswith(sentence)
    assert list(tmp_path.iterdir()) == [data]


def test_make_run_refuses_weights_before_the_first_notebook(tmp_path, monkeypatch, capsys, weights_file):
    monkeypatch.chdir(tmp_path)
    whole = weights_file.read_bytes()
    (tmp_path / "half.weights.h5").write_bytes(whole[: len(whole) // 2])
    for file, network in ((weights_file, "InceptionV3"), (tmp_path / "half.weights.h5", "VGG16")):
        said = told_by_make_run(capsys, "--weights", str(file), "--network", network)
        assert f"error: {file} does not hold weights of {network} without its head: " in said
    assert [file.name for file in tmp_path.iterdir()] == ["half.weights.h5"]


# -- stages ------------------------------------------------------------------------------------------------------------


def test_a_stage_that_another_version_saved(spark, tmp_path):
    stage = DeepImageFeaturizer(**FAST)
    PipelineModel([stage]).save(str(tmp_path / "model"))
    (file,) = (tmp_path / "model" / "stages").glob("0_*/metadata/part-*")
    saved = json.loads(file.read_text())

    def load(change: dict) -> DeepImageFeaturizer:
        file.write_text(json.dumps({**saved, **change}))
        file.with_name(f".{file.name}.crc").unlink(missing_ok=True)
        return PipelineModel.load(str(tmp_path / "model")).stages[0]

    defaults = {name: value for name, value in saved["defaultParamMap"].items() if name != "handleInvalid"}
    older = load({"sparkVersion": "3.5.1", "defaultParamMap": defaults})
    assert older.uid == stage.uid and older.extractParamMap() == stage.extractParamMap()
    said = r"^file:.*0_DeepImageFeaturizer\w+ was saved by another version of this package: "
    for change, which in (
        ({"paramMap": saved["paramMap"] | {"scaling": 2}}, "DeepImageFeaturizer has no param 'scaling'"),
        ({"defaultParamMap": saved["defaultParamMap"] | {"scaling": 2}}, "DeepImageFeaturizer has no param 'scaling'"),
        ({"paramMap": saved["paramMap"] | {"handleInvalid": "error"}}, "handleInvalid takes 'keep' or 'skip'"),
    ):
        with pytest.raises(ValueError, match=said.replace("file:", "") + which) as told:
            load(change)
        assert "\n" not in str(told.value) and str(told.value).endswith("make the stage anew and save it")


@pytest.fixture(scope="module")
def with_nulls(spark):
    images = [picture(0), None, picture(1), (*struct(picture(2))[:5], b""), picture(3), picture(4)]
    return image_frame(spark, images).withColumn("label", F.col("number") % 2).cache()


def test_logistic_regression_on_null_features(with_nulls):
    features = DeepImageFeaturizer(**FAST).transform(with_nulls)
    with pytest.raises(ValueError, match=ONE_LINE) as told:
        FeatureClassifier(maxIter=2).fit(features)
    assert str(told.value) == (
        "column 'features' is null in 2 of 6 rows, whose images gave no features; leave them out by "
        '.where("features IS NOT NULL"), or in a Pipeline by handleInvalid="skip" of the featurizer'
    )
    cured = FeatureClassifier(maxIter=2).fit(features.where("features IS NOT NULL"))
    assert cured.numFeatures == 256
    with pytest.raises(PySparkException, match="label"):  # other troubles are told as they are
        FeatureClassifier(maxIter=2).fit(features.drop("label").where("features IS NOT NULL"))


def test_a_pipeline_that_skips_what_gave_no_features(with_nulls, tmp_path, network_runs):
    skipping = DeepImageFeaturizer(handleInvalid="skip", errorCol="why", **FAST)
    model = Pipeline(stages=[skipping, FeatureClassifier(maxIter=2)]).fit(with_nulls)
    model.save(str(tmp_path / "model"))
    network_runs()
    rows = sorted(PipelineModel.load(str(tmp_path / "model")).transform(with_nulls).collect())
    assert sum(images for _, images, _ in network_runs()) == 6, "once a row, and no filter below the network"
    assert [row.number for row in rows] == [0, 2, 4, 5] and {row.why for row in rows} == {None}
    kept = sorted(DeepImageFeaturizer(**FAST).transform(with_nulls).collect())
    assert [row.features for row in kept if row.features] == [row.features for row in rows]
    assert np.isfinite([row.probability.toArray() for row in rows]).all()
