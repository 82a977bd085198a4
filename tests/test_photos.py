"""Tests of photos of digits: read from real files and converted to MNIST's form."""

import contextlib
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_report import CHROMIUM

from lenet_jax.data import datasets, photos
from lenet_jax.errors import InputError

ROOT = Path(__file__).parent.parent
STORED = ROOT / "experiments" / "results" / "photos" / "photos.json"
DIGITS = datasets.load("mnist10k").test_images[:200]


def digit_of(picture):
    """In MNIST's form, with or without notes."""
    return photos.examine(picture).digit


def difference(first, second):
    return np.abs(first.astype(float) - second).mean()


def test_digits_of_mnist_stay_as_they_are():
    assert np.mean([difference(digit_of(digit), digit) for digit in DIGITS]) < 0.5  # of 255


@pytest.mark.parametrize(
    "change",
    [
        lambda digit: 255 - digit,
        lambda digit: digit / 255,
        lambda digit: 90 + digit // 3,
        lambda digit: np.stack([digit] * 3, axis=-1),
        lambda digit: np.pad(digit, ((40, 3), (0, 60))),
        lambda digit: digit[1:-1, 1:-1],
    ],
    ids=["dark on light", "0 to 1", "faint", "colour", "elsewhere", "cropped"],
)
def test_the_encoding_of_a_picture_makes_no_difference(change):
    changed = [difference(digit_of(change(digit)), digit_of(digit)) for digit in DIGITS[:50]]
    assert np.mean(changed) < 0.5


def test_specks_of_dirt_are_left_out():
    """However dark, and wherever."""
    for digit in DIGITS[:12]:
        sheet = np.pad(0.8 * np.asarray(Image.fromarray(digit).resize([280] * 2), float), 100)
        dirty = sheet.copy()
        for row, column in ((20, 20), (440, 300), (200, 470)):
            dirty[row : row + 5, column : column + 5] = 255
        assert difference(digit_of(dirty), digit_of(sheet)) < 1


def test_small_strokes_are_not_dirt():
    """A stroke of a twentieth of the other's ink."""
    sheet = np.zeros((300, 300))
    sheet[100:200, 100:120] = 1
    sheet[100:110, 160:170] = 1
    digit = digit_of(sheet)
    assert np.ptp(np.nonzero(digit > 127)[1]) > 10


@pytest.mark.parametrize("scale", [3, 20])
def test_size_makes_little_difference(scale):
    digits = DIGITS[:20]
    large = [np.asarray(Image.fromarray(digit).resize([28 * scale] * 2)) for digit in digits]
    assert np.mean([difference(digit_of(one), digit) for one, digit in zip(large, digits, strict=True)]) < 10


def test_a_stroke_fills_the_box_and_its_mass_is_in_the_middle():
    sheet = np.zeros((300, 300))
    sheet[20:120, 200:210] = 1
    digit = digit_of(sheet)
    rows, columns = np.nonzero(digit > 127)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 14, 15)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((28, 28)), "image: it has only one grey value; expected a digit"),
        (np.repeat([[0.0] * 14 + [255.0] * 14], 28, axis=0), "image: it has no strokes that stand out"),  # a shadow
        (np.zeros((2, 28, 28)), "image: its shape is [2, 28, 28]; allowed are [rows, columns]"),
        (np.zeros((3, 100)), "image: its shape is [3, 100]"),
        (np.full((28, 28), np.nan), "image: it has pixels that are not finite"),
    ],
)
def test_what_shows_no_digit_is_refused(picture, message):
    with pytest.raises(InputError) as error:
        photos.to_mnist(picture)
    assert message in str(error.value)
    with pytest.raises(InputError, match=r"^image: 'mine.png': it"):
        photos.to_mnist(picture, "mine.png")


@pytest.mark.parametrize(
    "name", ["grey.png", "colour.jpg", "palette.gif", "grey.bmp", "colour.webp", "deep.png", "mask.tif"]
)
def test_files_are_read(name, tmp_path):
    digit = DIGITS[0]
    pixels = Image.fromarray(255 - digit)
    kind = name.partition(".")[0]
    made = {
        "grey": lambda: pixels,
        "colour": lambda: pixels.convert("RGB"),
        "palette": lambda: pixels.convert("P"),
        "deep": lambda: Image.fromarray((255 - digit).astype(np.uint16) * 200),
        "mask": lambda: Image.fromarray(digit < 128),
    }[kind]()
    made.save(tmp_path / name)
    read = photos.read_image(tmp_path / name)
    assert read.shape == (28, 28)
    assert difference(digit_of(read), digit) < (12 if kind == "mask" else 6)


