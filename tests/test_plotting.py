"""What the pictures show: texts, pixels, colours and number of parts."""

import itertools
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DoubleType, StructField, StructType
from sklearn.decomposition import PCA

from helpers import plotting
from helpers.evaluation import evaluate

DIGITS = "০১২৩৪৫৬৭৮৯"
IMAGE = "struct<origin:string,height:int,width:int,nChannels:int,mode:int,data:binary>"
SCHEMA = f"path string, label int, source string, image {IMAGE}, error string"
MODES = {1: 0, 3: 16, 4: 24}

# matplotlib only warns when no font has a glyph, and draws a box.
pytestmark = pytest.mark.filterwarnings("error:Glyph")


@pytest.fixture(autouse=True)
def _agg_and_no_open_figure():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def struct(rgb, origin="here"):
    """Spark's image struct of an RGB(A) or grey array (h, w[, channels])."""
    pixels = np.asarray(rgb, np.uint8)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    if channels > 1:
        pixels = np.concatenate([pixels[:, :, 2::-1], pixels[:, :, 3:]], axis=2)
    return {
        "origin": origin,
        "height": height,
        "width": width,
        "nChannels": channels,
        "mode": MODES[channels],
        "data": pixels.tobytes(),
    }


def picture(number, shape=(6, 5)):
    """A picture that no other number has."""
    return np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)


def row(number, **more):
    image = struct(picture(number))
    values = {"path": f"{number:03d}.png", "label": number % 3, "source": "ab"[number % 2], "image": image}
    return values | {"error": None} | more


def render(figure):
    """The figure's pixels, (h, w, 3) uint8."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def texts(figure):
    render(figure)
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def shown(figure):
    """The image array of each tile, None where it has none."""
    return [ax.images[0].get_array() if ax.images else None for ax in figure.axes]


def inside(figure):
    """Nothing of the drawing is cut off by the edge of the paper (a pixel of rounding is)."""
    render(figure)
    box, paper = figure.get_tightbbox(figure.canvas.get_renderer()), figure.get_size_inches()
    slack = 1 / figure.dpi
    assert box.x0 > -slack and box.y0 > -slack
    assert box.x1 < paper[0] + slack and box.y1 < paper[1] + slack


@pytest.fixture(scope="module")
def digits(spark):
    """Twelve images in an order that is not that of their paths; number 4 is broken."""
    rows = [row(number) for number in (7, 2, 9, 4, 0, 11, 5, 3, 10, 1, 8, 6)]
    rows[3] |= {"image": None, "error": "truncated file"}
    return spark.createDataFrame(rows, SCHEMA).repartition(3).cache()


@pytest.fixture(scope="module")
def evaluation(spark):
    """Ten classes, 4 images each; the first of class 0 is read as 7, the first of 3 as 5."""
    truth = np.repeat(np.arange(10), 4)
    predicted = truth.copy()
    predicted[0], predicted[12] = 7, 5
    vectors = 0.05 + np.eye(10)[predicted] * np.linspace(0.3, 0.9, 40)[:, None]
    vectors /= vectors.sum(1, keepdims=True)
    rows = [(int(t), float(p), Vectors.dense(v)) for t, p, v in zip(truth, predicted, vectors, strict=True)]
    return evaluate(spark.createDataFrame(rows, ["label", "prediction", "probability"]))


# --- digits and colours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "text"), [(0, "০"), (7.0, "৭"), (np.int64(9), "৯"), (1234, "১২৩৪")])
def test_bengali(label, text):
    assert plotting.bengali(label) == text


@pytest.mark.parametrize("label", [-1, 1.5, float("nan")])
def test_bengali_refuses(label):
    with pytest.raises(ValueError, match="no class number"):
        plotting.bengali(label)


def test_digits_have_glyphs():
    """Ten different shapes, and not the box that the same text gives without the font."""

    def ink(text, family):
        figure = Figure(figsize=(1, 1))
        figure.text(0.2, 0.2, text, fontsize=40, fontfamily=family)
        matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
        return render(figure).copy()

    drawn = [ink(digit, plotting._STYLE["font.family"]) for digit in DIGITS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        box = ink(DIGITS[0], ["DejaVu Sans"])
    assert all((one < 128).any() for one in drawn)
    for one, other in itertools.combinations([*drawn, box], 2):
        assert (one != other).any()
    with pytest.raises(UserWarning, match="Glyph"):
        ink(DIGITS[0], ["DejaVu Sans"])


def test_font_comes_from_the_package():
    assert "fontpkg_hind_siliguri" in font_manager.findfont("Hind Siliguri", fallback_to_default=False)


def test_readers_settings_stay():
    before = dict(plt.rcParams)
    plotting.loss_curve({"a": [2.0, 1.0]})
    assert dict(plt.rcParams) == before


def lab(rgb):
    """CIE 1976 L*a*b* of linear sRGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(xyz / np.array([0.9505, 1, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# G. M. Machado, M. M. Oliveira, L. A. F. Fernandes (2009), "A physiologically-based model for simulation of color
# vision deficiency", IEEE TVCG 15 (6), severity 1.0.
SIGHT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_differ_to_the_colour_blind(sight):
    """CIE 1976 difference, of which about 2 is the least one sees; ten is told apart in a thin line."""

    def nearest(colours):
        linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in map(np.asarray, colours)]
        seen = [lab(np.clip(np.array(SIGHT[sight]) @ colour, 0, 1)) for colour in linear]
        return min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))

    assert nearest(plotting._COLOURS) > 10 > nearest([to_rgb("#1f77b4"), to_rgb("#1f78b0")])


# --- images -----------------------------------------------------------------------------------------------------------


