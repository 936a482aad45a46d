"""Drawing a digit without a mouse: strokes, pixels, what is read, who resembles it; then the board, by its events."""

import asyncio
import io

import numpy as np
import pytest
from conftest import FAST
from PIL import Image
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import types as T

from helpers.drawing import INK, PAPER, DigitReader, DrawingBoard, strokes_to_image
from helpers.featurizer import DeepImageFeaturizer
from helpers.numtadb import read_digits
from helpers.plotting import image_array


def shape(label: int, shift: float = 0) -> list[list[tuple[float, float]]]:
    """Strokes of three made-up digits: a bar, a ring, a cross."""
    x, y = 90 + shift, 88 - shift
    turns = np.linspace(0, 2 * np.pi, 40)
    ring = [(x + 40 * np.cos(t), y + 40 * np.sin(t)) for t in turns.tolist()]
    return [
        [[(x, y - 50), (x, y + 50)]],
        [ring],
        [[(x - 45, y - 45), (x + 45, y + 45)], [(x + 45, y - 45), (x - 45, y + 45)]],
    ][label]


# --- strokes ----------------------------------------------------------------------------------------------------------


def test_a_stroke_is_ink_on_paper():
    image = strokes_to_image([[(40, 90), (140, 90)]])
    assert image.shape == (180, 180, 3) and image.dtype == np.uint8
    assert image[90, 90].tolist() == list(INK) and image[0, 0].tolist() == list(PAPER)
    across = image[:, 90, 0].astype(float)
    assert ((PAPER[0] - across) / (PAPER[0] - INK[0])).sum() == pytest.approx(5, abs=0.5)  # as wide as the pen
    along = np.flatnonzero(image[90, :, 0] < 150)
    assert (along[0], along[-1]) == (pytest.approx(38, abs=1), pytest.approx(142, abs=1))  # with round ends


def test_strokes_are_not_joined_and_a_point_is_a_dot():
    image = strokes_to_image([[(30, 30), (60, 30)], [(120, 30), (150, 30)], [(90, 120)]])
    assert image[30, 90].tolist() == list(PAPER)
    assert image[120, 90].tolist() == list(INK)
    dot = ((PAPER[0] - image[100:, :, 0].astype(float)) / (PAPER[0] - INK[0])).sum()
    assert dot == pytest.approx(np.pi * 2.5**2, rel=0.15)


def test_size_pen_and_edges():
    image = strokes_to_image([[(-20, 10), (70, 10)]], side=50, pen=10)
    assert image.shape == (50, 50, 3)
    assert (image[10] == INK).all()
    assert (image[:, 25] == INK).all(axis=1).sum() in (9, 10, 11)


@pytest.mark.parametrize(
    ("strokes", "says"),
    [
        ([], "nothing drawn yet"),
        ([[]], "nothing drawn yet"),
        ([[(1, 2, 3)]], "points"),
        ([["ab"]], "points"),
        ([[(1, float("nan"))]], "not finite"),
    ],
)
def test_strokes_to_image_refuses(strokes, says):
    with pytest.raises(ValueError, match=says):
        strokes_to_image(strokes)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(spark, tmp_path_factory):
    """Trained on class folders with eight drawn images of each of the three shapes."""
    root = tmp_path_factory.mktemp("drawn")
    for label in range(3):
        (root / str(label)).mkdir()
        for number in range(8):
            image = Image.fromarray(strokes_to_image(shape(label, 3.0 * number - 10)))
            image.save(root / str(label) / f"{number}.png")
    featurizer = DeepImageFeaturizer(**FAST, outputCol="features")
    known = featurizer.transform(read_digits(root)).drop("image").coalesce(1).cache()
    return DigitReader(PipelineModel([featurizer, LogisticRegression(regParam=0.01).fit(known)]), known, root)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_what_is_drawn_is_read(reader, label):
    answer = reader.read(shape(label, 0.5), neighbours=4)
    assert (answer.image == strokes_to_image(shape(label, 0.5))).all()
    assert answer.probabilities.shape == (3,) and answer.probabilities.sum() == pytest.approx(1)
    assert answer.digit == label == answer.probabilities.argmax()
    assert [near["label"] for near in answer.neighbours] == [label] * 4
    distances = [near["distance"] for near in answer.neighbours]
    assert distances == sorted(distances) and distances[0] > 0
    assert reader.read(shape(label, 0.5), neighbours=4).neighbours == answer.neighbours


def test_a_training_digit_is_nearest_to_itself(reader):
    """Colours in their order, features by the same way: no distance at all."""
    answer = reader.read(shape(2, 3.0 * 5 - 10), neighbours=1)
    (nearest,) = answer.neighbours
    assert (nearest["path"], nearest["label"], nearest["distance"]) == ("2/5.png", 2, 0)
    assert (image_array(nearest["image"]) == answer.image).all()


