"""Figures must be right, inert, and the same every time; thumbnails small and true to their pixels."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from ensembles import figures
from ensembles.figures import Band, Curve

RNG_SEED = 0


def precision_recall() -> str:
    recall, precision = np.array([0.0, 0.25, 0.5, 1.0]), np.array([1.0, 1.0, 0.5, 0.2])
    band = Band(np.array([0.1, 0.5, 1.0]), np.array([0.6, 0.3, 0.1]), np.array([1.0, 0.7, 0.3]), "ensemble")
    curves = [
        Curve(recall, precision, "series-0", dashes=figures.series_dashes(1)),
        Curve(recall, precision, "ensemble"),
    ]
    return figures.precision_recall_figure(curves, chance=0.05, band=band, point=(0.5, 0.5))


def line() -> str:
    steps = np.arange(0, 500, 20)
    curves = [
        Curve(steps, 1.0 / (1 + steps), "series-1", opacity=0.5),
        Curve(np.array([5]), np.array([0.4]), "series-2"),
    ]
    return figures.line_figure(curves, y_label="Loss", name="loss/a", chance=0.1)


def histogram() -> str:
    rng = np.random.default_rng(RNG_SEED)
    return figures.score_figure(rng.normal(1, 1, 30), rng.normal(-1, 1, 900), threshold=0.5)


FIGURES = {"precision_recall": precision_recall, "line": line, "histogram": histogram}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES.keys())
def test_a_figure_is_an_inert_element_in_the_colours_of_the_page(draw):
    text = str(draw())
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    ElementTree.fromstring(text.replace("<svg", f"<svg {names}", 1))  # whole, once the names are declared
    assert text.startswith('<svg class="plot" role="img" aria-label=')
    assert "http" not in text
    assert not re.search(r"<(script|style|image|metadata|foreignObject|!)", text)
    assert "var(--ink)" in text
    assert not re.findall(r"(?:fill|stroke|color): ?#\w+", text), "every colour is one of the page's"


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES.keys())
def test_a_figure_is_the_same_every_time(draw):
    assert draw() == draw()


def test_ids_inside_figures_do_not_meet_on_one_page():
    steps = np.arange(10)
    curve = [Curve(steps, steps / 10.0, "series-0")]
    texts = [figures.line_figure(curve, y_label="Loss", name=name) for name in ("loss/b", "loss/c")]
    texts += [draw() for draw in FIGURES.values()]
    ids = [set(re.findall(r' id="([^"]*)"', text)) for text in texts]
    assert all(ids), "clip paths have ids"
    assert len(set().union(*ids)) == sum(map(len, ids))


def test_stand_ins_are_colours_that_differ():
    assert len(set(figures.STAND_INS.values())) == len(figures.ROLES)
    assert all(re.fullmatch(r"#[0-9a-f]{6}", stand_in) for stand_in in figures.STAND_INS.values())


def test_the_area_below_a_precision_recall_step_is_what_is_drawn():
    """The step that ends at a recall has that recall's precision: the line runs level, then falls at the recall."""
    text = figures.precision_recall_figure(
        [Curve(np.array([0.0, 0.5, 1.0]), np.array([1.0, 1.0, 0.5]), "ensemble")], chance=None
    )
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--ensemble\)', text)
    assert path is not None
    points = [tuple(map(float, point)) for point in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path[1])]
    (left, top), (middle, same), (fallen, half), (right, end) = points[0], points[-3], points[-2], points[-1]
    assert top == same, "level until recall 0.5"
    assert middle == fallen == pytest.approx((left + right) / 2, abs=0.02)
    assert half == end > top, "then at half the precision"


def test_labels_of_axes_cannot_become_markup():
    text = figures.line_figure([], y_label="<script>", name="x")
    assert "<script" not in text


@pytest.mark.parametrize(
    ("positives", "negatives", "threshold"),
    [
        (np.zeros(0), np.zeros(0), None),
        (np.zeros(0), np.ones(5), 0.5),
        (np.ones(3), np.ones(5), 1.0),
        (np.array([1e-9]), np.array([1e9]), float("inf")),
    ],
)
def test_histograms_of_odd_scores_are_drawn(positives, negatives, threshold):
    assert "</svg>" in figures.score_figure(positives, negatives, threshold=threshold)


def test_a_single_evaluation_is_a_visible_dot():
    one = figures.line_figure([Curve(np.array([100]), np.array([0.5]), "series-0")], y_label="AP", name="x")
    two = figures.line_figure([Curve(np.array([1, 100]), np.array([0.5, 0.5]), "series-0")], y_label="AP", name="x")
    assert "<use" in one
    assert "<use" not in two


def decoded(uri: str) -> np.ndarray:
    start = "data:image/png;base64,"
    assert uri.startswith(start)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(start)))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_image_keeps_its_pixels(channels):
    image = np.random.default_rng(RNG_SEED).integers(0, 256, (28, 20, channels), dtype=np.uint8)
    assert np.array_equal(decoded(figures.thumbnail(image)).reshape(image.shape), image)


def test_a_large_image_is_shrunk_in_its_proportions():
    image = np.full((224, 448, 3), 200, dtype=np.uint8)
    shrunk = decoded(figures.thumbnail(image, side=96))
    assert shrunk.shape == (48, 96, 3)
    assert (shrunk == 200).all()


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)])
def test_what_is_no_image_is_refused_with_its_shape(image):
    with pytest.raises(ValueError, match=r"uint8 image .* got \w+ with shape \(8, 8"):
        figures.thumbnail(image)


def test_many_thumbnails_are_smaller():
    assert figures.thumbnail_side(24, 1) == 96
    assert figures.thumbnail_side(0, 3) == 96
    side = figures.thumbnail_side(200, 3)
    assert 40 <= side < 96
    assert side * side * 3 * 200 <= figures.THUMBNAIL_BUDGET
    assert figures.thumbnail_side(100_000, 3) == figures.MIN_THUMBNAIL_SIDE
