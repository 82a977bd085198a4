"""Tests of corrupted images."""

import numpy as np
import pytest
from scipy import ndimage

from lenet_jax.data import corruptions
from lenet_jax.errors import InputError

SEVERITIES = {"translation": 3, "rotation": 25, "scale": -0.5, "squeezing": 0.4, "stroke": 1.5, "noise": 0.1}
"""One of each corruption."""


def centre(image):
    """Centre of the ink, in pixels from the middle of the image: down, right."""
    return np.array(ndimage.center_of_mass(image.astype(float))) - (np.array(image.shape) - 1) / 2


def spread(image):
    """Standard deviations of the ink along rows and columns."""
    weights, (rows, columns) = image / image.sum(), np.indices(image.shape)
    means = (rows * weights).sum(), (columns * weights).sum()
    return np.sqrt([((rows - means[0]) ** 2 * weights).sum(), ((columns - means[1]) ** 2 * weights).sum()])


@pytest.fixture(scope="module")
def images(digits):
    return digits[0][:40]


@pytest.fixture(scope="module")
def bar():
    """Forty images of a vertical bar, 4 pixels wide and 12 high, in the middle."""
    images = np.zeros((40, 32, 32), np.uint8)
    images[:, 10:22, 14:18] = 255
    return images


def test_every_corruption_has_a_test_severity():
    assert SEVERITIES.keys() == corruptions.CORRUPTIONS.keys()


@pytest.mark.parametrize("name", SEVERITIES)
def test_severity_zero_changes_no_bit(images, name):
    np.testing.assert_array_equal(corruptions.corrupt(images, name, 0), images)


@pytest.mark.parametrize(("name", "severity"), SEVERITIES.items())
def test_an_image_is_corrupted_in_the_same_way_wherever_it_stands(images, name, severity, monkeypatch):
    whole = corruptions.corrupt(images, name, severity)
    assert whole.dtype == np.uint8
    assert whole.shape == images.shape
    assert (whole != images).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(corruptions.corrupt(images[7:9], name, severity, first=7), whole[7:9])
    monkeypatch.setattr(corruptions, "BLOCK", 7)
    np.testing.assert_array_equal(corruptions.corrupt(images, name, severity), whole)


def test_translations_go_in_four_directions(bar):
    moved = corruptions.corrupt(bar, "translation", 3)
    found = {tuple(np.round(centre(image), 6) + 0.0) for image in moved}
    assert found == {(3, 0), (-3, 0), (0, 3), (0, -3)}
    assert set(np.unique(moved)) == {0, 255}, "no grey value is changed"
    np.testing.assert_allclose(
        np.abs([centre(image) for image in corruptions.corrupt(bar, "translation", 0.5)]).sum(1), 0.5
    )


def test_rotations_go_both_ways(bar):
    def angle(image):
        """Of the bar, in degrees from the vertical, clockwise."""
        rows, columns = np.indices(image.shape) - 15.5
        weights = image / image.sum()
        covariance = (rows * columns * weights).sum()
        return -np.degrees(0.5 * np.arctan2(2 * covariance, ((rows**2 - columns**2) * weights).sum()))

    angles = np.array([angle(image) for image in corruptions.corrupt(bar, "rotation", 30)])
    np.testing.assert_allclose(np.abs(angles), 30, atol=0.5)
    assert 5 < (angles > 0).sum() < 35
    quarter = corruptions.corrupt(bar, "rotation", 90)
    np.testing.assert_array_equal(quarter, bar.transpose(0, 2, 1))


@pytest.mark.parametrize(("change", "factor"), [(0.5, 1.5), (-0.5, 1 / 1.5), (1, 2), (-1, 0.5)])
def test_scale_changes_both_axes(bar, change, factor):
    tall = bar.copy()
    tall[:, 16:] = 0  # half of it, so that the largest one fits
    found = corruptions.corrupt(tall, "scale", change)[0]
    np.testing.assert_allclose(spread(found), factor * spread(tall[0]), rtol=0.12)
    assert found.sum() == pytest.approx(factor**2 * tall[0].sum(), rel=0.2)  # of sharp edges, points are sampled


def test_squeezing_keeps_the_area(bar):
    found = corruptions.corrupt(bar, "squeezing", 0.5)
    ratios = np.array([spread(image) / spread(bar[0]) for image in found])
    wide = ratios[:, 1] > 1
    assert 5 < wide.sum() < 35
    np.testing.assert_allclose(ratios[wide], [[1 / 1.5, 1.5]] * wide.sum(), rtol=0.15)
    np.testing.assert_allclose(ratios[~wide], [[1.5, 1 / 1.5]] * (~wide).sum(), rtol=0.15)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), bar[0].sum(), rtol=0.1)  # of sharp edges, points are sampled


@pytest.mark.parametrize("pixels", [-2, -1.5, -0.5, 0.5, 1, 2, 3.5])
def test_strokes_change_their_width_by_so_many_pixels(bar, pixels):
    row = corruptions.corrupt(bar, "stroke", pixels)[0, 16] / 255
    assert row.sum() == pytest.approx(4 + pixels, abs=0.01)


def test_noise_inverts_pixels_and_a_stronger_one_the_same_and_more(images):
    weak, strong = (corruptions.corrupt(images, "noise", probability) for probability in (0.1, 0.3))
    changed = weak != images
    assert changed.mean() == pytest.approx(0.1, abs=0.005)
    np.testing.assert_array_equal(weak[changed], 255 - images[changed])
    assert (strong != images)[changed].all()
    assert len({image.tobytes() for image in changed}) == len(images), "each image has noise of its own"


def test_directions_do_not_depend_on_the_severity(bar):
    signs = [np.sign([centre(image) for image in corruptions.corrupt(bar, "translation", size)]) for size in (1, 4)]
    np.testing.assert_array_equal(np.round(signs[0]), np.round(signs[1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "corruption: '' is not one of 'translation'"),
        ("rotate:1", "corruption: 'rotate' is not one of 'translation', 'rotation'"),
        ("rotation", "severities '' of 'rotation'; expected numbers, as in rotation:0,90"),
        ("rotation:1,x", "severities '1,x' of 'rotation'; expected numbers"),
        ("rotation:200", "severity 200.0 of 'rotation' is out of range; allowed are 0 to 180 (degrees"),
        ("rotation:-1", "severity -1.0 of 'rotation' is out of range"),
        ("noise:nan", "severity nan of 'noise' is out of range; allowed are 0 to 0.5"),
        ("noise:0;noise:0.1", "'noise' is there twice"),
    ],
)
def test_what_is_no_corruption_is_refused(text, message):
    with pytest.raises(InputError) as error:
        corruptions.parse(text)
    assert message in str(error.value)


def test_severities_are_sorted_and_there_once():
    assert corruptions.parse("stroke:1, -1,0 ,1;noise:0.2") == {"stroke": [-1, 0, 1], "noise": [0.2]}
