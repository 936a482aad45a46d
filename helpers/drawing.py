"""Draw a digit: strokes become an image like the training images, a model reads it, and its nearest relatives show why.

Everything but the drawing board works without a mouse: a stroke is a list of (x, y) points, ``strokes_to_image`` makes
pixels of strokes, and ``DigitReader.read`` gives the probabilities and the nearest training digits. ``DrawingBoard``
only collects strokes (with ipycanvas, the browser's canvas as a Jupyter widget) and asks the reader.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw
from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame

from helpers.numtadb import ARROW_IMAGE, image_struct, read_file

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["Answer", "DigitReader", "DrawingBoard", "strokes_to_image"]

SIDE = 180  # px, as NumtaDB's scans
PAPER, INK = (222, 214, 225), (80, 62, 66)  # RGB: the paper of NumtaDB's source a, and a ballpoint
PEN = 5.0  # px, as wide as its strokes
_FINER = 4  # drawn this much larger, then averaged down: smooth edges

Stroke = Sequence[tuple[float, float]]


def strokes_to_image(strokes: Sequence[Stroke], side: int = SIDE, pen: float = PEN) -> np.ndarray:
    """The image of a drawn digit: uint8 (``side``, ``side``, 3), RGB, brown ink on lavender paper.

    Args:
        strokes: each a list of points (x, y) in pixels from the top left corner, joined in their order; one point is a
            dot. Parts outside the frame are cut off.
        side: height and width.
        pen: width of a stroke in pixels.

    Raises:
        ValueError: no point at all, or one that is no pair of finite numbers.
    """
    if not any(len(stroke) for stroke in strokes):
        raise ValueError("there is nothing drawn yet: give at least one stroke with one point")
    page = Image.new("L", (side * _FINER, side * _FINER), 0)
    brush, radius = ImageDraw.Draw(page), pen * _FINER / 2
    for stroke in strokes:
        try:
            points = np.array(stroke, np.float64).reshape(len(stroke), 2) * _FINER
        except (ValueError, TypeError) as problem:
            raise ValueError("a stroke is a list of points (x, y)") from problem
        if not np.isfinite(points).all():
            raise ValueError("a stroke has a point that is not finite")
        brush.line([tuple(point) for point in points.tolist()], fill=255, width=round(2 * radius))
        for x, y in points.tolist():  # round ends and joints
            brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    covered = np.asarray(page.resize((side, side), Image.Resampling.BOX), np.float64)[:, :, None] / 255
    return np.rint(covered * np.array(INK) + (1 - covered) * np.array(PAPER)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model makes of an image.

    ``image``: uint8 (h, w, 3), RGB, what was read. ``probabilities``: float64 (classes,). ``neighbours``: the training
    digits with the most similar features, nearest first: ``path``, ``label``, ``distance`` and ``image`` (Spark's image
    struct, ``None`` where its file is gone).
    """

    image: np.ndarray
    probabilities: np.ndarray
    neighbours: list[dict[str, Any]]

    @property
    def digit(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())


