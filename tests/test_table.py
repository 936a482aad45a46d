"""tests/README.md, the table of bad input and faults: nothing is left out, and each test that it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = (ROOT / "tests" / "README.md").read_text(encoding="utf8")
MEANT = """
empty file | truncated PNG | text named .png | JPEG named .png | 16-bit PNG | palette PNG with transparency | CMYK JPEG
EXIF-rotated JPEG | 1 × 1 | 1 × 5,000 | decompression bomb | unreadable file | symbolic link to nowhere
folder with spaces, Bengali letters and a # | empty class folder | folder that is no data set at all
CSV without a needed column | CSV row without a file | file without a CSV row | label 10, "x", empty
the same name in two sources | BOM, CRLF, semicolons | two releases of training-e mixed
fewer images than asked per class | a class with one image at the split | null image | unknown network | unknown layer
unknown pooling | image size below the network's minimum | weights of another network | truncated weights
a weights file whose digest does not match | a saved pipeline from another version
logistic regression on features that contain nulls
SIGKILL to a Python worker in a batch | SIGKILL to an executor on a standalone cluster | SIGKILL to the driver
disk full while the store is written | two runs on one store at the same time
a download cut in the middle and taken up again | kernel restarted in the middle of notebook 02 and run again
20,000 images through the default recipe on 2 cores | 100 × the same image | images from 10 to 4,000 px in one frame
downloads are checked | downloads never unpack outside their folder
Keras files load in safe mode | nothing is unpickled
JupyterLab listens on loopback with its token | the Spark UI listens on loopback | the lock is hash-pinned
make never asks for root | CSV reader | split | the store's keys | the image reader's decode path
"""


def test_every_input_and_fault_has_its_row():
    rows = [line.split(" | ") for line in TABLE.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {3}
    names = [row[0].removeprefix("| ") for row in rows]
    meant = [name for line in MEANT.strip().splitlines() for name in line.split(" | ")]
    assert [name for name in meant if name not in names] == []
    assert len(set(names)) == len(names)
    assert all("`test_" in row[2] for row in rows if row[2] != "test |")


def test_every_test_that_is_named_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`(¹?)", TABLE)
    assert len(named) > 60 and len(named) == len(re.findall(r"`test_", TABLE))
    for file, test, slow in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf8")
        (decorators,) = re.findall(rf"((?:^@.*\n|^[ )\]].*\n)*)^def {test}\(", source, re.MULTILINE)
        assert ("@pytest.mark.load" in decorators) == bool(slow), test
