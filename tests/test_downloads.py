"""Downloads: ImageNet's weights and NumtaDB from servers of this machine that serve the like, and from nothing."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FAST, file_bytes, image_frame, picture

from helpers import networks, numtadb
from helpers.featurizer import DeepImageFeaturizer, DeepImagePredictor
from helpers.networks import WeightsUnavailable
from helpers.numtadb import DownloadFailed, download_numtadb, list_digits

CREDENTIALS = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_ENVIRONMENT", "KAGGLE_KERNEL_RUN_TYPE")


@pytest.fixture
def serve() -> Iterator[Callable]:
    """Starts a server on this machine that sends ``answer(path)``: (status, type, body). Its address."""
    servers = []

    def start(answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, kind, body = answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def nothing() -> Iterator[str]:
    """An address of this machine where no one listens: bound, so that no one else can."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def offline(monkeypatch, nothing, tmp_path) -> None:
    """No way out of this machine, and nothing downloaded before."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, nothing)
    for name in ("no_proxy", "NO_PROXY", *CREDENTIALS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))


# -- ImageNet's weights ------------------------------------------------------------------------------------------------


@pytest.fixture
def keras_downloads(monkeypatch, tmp_path) -> Callable[[str, dict[str, bytes]], list[str]]:
    """Sends Keras' downloads to an address, with the digests of the stand-ins that wait there; the names asked for."""
    from keras.src.applications import imagenet_utils
    from keras.src.utils import file_utils

    get_file, asked = file_utils.get_file, []

    def redirect(address: str, files: dict[str, bytes]) -> list[str]:
        def redirected(fname, origin, **options):
            asked.append(fname)
            body = files.get(origin.rsplit("/", 1)[-1], b"")
            options["file_hash"] = hashlib.md5(body).hexdigest()
            return get_file(fname, f"{address}/{origin.rsplit('/', 1)[-1]}", cache_dir=str(tmp_path), **options)

        monkeypatch.setattr(file_utils, "get_file", redirected)
        return asked

    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", None)
    return redirect


def legacy_h5(model, file: Path, seed: int) -> list[np.ndarray]:
    """Random weights in the layout of Keras' own files: one group a layer, names and order in attributes."""
    rng = np.random.default_rng(seed)
    arrays = []
    with h5py.File(file, "w") as out:
        out.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        out.attrs["backend"], out.attrs["keras_version"] = b"tensorflow", b"2.0.0"
        for layer in model.layers:
            group = out.create_group(layer.name)
            names = [f"{layer.name}_{'Wb'[i]}_1:0" for i in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, variable in zip(names, layer.weights, strict=True):
                arrays.append(rng.normal(0, 0.05, variable.shape).astype(np.float32))
                group[name] = arrays[-1]
    return arrays


def test_imagenets_weights_from_a_server(serve, keras_downloads, tmp_path):
    arrays = legacy_h5(networks._bare("VGG16", False, 32, 1000), tmp_path / "served.h5", seed=1)
    name = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    files = {name: (tmp_path / "served.h5").read_bytes()}
    seen = []

    def answer(path):
        seen.append(path)
        return 200, "application/octet-stream", files[path.lstrip("/")]

    asked = keras_downloads(serve(answer), files)
    for _ in range(2):
        model = networks.build_network("VGG16", "imagenet", image_size=48)
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), arrays, strict=True))
    assert asked == [name, name] and seen == [f"/{name}"], "the second time from the cache"


def test_imagenets_class_names_from_a_server(serve, keras_downloads):
    index = {str(i): [f"n{i:08d}", f"thing_{i}"] for i in range(1000)}
    body = json.dumps(index).encode()
    asked = keras_downloads(serve(lambda path: (200, "application/json", body)), {"imagenet_class_index.json": body})
    assert networks._imagenet_classes() == [(f"n{i:08d}", f"thing_{i}") for i in range(1000)]
    assert asked == ["imagenet_class_index.json"]


@pytest.mark.parametrize("trouble", ["not found", "no one there", "breaks off"])
def test_imagenets_weights_that_do_not_come(serve, nothing, keras_downloads, trouble):
    class BreaksOff(bytes):
        """Announces more than it is."""

        def __len__(self):
            return 10**6

    answers = {
        "not found": (404, "text/html", b"gone"),
        "breaks off": (200, "application/octet-stream", BreaksOff(b"x")),
    }
    address = nothing if trouble == "no one there" else serve(lambda path: answers[trouble])
    keras_downloads(address, {})
    for what, ask in (
        ("ImageNet's weights of VGG16", lambda: networks.build_network("VGG16", "imagenet", image_size=32)),
        ("ImageNet's class names", networks._imagenet_classes),
    ):
        with pytest.raises(
            WeightsUnavailable, match=f"^{what} could not be downloaded .*; connect to the internet, or use"
        ) as e:
            ask()
        assert "\n" not in str(e.value)