def test_image_array_is_rgb():
    pixels = picture(1)
    assert (plotting.image_array(struct(pixels)) == pixels).all()
    assert plotting.image_array(struct(pixels)).dtype == np.uint8


def test_image_array_of_grey():
    grey = picture(2)[..., 0]
    assert (plotting.image_array(struct(grey)) == np.stack([grey] * 3, axis=2)).all()


def test_image_array_drops_alpha_as_the_featurizer_does():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]])
    assert plotting.image_array(struct(pixels)).tolist() == [[[10, 20, 30], [10, 20, 30], [0, 100, 200]]]


def test_image_array_refuses():
    with pytest.raises(ValueError, match=r"x\.png holds 89 bytes, but 6 × 5 pixels of 3 channels need 90"):
        image = struct(picture(1), "x.png")
        plotting.image_array(image | {"data": image["data"][:-1]})
    with pytest.raises(ValueError, match="has 2 channels"):
        plotting.image_array(struct(picture(1)) | {"nChannels": 2})


def test_contact_sheet_of_a_frame_goes_by_path(digits):
    figure = plotting.contact_sheet(digits, columns=4, limit=7, title="Seven")
    tiles = shown(figure)
    assert len(tiles) == 7
    for number, tile in enumerate(tiles):
        if number != 4:
            assert (tile == picture(number)).all()
    assert tiles[4] is None
    assert [ax.get_title() for ax in figure.axes] == [f"{DIGITS[n % 3]} {n % 3}" for n in range(7)]
    # Four in a row, then three below the first three.
    places = [ax.get_position() for ax in figure.axes]
    assert len({round(place.y0, 6) for place in places}) == 2
    assert places[4].x0 == pytest.approx(places[0].x0)
    assert "Seven" in texts(figure)
    inside(figure)


def test_broken_image_is_marked_with_its_reason(digits):
    figure = plotting.contact_sheet(digits, limit=5)
    ax = figure.axes[4]
    assert " ".join(ax.texts[0].get_text().split()) == "truncated file"
    assert next(patch.get_hatch() for patch in ax.patches if isinstance(patch, Rectangle)) == "///"
    assert not figure.axes[0].texts


def test_spark_image_sources_broken_image():
    image = {"origin": "x", "height": -1, "width": -1, "nChannels": -1, "mode": -1, "data": b""}
    figure = plotting.contact_sheet([row(1), {"image": image}, image])
    assert [tile is None for tile in shown(figure)] == [False, True, True]
    assert figure.axes[1].texts[0].get_text() == "no image"


def test_contact_sheet_by_class(digits):
    figure = plotting.contact_sheet(digits, columns=3, by_class=True)
    # Labels are number % 3: the first three paths of each.
    numbers = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    for number, tile in zip(numbers, shown(figure), strict=True):
        assert number == 4 if tile is None else (tile == picture(number)).all()
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["০ 0", "১ 1", "২ 2"]
    inside(figure)


def test_contact_sheet_of_rows_keeps_their_order():
    figure = plotting.contact_sheet([row(3), row(1)], titles=["three", "one"])
    assert [ax.get_title() for ax in figure.axes] == ["three", "one"]
    assert (shown(figure)[0] == picture(3)).all()


def test_contact_sheet_without_path(digits):
    """As Spark's image source gives it: the file's name is inside the struct."""
    frame = digits.where("image is not null").select(F.col("image").withField("origin", F.col("path")).alias("image"))
    assert (shown(plotting.contact_sheet(frame, limit=2))[1] == picture(1)).all()


def test_contact_sheet_draws_the_pixels():
    """The tile on the paper has the image's colour, not its blue and red exchanged."""
    figure = plotting.contact_sheet([{"image": struct(np.full((20, 20, 3), (200, 30, 60)))}])
    box = figure.axes[0].get_window_extent()
    paper = render(figure)
    middle = paper[int(paper.shape[0] - (box.y0 + box.y1) / 2), int((box.x0 + box.x1) / 2)]
    assert middle.tolist() == [200, 30, 60]


def test_contact_sheet_refuses(digits):
    with pytest.raises(ValueError, match="no image to draw"):
        plotting.contact_sheet(digits.where("false"))
    with pytest.raises(ValueError, match="1 titles for 2 images"):
        plotting.contact_sheet([row(1), row(2)], titles=["a"])
    with pytest.raises(ValueError, match="no column 'image'"):
        plotting.contact_sheet(digits.drop("image"))
    with pytest.raises(ValueError, match="columns is 0"):
        plotting.contact_sheet(digits, columns=0)


# Truth, prediction, probability of the prediction; in the order in which the sheet shows them.
SHEET = [(1, 2, 0.9), (0, 2, 0.6), (2, 0, 0.6), (0, 0, 0.5), (1, 1, 0.8), (2, 2, 0.95)]


def prediction_rows():
    rows = []
    for number, (truth, guess, sure) in enumerate(SHEET):
        vector = [(1 - sure) / 2] * 3
        vector[guess] = sure
        rows.append(row(number, label=truth, prediction=float(guess), probability=Vectors.dense(vector)))
    return [rows[i] for i in (3, 0, 5, 2, 4, 1)]


def predicted_frame(spark, rows):
    more = [StructField("prediction", DoubleType()), StructField("probability", VectorUDT())]
    return spark.createDataFrame(rows, StructType([*DataType.fromDDL(SCHEMA).fields, *more]))