def test_a_neighbour_whose_file_is_gone(reader, tmp_path):
    lost = DigitReader.__new__(DigitReader)
    lost.__dict__.update(reader.__dict__ | {"root": tmp_path})
    assert lost.read(shape(0)).neighbours[0]["image"] is None


def test_reader_refuses(reader, spark):
    with pytest.raises(ValueError, match="uint8"):
        reader.read_image(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="nothing drawn"):
        reader.read([])
    columns = [("path", T.StringType()), ("label", T.IntegerType()), ("features", VectorUDT())]
    nothing = spark.createDataFrame([], T.StructType([T.StructField(*column) for column in columns]))
    with pytest.raises(ValueError, match="no training digit"):
        DigitReader(reader.model, nothing, ".")


# --- the board --------------------------------------------------------------------------------------------------------


def mouse(board: DrawingBoard, event: str, x: float = 0, y: float = 0) -> None:
    """What the browser sends of the mouse."""
    board.canvas._handle_frontend_event(board.canvas, {"event": event, "x": x, "y": y}, [])


def finger(board: DrawingBoard, event: str, x: float = 0, y: float = 0) -> None:
    board.canvas._handle_frontend_event(board.canvas, {"event": event, "touches": [{"x": x, "y": y}]}, [])


def draw(board: DrawingBoard, strokes, say=mouse, names=("mouse_down", "mouse_move", "mouse_up")) -> None:
    down, move, up = names
    for (x, y), *rest in strokes:
        say(board, down, x * board.zoom, y * board.zoom)
        for x, y in rest:
            say(board, move, x * board.zoom, y * board.zoom)
        say(board, up, x * board.zoom, y * board.zoom)


@pytest.mark.parametrize(
    ("say", "names"),
    [(mouse, ("mouse_down", "mouse_move", "mouse_up")), (finger, ("touch_start", "touch_move", "touch_end"))],
    ids=["mouse", "finger"],
)
def test_the_board_reads_what_the_mouse_drew(reader, say, names):
    board = DrawingBoard(reader, zoom=3)
    assert (board.canvas.width, board.canvas.height) == (540, 540)
    say(board, names[1], 5, 5)  # the pen is not down yet
    assert board.strokes == []
    draw(board, shape(2), say, names)
    assert np.allclose(board.strokes, shape(2))
    assert (board.answer.image == strokes_to_image(shape(2))).all()
    assert board.answer.digit == 2
    assert board._says.value == "I read 2."
    shown = Image.open(io.BytesIO(board._picture.value))
    assert shown.format == "PNG" and shown.width > 600


def test_clear_begins_anew(reader):
    board = DrawingBoard(reader)
    draw(board, shape(2))
    (wipe,) = [part for part in board.widget.children[0].children[1].children if hasattr(part, "click")]
    wipe.click()
    assert (board.strokes, board.answer, board._picture.value) == ([], None, b"")
    draw(board, shape(0))
    assert board.answer.digit == 0


def test_leaving_the_canvas_lifts_the_pen(reader):
    board = DrawingBoard(reader, zoom=2)
    mouse(board, "mouse_down", 100, 100)
    mouse(board, "mouse_move", 150, 100)
    mouse(board, "mouse_out", 360, 100)
    mouse(board, "mouse_move", 10, 10)
    assert board.strokes == [[(50, 50), (75, 50)]]
    assert board.answer is not None


def test_a_second_stroke_does_not_wait_for_the_first_to_be_read(reader, monkeypatch):
    """In a notebook there is an event loop: one reading, when the pen has rested."""
    board = DrawingBoard(reader, pause=0.05)
    read, readings = reader.read, []
    monkeypatch.setattr(reader, "read", lambda strokes: readings.append(len(strokes)) or read(strokes))

    async def session():
        draw(board, shape(2))
        assert readings == [] and board.answer is None
        await asyncio.sleep(0.2)

    asyncio.run(session())
    assert readings == [2]
    assert board.answer.digit == 2


def test_the_board_says_when_it_cannot_read(reader, monkeypatch):
    """As after spark.stop(): a callback's error would go to a log."""

    def fail(strokes):
        raise RuntimeError("Spark has been stopped\nand so on")

    board = DrawingBoard(reader)
    draw(board, shape(0))
    monkeypatch.setattr(reader, "read", fail)
    draw(board, shape(1))
    assert board._says.value.endswith("run the notebook again. RuntimeError: Spark has been stopped")
    assert (board.answer, board._picture.value) == (None, b"")
