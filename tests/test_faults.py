"""What dies in the middle: the features are those of an undisturbed run, or the next run goes on from a clean state."""

import os
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import FAST
from test_store import computed, digits, small_batches, undisturbed  # noqa: F401

from helpers import featurizer
from helpers.featurizer import DeepImageFeaturizer
from helpers.store import featurize, folder_of


@pytest.fixture
def stage() -> DeepImageFeaturizer:
    return DeepImageFeaturizer(**FAST)


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of so many KiB, or changes its size; its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kib: int) -> Path:
        how = f"remount,size={kib}k" if folder.is_mount() else f"size={kib}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("only root on Linux can mount a file system in memory")
        return folder

    yield size
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def left_over(store: Path, stage: DeepImageFeaturizer) -> list[Path]:
    """What a store holds that no finished batch put there."""
    return [*folder_of(store, stage).rglob("*.unfinished"), *folder_of(store, stage).glob("damaged/*")]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.filterwarnings("ignore:toPandas attempted")
def test_a_full_disk_is_told_and_what_was_finished_is_kept(spark, stage, tmp_path, small_disk, network_runs):
    expected = undisturbed(spark, stage, tmp_path, range(12))
    files = list((folder_of(tmp_path / "undisturbed", stage) / "features").iterdir())
    pages = {file: 4 * -(-file.stat().st_size // 4096) for file in files}  # KiB
    (whole,) = (kib for file, kib in pages.items() if "-" not in file.stem)
    small = sum(pages.values()) - whole
    for kib in (small // 2, small + whole // 2):  # full in a worker, and on the driver when all is computed
        store = small_disk(kib)
        with pytest.raises(OSError, match=r"no space left while features were stored; .* are kept: make room") as told:
            featurize(digits(spark, range(12)), stage, store)
        assert told.value.filename == str(folder_of(store, stage)) and "\n" not in str(told.value)
        assert left_over(store, stage) == []
    network_runs()
    store = small_disk(1024)
    rows = featurize(digits(spark, range(12)), stage, store).collect()
    assert computed(network_runs) == 0, "all were finished before"
    assert [row.features for row in rows] == expected


@pytest.mark.usefixtures("small_batches")
def test_two_runs_on_one_store_at_the_same_time(spark, stage, tmp_path, network_runs, monkeypatch):
    """Both begin with nothing there, and neither sees what the other does."""
    expected = undisturbed(spark, stage, tmp_path, range(9))
    here, counted = tmp_path / "here", featurizer.run_network
    here.mkdir()

    def together(network, images, size, batch_size):
        import time

        (here / str(os.getpid())).touch()
        last = time.monotonic() + 60
        while len(list(here.iterdir())) < 2 and time.monotonic() < last:
            time.sleep(0.01)
        return counted(network, images, size, batch_size)

    network_runs()
    monkeypatch.setattr(featurizer, "run_network", together)
    found = {}

    def run(name: str) -> None:
        frame = featurize(digits(spark, range(9)), stage, tmp_path / "store")
        found[name] = [row.features for row in frame.collect()]

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"one": expected, "other": expected}
    assert len(list(here.iterdir())) == 2 and computed(network_runs) == 18, "the two did run at the same time"
    again = featurize(digits(spark, range(9)), stage, tmp_path / "store").collect()
    assert [row.features for row in again] == expected and computed(network_runs) == 0
    assert left_over(tmp_path / "store", stage) == []