def sheet_is_right(figure, count):
    assert len(figure.axes) == count
    for number, (ax, (truth, guess, sure)) in enumerate(zip(figure.axes, SHEET, strict=False)):
        assert (ax.images[0].get_array() == picture(number)).all()
        said, right = f"{DIGITS[guess]} {guess}", truth == guess
        caption = f"✓ {said}" if right else f"✗ {said}, not {DIGITS[truth]} {truth}"
        assert ax.get_title() == f"{caption}\np = {sure:.2f}"
        width = ax.spines["left"].get_linewidth()
        assert width < 2 if right else width > 3
        colour = plotting._RIGHT if right else plotting._WRONG
        assert to_rgb(ax.spines["left"].get_edgecolor()) == pytest.approx(colour)
    assert "3 of 6 images read wrongly, errors first" in texts(figure)
    inside(figure)


def test_predictions_sheet_of_rows():
    sheet_is_right(plotting.predictions_sheet(prediction_rows()), 6)


def test_predictions_sheet_of_a_frame(spark):
    """A row without a prediction is no error, and it is not shown."""
    vector = Vectors.dense([0, 0, 1])
    rows = [*prediction_rows(), row(6, label=2, prediction=None, probability=vector)]
    frame = predicted_frame(spark, rows).repartition(2)
    sheet_is_right(plotting.predictions_sheet(frame, n=5), 5)
    assert len(plotting.predictions_sheet(frame, n=20).axes) == 6


def test_predictions_sheet_fetches_images(spark, digits):
    """Predictions on stored features have no images."""
    rows = [one | {"path": {"004.png": "007.png"}.get(one["path"], one["path"])} for one in prediction_rows()]
    frame = predicted_frame(spark, rows).drop("image", "error", "source")
    sheet_is_right(plotting.predictions_sheet(frame, images=digits, n=4), 4)
    missing = plotting.predictions_sheet(frame, images=digits.where("path != '000.png'"), n=1)
    assert missing.axes[0].texts[0].get_text().split() == ["image", "not", "found"]


def test_predictions_sheet_runs_the_network_once(spark, digits):
    """Each image goes once through the Python function that stands for the network."""
    counter = spark.sparkContext.accumulator(0)

    @F.udf("double")
    def network(label):
        counter.add(1)
        return float(label)

    frame = digits.withColumn("prediction", network("label"))
    frame = frame.withColumn("probability", F.array(*[(F.col("prediction") == c).cast("double") for c in range(3)]))
    figure = plotting.predictions_sheet(frame, n=5)
    assert len(figure.axes) == 5
    assert "0 of 12 images read wrongly" in texts(figure)
    assert counter.value == 12


def test_predictions_sheet_without_errors():
    rows = [one for one in prediction_rows() if one["label"] == one["prediction"]]
    figure = plotting.predictions_sheet([one | {"probability": None} for one in rows])
    assert "0 of 3 images read wrongly" in texts(figure)
    assert figure.axes[0].get_title() == "✓ ০ 0"


def test_predictions_sheet_refuses(digits):
    with pytest.raises(ValueError, match="no column 'prediction'"):
        plotting.predictions_sheet(digits)
    with pytest.raises(ValueError, match="pass images="):
        plotting.predictions_sheet(digits.drop("image").withColumn("prediction", F.lit(1.0)))
    with pytest.raises(ValueError, match="no prediction to draw"):
        plotting.predictions_sheet([])
    with pytest.raises(ValueError, match="no prediction to draw"):
        plotting.predictions_sheet(digits.withColumn("prediction", F.lit(1.0)).where("false"))


