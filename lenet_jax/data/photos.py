"""Photos of digits, of any size and colour, in the form of the data sets: light on black, 28 x 28."""

import math
import os
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from lenet_jax.data import ink as inks
from lenet_jax.errors import InputError, one_line

SIDE = 28  # height and width of an MNIST image, in pixels
BOX = 20  # side in pixels of the box that the ink of an MNIST digit fits in (LeCun et al. 1998, section III.A)
MAX_PIXELS = 2**26  # of an image that is decoded; 8192 x 8192
MAX_READ_SIDE = 2048  # pixels; larger images are reduced, as their details are finer than any stroke
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "PPM")  # of these, no decoder runs another program
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands, bytes 8 to 12 of a file
MAX_SPECK_RATIO = 0.02  # ink of an isolated stroke, relative to the largest one, up to which it counts as dirt
MIN_SECOND_RATIO = 0.1  # ink of a shape, relative to the largest one, from which there may be two digits
MIN_PEAK = 0.5  # of the strongest ink, that a stroke reaches somewhere; what does not is shade
MAX_GAP = 0.5  # distance of the parts of a digit, relative to the side of the largest
INK_SHARE = (0.042, 0.355)  # share of pixels above 64 in digits of MNIST
MAX_ASPECT = 2.0  # width relative to height of digits of MNIST
MAX_EDGE = 0.7  # length, relative to the picture, of a shape at its border up to which it may be a digit
MIN_WHOLE_RATIO = 0.25  # ink of a digit, relative to shapes that the border cuts off
MIN_CONTRAST = 5  # strongest ink, as a multiple of the median difference of neighbouring pixels
MIN_SIZE = 0.04  # of a digit, relative to the longer side of the picture


class Canvas:
    """A sheet for drawing a digit in a notebook; its button saves ``digit.png`` in the browser's download folder."""

    def _repr_html_(self) -> str:
        return Path(__file__).with_name("canvas.html").read_text()


class Examined(NamedTuple):
    """A photo in the form of MNIST.

    Attributes:
      digit: pixels [28, 28].
      notes: reasons why it may not be one complete digit, and may be misread.
    """

    digit: UInt8[np.ndarray, "28 28"]
    notes: tuple[str, ...]


def read_image(path: str | Path) -> UInt8[np.ndarray, "rows columns"]:
    """Grey values of an image file of one of the `FORMATS`, upright, with at most 2048 rows and columns.

    Transparent pixels become white, or black if all ink is light.

    Raises:
      InputError: the file is not an image of these formats, is too large, or cannot be read.
    """
    field = f"image: {str(path)!r}"
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a named pipe would be waited for
            raise InputError(f"{field} is not a regular file")
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path, formats=FORMATS) as file,
        ):
            if math.prod(file.size) > MAX_PIXELS:
                raise InputError(f"{field} has {file.size[0]} x {file.size[1]} pixels; allowed are {MAX_PIXELS:,}")
            file.draft(None, (MAX_READ_SIDE, MAX_READ_SIDE))  # JPEG can be decoded at a lower resolution
            ImageOps.exif_transpose(file, in_place=True)  # phones store their orientation
            return grey_values(file)
    except UnidentifiedImageError as error:
        with open(path, "rb") as file:
            heic = file.read(12)[8:] in HEIC
        kind = "is a HEIC picture, which can't be read; save it as JPEG" if heic else "is not an image"
        raise InputError(f"{field} {kind}; {', '.join(FORMATS[:-1])} and {FORMATS[-1]} can be read") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{field} has too many pixels; allowed are {MAX_PIXELS:,}") from error
    except InputError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{field} can't be read ({reason})") from error


