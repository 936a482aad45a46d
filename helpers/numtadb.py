"""Where digits come from: read, sample, split, download.

Two layouts are read: NumtaDB as Kaggle ships it (folders ``training-a/`` … beside ``training-a.csv`` …, perhaps one
level down) and class folders ``0/`` … ``9/``. What comes back is one row an image with Spark's own image struct, so
that every stage which takes ``spark.read.format("image")`` takes it too. Reading is lazy, and nothing is decoded that
no one asks for.

Samples and splits are drawn by a hash of the image's path within the data set, so they are the same rows whatever the
order of files, the partitions or the number of cores.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import stat
import struct
import tarfile
import textwrap
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image, ImageOps
from pyspark import TaskContext
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_type

from helpers.networks import data_folder
from helpers.spark import ship_package, start_spark

SAMPLE = data_folder() / "sample"
KAGGLE_HANDLE = "BengaliAI/numta"
SUFFIXES = {".png", ".jpg", ".jpeg"}
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF")  # what a file may really hold, as for Spark's image source
LARGEST_FILE = 2**30  # bytes; a picture of as many pixels as Pillow takes for honest has fewer, at eight bytes a pixel
# ImageSchema.columnSchema of pyspark.ml.image, which only a running session can tell
IMAGE_TYPE = T.StructType(
    [
        T.StructField("origin", T.StringType()),
        T.StructField("height", T.IntegerType()),
        T.StructField("width", T.IntegerType()),
        T.StructField("nChannels", T.IntegerType()),
        T.StructField("mode", T.IntegerType()),
        T.StructField("data", T.BinaryType()),
    ]
)
ARROW_IMAGE = to_arrow_type(IMAGE_TYPE)
ARROW_BYTES = 2**27  # of pictures that a worker is to hold together; Arrow itself ends at 2 GiB
ROWS_TOGETHER = "spark.sql.execution.arrow.maxRecordsPerBatch"
_CV_MODES = {1: 0, 3: 16, 4: 24}  # OpenCV's CV_8UC1, CV_8UC3, CV_8UC4, as in ImageSchema.ocvTypes


class DownloadFailed(RuntimeError):
    """NumtaDB could not be downloaded; the message says what to do."""


# -- reading ---------------------------------------------------------------------------------------------------------


def decode(raw: bytes, origin: str) -> dict:
    """A picture file's bytes as Spark's image struct: rows from the top, 8 bits a channel, blue, green, red (, alpha).

    Turned upright where its EXIF data say so; 16-bit grey keeps its upper byte; palettes and CMYK become RGB.

    Raises:
        OSError, SyntaxError, ValueError, struct.error: what Pillow raises for bytes that are no whole picture.
        Image.DecompressionBombError: more pixels than Pillow takes for honest.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = picture.convert("I").point(lambda grey: grey / 256).convert("L")
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return image_struct(picture, origin)


def image_struct(picture: Image.Image, origin: str) -> dict:
    """A Pillow picture of mode L, RGB or RGBA as Spark's image struct."""
    width, height = picture.size
    channels = len(picture.getbands())
    if channels == 1:
        data = picture.tobytes()
    else:
        bands = picture.split()
        data = Image.merge(picture.mode, (bands[2], bands[1], bands[0], *bands[3:])).tobytes()
    return {
        "origin": origin,
        "height": height,
        "width": width,
        "nChannels": channels,
        "mode": _CV_MODES[channels],
        "data": data,
    }


def read_file(path: str) -> tuple[dict | None, str | None]:
    """(image struct, ``None``) of a picture file, or (``None``, why it cannot be had)."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # reading one may never end
            return None, "is a pipe or a device"
        if found.st_size > LARGEST_FILE:
            return None, f"the file has {found.st_size} bytes, more than any picture"
        raw = Path(path).read_bytes()
    except OSError as problem:
        return None, f"{problem.strerror or type(problem).__name__}".lower()
    if not raw:
        return None, "the file is empty"
    try:
        return decode(raw, _origin(path)), None
    except Image.UnidentifiedImageError:
        return None, "the file is no picture that Pillow knows"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None, f"the picture has more than {Image.MAX_IMAGE_PIXELS} pixels"
    except (OSError, SyntaxError, ValueError, struct.error) as problem:
        return None, f"the picture is broken: {problem}"


def _pixel_bytes(path: str) -> int:
    """Bytes of a picture in Spark's image struct, by its file's header; 0 where it has none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                return picture.width * picture.height * max(3, len(picture.getbands()))
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return 0