def test_network_view():
    seen = np.linspace(-1, 1, 4 * 4 * 3).reshape(4, 4, 3)
    figure = plotting.network_view(struct(picture(1, (8, 6))), seen)
    top, bottom = shown(figure)
    assert (top == picture(1, (8, 6))).all()
    assert (bottom == np.rint((seen + 1) * 127.5)).all()
    assert [ax.get_title() for ax in figure.axes] == ["6 × 8 px", "4 × 4 px"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["original", "seen by the network"]
    inside(figure)


def test_network_view_of_several():
    originals, seen = [picture(n) for n in range(3)], np.stack([picture(n, (4, 4)) for n in range(3)]).astype(float)
    tiles = shown(plotting.network_view(originals, seen))
    assert len(tiles) == 6
    assert (tiles[2] == picture(2)).all()
    assert (tiles[5] == seen[2]).all()
    with pytest.raises(ValueError, match="3 originals and 1 seen"):
        plotting.network_view(originals, picture(1))
    with pytest.raises(ValueError, match="from -120 to 100"):
        plotting.network_view(picture(1), np.array([[[-120.0, 0, 100]]]))


def test_filters():
    kernel = np.zeros((3, 3, 3, 5), np.float32)
    kernel[0, 1, 0, 2], kernel[2, 2, 1, 2] = 4, -2
    tiles = shown(plotting.filters(kernel, columns=2))
    assert len(tiles) == 5
    assert (tiles[0] == 0.5).all()  # all weights 0, no division by it
    assert tiles[2][0, 1].tolist() == [1, 0.5, 0.5]  # red adds
    assert tiles[2][2, 2].tolist() == [0.5, 0.25, 0.5]  # green takes half as much away
    assert [tile.shape for tile in shown(plotting.filters(np.ones((3, 3, 1, 2))))] == [(3, 3, 3)] * 2
    with pytest.raises(ValueError, match=r"shape \(3, 3, 8, 2\)"):
        plotting.filters(np.ones((3, 3, 8, 2)))


def test_feature_maps():
    activations = np.random.default_rng(0).normal(size=(4, 5, 10)).astype(np.float32)
    figure = plotting.feature_maps(activations, limit=6, columns=4)
    for channel, (ax, tile) in enumerate(zip(figure.axes, shown(figure), strict=True)):
        assert np.allclose(tile, activations[..., channel])
        assert ax.images[0].get_clim() == pytest.approx((tile.min(), tile.max()))
        assert ax.images[0].get_cmap().name == "viridis"
    assert len(figure.axes) == 6
    assert "6 of 10 channels, 5 × 4 values each, each on its own scale" in texts(figure)
    single = plotting.feature_maps(activations[:1, :1])
    limits = {ax.images[0].get_clim() for ax in single.axes}
    assert limits == {(activations[0, 0].min(), activations[0, 0].max())} and "own scale" not in " ".join(texts(single))
    with pytest.raises(ValueError, match="1 titles for 10 maps"):
        plotting.feature_maps(activations, titles=["a"])
    with pytest.raises(ValueError, match="one image"):
        plotting.feature_maps(activations[None])


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spark", "pandas"])
def test_class_balance(digits, kind):
    frame = digits if kind == "spark" else digits.select("label", "source").toPandas()
    figure = plotting.class_balance(frame)
    (ax,) = figure.axes
    # Numbers 0–11, label n % 3, source n % 2: two of each pair.
    assert [[bar.get_height() for bar in stack] for stack in ax.containers] == [[2, 2, 2], [2, 2, 2]]
    assert [bar.get_y() for bar in ax.containers[1]] == [2, 2, 2]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["০ 0", "১ 1", "২ 2"]
    assert [text.get_text() for text in ax.texts] == ["4", "4", "4"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["b (6)", "a (6)"]
    first, second = (stack[0] for stack in ax.containers)
    assert first.get_facecolor() != second.get_facecolor()
    assert first.get_hatch() != second.get_hatch()  # told apart without colour
    assert ax.get_xlabel() == "digit"
    inside(figure)


def test_class_balance_of_gaps():
    """A source that lacks a class, a row without a label, and labels in the order of their numbers."""
    frame = pd.DataFrame({"label": [10, 2, 2, None], "source": ["a", "a", "b", "b"]})
    (ax,) = plotting.class_balance(frame).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["২ 2", "১০ 10", "?"]
    assert [[bar.get_height() for bar in stack] for stack in ax.containers] == [[1, 1, 0], [1, 0, 1]]
    with pytest.raises(ValueError, match="no column 'source'"):
        plotting.class_balance(frame[["label"]])
    with pytest.raises(ValueError, match="no rows"):
        plotting.class_balance(frame[:0])


def test_confusion_matrix(evaluation):
    figure = plotting.confusion_matrix(evaluation)
    counts, rates = figure.axes[:2]
    drawn = [ax.collections[0].get_array().reshape(10, 10) for ax in (counts, rates)]
    assert (drawn[0] == evaluation.confusion).all()
    assert (drawn[1] == evaluation.confusion / 4).all()
    said = [[text.get_text() for text in ax.texts] for ax in (counts, rates)]
    assert said[0][0] == "3" and said[0][7] == "1" and said[0][35] == "1"
    assert said[1][0] == "0.75" and said[1][7] == "0.25" and said[1][11] == "1.00"
    for ax in (counts, rates):
        assert [label.get_text() for label in ax.get_xticklabels()] == [f"{d} {n}" for n, d in enumerate(DIGITS)]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted digit", "true digit")
        # Row 0 is at the top, and a fuller cell is darker.
        assert ax.get_ylim() == (10, 0)
        shades = ax.collections[0].get_facecolors()[:, :3].sum(axis=1)
        assert shades[11] < shades[0] < shades[7] < shades[1]
    assert f"40 images, accuracy {evaluation.accuracy:.3f}" in texts(figure)
    inside(figure)


@pytest.mark.parametrize(("normalize", "title"), [(False, "Counts"), (True, "Rates")])
def test_one_confusion_matrix(evaluation, normalize, title):
    figure = plotting.confusion_matrix(evaluation, normalize=normalize)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == [title]


def test_confusion_matrix_of_a_class_without_images(spark):
    frame = spark.createDataFrame([(0, 0.0, [1.0, 0.0]), (0, 1.0, [0.0, 1.0])], ["label", "prediction", "probability"])
    (ax, _) = plotting.confusion_matrix(evaluate(frame), normalize=True).axes
    assert sorted(text.get_text() for text in ax.texts) == ["0.50", "0.50", "–", "–"]


def test_roc_curves(evaluation):
    figure = plotting.roc_curves(evaluation)
    soft, hard = figure.axes
    assert soft.get_title() == f"From probabilities, mean area {evaluation.roc_auc:.3f}"
    assert hard.get_title() == f"From predicted labels, mean area {evaluation.roc_auc_hard:.3f}"
    for ax, from_labels in ((soft, False), (hard, True)):
        lines = {line.get_label(): line for line in ax.lines}
        for label, curve in evaluation.roc_curves(from_labels).items():
            assert (lines[str(label)].get_xdata() == curve.false_positive_rate).all()
            assert (lines[str(label)].get_ydata() == curve.true_positive_rate).all()
        assert np.trapezoid(lines["mean"].get_ydata(), lines["mean"].get_xdata()) == pytest.approx(
            evaluation.roc_auc_hard if from_labels else evaluation.roc_auc
        )
        looks = {(to_rgb(lines[str(label)].get_color()), lines[str(label)].get_linestyle()) for label in range(10)}
        assert len(looks) == 10
        assert len(ax.child_axes) == 1  # the corner, enlarged
    legend = [text.get_text() for text in hard.get_legend().get_texts()]
    areas = evaluation.roc_curves()[3].area, evaluation.roc_curves(True)[3].area
    assert legend[3] == f"{areas[0]:.3f}   {areas[1]:.3f}   ৩ 3"
    assert legend[10] == f"{evaluation.roc_auc:.3f}   {evaluation.roc_auc_hard:.3f}   mean"
    inside(figure)


def test_roc_curves_without_labels(evaluation):
    (ax,) = plotting.roc_curves(evaluation, hard=False).axes
    assert ax.get_legend().get_texts()[3].get_text() == f"{evaluation.roc_curves()[3].area:.3f}   ৩ 3"


def test_roc_curves_of_one_class(spark):
    frame = spark.createDataFrame([(0, 0.0, [1.0])], ["label", "prediction", "probability"])
    assert "no curve: the frame\nholds only one class" in texts(plotting.roc_curves(evaluate(frame)))


@pytest.fixture(scope="module")
def clusters():
    """Three groups of 20 points in 12 dimensions, far apart."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 3, 8], 20)
    return rng.normal(size=(60, 12)) + 12 * np.eye(12)[labels], labels


def test_projection_by_pca(clusters):
    features, labels = clusters
    figure = plotting.projection([Vectors.dense(one) for one in features], labels)
    (ax,) = figure.axes
    expected = PCA(2).fit_transform(features)
    for group, label in zip(ax.collections, (0, 3, 8), strict=True):
        assert np.allclose(np.abs(group.get_offsets()), np.abs(expected[labels == label]))
    # Each class has the outline of its own digit, centred on its point.
    outlines = [group.get_paths()[0] for group in ax.collections]
    assert len({len(outline.vertices) for outline in outlines}) == 3
    for outline in outlines:
        box = outline.get_extents()
        assert (box.x0 + box.x1, box.y0 + box.y1) == pytest.approx((0, 0), abs=0.02)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "3", "8"]
    assert ax.get_xlabel().startswith("component 1 (") and "% of the variance" in ax.get_xlabel()
    inside(figure)


def test_projection_by_tsne(clusters):
    features, labels = clusters
    one, again = (plotting.projection(features, labels, "tsne", seed=3) for _ in range(2))
    groups = [group.get_offsets() for group in one.axes[0].collections]
    for first, second in zip(groups, again.axes[0].collections, strict=True):
        assert (first == second.get_offsets()).all()
    # Groups that lie far apart stay apart.
    middles = [group.mean(axis=0) for group in groups]
    spread = max(np.linalg.norm(group - middle, axis=1).max() for group, middle in zip(groups, middles, strict=True))
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(middles, 2)) > spread
    assert "t-SNE of 12 features" in one.axes[0].get_title()


def test_projection_refuses(clusters):
    features, labels = clusters
    with pytest.raises(ValueError, match="'umap'"):
        plotting.projection(features, labels, "umap")
    with pytest.raises(ValueError, match="59 labels"):
        plotting.projection(features, labels[1:])


def test_accuracy_by_layer():
    table = pd.DataFrame(
        {
            "layer": ["mixed2", "mixed2", "mixed10", "mixed10"],
            "weights": ["random", "glyphs", "random", "glyphs"],
            "accuracy": [0.4, 0.95, 0.5, 0.9],
            "error": [0.02, 0.01, 0.03, 0.02],
        }
    )
    figure = plotting.accuracy_by_layer(table, chance=0.1)
    (ax,) = figure.axes
    bars = [box for box in ax.containers if hasattr(box, "patches")]
    assert [[bar.get_height() for bar in group] for group in bars] == [[0.4, 0.5], [0.95, 0.9]]
    assert [group.errorbar is not None for group in bars] == [True, True]
    assert bars[0][0].get_hatch() != bars[1][0].get_hatch()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["mixed2", "mixed10"]
    assert [text.get_text() for text in ax.texts] == ["0.40", "0.50", "0.95", "0.90"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["random", "glyphs", "guessing (0.10)"]
    assert ax.get_ylim()[0] == 0
    inside(figure)
    with pytest.raises(ValueError, match="'mixed2' with 'random' occurs twice"):
        plotting.accuracy_by_layer(pd.concat([table, table]))


def test_accuracy_of_networks():
    """One bar each, other names, a missing value, no error bars and no legend."""
    table = pd.DataFrame({"network": ["InceptionV3", "VGG16"], "accuracy": [0.8, np.nan]})
    (ax,) = plotting.accuracy_by_layer(table, x="network").axes
    assert [text.get_text() for text in ax.texts] == ["0.80"]
    assert ax.get_legend() is None
    with pytest.raises(ValueError, match="no column 'layer'"):
        plotting.accuracy_by_layer(table)


def test_loss_curve():
    long = list(np.geomspace(2.3, 0.2, 60))
    figure = plotting.loss_curve({"article": [2.3, 1.8, 1.65], "converged": long}, log=True)
    (ax,) = figure.axes
    short, other = ax.lines
    assert short.get_xydata().tolist() == [[0, 2.3], [1, 1.8], [2, 1.65]]
    assert other.get_ydata().tolist() == long
    assert short.get_linestyle() != other.get_linestyle()
    assert short.get_marker() != other.get_marker()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["article: 1.65 after 2 iterations", "converged: 0.2 after 59 iterations"]
    assert ax.get_yscale() == "log"
    inside(figure)
    with pytest.raises(ValueError, match="history is empty"):
        plotting.loss_curve({"a": []})


def grid_table():
    """Two poolings, two layers, two sizes; the best is the lowest but one cell is missing."""
    rows = [(p, ly, s) for p in ("avg", "max") for ly in ("mixed4", "mixed2") for s in (96, 75)]
    table = pd.DataFrame(rows, columns=["pooling", "layer", "size"]).assign(score=[4, 3, 2, 1, 8, 7, 6, 5])
    return table.assign(score=table["score"] / 10)


def test_search_heatmap():
    table = grid_table()
    figure = plotting.search_heatmap(table[:-1], "size", "layer", "pooling", label="log loss", lower_is_better=True)
    one, other, bar = figure.axes
    assert (one.get_title(), other.get_title(), bar.get_ylabel()) == ("pooling: avg", "pooling: max", "log loss")
    assert [text.get_text() for text in one.texts] == ["0.400", "0.300", "0.200", "0.100"]
    assert [text.get_text() for text in other.texts] == ["0.800", "0.700", "0.600"]
    assert [text.get_text() for text in one.get_xticklabels()] == ["96", "75"], "the order of the table"
    assert [text.get_text() for text in one.get_yticklabels()] == ["mixed4", "mixed2"]
    shades = one.collections[0].get_facecolors()[:, :3].sum(axis=1)
    assert shades[3] < shades[2] < shades[1] < shades[0], "better is darker"
    assert shades[0] < other.collections[0].get_facecolors()[0, :3].sum(), "one scale for all panels"
    (frame,) = [part for part in one.patches if isinstance(part, Rectangle)]
    assert frame.get_xy() == (1, 1) and not other.patches
    inside(figure)
    (ax, _) = plotting.search_heatmap(table[:4], "size", "layer").axes
    assert ax.patches[0].get_xy() == (0, 0), "now more is better"
    with pytest.raises(ValueError, match="the cell mixed4, 96 occurs twice"):
        plotting.search_heatmap(table, "size", "layer")
    with pytest.raises(ValueError, match="no column 'network'"):
        plotting.search_heatmap(table, "size", "network")
    with pytest.raises(ValueError, match="no rows"):
        plotting.search_heatmap(table[:0], "size", "layer")


def test_search_dots():
    grid = grid_table().assign(regParam=0.03, search="grid")
    drawn = grid_table()[:3].assign(regParam=[0.001, 0.01, 0.5], search="random")
    figure = plotting.search_dots(pd.concat([grid, drawn]), ["regParam", "size", "layer"], label="log loss")
    reg, _, layer = figure.axes
    assert [ax.get_xscale() for ax in figure.axes] == ["log", "linear", "linear"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["regParam", "size", "layer"] and reg.get_ylabel() == "log loss"
    first, second = reg.collections
    assert len(first.get_offsets()) == 8
    assert second.get_offsets().tolist() == [[0.001, 0.4], [0.01, 0.3], [0.5, 0.2]]
    assert first.get_paths()[0].vertices.shape != second.get_paths()[0].vertices.shape, "another marker"
    assert [text.get_text() for text in layer.get_xticklabels()] == ["mixed4", "mixed2"]
    places = [set(dots.get_offsets()[:, 0].round(6)) for dots in layer.collections]
    assert not places[0] & places[1] and max(places[0]) - min(places[0]) == 1
    assert [text.get_text() for text in layer.get_legend().get_texts()] == ["grid", "random"]
    inside(figure)
    assert plotting.search_dots(grid.drop(columns="search"), ["size"]).axes[0].get_legend() is None
    assert {ax.get_yscale() for ax in figure.axes} == {"linear"}
    assert plotting.search_dots(grid, ["size"], log=True).axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="nothing to draw"):
        plotting.search_dots(grid, [])
    with pytest.raises(ValueError, match="no column 'pool'"):
        plotting.search_dots(grid, ["pool"])


def test_learning_curve():
    table = pd.DataFrame(
        {
            "images per class": [40, 5, 10, 1000],
            "accuracy": [0.98, 0.8, 0.9, 0.97],
            "spread": [0.01, 0.05, 0.02, np.nan],
            "data set": ["drawn", "drawn", "drawn", "real"],
        }
    )
    figure = plotting.learning_curve(table)
    (ax,) = figure.axes
    drawn, real = ax.lines
    assert drawn.get_xydata().tolist() == [[5, 0.8], [10, 0.9], [40, 0.98]] and real.get_xydata().tolist() == [
        [1000, 0.97]
    ]
    assert drawn.get_linestyle() != real.get_linestyle() and drawn.get_marker() != real.get_marker()
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.75) and band[:, 1].max() == pytest.approx(0.99)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["5", "10", "40", "1000"] and ax.get_xscale() == "log"
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["drawn: 0.980 at 40", "real: 0.970 at 1000"]
    inside(figure)
    assert plotting.learning_curve(table[["images per class", "accuracy"]][:3]).axes[0].get_legend() is None
    wide = plotting.learning_curve(table.assign(spread=0.2)).axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert wide.min() == pytest.approx(0.6) and wide.max() == 1, "no accuracy is above 1"
    with pytest.raises(ValueError, match="no rows"):
        plotting.learning_curve(table[:0])
    with pytest.raises(ValueError, match="no column 'images'"):
        plotting.learning_curve(table, x="images")


def test_splits_chart():
    scores = pd.DataFrame({"grid": [0.1, 0.3, 0.2], "random": [0.2, 0.2, 0.5]})
    figure = plotting.splits_chart(scores, label="log loss")
    (ax,) = figure.axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.1, 0.2], [0.3, 0.2], [0.2, 0.5]]
    means = [segment[0, 1] for segment in ax.collections[0].get_segments()]
    assert means == pytest.approx([0.2, 0.3])
    assert [text.get_text() for text in ax.texts] == ["0.200", "0.300"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["grid", "random"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one split", "mean"]
    assert ax.get_title() == "log loss over 3 splits"
    inside(figure)
    with pytest.raises(ValueError, match="no scores"):
        plotting.splits_chart(scores[:0])


def test_inline_backend():
    """Jupyter's own backend saves with tight borders; digits come out there too."""
    pytest.importorskip("matplotlib_inline")
    plt.switch_backend("module://matplotlib_inline.backend_inline")
    figure = plotting.contact_sheet([row(1), row(2)])
    from IPython.core.pylabtools import print_figure

    assert print_figure(figure, fmt="png", base64=False).startswith(b"\x89PNG")


# --- harder digits ----------------------------------------------------------------------------------------------------


def test_distortion_sheet(spark):
    rows = [
        {"distortion": name, "severity": severity, "image": struct(picture(10 * line + column))}
        for line, name in enumerate(["rotation", "blur"])
        for column, severity in enumerate([0.0, 0.5, 1.0])
    ]
    figure = plotting.distortion_sheet(rows[::-1], title="One digit")
    tiles = {(ax.get_position().y0, ax.get_position().x0): ax for ax in figure.axes}
    places = [tiles[place] for place in sorted(tiles, key=lambda place: (-place[0], place[1]))]
    # The first row's line is on top, and severity rises to the right, whatever the order of rows.
    wanted = [picture(10 * line + column) for line in (1, 0) for column in range(3)]
    assert all((ax.images[0].get_array() == image).all() for ax, image in zip(places, wanted, strict=True))
    assert sorted(ax.get_title() for ax in figure.axes if ax.get_title()) == ["0", "0.5", "1"]
    assert {ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()} == {"rotation", "blur"}
    inside(figure)
    frame = spark.createDataFrame(rows, f"distortion string, severity double, image {IMAGE}")
    by_name = plotting.distortion_sheet(frame)
    assert [ax.get_ylabel() for ax in by_name.axes if ax.get_ylabel()] == ["blur", "rotation"]
    with pytest.raises(ValueError, match="two images of one severity"):
        plotting.distortion_sheet([*rows, rows[0]])
    with pytest.raises(ValueError, match="no column 'severity'"):
        plotting.distortion_sheet([{"distortion": "blur", "image": None}])
    with pytest.raises(ValueError, match="no image to draw"):
        plotting.distortion_sheet([])


def test_reading():
    chances = np.full(10, 0.02)
    chances[3] = 0.82
    drawn, near = picture(1, (18, 18)), [{"label": label, "image": struct(picture(label))} for label in (3, 3, 6, 5)]
    figure = plotting.reading(drawn, chances, [*near, {"label": 9, "image": None, "error": "file gone"}])
    original, bars, *tiles = figure.axes
    assert (original.images[0].get_array() == drawn).all()
    assert [bar.get_width() for bar in bars.patches] == chances.tolist()
    colours = [bar.get_facecolor() for bar in bars.patches]
    assert colours.count(colours[0]) == 9 and colours[3] != colours[0]
    assert [text.get_text() for text in bars.texts] == ["0.82"]
    assert [label.get_text() for label in bars.get_yticklabels()] == [f"{d} {n}" for n, d in enumerate(DIGITS)]
    assert bars.get_ylim()[0] > bars.get_ylim()[1]  # ০ on top
    assert [ax.get_title() for ax in tiles] == ["৩ 3", "৩ 3", "৬ 6", "৫ 5", "৯ 9"]
    assert all((ax.images[0].get_array() == picture(n)).all() for ax, n in zip(tiles[:4], (3, 3, 6, 5), strict=True))
    assert "file gone" in texts(figure)
    inside(figure)
    assert len(plotting.reading(drawn, chances, []).axes) == 2


def test_severity_curves():
    table = pd.DataFrame(
        {
            "distortion": ["blur", "rotation", "blur", "rotation"],
            "severity": [1.0, 1.0, 0.5, 0.5],
            "accuracy": [0.4, 0.7, 0.8, 0.75],
        }
    )
    figure = plotting.severity_curves(table, clean=0.98, chance=0.1)
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["rotation: 0.70", "blur: 0.40", "guessing (0.10)"]  # as they end, the highest first
    assert lines["blur: 0.40"].get_xydata().tolist() == [[0, 0.98], [0.5, 0.8], [1, 0.4]]
    assert lines["rotation: 0.70"].get_xydata().tolist() == [[0, 0.98], [0.5, 0.75], [1, 0.7]]
    looks = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in list(lines.values())[:2]}
    assert len(looks) == 2
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("severity", "accuracy")
    assert ax.get_ylim()[0] == 0
    inside(figure)
    with pytest.raises(ValueError, match="twice in one line"):
        plotting.severity_curves(pd.concat([table, table]), clean=1)
    with pytest.raises(ValueError, match="no column 'accuracy'"):
        plotting.severity_curves(table.drop(columns="accuracy"), clean=1)


@pytest.fixture(scope="module")
def doubtful(spark):
    """Forty answers of confidence 0.65 to 0.95; three of four are right."""
    truth = np.arange(40) % 4 == 0
    sure = np.tile([0.65, 0.75, 0.85, 0.95], 10)
    rows = [(int(t), 0.0, [float(s), float(1 - s)]) for t, s in zip(truth, np.sort(sure), strict=True)]
    return evaluate(spark.createDataFrame(rows, ["label", "prediction", "probability"]))


def test_reliability_diagram(evaluation, doubtful):
    figure = plotting.reliability_diagram({"some": evaluation, "doubtful": doubtful}, bins=10)
    left, right = figure.axes
    table, error = doubtful.reliability(10)
    accuracy, gap = right.containers
    assert [bar.get_height() for bar in accuracy] == table["accuracy"].tolist()
    assert [bar.get_x() + bar.get_width() / 2 for bar in accuracy] == pytest.approx([0.65, 0.75, 0.85, 0.95])
    # The gap reaches from the accuracy to the mean confidence.
    assert [bar.get_y() + bar.get_height() for bar in gap] == pytest.approx(table["confidence"].tolist())
    assert all(bar.get_hatch() == "///" for bar in gap)
    assert [text.get_text() for text in right.texts] == ["10"] * 4
    assert right.get_title() == f"doubtful\n40 answers, calibration error {error:.3f}"
    assert left.get_title().startswith("some\n40 answers")
    assert [0, 1] in [list(line.get_xdata()) for line in left.lines]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "accuracy",
        "gap",
        "calibrated",
        "mean confidence",
    }
    inside(figure)
    with pytest.raises(ValueError, match="no evaluation"):
        plotting.reliability_diagram({})