def test_transparent_is_white(tmp_path):
    digit = DIGITS[0]
    colours = np.zeros((28, 28, 4), np.uint8)
    colours[..., 3] = digit  # black ink on nothing
    Image.fromarray(colours).save(tmp_path / "digit.png")
    assert difference(digit_of(photos.read_image(tmp_path / "digit.png")), digit) < 1


def test_white_ink_on_nothing_shows(tmp_path):
    colours = np.full((28, 28, 4), 255, np.uint8)
    colours[..., 3] = DIGITS[0]
    Image.fromarray(colours).save(tmp_path / "digit.png")
    assert difference(digit_of(photos.read_image(tmp_path / "digit.png")), DIGITS[0]) < 1


def test_a_sheet_with_transparent_corners_is_white(tmp_path):
    colours = np.full((100, 100, 4), 255, np.uint8)
    colours[36:64, 36:64, :3] = 255 - DIGITS[0][..., None]
    colours[:20, :20, 3] = 0
    Image.fromarray(colours).save(tmp_path / "digit.png")
    assert photos.read_image(tmp_path / "digit.png")[0, 0] == 255
    assert difference(digit_of(photos.read_image(tmp_path / "digit.png")), DIGITS[0]) < 4


@pytest.mark.parametrize("pixels", [255 - DIGITS[0], (255 - DIGITS[0]).astype(np.uint16) * 200], ids=["8", "16"])
def test_a_phone_that_was_held_upright(tmp_path, pixels):
    """Of 8 or 16 bits a pixel."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture is to be turned by 90 degrees, clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / "digit.png", exif=exif)
    assert difference(photos.read_image(tmp_path / "digit.png"), 255 - DIGITS[0]) < 1


def test_pictures_of_50_megapixels_are_read(tmp_path):
    """8192 x 6144, as phones take them."""
    sheet = Image.new("L", (8192, 6144), 230)
    sheet.paste(Image.fromarray(255 - DIGITS[0]).point(lambda value: value * 0.9).resize((4000, 4000)), (900, 800))
    sheet.save(tmp_path / "digit.jpg")
    read = photos.read_image(tmp_path / "digit.jpg")
    assert max(read.shape) == photos.MAX_READ_SIDE
    assert difference(photos.to_mnist(read), DIGITS[0]) < 10


def png(width, height):
    """The beginning of a file that claims this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 0)
        + b"IDAT"
    )


def whole(name, size=64):
    file = io.BytesIO()
    Image.effect_noise((size, size), 50).save(file, name)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an image"),
        (b"hello", "is not an image"),
        (png(100_000, 100_000), "has too many pixels; allowed are 67,108,864"),
        (png(9_000, 9_000), "has 9000 x 9000 pixels"),
        (png(28, 28), "can't be read ("),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image; PNG, JPEG, BMP, GIF, TIFF, WEBP"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "is a HEIC picture, which can't be read; save it as JPEG"),
        (whole("PNG")[:600], "can't be read ("),
        (whole("JPEG")[:600], "can't be read ("),
    ],
    ids=["empty", "text", "bomb", "large", "header alone", "EPS", "HEIC", "half a PNG", "half a JPEG"],
)
def test_what_is_not_an_image_is_refused(content, message, tmp_path):
    (tmp_path / "it.png").write_bytes(content)
    with pytest.raises(InputError) as error:
        photos.read_image(tmp_path / "it.png")
    assert str(error.value).startswith(f"image: '{tmp_path}/it.png' ")
    assert message in str(error.value)
    with pytest.raises(InputError, match="can't be read"):
        photos.read_image(tmp_path)