def _fit_batches(spark: SparkSession, files: list[str]) -> None:
    """Have workers take fewer rows at a time where pictures are large, by a look at a hundred of them."""
    largest = max(map(_pixel_bytes, files[:: max(1, len(files) // 100)]), default=0)
    rows = max(1, ARROW_BYTES // max(1, largest))
    now = int(spark.conf.get(ROWS_TOGETHER))
    if now <= 0 or rows < now:
        spark.conf.set(ROWS_TOGETHER, str(rows))


def _origin(path: str) -> str:
    """The file's address as Spark's image source writes it: java.net.URI escapes what it must in ASCII, no more."""
    return "file://" + re.sub(r'[\x00-\x20"#%<>?\[\\\]^`{|}\x7f]', lambda found: quote(found[0]), path)


@lru_cache(maxsize=1)
def _read(paths: tuple[str | None, ...], task: int) -> tuple[pa.Array, pa.Array]:
    """Images and errors of some files. The last are kept, as Spark asks for the two separately; within a task only,
    since files may change.
    """
    read = [(None, None) if path is None else read_file(path) for path in paths]
    images, errors = zip(*read, strict=True) if read else ((), ())
    return pa.array(images, ARROW_IMAGE), pa.array(errors, pa.string())


def _read_images(paths: pa.Array) -> pa.Array:
    return _read(tuple(paths.to_pylist()), TaskContext.get().taskAttemptId())[0]


def _read_errors(paths: pa.Array) -> pa.Array:
    return _read(tuple(paths.to_pylist()), TaskContext.get().taskAttemptId())[1]


def read_digits(root: str | Path | None = None) -> DataFrame:
    """The digits of a data set, a row an image, labelled.

    Args:
        root: folder of the data set, at the same path on every executor; ``None`` is the sample inside this package.

    Returns:
        ``image`` (Spark's image struct: origin, height, width, nChannels, mode, data), ``label`` (int, 0–9), ``source``
        (string, the folder), ``writer`` (string, source and scan id, empty where unknown), ``path`` (string, within
        ``root``), ``error`` (string). A picture that cannot be read, a CSV row without its file or with a label that is
        no digit stays as a row: null image, reason in ``error``.

    Warnings say how many rows have no file, how many files no row, and which class folder is empty. Where pictures are
    large, the session's ``maxRecordsPerBatch`` is lowered, so that workers do not hold too many of them.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is no data set, or a CSV file lacks a column.
    """
    root = Path(SAMPLE if root is None else root).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}; read_digits takes NumtaDB's folder or class folders 0/ to 9/"
        )
    rows = list_digits(root)
    spark = SparkSession.getActiveSession() or start_spark()
    ship_package(spark)
    _fit_batches(spark, [row[0] for row in rows if row[5] is None])
    table = pd.DataFrame(rows, columns=["file", "label", "source", "writer", "path", "problem"])
    table["label"] = table["label"].astype("Int32")
    schema = "file string, label int, source string, writer string, path string, problem string"
    # The image is a Python function's whole output, not a field of it: so Spark chains it with a function of the image,
    # a network's, say, in one Python worker, and pixels do not travel to the JVM and back in between.
    file = F.when(F.col("problem").isNull(), F.col("file"))
    return spark.createDataFrame(table.astype(object).where(table.notna(), None), schema).select(
        F.arrow_udf(_read_images, IMAGE_TYPE)(file).alias("image"),
        "label",
        "source",
        "writer",
        "path",
        F.coalesce("problem", F.arrow_udf(_read_errors, "string")(file)).alias("error"),
    )


def list_digits(root: Path) -> list[tuple]:
    """(file, label, source, writer, path within root, problem) of every image of a data set, in order of path."""
    tables = sorted(root.glob("training-*.csv")) or sorted(root.glob("*/training-*.csv"))
    rows = list(_kaggle_rows(root, tables)) if tables else list(_folder_rows(root))
    if not rows:
        raise ValueError(
            f"{root} is no data set: it needs training-a.csv … beside training-a/ …, as NumtaDB has them, or class "
            "folders 0/ to 9/"
        )
    return sorted(rows, key=lambda row: row[4])


def _kaggle_rows(root: Path, tables: list[Path]) -> Iterator[tuple]:
    for table in tables:
        folder = table.with_suffix("")
        nested = folder / folder.name  # some mirrors unpack training-a.zip into a folder of its own
        if nested.is_dir():
            folder = nested
        source = table.stem
        listed = set()
        for line, row in _csv_rows(table, needed=("filename", "digit")):
            name, digit = row["filename"], row["digit"]
            if not name:
                raise ValueError(f"{table}, line {line}: there is no filename")
            name = PurePosixPath(name).as_posix()
            if name in listed:  # twice the same picture, it could be on both sides of a split
                warnings.warn(
                    f"{table}, line {line}: {name} is there a second time; its first row counts", stacklevel=4
                )
                continue
            listed.add(name)
            label = int(digit) if digit in set("0123456789") else None
            writer = f"{source}/{row['scanid']}" if row.get("scanid") else ""
            problem = None if label is not None else f"label {digit!r} is not a digit 0 to 9"
            if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                problem = f"filename {name!r} names no file in {folder.name}"
            path = f"{folder.relative_to(root).as_posix()}/{name}"
            yield str(root / path), label, source, writer, path, problem
        there = {file.name for file in _pictures(folder)} if folder.is_dir() else set()
        unlisted = there - listed
        missing = [name for name in sorted(listed - there) if "\0" in name or not (folder / name).exists()]
        releases = "; are they of two releases? Take both from one" if unlisted and missing else ""
        if missing:
            warnings.warn(
                f"{len(missing)} of {len(listed)} rows of {table} have no picture in {folder.name}, {missing[0]} first;"
                f" they stay, with the reason in error{releases}",
                stacklevel=4,
            )
        if unlisted:
            warnings.warn(
                f"{len(unlisted)} pictures in {folder} have no row in {table.name} and are left out, {min(unlisted)} "
                f"first{releases}",
                stacklevel=4,
            )


def _csv_rows(table: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{table} is not in UTF-8; save it as CSV in UTF-8") from problem
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if head.count(";") > head.count(",") else ",")
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        missing = [name for name in needed if name not in reader.fieldnames]
        if missing:
            columns = textwrap.shorten(", ".join(reader.fieldnames), 200, placeholder=" …") or "none"
            raise ValueError(f"{table} has no column {missing[0]!r}; its columns are {columns}")
        for row in reader:
            cells = {name: (value or "").strip() for name, value in row.items() if isinstance(name, str)}
            if any(cells.values()):  # spreadsheets leave rows of nothing but commas
                yield reader.line_num, cells
    except csv.Error as problem:
        raise ValueError(f"{table}, near line {reader.line_num}: {problem}; is a quotation mark left open?") from None


def _pictures(folder: Path) -> Iterator[Path]:
    """Files with a picture's suffix, without the hidden ones that macOS puts beside them."""
    return (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _folder_rows(root: Path) -> Iterator[tuple]:
    for label in range(10):
        folder = root / str(label)
        if not folder.is_dir():
            continue
        pictures = list(_pictures(folder))
        if not pictures:
            warnings.warn(f"the class folder {folder} has no picture in it", stacklevel=4)
        for file in pictures:
            shown = os.fsencode(file.name).decode("utf8", "backslashreplace")
            problem = None if shown == file.name else "its name is not in UTF-8; rename the file"
            yield None if problem else str(file), label, root.name, "", f"{label}/{shown}", problem


# -- sampling and splitting ------------------------------------------------------------------------------------------


def _lot(seed: int) -> Column:
    """A number that orders images at random, by seed and path and nothing else: the first 60 bits of their SHA-256."""
    digest = F.sha2(F.concat_ws("\n", F.lit(str(seed)), F.col("path")), 256)
    return F.conv(F.substring(digest, 1, 15), 16, 10).cast("long")


def _need_label_and_path(digits: DataFrame) -> None:
    for column in ("label", "path"):
        if column not in digits.columns:
            raise ValueError(f"there is no column {column!r}; the columns are {', '.join(digits.columns)}")


def _lots(digits: DataFrame, seed: int) -> dict[int, np.ndarray]:
    """The lots of each class in rising order, int64."""
    _need_label_and_path(digits)
    table = digits.where(F.col("label").isNotNull()).select("label", _lot(seed).alias("lot")).toPandas()
    return {label: np.sort(lots.to_numpy()) for label, lots in table.groupby("label")["lot"]}


def _up_to(seed: int, last: dict[int, int]) -> Column:
    """True for images whose lot is at most the last one of their class, null where the class has none.

    Spark evaluates this below the decoding of pictures, as it would not a join, so that only those kept are decoded.
    """
    pairs = [F.lit(value) for pair in last.items() for value in pair]
    return _lot(seed) <= F.create_map(*pairs)[F.col("label")] if pairs else F.lit(None).cast("boolean")


def sample_per_class(digits: DataFrame, n: int = 50, seed: int = 42) -> DataFrame:
    """``n`` images of each class, drawn by ``seed``; all of a class that has fewer, with a warning that says how many.

    The draw looks at labels and paths only, so that no picture is decoded for it: a picture that turns out to be broken
        may be in it.

    Raises:
        ValueError: ``n`` below 1, or no column ``label`` or ``path``.
    """
    if n < 1:
        raise ValueError(f"n={n} images of each class cannot be drawn")
    lots = _lots(digits, seed)
    if fewer := {label: len(of) for label, of in lots.items() if len(of) < n}:
        counts = ", ".join(f"{fewer[label]} of class {label}" for label in sorted(fewer))
        warnings.warn(f"there are fewer than {n} images of some classes: {counts}", stacklevel=2)
    return digits.where(_up_to(seed, {label: int(of[:n][-1]) for label, of in lots.items()}))


def train_test_split(
    digits: DataFrame, test_fraction: float = 0.2, seed: int = 42, by_writer: bool = False
) -> tuple[DataFrame, DataFrame]:
    """Training and test images, stratified: each class gives the same share, to the nearest image, to the test.

    Args:
        digits: frame with ``label`` and ``path``, and ``writer`` for ``by_writer``.
        test_fraction: share of the test images, above 0 and below 1.
        seed: draws the test images.
        by_writer: keep all images of a writer on one side. Writers are drawn until the test has its share; the classes'
            shares then are only about equal.

    A class of one image goes to training, with a warning; rows without a label are on neither side.

    Raises:
        ValueError: a share outside (0, 1), a missing column, or images without writer for ``by_writer``.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction} is not between 0 and 1")
    if by_writer:
        _need_label_and_path(digits)
        in_test = F.col("writer").isin(_writers_apart(digits, test_fraction, seed))
        labelled = digits.where(F.col("label").isNotNull())
        return labelled.where(~in_test), labelled.where(in_test)
    lots = _lots(digits, seed)
    if single := sorted(label for label, of in lots.items() if len(of) == 1):
        warnings.warn(f"class {', '.join(map(str, single))} has one image only, which goes to training", stacklevel=2)
    sizes = {label: min(max(round(len(of) * test_fraction), 1), len(of) - 1) for label, of in lots.items()}
    # below the first lot where a class of one gives the test nothing
    in_test = _up_to(seed, {label: int(of[sizes[label] - 1]) if sizes[label] else -1 for label, of in lots.items()})
    return digits.where(~in_test), digits.where(in_test)


def assign_folds(digits: DataFrame, folds: int = 5, seed: int = 42, by_writer: bool = True) -> DataFrame:
    """``digits`` with an int column ``fold``, 0 to ``folds`` - 1: what Spark's CrossValidator takes as ``foldCol``.

    Args:
        digits: frame with ``label`` and ``path``, and ``writer`` for ``by_writer``.
        folds: how many parts, of about equal size.
        seed: draws who goes where.
        by_writer: keep all images of a writer in one fold. Each class is spread over the folds about evenly: writers,
            those with most images first, go where there is least of the classes they wrote. Without it each class is
            spread to the nearest image.

    Rows without a label are left out.

    Raises:
        ValueError: fewer than 2 folds, a missing column, a column ``fold`` that is there already, images without writer
            for ``by_writer``, or too few writers or images.
    """
    if folds < 2:
        raise ValueError(f"folds={folds}: cross-validation takes 2 or more")
    if "fold" in digits.columns:
        raise ValueError("there is a column 'fold' already; drop it first")
    _need_label_and_path(digits)
    labelled = digits.where(F.col("label").isNotNull())
    if not by_writer:
        if (images := labelled.count()) < folds:
            raise ValueError(f"{images} images do not fill {folds} folds")
        place = F.row_number().over(Window.partitionBy("label").orderBy(_lot(seed), "path"))
        # the label in it, so that what is left over of each class does not all go into the first folds
        known = labelled.select("path", ((place + F.col("label")) % folds).cast("int").alias("fold"))
        return labelled.join(F.broadcast(known), "path").select(*digits.columns, "fold")
    counts = _writers_and_classes(digits)
    if len(counts) < folds:
        raise ValueError(f"{len(counts)} writers do not fill {folds} folds")
    lots = _writer_lots(counts.index, seed)
    filled = [counts.iloc[0] * 0 for _ in range(folds)]
    of_writer = {}
    for writer in sorted(counts.index, key=lambda w: (-counts.loc[w].sum(), lots[w])):
        # where the writer's classes are rarest; among equals where there is least, so that no fold stays empty
        fold = min(range(folds), key=lambda f: (int((counts.loc[writer] * filled[f]).sum()), int(filled[f].sum())))
        filled[fold] = filled[fold] + counts.loc[writer]
        of_writer[writer] = fold
    table = pd.DataFrame(sorted(of_writer.items()), columns=["writer", "fold"])  # a list would be a job of its own
    known = digits.sparkSession.createDataFrame(table, "writer string, fold int")
    return labelled.join(F.broadcast(known), "writer").select(*digits.columns, "fold")


def _writers_and_classes(digits: DataFrame) -> pd.DataFrame:
    """Number of images by writer (rows) and label (columns)."""
    if "writer" not in digits.columns:
        raise ValueError(f"by_writer needs a column 'writer'; the columns are {', '.join(digits.columns)}")
    table = (
        digits.where(F.col("label").isNotNull()).groupBy("writer", "label").count().toPandas().fillna({"writer": ""})
    )
    if (table["writer"] == "").any():
        unknown = int(table.loc[table["writer"] == "", "count"].sum())
        raise ValueError(f"by_writer needs to know who wrote each image, and {unknown} images have no writer")
    return table.pivot_table(index="writer", columns="label", values="count", fill_value=0).astype(int)


def _writer_lots(names: Iterable[str], seed: int) -> dict[str, str]:
    """What each name draws: sorted by it, they are in random order."""
    return {name: hashlib.sha256(f"{seed}\n{name}".encode()).hexdigest() for name in names}


def _writers_apart(digits: DataFrame, test_fraction: float, seed: int) -> list[str]:
    """The writers whose images are the test."""
    counts = _writers_and_classes(digits)
    wanted = counts.sum() * test_fraction
    lots = _writer_lots(counts.index, seed)
    taken = wanted * 0
    chosen = []
    for writer in sorted(counts.index, key=lots.get):
        # a writer joins the test where that brings the classes' counts nearer to what is wanted
        if ((taken + counts.loc[writer] - wanted) ** 2).sum() < ((taken - wanted) ** 2).sum():
            taken = taken + counts.loc[writer]
            chosen.append(writer)
    if not chosen or len(chosen) == len(counts):
        raise ValueError(
            f"{len(counts)} writers cannot be split so that the test gets about {test_fraction:.0%} of the images"
        )
    return chosen


# -- downloading -----------------------------------------------------------------------------------------------------


def download_numtadb() -> Path:
    """Download NumtaDB (about 1.7 GB) from Kaggle, or find it in kagglehub's cache; the folder for ``read_digits``.

    Raises:
        DownloadFailed: Kaggle cannot be reached, or what came is no NumtaDB.
    """
    import kagglehub
    from kagglehub.config import get_cache_folder
    from kagglehub.exceptions import DataCorruptionError

    help_ = (
        f"connect to the internet and try again, or download {KAGGLE_HANDLE} in a browser, unpack it and give its "
        "folder as DATA=…; the sample inside this project needs no download"
    )
    try:
        folder = Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    # OSError: no way there or a refusal; the others: something else answered, or the file came damaged
    except (OSError, ValueError, zipfile.BadZipFile, tarfile.TarError, DataCorruptionError) as problem:
        if not isinstance(problem, OSError):  # it came whole and is of no use; a part is gone on with the next time
            for archive in Path(get_cache_folder(), "datasets", KAGGLE_HANDLE).glob("*.archive"):
                archive.unlink()
        raise DownloadFailed(
            f"NumtaDB could not be downloaded from Kaggle ({type(problem).__name__}): {help_}"
        ) from problem
    try:
        list_digits(folder)
    except ValueError as problem:
        raise DownloadFailed(
            f"what Kaggle sent is not NumtaDB as this project knows it: {problem}; delete {folder} and try again"
        ) from problem
    return folder


def main() -> int:
    """``make data``."""
    try:
        folder = download_numtadb()
    except DownloadFailed as problem:
        print(problem)
        return 1
    print(f"NumtaDB is in {folder}\nType: make run DATA={folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