def test_risk_coverage(evaluation, doubtful):
    figure = plotting.risk_coverage({"some": evaluation, "doubtful": doubtful})
    (ax,) = figure.axes
    for line, one in zip(ax.lines, (evaluation, doubtful), strict=True):
        curve = one.rejection_curve()
        assert (line.get_xdata() == curve.coverage).all() and (line.get_ydata() == curve.risk).all()
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "some: 0.050 of all answers wrong",
        "doubtful: 0.250 of all answers wrong",
    ]
    assert ax.get_ylim()[0] == 0
    inside(figure)
    with pytest.raises(ValueError, match="no evaluation"):
        plotting.risk_coverage({})


# --- on a cluster -----------------------------------------------------------------------------------------------------


def test_partition_batches():
    batches = pd.DataFrame({"partition": [1, 0, 0], "number": [0, 1, 0], "images": [5, 3, 4]})
    figure = plotting.partition_batches(batches, batch_size=2)
    (ax,) = figure.axes
    boxes = [[path.get_extents() for path in squares.get_paths()] for squares in ax.collections]
    assert [len(one) for one in boxes] == [4, 3, 5]  # by partition, then as they went
    assert [label.get_text() for label in ax.get_yticklabels()] == ["partition 0", "partition 1"]
    colours = [tuple(squares.get_facecolor()[0]) for squares in ax.collections]
    assert colours[0] == colours[2] != colours[1]
    gaps = [right.x0 - left.x1 for left, right in itertools.pairwise(boxes[2])]
    assert gaps[0] == pytest.approx(gaps[2]) and gaps[1] == pytest.approx(gaps[3]) and gaps[1] > 2 * gaps[0]
    assert boxes[1][0].x0 - boxes[0][-1].x1 > max(gaps), "Arrow batches stand further apart"
    inside(figure)
    with pytest.raises(ValueError, match="no rows"):
        plotting.partition_batches(batches[:0], 2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        plotting.partition_batches(batches, 0)
    with pytest.raises(ValueError, match="no column 'number'"):
        plotting.partition_batches(batches.drop(columns="number"), 2)


def test_task_timeline():
    rows = [(0, 0, "0", 10.0, 12.0, "Success"), (1, 0, "1", 10.5, 13.0, "ExecutorLostFailure")]
    rows += [(1, 1, "0", 12.0, 15.0, "Success")]
    tasks = pd.DataFrame(rows, columns=["partition", "attempt", "executor", "start", "end", "outcome"])
    figure = plotting.task_timeline({"quiet": tasks[:1], "loud": tasks})
    quiet, loud = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in loud.patches] == [(0, 2), (0.5, 2.5), (2, 3)]
    assert [bar.get_y() > 0 for bar in loud.patches] == [False, True, False]
    assert [bool(bar.get_hatch()) for bar in loud.patches] == [False, True, False]
    assert loud.patches[2].get_linewidth() > loud.patches[0].get_linewidth()
    assert [line.get_xydata().tolist() for line in loud.lines if line.get_marker() == "X"] == [[[3, 1]]]
    assert [text.get_text() for text in loud.texts] == ["0", "1", "1"]
    assert [label.get_text() for label in loud.get_yticklabels()] == ["executor 0", "executor 1"]
    assert quiet.get_xlim() == loud.get_xlim() and quiet.get_title(loc="left") == "quiet"
    legend = [text.get_text() for text in quiet.get_legend().get_texts()]
    assert legend == ["task", "lost with its executor", "tried again"]
    inside(figure)
    with pytest.raises(ValueError, match="loud has no tasks"):
        plotting.task_timeline({"loud": tasks[:0]})
    with pytest.raises(ValueError, match="no column 'outcome'"):
        plotting.task_timeline({"loud": tasks.drop(columns="outcome")})