@settings(deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"]),
    position=st.integers(0),
    value=st.binary(min_size=1),
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, kind, position, value):
    content = bytearray(whole(kind, 16))
    start = position % len(content)
    content[start : start + len(value)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert photos.read_image(path).dtype == np.uint8


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (on Debian: apt-get install chromium)")
def test_a_digit_can_be_drawn_in_a_browser(tmp_path):
    from playwright.sync_api import sync_playwright

    (tmp_path / "page.html").write_text(f"<body style='margin: 0'>{photos.Canvas()._repr_html_()}</body>")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        for start, stop in (((60, 60), (60, 90)), ((200, 60), (120, 250))):
            page.get_by_text("clear").click()  # the first stroke goes
            page.mouse.move(*start)
            page.mouse.down()
            page.mouse.move(*stop, steps=10)
            page.mouse.up()
        with page.expect_download() as download:
            page.get_by_text("save digit.png").click()
        assert download.value.suggested_filename == "digit.png"
        download.value.save_as(tmp_path / "digit.png")
        browser.close()
    drawn = photos.read_image(tmp_path / "digit.png")
    assert drawn.shape == (280, 280)
    rows, columns = np.nonzero(drawn < 128)
    assert abs(rows.min() - 50) < 5
    assert abs(columns.min() - 110) < 5, "the stroke that was wiped is not there"
    digit = digit_of(drawn)
    first, *_, last = np.flatnonzero((digit > 127).any(axis=1))
    assert digit[first].argmax() > digit[last].argmax() + 5


@pytest.mark.parametrize("fall", [20, 40, 60])
def test_light_that_falls_from_one_side_makes_little_difference(fall):
    """Paper of 205 on the one side, less on the other; ink of 45."""
    light = np.linspace(0, fall, 28)[None] + np.linspace(0, fall / 4, 28)[:, None]
    lit = [205 - light - (160 - light) * (digit / 255) for digit in DIGITS[:50]]
    assert np.mean([difference(digit_of(one), digit) for one, digit in zip(lit, DIGITS[:50], strict=True)]) < 10


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_only_files_are_opened(tmp_path, name):
    """Opening a named pipe would wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        photos.read_image(tmp_path / name)


def test_floating_point_pictures_are_read_if_they_are_finite(tmp_path):
    pixels = DIGITS[0].astype(np.float32)
    for value in (0, np.nan, np.inf):
        pixels[0, 0] = value
        Image.fromarray(pixels).save(tmp_path / "digit.tif")
        if value == 0:
            assert difference(photos.read_image(tmp_path / "digit.tif"), DIGITS[0]) < 1
        else:
            with pytest.raises(InputError, match=r"can't be read \(some pixels are not finite"):
                photos.read_image(tmp_path / "digit.tif")


# Sheets of paper.


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("photos")


@pytest.mark.parametrize(
    "kind",
    ["plain", "pencil", "ruled", "squared", "box", "soft shadow", "hard shadow", "tilted light", "table", "neighbour"],
)
def test_a_digit_on_paper_is_the_digit_of_mnist(benchmark, kind):
    """Whatever else is on the sheet; a digit that is larger or smaller by a pixel differs by 10 to 20."""
    images = DIGITS[:5]
    for index, digit in enumerate(images):
        found = photos.examine(np.asarray(benchmark.sheet(kind, index, images).convert("L")))
        assert difference(found.digit, digit) < 25
        assert not found.notes


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("two digits", "a second shape, perhaps of another digit"),
        ("cut off", "its ink touches the border and may be cut off"),
    ],
)
def test_what_is_not_one_whole_digit_is_noted(benchmark, kind, note):
    for index in range(5):
        picture = np.asarray(benchmark.sheet(kind, index, DIGITS[:5]))
        assert note in photos.examine(picture).notes
        with pytest.warns(UserWarning, match=f"image 'mine.png' may be misread: .*{note}"):
            photos.to_mnist(picture, "mine.png")


@pytest.mark.parametrize(
    ("picture", "note"),
    [
        (np.pad(np.full((60, 60), 255.0), 100), "ink on 51.0 % of the pixels, 4.2 to 35.5 % in MNIST"),
        (np.pad(np.full((20, 100), 255.0), 100), "5.0 times as wide as high, at most 2 in MNIST"),
        (np.pad(np.full((8, 3), 255.0), 150), "it is very small in the picture"),
        (np.random.default_rng(0).normal(size=(200, 200)), "its ink is hardly stronger than the noise"),
    ],
    ids=["square", "bar", "small", "noise"],
)
def test_what_looks_unlike_a_digit_is_noted(picture, note):
    assert note in photos.examine(picture).notes


def test_a_note_is_rare_on_digits_of_mnist():
    """Most of those with one touch the border, or have a second stroke."""
    embedded = datasets.load("mnist10k")
    images = np.concatenate([embedded.train_images, embedded.test_images])
    assert np.mean([bool(photos.unlike_mnist(digit)) for digit in images]) <= 0.001
    assert np.mean([bool(photos.examine(digit).notes) for digit in DIGITS]) <= 0.03


def test_stored_sheets_are_right_or_noted_and_seldom_wrong_with_confidence():
    stored = json.loads(STORED.read_text())
    assert stored["digits"] == 200
    rows = [row for row in stored["kinds"] if row["reader"] == "after"]
    assert len(rows) >= 20
    for row in rows:
        assert row["right_or_noted"] >= 0.9, row
        assert row["confident_wrong_without_note"] <= 0.02, row


def test_the_page_tells_the_stored_results(benchmark):
    page = " ".join((ROOT / "docs" / "comparing.md").read_text().split())
    assert benchmark.headline(json.loads(STORED.read_text())) in page