class DigitReader:
    """Reads one image with a pipeline and finds the training digits that resemble it most.

    Similar is who is near: the Euclidean distance between features, each divided by its standard deviation over the
    training digits (0: by 1), which is also how logistic regression's penalty sees them.

    Args:
        model: featurizer and classifier, with columns ``image``, ``features`` and ``probability``.
        known: features of the training digits: ``path``, ``label``, ``features`` (null: left out). They come to the
            driver, 4 bytes a number.
        root: folder of the data set, to show the training digits.

    Raises:
        ValueError: ``known`` has no features.
    """

    def __init__(self, model: PipelineModel, known: DataFrame, root: str | Path) -> None:
        self.model, self.root, self.spark = model, Path(root).expanduser(), known.sparkSession
        rows = known.where("features IS NOT NULL").orderBy("path")
        table = rows.select("path", "label", vector_to_array("features", "float32").alias("features")).toPandas()
        if table.empty:
            raise ValueError("there is no training digit with features to compare with")
        self._known = table[["path", "label"]]
        features = np.stack(table["features"].to_numpy())
        spread = features.std(axis=0)
        self._spread = np.where(spread > 0, spread, np.float32(1))
        self._places = features / self._spread

    def read(self, strokes: Sequence[Stroke], neighbours: int = 5) -> Answer:
        """A drawn digit, read: ``read_image(strokes_to_image(strokes))``."""
        return self.read_image(strokes_to_image(strokes), neighbours)

    def read_image(self, pixels: np.ndarray, neighbours: int = 5) -> Answer:
        """An image, read. ``pixels``: uint8 (h, w, 3), RGB. One Spark job of one row.

        Raises:
            ValueError: pixels of another shape or type.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"an image is uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}")
        image = pa.array([image_struct(Image.fromarray(pixels), "drawn")], ARROW_IMAGE)
        frame = self.spark.createDataFrame(pa.table({"image": image})).coalesce(1)
        read = self.model.transform(frame).select("features", "probability").first()
        distances = np.linalg.norm(self._places - read.features.toArray().astype(np.float32) / self._spread, axis=1)
        nearest = np.argsort(distances, kind="stable")[:neighbours]
        found = [
            {
                "path": self._known["path"][i],
                "label": int(self._known["label"][i]),
                "distance": float(distances[i]),
                "image": read_file(str(self.root / self._known["path"][i]))[0],
            }
            for i in nearest.tolist()
        ]
        return Answer(pixels, read.probability.toArray(), found)


# -- the widget --------------------------------------------------------------------------------------------------------


class DrawingBoard:
    """A canvas to draw on with mouse or finger; when the pen rests, ``reader`` reads what is there.

    Display ``board.widget``. The methods are what the mouse calls, in pixels of the canvas.

    Args:
        reader: reads the strokes.
        zoom: pixels of the canvas for one of the image.
        pause: seconds the pen must be up before the digit is read, so that a second stroke is not kept waiting.

    Raises:
        ModuleNotFoundError: ipycanvas is not installed; the message says what to type.
    """

    def __init__(self, reader: DigitReader, zoom: float = 1.6, pause: float = 0.6) -> None:
        try:
            import ipywidgets
            from ipycanvas import Canvas
        except ModuleNotFoundError as problem:
            raise ModuleNotFoundError(
                "the drawing board needs ipycanvas; type: python -m pip install ipycanvas, then reload the page"
            ) from problem
        self.reader, self.zoom, self.pause = reader, zoom, pause
        self.strokes: list[list[tuple[float, float]]] = []
        self.answer: Answer | None = None
        self._down = False
        self._due: asyncio.TimerHandle | None = None
        size = round(SIDE * zoom)
        fixed = ipywidgets.Layout(width=f"{size}px", height=f"{size}px")
        self.canvas = Canvas(width=size, height=size, layout=fixed)
        self.canvas.line_cap = self.canvas.line_join = "round"
        self.canvas.line_width = PEN * zoom
        self._picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(object_fit="contain"))
        self._says = ipywidgets.Label("Draw a digit.")
        wipe = ipywidgets.Button(description="Clear", icon="eraser")
        wipe.on_click(lambda _: self.clear())
        # the canvas keeps its size; what was read takes the room that the window leaves
        board = ipywidgets.VBox([self.canvas, ipywidgets.HBox([wipe, self._says])])
        board.layout = ipywidgets.Layout(flex="0 0 auto")
        shown = ipywidgets.Box([self._picture], layout=ipywidgets.Layout(flex="1 1 0", max_width="943px"))
        self.widget: ipywidgets.HBox = ipywidgets.HBox([board, shown])
        self.canvas.on_mouse_down(self.press)
        self.canvas.on_mouse_move(self.move)
        self.canvas.on_mouse_up(lambda x, y: self.release())
        self.canvas.on_mouse_out(lambda x, y: self.release())
        self.canvas.on_touch_start(lambda touches: self.press(*touches[0]))
        self.canvas.on_touch_move(lambda touches: self.move(*touches[0]))
        self.canvas.on_touch_end(lambda touches: self.release())
        self.canvas.on_touch_cancel(lambda touches: self.release())
        self.clear()

    def clear(self) -> None:
        """Empty paper."""
        self._not_yet()
        self.strokes, self._down, self.answer = [], False, None
        self.canvas.fill_style = "rgb({}, {}, {})".format(*PAPER)
        self.canvas.stroke_style = self._ink = "rgb({}, {}, {})".format(*INK)
        self.canvas.fill_rect(0, 0, self.canvas.width, self.canvas.height)
        self._show(b"", "Draw a digit.")

    def press(self, x: float, y: float) -> None:
        """The pen comes down."""
        self._not_yet()
        self._down = True
        self.strokes.append([(x / self.zoom, y / self.zoom)])
        self.canvas.fill_style = self._ink
        self.canvas.fill_circle(x, y, PEN * self.zoom / 2)

    def move(self, x: float, y: float) -> None:
        """The mouse moves; it draws only while the pen is down."""
        if not self._down:
            return
        stroke = self.strokes[-1]
        self.canvas.stroke_line(stroke[-1][0] * self.zoom, stroke[-1][1] * self.zoom, x, y)
        stroke.append((x / self.zoom, y / self.zoom))

    def release(self) -> None:
        """The pen goes up: what is drawn is read, after the pause where there is an event loop to wait in."""
        if not self._down:
            return
        self._down = False
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.read()
            return
        self._due = loop.call_later(self.pause, self.read)

    def read(self) -> None:
        """Read what is drawn and show it."""
        from matplotlib import pyplot as plt

        from helpers.plotting import reading

        self._says.value = "Reading …"
        try:
            self.answer = self.reader.read(self.strokes)
        except Exception as problem:  # what a callback raises goes to a log, where nobody looks
            self.answer = None
            reason = (str(problem).splitlines() or [""])[0][:100]
            self._show(b"", f"This could not be read; run the notebook again. {type(problem).__name__}: {reason}")
            return
        figure = reading(self.answer.image, self.answer.probabilities, self.answer.neighbours)
        held = io.BytesIO()
        figure.savefig(held, format="png")
        plt.close(figure)
        self._show(held.getvalue(), f"I read {self.answer.digit}.")

    def _show(self, png: bytes, text: str) -> None:
        self._picture.value, self._says.value = png, text
        self._picture.layout.visibility = "visible" if png else "hidden"  # a browser draws no picture as a broken one

    def _not_yet(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