def test_stages_without_a_way_to_imagenet(spark, offline):
    """Through the process that exports: one sentence on the driver that names the alternatives."""
    frame = image_frame(spark, [picture(0)])
    with pytest.raises(WeightsUnavailable, match=r"^ImageNet's weights of VGG16 could not be downloaded") as told:
        DeepImageFeaturizer(**FAST | {"weights": "imagenet"}).transform(frame)
    assert "\n" not in str(told.value)
    for alternative in ('weights="glyphs"', 'weights="random"', "the path of a Keras weights file"):
        assert alternative in str(told.value)
    with pytest.raises(
        WeightsUnavailable, match=r"^ImageNet's class names could not be downloaded.*decodePredictions=False"
    ):
        DeepImagePredictor(decodePredictions=True)._output()


# -- NumtaDB -----------------------------------------------------------------------------------------------------------


def numtadb_zip(folder: Path) -> bytes:
    """An archive in NumtaDB's layout, with two pictures."""
    with zipfile.ZipFile(folder / "numta.zip", "w") as archive:
        archive.writestr("training-a.csv", "filename,scanid,digit\na00000.png,1,3\na00001.png,2,4\n")
        for number in range(2):
            archive.writestr(f"training-a/a0000{number}.png", file_bytes(picture(number)))
        archive.writestr("testing-f/f00000.JPG", file_bytes(picture(2), "JPEG"))
    return (folder / "numta.zip").read_bytes()


@pytest.fixture
def kaggle(monkeypatch, serve, tmp_path) -> Callable[[Callable], list[str]]:
    """Kaggle's two answers, version and archive, from a server of this machine; the paths it was asked for."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)

    def start(archive) -> list[str]:
        asked = []

        def answer(path):
            asked.append(path.rsplit("/", 1)[-1])
            if asked[-1] == "GetDataset":
                return 200, "application/json", json.dumps({"currentVersionNumber": 6}).encode()
            return archive()

        address = serve(answer)
        monkeypatch.setattr("kagglesdk.kaggle_http_client.get_endpoint", lambda env: address)
        return asked

    return start


def test_numtadb_from_a_server(kaggle, tmp_path, capsys):
    body = numtadb_zip(tmp_path)
    asked = kaggle(lambda: (200, "application/zip", body))
    folder = download_numtadb()
    assert [(row[1], row[4]) for row in list_digits(folder)] == [
        (3, "training-a/a00000.png"),
        (4, "training-a/a00001.png"),
    ]
    assert (folder / "training-a" / "a00000.png").read_bytes() == file_bytes(picture(0))
    assert asked == ["GetDataset", "DownloadDataset"] and (tmp_path / "kagglehub") in folder.parents
    assert numtadb.main() == 0
    assert asked.count("DownloadDataset") == 1, "the second time from the cache"
    assert capsys.readouterr().out.endswith(f"NumtaDB is in {folder}\nType: make run DATA={folder}\n")


ANSWERS = {
    "refused": (403, "application/json", b'{"code": 403, "message": "Permission denied"}'),
    "gone": (404, "text/html", b"<html>not here</html>"),
    "a page instead": (200, "text/html", b"<html>sign in to this network</html>"),
    "half an archive": (200, "application/zip", b"PK\x03\x04 and no more"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_numtadb_that_does_not_come(kaggle, answer, capsys):
    kaggle(lambda: ANSWERS[answer])
    with pytest.raises(DownloadFailed, match=r"^NumtaDB could not be downloaded from Kaggle .*DATA=") as told:
        download_numtadb()
    assert "\n" not in str(told.value)
    assert numtadb.main() == 1
    assert str(told.value) in capsys.readouterr().out.splitlines()


def test_an_archive_that_is_no_numtadb(kaggle, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    kaggle(lambda: (200, "application/zip", (tmp_path / "other.zip").read_bytes()))
    with pytest.raises(
        DownloadFailed, match=r"what Kaggle sent is not NumtaDB as this project knows it: .*is no data set"
    ):
        download_numtadb()


def test_make_data_without_a_way_to_kaggle(offline):
    """What `make data` runs: one sentence that says what to do, and an exit status that make sees."""
    done = subprocess.run([sys.executable, "-m", "helpers.numtadb"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    (sentence,) = done.stdout.splitlines()
    assert sentence.startswith("NumtaDB could not be downloaded from Kaggle (")
    assert "connect to the internet and try again, or download BengaliAI/numta in a browser" in sentence


# -- what came is what was sent ----------------------------------------------------------------------------------------


def test_imagenets_weights_that_are_not_those_of_their_digest(serve, keras_downloads, tmp_path):
    name = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    keras_downloads(serve(lambda path: (200, "application/octet-stream", b"others")), {name: b"the right ones"})
    with pytest.raises(
        WeightsUnavailable, match=r"^ImageNet's weights of VGG16 could not be downloaded .*corrupt"
    ) as told:
        networks.build_network("VGG16", "imagenet", image_size=32)
    assert "\n" not in str(told.value)


class CutServer:
    """Kaggle's two answers as Kaggle sends archives: with a digest, and from any byte on. Stops where it is told."""

    def __init__(self, body: bytes) -> None:
        self.body, self.stop_at, self.asked = body, None, []
        self.digest = base64.b64encode(hashlib.md5(body).digest()).decode()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        archive = not handler.path.endswith("GetDataset")
        body = self.body if archive else json.dumps({"currentVersionNumber": 6}).encode()
        first = int((handler.headers.get("Range") or "bytes=0-")[len("bytes=") : -1])
        if archive:
            self.asked.append(first)
        handler.send_response(206 if first else 200)
        handler.send_header("Content-Type", "application/zip" if archive else "application/json")
        handler.send_header("Content-Length", str(len(body) - first))
        if archive:
            handler.send_header("Accept-Ranges", "bytes")
            handler.send_header("x-goog-hash", f"md5={self.digest}")
        handler.end_headers()
        handler.wfile.write(body[first : self.stop_at if archive else None])


