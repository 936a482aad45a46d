"""Much of it, large, and the same again; ``tests/benchmarks/load.py`` is the long one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAST, file_bytes, picture, write_pictures
from PIL import Image
from test_run import run
from test_store import computed

from helpers import numtadb
from helpers.featurizer import DeepImageFeaturizer
from helpers.numtadb import ROWS_TOGETHER, list_digits, read_digits
from helpers.store import featurize, timing


@pytest.fixture
def kept_settings(spark):
    """Settings of the session, which a test may change."""
    names = (ROWS_TOGETHER, "spark.sql.leafNodeDefaultParallelism")
    usual = {name: spark.conf.get(name) for name in names}
    yield
    for name, value in usual.items():
        spark.conf.set(name, value)


def linked(folder: Path, raw: bytes, times: int) -> None:
    """The same picture under so many names."""
    folder.mkdir()
    (folder / "000.jpg").write_bytes(raw)
    for number in range(1, times):
        os.link(folder / "000.jpg", folder / f"{number:03d}.jpg")


def test_a_hundred_times_the_same_image(spark, tmp_path, network_runs):
    linked(tmp_path / "3", file_bytes(picture(0), "JPEG"), 100)
    stage = DeepImageFeaturizer(**FAST)
    digits = read_digits(tmp_path)
    direct = {tuple(row.features) for row in stage.transform(digits).select("features").collect()}
    assert computed(network_runs) == 100 and len(direct) == 1
    stored = featurize(digits, stage, tmp_path / "store").collect()
    assert len(stored) == 100 and {tuple(row.features) for row in stored} == direct
    runs = network_runs()
    workers = {worker for worker, images, _ in runs if images}
    assert sum(images for _, images, _ in runs) <= len(workers) and timing(tmp_path / "store", stage)["images"] == 1


def test_large_pictures_come_fewer_at_a_time(spark, tmp_path, monkeypatch, kept_settings):
    write_pictures(tmp_path / "3", ["a.png"])
    (tmp_path / "3" / "b.png").write_text("no picture")
    for number in range(20):
        (tmp_path / "3" / f"small {number}.png").write_bytes(file_bytes(picture(number, 4, 4)))
    spark.conf.set(ROWS_TOGETHER, "64")
    monkeypatch.setattr(numtadb, "ARROW_BYTES", 10 * 40 * 30 * 3)
    digits = read_digits(tmp_path)
    assert spark.conf.get(ROWS_TOGETHER) == "10"
    shutil.rmtree(tmp_path / "3")
    write_pictures(tmp_path / "3", ["a.png"])
    monkeypatch.setattr(numtadb, "ARROW_BYTES", 2**27)
    read_digits(tmp_path)
    assert spark.conf.get(ROWS_TOGETHER) == "10", "frames that were made before still need it"
    assert digits.where("error IS NULL").count() == 1


@pytest.mark.load
def test_more_photographs_than_arrow_holds_together(spark, tmp_path, kept_settings):
    """Seventy of 4,000 × 4,000 pixels, 3.4 GB, in one partition: Arrow's own limit is 2 GiB."""
    photograph = picture(0, 500, 500).resize((4000, 4000), Image.Resampling.BICUBIC)
    linked(tmp_path / "3", file_bytes(photograph, "JPEG"), 70)
    spark.conf.set("spark.sql.leafNodeDefaultParallelism", "1")
    rows = (
        DeepImageFeaturizer(errorCol="why", **FAST).transform(read_digits(tmp_path)).select("features", "why").collect()
    )
    assert {row.why for row in rows} == {None} and len({tuple(row.features) for row in rows}) == 1 and len(rows) == 70


@pytest.mark.load
def test_make_run_over_a_folder_that_no_one_has_looked_at(tmp_path, capsys):
    """The whole course on digits of the sample among files that are none, eight and two a class."""
    for _, label, *_, path, _ in list_digits(numtadb.SAMPLE):
        folder = tmp_path / "my digits #1 ৩" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        if len(list(folder.iterdir())) < 8:
            shutil.copy(numtadb.SAMPLE / path, folder / path.replace("/", " "))
    for label, folder in enumerate(sorted((tmp_path / "my digits #1 ৩").iterdir())):
        whole = next(folder.iterdir()).read_bytes()
        broken = [b"", whole[:100], b"some text", whole[:-30], bytes(1000)]
        for number in range(2):
            (folder / f"broken {number}.png").write_bytes(broken[(label + number) % 5])
    given = ["--data", str(folder.parent), "--per-class", "10", "--build", str(tmp_path / "build")]
    assert run.main(given) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "build" / "results.json").read_text())
    assert [result["data_set"] for result in results] == ["my digits #1 ৩"] * 2


@pytest.mark.load
def test_twenty_thousand_images_without_growth(tmp_path):
    """Two minutes on two idle cores."""
    command = [sys.executable, str(Path(__file__).parent / "benchmarks" / "load.py"), "--json", str(tmp_path / "json")]
    subprocess.run(command, check=True)
    growth, largest = json.loads((tmp_path / "json").read_text())
    assert growth["value"] <= 1.1, growth["detail"]
    assert "20,000 images" in growth["what"] and largest["value"] > 0