def grey_values(picture: Image.Image) -> UInt8[np.ndarray, "rows columns"]:
    """A picture of any mode, reduced to `MAX_READ_SIDE`, on white or black."""
    deep = picture.mode.startswith("I;16") or picture.mode in ("I", "F")  # 16 bits or more, which convert would clip
    picture = picture if deep or picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGBA")
    picture.thumbnail((MAX_READ_SIDE, MAX_READ_SIDE), Image.Resampling.BOX)
    if deep:
        values = np.asarray(picture, float)
        if not np.isfinite(values).all():
            raise ValueError("some pixels are not finite")
        return np.asarray(np.interp(values, (values.min(), values.max()), (0, 255)).round(), np.uint8)
    colours = picture.convert("RGBA")
    opaque = np.asarray(colours.getchannel("A"))
    light = np.asarray(colours.convert("L"))[opaque > opaque.max() // 2].min(initial=255) > 127
    sheet = Image.new("RGBA", colours.size, "black" if light else "white")
    return np.asarray(Image.alpha_composite(sheet, colours).convert("L"))


def to_mnist(picture: np.ndarray, name: str = "") -> UInt8[np.ndarray, "28 28"]:
    """The digit of `examine`, with a warning if there are notes.

    Examples:
      >>> photo = np.full((300, 200), 255)
      >>> photo[20:120, 90:100] = 0
      >>> digit = to_mnist(photo)
      >>> digit.shape, digit.dtype, np.flatnonzero(digit.any(axis=1))[[0, -1]]
      ((28, 28), dtype('uint8'), array([ 4, 23]))
    """
    digit, notes = examine(picture, name)
    if notes:
        warnings.warn(f"image{f' {name!r}' if name else ''} may be misread: {'; '.join(notes)}", stacklevel=2)
    return digit


def examine(picture: np.ndarray, name: str = "") -> Examined:
    """An image of one digit in the form of MNIST, and notes where it does not look like one.

    The ink is darker or lighter than the paper around it (`ink.strength`). Lines and boxes of forms, shade and specks
    are removed, and so is what the border cuts off, unless it is the digit itself. The ink is scaled and centred as in
    MNIST (LeCun et al. 1998, section III.A).

    Args:
      picture: grey values [rows, columns], of any range, or colours [rows, columns, 3].
      name: name of the image for error messages.

    Raises:
      InputError: the image has another shape, or is blank.

    Examples:
      >>> photo = np.full((300, 200), 255)
      >>> photo[20:120, 40:50] = photo[20:120, 90:100] = 0
      >>> examine(photo).notes
      ('a second shape, perhaps of another digit',)
    """
    field = f"image: {name!r}:" if name else "image:"
    grey = np.asarray(picture, float)
    if grey.ndim == 3 and grey.shape[-1] == 3:
        grey = grey.mean(axis=-1)
    if grey.ndim != 2 or min(grey.shape) < 4:
        raise InputError(
            f"{field} its shape is {list(np.shape(picture))}; allowed are [rows, columns] and [..., 3], at least 4 x 4"
        )
    if not np.isfinite(grey).all():
        raise InputError(f"{field} it has pixels that are not finite")
    if not np.ptp(grey):
        raise InputError(f"{field} it has only one grey value; expected a digit, dark on light or light on dark")
    grey = inks.sheet(inks.reduced(grey))
    ink, notes = strokes_of(grey, inks.is_light(grey))
    if not ink.any():
        raise InputError(f"{field} it has no strokes that stand out from the paper; expected a digit")
    digit = fitted(ink)
    return Examined(digit, (*notes, *unlike_mnist(digit)))


def strokes_of(grey: inks.Plane, light: bool) -> tuple[inks.Plane, list[str]]:
    """Ink of the largest shape in a picture and the parts around it, and notes about the rest.

    `light`: whether ink is lighter than paper.
    """
    ink = inks.strength(grey, light)
    level = float(inks.smooth(ink).max())
    ink = inks.without_boxes(inks.without_lines(ink, level)[0], level)
    soft = inks.smooth(ink)
    labels, count = ndimage.label(soft > inks.INK_THRESHOLD * soft.max(), inks.SQUARE)
    if not count:
        return np.zeros_like(ink), []
    boxes = np.array([[(side.start, side.stop) for side in box] for box in ndimage.find_objects(labels) if box])
    sizes = np.ptp(boxes, axis=2)
    amounts = ndimage.sum_labels(soft, labels, range(1, count + 1))
    shapes = np.isin(range(1, count + 1), labels[soft > MIN_PEAK * soft.max()])
    outer = ((boxes[..., 0] == 0) | (boxes[..., 1] == grey.shape)).any(axis=1)
    edges = outer & (sizes > MAX_EDGE * np.array(grey.shape)).any(axis=1)  # of the paper, or of what lies beside it
    shapes &= ~edges | (shapes <= edges).all()
    inner = np.where(shapes & ~outer, amounts, 0)
    whole = inner.max() >= MIN_WHOLE_RATIO * (amounts * shapes).max()
    main = int((inner if whole else amounts * shapes).argmax())
    gaps = np.maximum(boxes[main, :, 0] - boxes[..., 1], boxes[..., 0] - boxes[main, :, 1]).max(axis=1)
    near = gaps <= MAX_GAP * sizes[main].max()
    parts = shapes & (amounts > MAX_SPECK_RATIO * amounts[main]) & near & (outer <= outer[main])
    second = shapes & (amounts > MIN_SECOND_RATIO * amounts[main]) & (parts | ~outer)
    second[main] = False
    noise = np.median(np.abs(np.diff(grey)))
    notes = {
        "its ink touches the border and may be cut off": not whole,
        "a second shape, perhaps of another digit": second.any(),
        "its ink is hardly stronger than the noise": soft.max() < MIN_CONTRAST * noise,
        "it is very small in the picture": sizes[main].max() < MIN_SIZE * max(grey.shape),
    }
    mask = np.isin(labels, 1 + np.flatnonzero(parts))
    around = ndimage.binary_dilation(mask, inks.SQUARE > 0, iterations=max(2, max(grey.shape) // 150))
    return np.where(around & (mask | (labels == 0)), ink, 0), [note for note, noted in notes.items() if noted]


def fitted(ink: inks.Plane) -> UInt8[np.ndarray, "28 28"]:
    """Ink scaled to a box of 20 x 20, with its aspect ratio, and its centre of mass in the centre of the frame."""
    (bounding_box,) = ndimage.find_objects((ink > inks.INK_THRESHOLD * ink.max()).astype(int))
    ink = ink[bounding_box]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    small = np.clip(small / np.percentile(small[small > 0.3 * small.max()], 98), 0, 1)
    corner = []
    for axis, length in enumerate(small.shape):
        mass = small.sum(axis=1 - axis)
        center = float(mass @ np.arange(length)) / float(mass.sum())
        corner.append(int(np.clip(round(SIDE / 2 - center), 0, SIDE - length)))
    top, left = corner
    digit = np.zeros((SIDE, SIDE))
    digit[top : top + height, left : left + width] = small
    return np.round(255 * digit).astype(np.uint8)


def unlike_mnist(digit: UInt8[np.ndarray, "28 28"]) -> list[str]:
    """Notes where an image [28, 28] is unlike nearly every digit of MNIST."""
    share = float((digit > 64).mean())
    low, high = INK_SHARE
    height, width = (np.ptp(np.nonzero(digit > 64)[axis]) + 1 for axis in (0, 1))
    usual = f"{100 * low:.1f} to {100 * high:.1f} % in MNIST"
    notes = {
        f"ink on {100 * share:.1f} % of the pixels, {usual}": not low <= share <= high,
        f"{width / height:.1f} times as wide as high, at most {MAX_ASPECT:g} in MNIST": width > MAX_ASPECT * height,
    }
    return [note for note, noted in notes.items() if noted]