@pytest.fixture
def cut_server(monkeypatch, tmp_path) -> Iterator[Callable[[bytes], CutServer]]:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(body: bytes) -> CutServer:
        kaggle = CutServer(body)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                kaggle.answer(self)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{servers[-1].server_port}"
        monkeypatch.setattr("kagglesdk.kaggle_http_client.get_endpoint", lambda env: address)
        return kaggle

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_download_that_is_cut_goes_on_where_it_was(cut_server, tmp_path):
    numtadb_zip(tmp_path)
    with zipfile.ZipFile(tmp_path / "numta.zip", "a") as archive:  # kagglehub writes a MiB at a time
        archive.writestr("training-b/noise", np.random.default_rng(0).bytes(3 * 2**20))
    body = (tmp_path / "numta.zip").read_bytes()
    kaggle = cut_server(body)
    kaggle.stop_at = len(body) // 2
    with pytest.raises(DownloadFailed, match=r"^NumtaDB could not be downloaded from Kaggle"):
        download_numtadb()
    kaggle.stop_at = None
    folder = download_numtadb()
    assert kaggle.asked == [0, 0, 2**20], "asked for the whole to learn its length, then for the rest"
    assert (folder / "training-a" / "a00000.png").read_bytes() == file_bytes(picture(0))
    assert (folder / "testing-f" / "f00000.JPG").read_bytes() == file_bytes(picture(2), "JPEG")


@pytest.mark.parametrize("told", [True, False], ids=["with a digest", "without"])
def test_a_damaged_download_does_not_stand_in_the_way(cut_server, tmp_path, told):
    """Nor does an archive that is whole by its length."""
    body = numtadb_zip(tmp_path)
    kaggle = cut_server(b"x" * len(body))
    if told:
        kaggle.digest = base64.b64encode(hashlib.md5(body).digest()).decode()
    with pytest.raises(DownloadFailed, match=r"^NumtaDB could not be downloaded from Kaggle"):
        download_numtadb()
    kaggle.body, kaggle.digest = body, base64.b64encode(hashlib.md5(body).digest()).decode()
    assert len(list_digits(download_numtadb())) == 2


@pytest.mark.filterwarnings("ignore:.* have no row in")
def test_an_archive_unpacks_nothing_outside_its_folder(cut_server, tmp_path):
    numtadb_zip(tmp_path)
    away = [f"{'../' * up}outside.png" for up in range(1, 12)] + [
        str(tmp_path / "outside.png"),
        "training-a/../../out.png",
    ]
    with zipfile.ZipFile(tmp_path / "numta.zip", "a") as archive:
        for name in away:
            archive.writestr(name, file_bytes(picture(0)))
    body = (tmp_path / "numta.zip").read_bytes()
    (tmp_path / "numta.zip").unlink()
    cut_server(body)
    folder = download_numtadb()
    unpacked = {file for file in tmp_path.rglob("*") if file.is_file() and file.suffix.lower() in (".png", ".jpg")}
    assert unpacked and all(folder in file.parents for file in unpacked)
