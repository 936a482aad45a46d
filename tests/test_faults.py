"""What dies in the middle: the features are those of an undisturbed run, or the next run goes on from a clean state."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import nbformat
import pytest
from conftest import FAST
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from test_store import computed, digits, small_batches, undisturbed  # noqa: F401

from helpers import featurizer
from helpers.featurizer import DeepImageFeaturizer
from helpers.networks import article
from helpers.numtadb import read_digits, sample_per_class
from helpers.store import _keys, featurize, fingerprint, folder_of

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


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


@pytest.mark.load
def test_notebook_02_goes_on_after_its_kernel_was_killed(spark, tmp_path, network_runs):
    """Up to the first features; killed as soon as some of them, and not all, are stored."""
    numbers = {"PER_CLASS": 3, "BUILD": str(tmp_path / "build")}
    store, stage = tmp_path / "build" / "features", article("glyphs").featurizer()
    digits = sample_per_class(read_digits(), 3)
    folder = folder_of(store, stage)

    def course() -> nbformat.NotebookNode:
        notebook = load_notebook_node(str(NOTEBOOKS / "02_inception_features.ipynb"))
        sources = [cell.source for cell in notebook.cells]
        (last,) = (
            place for place, source in enumerate(sources) if source.startswith(("from helpers.store import feat",))
        )
        notebook.cells = notebook.cells[: last + 1]
        return parameterize_notebook(notebook, numbers)

    def client(notebook: nbformat.NotebookNode, **hooks: object) -> NotebookClient:
        return NotebookClient(
            notebook, resources={"metadata": {"path": str(NOTEBOOKS)}}, kernel_name="python3", **hooks
        )

    def kill(cell: nbformat.NotebookNode, cell_index: int) -> None:
        def wait() -> None:
            last = time.monotonic() + 300
            while not list((folder / "features").glob("[!.]*.parquet")) and time.monotonic() < last:
                time.sleep(0.01)
            os.kill(killed.km.provisioner.pid, signal.SIGKILL)

        if cell_index == len(killed.nb.cells) - 1:
            threading.Thread(target=wait).start()

    killed = client(course(), on_cell_start=kill)
    with pytest.raises(DeadKernelError):
        killed.execute()
    settings = json.dumps(fingerprint(stage), sort_keys=True)
    finished = _keys(folder, settings)
    assert 0 < len(finished) < 30
    again = course()
    client(again).execute()
    assert again.cells[-1].outputs[0].text.startswith("30 images, ")
    made = [json.loads(file.read_text())["images"] for file in (folder / "runs").iterdir()]
    assert len(made) == 1 and made[0] <= 30 - len(finished), "only what was missing"

    stored = [row.features for row in featurize(digits, stage, store).collect()]
    assert computed(network_runs) == 0
    assert stored == [row.features for row in featurize(digits, stage, tmp_path / "undisturbed").collect()]
