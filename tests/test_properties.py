"""Whatever the input: what holds of the CSV reader, of the store's keys, and of the way from bytes to an image.

What holds of samples, splits and folds stands with them in ``test_numtadb.py``.
"""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.numtadb import ARROW_IMAGE, list_digits
from helpers.store import image_keys

# -- CSV files ---------------------------------------------------------------------------------------------------------

# Fragments that tables are made of, and what does not belong into one.
WORDS = st.sampled_from(["filename", "digit", "scanid", "a.png", "../b.png", "/c.png", "3", "10", "x", "৩", "é", "."])
MARKS = st.sampled_from([",", ",,", ";", '"', '""', "\n", "\r", "\r\n", " ", "\t", "\0", "\ufeff"])
PIECES = WORDS | MARKS
TABLES = st.one_of(
    st.binary(max_size=80),
    st.lists(PIECES, max_size=40).map(lambda pieces: "".join(pieces).encode()),
    st.lists(PIECES, max_size=30).map(lambda pieces: ("filename,digit,scanid\n" + "".join(pieces)).encode()),
)


@given(raw=TABLES)
@settings(max_examples=400, deadline=None)
@pytest.mark.filterwarnings("ignore:.* have no picture", "ignore:.* is there a second time")
def test_any_bytes_as_a_table_give_rows_or_one_sentence(tmp_path_factory, raw):
    root = tmp_path_factory.getbasetemp() / "any"
    root.mkdir(exist_ok=True)
    (root / "training-a.csv").write_bytes(raw)
    try:
        rows = list_digits(root)
    except ValueError as problem:
        assert str(problem).startswith(str(root)) and "\n" not in str(problem)
        return
    paths = [path for *_, path, _ in rows]
    assert rows and len(set(paths)) == len(paths) and paths == sorted(paths)
    for file, label, source, writer, path, problem in rows:
        assert source == "training-a" and (writer == "" or writer.startswith("training-a/"))
        assert path.startswith("training-a/") and file == str(root / path)
        assert label in range(10) if problem is None else problem
        if problem is None:
            assert Path(file).resolve().is_relative_to((root / "training-a").resolve())


# -- the store's keys --------------------------------------------------------------------------------------------------

SIDE = st.integers(1, 3)
IMAGES = st.none() | st.fixed_dictionaries(
    {
        "origin": st.text(max_size=3),
        "height": SIDE,
        "width": SIDE,
        "nChannels": st.sampled_from([1, 3, 4]),
        "mode": st.integers(0, 30),
        "data": st.none() | st.binary(max_size=4),
    }
)


@given(images=st.lists(IMAGES, max_size=12), cut=st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_keys_are_those_of_shape_and_bytes_alone(images, cut):
    keys = image_keys(pa.array(images, ARROW_IMAGE))
    assert [key is None for key in keys] == [image is None for image in images]
    there = {key: i for i, key in enumerate(keys) if key is not None}
    for key, image in zip(keys, images, strict=True):
        if image is not None:
            shape = [[i["height"], i["width"], i["nChannels"], i["data"] or b""] for i in (image, images[there[key]])]
            assert shape[0] == shape[1] and len(key) == 64
    contents = {(i["height"], i["width"], i["nChannels"], i["data"] or b"") for i in images if i is not None}
    assert len(contents) == len(there), "two images, two keys"
    assert image_keys(pa.array(images, ARROW_IMAGE).slice(cut)) == keys[cut:], "of a part of an array as well"
    renamed = [image and image | {"origin": "elsewhere", "mode": 0} for image in images]
    assert image_keys(pa.array(renamed, ARROW_IMAGE)) == keys


# -- from bytes to an image --------------------------------------------------------------------------------------------

FUZZED = 1500  # files
# In a process of its own: a crash of a decoder is no exception, and a hang no failure, unless something else looks on.
FUZZ = """
import collections, json, random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from PIL import Image
from conftest import file_bytes, picture
from helpers.numtadb import SAMPLE, read_file

chance = random.Random(20190501)
rgb, grey, rgba = (picture(i, 23, 17, channels) for i, channels in enumerate((3, 1, 4)))
exif = Image.Exif()
exif[0x0112], exif[0x010E] = 6, "a digit"
seeds = [file_bytes(image) for image in (rgb, grey, rgba, grey.convert("1"), grey.convert("LA"))]
seeds += [file_bytes(rgb, exif=exif), file_bytes(rgb.quantize(50), transparency=3)]
seeds += [file_bytes(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257))]
seeds += [file_bytes(rgb, "JPEG", exif=exif), file_bytes(grey, "JPEG", progressive=True)]
seeds += [file_bytes(rgb.convert("CMYK"), "JPEG"), file_bytes(rgb, "GIF", transparency=0)]
seeds += [file_bytes(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])]
seeds += [next((SAMPLE / f"training-{source}").iterdir()).read_bytes() for source in "be"]

def mutated(raw):
    for _ in range(chance.randint(1, 4)):
        place = min(chance.randrange(len(raw) + 1), chance.choice([8, 40, 200, 10**6]))
        some, kind = chance.randbytes(chance.randint(1, 8)), chance.randrange(6)
        raw = [
            lambda: raw[:place] + some + raw[place + len(some) :],
            lambda: raw[:place] + bytes([(raw + b"0")[place] ^ 1 << chance.randrange(8)]) + raw[place + 1 :],
            lambda: raw[:place] + some + raw[place:],
            lambda: raw[:place] + raw[place + len(some) :],
            lambda: raw[:place] + chance.choice([b"\\0" * 4, b"\\xff" * 4, b"\\x7f\\xff\\xff\\xff"]) + raw[place + 4 :],
            lambda: raw[: max(place, 20)],
        ][kind]()
    return raw

file, found = Path(sys.argv[2]), collections.Counter()
for _ in range(int(sys.argv[3])):
    file.write_bytes(mutated(chance.choice(seeds)))
    image, reason = read_file(str(file))
    if image is not None:
        assert reason is None and len(image["data"]) == image["height"] * image["width"] * image["nChannels"] > 0
    else:
        assert reason and "\\n" not in reason, reason
    found["read" if image is not None else reason.partition(":")[0]] += 1
print(json.dumps(found))
"""


def test_no_bytes_of_a_picture_file_end_a_worker(tmp_path):
    """Real PNG, JPEG and GIF files, changed at random, the same way every time: an image, or a reason of one line."""
    command = [sys.executable, "-c", FUZZ, str(Path(__file__).parent), str(tmp_path / "changed.png"), str(FUZZED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"changed.png of {tmp_path} did it: {done.stderr[-2000:]}"
    found = json.loads(done.stdout)
    assert sum(found.values()) == FUZZED
    assert found["read"] > FUZZED / 20 and found["the picture is broken"] > FUZZED / 5, "decoders were reached"
