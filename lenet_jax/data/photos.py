"""Photos of digits, of any size and colour, in the form of the data sets: light on black, 28 x 28."""

import math
from pathlib import Path
from warnings import catch_warnings

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from lenet_jax.errors import InputError, one_line

SIDE = 28  # height and width of an MNIST image, in pixels
BOX = 20  # side in pixels of the box that the ink of an MNIST digit fits in (LeCun et al. 1998, section III.A)
MAX_PIXELS = 50_000_000  # of an image that is decoded
INK_THRESHOLD = 0.2  # ink, from 0 (background) to 1, above which a pixel belongs to a stroke
MAX_SPECK_RATIO = 0.02  # ink of an isolated stroke, relative to the largest one, up to which it counts as dirt


class Canvas:
    """A sheet for drawing a digit in a notebook; its button saves ``digit.png`` in the browser's download folder."""

    def _repr_html_(self) -> str:
        return Path(__file__).with_name("canvas.html").read_text()


def read_image(path: str | Path) -> UInt8[np.ndarray, "rows columns"]:
    """Grey values of an image file (PNG, JPEG or any other format that Pillow reads).

    Transparent pixels become white, or black if the image would be blank on white.

    Raises:
      InputError: the file is not an image, is too large, or cannot be read.
    """
    field = f"image: {str(path)!r}"
    try:
        with catch_warnings(action="ignore", category=Image.DecompressionBombWarning), Image.open(path) as file:
            if math.prod(file.size) > MAX_PIXELS:
                raise InputError(f"{field} has {file.size[0]} x {file.size[1]} pixels; allowed are {MAX_PIXELS:,}")
            if file.mode.startswith("I;16") or file.mode in ("I", "F"):  # 16 bits or more, which convert would clip
                return stretched(np.asarray(file, float))
            colours = ImageOps.exif_transpose(file).convert("RGBA")  # phones store their orientation
            for background in ("white", "black"):  # white ink on a transparent sheet is visible on black only
                sheet = Image.new("RGBA", colours.size, background)
                grey = np.asarray(Image.alpha_composite(sheet, colours).convert("L"))
                if np.ptp(grey):
                    break
            return grey
    except UnidentifiedImageError as error:
        raise InputError(f"{field} is not an image; PNG, JPEG, BMP, GIF, TIFF and WebP can be read") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{field} has too many pixels; allowed are {MAX_PIXELS:,}") from error
    except InputError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{field} can't be read ({reason})") from error


def stretched(picture: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns"]:
    """Values of any range, rescaled to 0 to 255."""
    low, high = picture.min(), picture.max()
    scaled = (picture - low) / (high - low) if high > low else np.zeros_like(picture)
    return np.round(255 * scaled).astype(np.uint8)


def paper(grey: np.ndarray) -> np.ndarray:
    """Brightness of the background, [rows, columns]: a plane fitted to the border, as light often falls from one side.

    Pixels where ink touches the border are ignored: those further from its median than half the largest distance.
    """
    median = np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    border = np.zeros(grey.shape, bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    rows, columns = np.nonzero(border & (np.abs(grey - median) <= np.abs(grey - median).max() / 2))
    if not len(rows) or not np.ptp(grey[rows, columns]):
        return np.full(grey.shape, median)
    plane, *_ = np.linalg.lstsq(np.stack([np.ones(len(rows)), rows, columns], axis=-1), grey[rows, columns])
    down, across = np.indices(grey.shape)
    background: np.ndarray = plane[0] + plane[1] * down + plane[2] * across
    return background


def specks(ink: np.ndarray) -> np.ndarray:
    """Mask of dirt, bool [rows, columns]: as a part of the digit it would make the digit smaller."""
    strokes, count = ndimage.label(ink > INK_THRESHOLD, structure=np.ones((3, 3)))
    amounts = ndimage.sum_labels(ink, strokes, range(count + 1))
    amounts[0] = np.inf  # the background
    found: np.ndarray = (amounts <= MAX_SPECK_RATIO * amounts[1:].max())[strokes]
    return found


def to_mnist(picture: np.ndarray, name: str = "") -> UInt8[np.ndarray, "28 28"]:
    """An image of one digit in the form of MNIST.

    The ink is the colour, darker or lighter, that is not at the border; specks are removed. The ink is scaled to fit a
    box of 20 x 20, with its aspect ratio preserved, and its centre of mass is moved to the centre (LeCun et al. 1998,
    section III.A).

    Args:
      picture: grey values [rows, columns], of any range, or colours [rows, columns, 3].
      name: name of the image for error messages.

    Raises:
      InputError: the image has another shape, or is blank.

    Examples:
      >>> photo = np.full((300, 200), 255)
      >>> photo[20:120, 90:100] = 0
      >>> digit = to_mnist(photo)
      >>> digit.shape, digit.dtype, np.flatnonzero(digit.any(axis=1))[[0, -1]]
      ((28, 28), dtype('uint8'), array([ 4, 23]))
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
    ink = np.abs(grey - paper(grey))
    if not ink.max():
        raise InputError(f"{field} it has only one grey value; expected a digit, dark on light or light on dark")
    ink /= ink.max()
    ink[specks(ink)] = 0
    ink /= ink.max()
    (bounding_box,) = ndimage.find_objects((ink > INK_THRESHOLD).astype(int))
    ink = ink[bounding_box]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    small = np.clip(small, 0, 1) / max(float(small.max()), 1e-9)
    # Move the centre of mass to the centre, by whole pixels, as far as the frame allows.
    corner = []
    for axis, length in enumerate(small.shape):
        mass = small.sum(axis=1 - axis)
        center = float(mass @ np.arange(length)) / float(mass.sum())
        corner.append(int(np.clip(round(SIDE / 2 - center), 0, SIDE - length)))
    top, left = corner
    digit = np.zeros((SIDE, SIDE))
    digit[top : top + height, left : left + width] = small
    return np.round(255 * digit).astype(np.uint8)
