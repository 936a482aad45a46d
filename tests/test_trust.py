"""What the course lets in and lets out: no code from a file, no open port, no root."""

import ast
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import psutil

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf8")
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses on which those processes take connections."""
    return {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}


# -- ports -------------------------------------------------------------------------------------------------------------


def test_spark_listens_on_this_machine_only(spark):
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    java = [process for process in family if process.name() == "java"]
    found = listening(java)
    assert found and found <= LOOPBACK
    assert spark.sparkContext.uiWebUrl is None and spark.sparkContext._gateway.gateway_parameters.auth_token


def test_sparks_interface_where_one_asks_for_it_listens_on_this_machine_only():
    code = """
import json
from helpers.spark import start_spark
import psutil
spark = start_spark(spark_ui_enabled="true", spark_ui_port="0", spark_driver_extraJavaOptions="-XX:TieredStopAtLevel=1")
port = int(spark.sparkContext._jsc.sc().ui().get().boundPort())
java = [p for p in psutil.Process().children(recursive=True) if p.name() == "java"]
ports = {c.laddr.port: c.laddr.ip for p in java for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
print(json.dumps([ports[port], sorted(set(ports.values()))]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK", "PYSPARK"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    interface, all_of_them = json.loads(done.stdout)
    assert interface in LOOPBACK and set(all_of_them) <= LOOPBACK


def test_make_lab_listens_on_this_machine_only_and_asks_for_its_token(tmp_path):
    """JupyterLab started as `make lab` does, but for the browser and the port."""
    (recipe,) = re.findall(r"^lab:.*\n\t@(.*)$", MAKEFILE, re.MULTILINE)
    command = recipe.replace("$$", "$").replace("$(PY)", '"$PYTHON"').replace("$(LAB_OPTIONS)", "--no-browser --port 0")
    command = command.replace("$(CURDIR)", str(ROOT))
    assert "$(" not in command.replace("$(test", "").replace("$(id", "")
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    environment |= {name: str(tmp_path / folder) for name, folder in own.items()} | {"PYTHON": sys.executable}
    with open(tmp_path / "said", "wb") as said:
        lab = subprocess.Popen(["sh", "-c", f"exec {command}"], cwd=ROOT, env=environment, stdout=said, stderr=said)
    try:
        last = time.monotonic() + 60
        while not (told := list((tmp_path / "runtime").glob("jpserver-*.json"))):
            assert lab.poll() is None and time.monotonic() < last, (tmp_path / "said").read_text()
            time.sleep(0.1)
        server = json.loads(told[0].read_text())
        addresses = listening([psutil.Process(lab.pid), *psutil.Process(lab.pid).children(recursive=True)])
        answers = [status(f"{server['url']}api/contents?token={token}") for token in ("", "guess", server["token"])]
        linked = status(f"{server['url']}api/contents/data/weights/README.md?token={server['token']}")
    finally:
        lab.terminate()
        lab.wait()
    assert addresses and addresses <= LOOPBACK
    assert re.fullmatch(r"[0-9a-f]{48}", server["token"]) and answers == [403, 403, 200]
    assert linked == 200, "notebooks link to files beside their folder"


def status(url: str) -> int:
    """Of the answer of a server on this machine."""
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with directly.open(url, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code


# -- code --------------------------------------------------------------------------------------------------------------

CODE = [path for folder in ("helpers", "notebooks", "data", "binder") for path in (ROOT / folder).rglob("*.py")]
NOTEBOOKS = list((ROOT / "notebooks").rglob("*.ipynb"))
# What runs code that lies in a file, or may be told to.
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe(source: str) -> list[str]:
    """What in a program would run code from the files it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [name for name in names if name.partition(".")[0] in PICKLES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            found.append(called)
        if called.endswith(("read_pickle", "enable_unsafe_deserialization")):
            found.append(called)
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append(called)
        if called.endswith("load_model") and called != "load_model" and given.get("safe_mode") != "True":
            found.append(called)
        if called.endswith("extractall") or given.get("safe_mode") == "False":
            found.append(called)
    return found


def test_nothing_is_unpickled_and_keras_stays_in_its_safe_mode():
    for line in ("import joblib", "from pickle import load", "np.load(file, allow_pickle=True)", "torch.load(file)"):
        assert unsafe(line), line
    for line in ("keras.saving.load_model(file)", "zipped.extractall()", "load_model(file, safe_mode=False)"):
        assert unsafe(line), line
    assert len(CODE) > 15 and len(NOTEBOOKS) > 10
    for path in CODE:
        assert unsafe(path.read_text(encoding="utf8")) == [], path
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and not cell.source.startswith(("%", "!")):
                assert unsafe(cell.source) == [], path


# -- root --------------------------------------------------------------------------------------------------------------


def test_make_never_becomes_root_nor_installs_into_the_system():
    recipes = "\n".join(line for line in MAKEFILE.splitlines() if not line.startswith("#"))
    told = re.findall(r'echo "[^"]*"', recipes)
    assert any("sudo" in sentence for sentence in told), "that is where it may be: in what one is told to type"
    for sentence in told:
        recipes = recipes.replace(sentence, "")
    assert not re.search(r"\b(sudo|su|doas|apt|apt-get|dnf|yum|brew|chown|setcap)\b", recipes)