def test_memory_bars():
    processes = pd.DataFrame({"kind": ["JVM", "workers", "workers"], "MiB": [300.0, 250.0, 200.0]})
    figure = plotting.memory_bars(processes)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["workers", "JVM"]  # the largest first
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 250), (250, 200), (0, 300)]
    assert [text.get_text() for text in ax.texts] == ["450", "300"]
    inside(figure)
    with_a_shell = pd.concat([processes, pd.DataFrame({"kind": ["other"], "MiB": [4.0]})])
    assert len(plotting.memory_bars(with_a_shell).axes[0].patches) == 3
    with pytest.raises(ValueError, match="no rows"):
        plotting.memory_bars(processes[:0])
    with pytest.raises(ValueError, match="no column 'MiB'"):
        plotting.memory_bars(processes.drop(columns="MiB"))


def test_network_runs():
    steps = pd.DataFrame(
        {
            "way": ["theirs", "theirs", "theirs", "ours"],
            "step": ["fit", "look", "evaluate", "featurize"],
            "images": [800, 0, 1100, 500],
        }
    )
    figure = plotting.network_runs(steps)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == list(steps["step"])
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 800), (800, 0), (800, 1100), (0, 500)]
    assert [text.get_text() for text in ax.texts] == ["800", "0", "1,100", "500"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["theirs: 1,900", "ours: 500"]
    inside(figure)
    with pytest.raises(ValueError, match="no rows"):
        plotting.network_runs(steps[:0])
    with pytest.raises(ValueError, match="no column 'images'"):
        plotting.network_runs(steps.drop(columns="images"))
