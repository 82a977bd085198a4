"""Pictures of digits, of any size and colour, as the data sets have them: light on black, 28 x 28."""

import math
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from lenet_jax.errors import InputError

SIDE = 28
"""Height and width of a digit of MNIST."""

BOX = 20
"""Side of the box that the ink of a digit of MNIST fits in (LeCun et al. 1998, section III.A)."""

MOST_PIXELS = 50_000_000
"""Of a file. Those that say that they have more are not unpacked."""

INK = 0.2
"""Share of the way from background to full ink from which on a pixel counts for where the digit is."""

SPECK = 0.02
"""Share of the largest stroke's ink up to which what stands alone is dirt."""


class Canvas:
    """A sheet to draw a digit on, for notebooks: its button saves ``digit.png`` where the browser saves files."""

    def _repr_html_(self) -> str:
        return Path(__file__).with_name("canvas.html").read_text()


def read_image(path: str | Path) -> UInt8[np.ndarray, "rows columns"]:
    """A picture from a file (PNG, JPEG and what else Pillow reads), as grey values.

    What is transparent is white, or black if nothing shows on white.

    Raises:
      InputError: it is no picture, or can't be read.
    """
    field = f"image: {str(path)!r}"
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as file,
        ):
            if math.prod(file.size) > MOST_PIXELS:
                raise InputError(f"{field} has {file.size[0]} x {file.size[1]} pixels; allowed are {MOST_PIXELS:,}")
            if file.mode.startswith("I;16") or file.mode in ("I", "F"):  # 16 bits and more, which convert would clip
                return stretched(np.asarray(file, float))
            colours = ImageOps.exif_transpose(file).convert("RGBA")  # as phones note how they were held
            for behind in ("white", "black"):  # white ink on nothing shows on black alone
                sheet = Image.new("RGBA", colours.size, behind)
                grey = np.asarray(Image.alpha_composite(sheet, colours).convert("L"))
                if np.ptp(grey):
                    break
            return grey
    except UnidentifiedImageError as error:
        raise InputError(f"{field} is no picture; PNG, JPEG, BMP, GIF, TIFF and WebP can be read") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{field} has too many pixels; allowed are {MOST_PIXELS:,}") from error
    except Exception as error:  # a damaged file raises nearly anything
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{field} can't be read ({reason})") from error


def stretched(picture: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns"]:
    """Any range of values as 0 to 255."""
    low, high = picture.min(), picture.max()
    scaled = (picture - low) / (high - low) if high > low else np.zeros_like(picture)
    return np.round(255 * scaled).astype(np.uint8)


def paper(grey: np.ndarray) -> np.ndarray:
    """The brightness behind the ink, [rows, columns]: a plane through the border, for light often falls from one side.

    Ink that touches the border is left out: what is further from its median than half of all ink is.
    """
    middle = np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    border = np.zeros(grey.shape, bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    rows, columns = np.nonzero(border & (np.abs(grey - middle) <= np.abs(grey - middle).max() / 2))
    if not len(rows) or not np.ptp(grey[rows, columns]):
        return np.full(grey.shape, middle)
    plane, *_ = np.linalg.lstsq(np.stack([np.ones(len(rows)), rows, columns], axis=-1), grey[rows, columns])
    down, across = np.indices(grey.shape)
    found: np.ndarray = plane[0] + plane[1] * down + plane[2] * across
    return found


def specks(ink: np.ndarray) -> np.ndarray:
    """Where dirt is, [rows, columns] bool: it would be taken for a part of the digit, and shrink it."""
    strokes, count = ndimage.label(ink > INK, structure=np.ones((3, 3)))
    amounts = ndimage.sum_labels(ink, strokes, range(count + 1))
    amounts[0] = np.inf  # what is no stroke
    found: np.ndarray = (amounts <= SPECK * amounts[1:].max())[strokes]
    return found


def to_mnist(picture: np.ndarray, name: str = "") -> UInt8[np.ndarray, "28 28"]:
    """A picture of one digit as MNIST has it.

    The darker or the lighter colour is the ink, whichever isn't at the border; specks are left out. The ink is scaled,
    with its proportions, to fit a box of 20 x 20, and its centre of mass is moved to the middle (LeCun et al. 1998,
    section III.A).

    Args:
      picture: grey values [rows, columns], of any range, or colours [rows, columns, 3].
      name: for messages, as of its file.

    Raises:
      InputError: it has another shape, or nothing is to be seen on it.
    """
    field = f"image: {name!r}:" if name else "image:"
    grey = np.asarray(picture, float)
    if grey.ndim == 3 and grey.shape[-1] == 3:
        grey = grey.mean(axis=-1)
    if grey.ndim != 2 or min(grey.shape) < 4:
        raise InputError(
            f"{field} its shape is {list(np.shape(picture))}; allowed are [rows, columns] or [..., 3], from 4 x 4 on"
        )
    if not np.isfinite(grey).all():
        raise InputError(f"{field} it has pixels that are not finite")
    ink = np.abs(grey - paper(grey))
    if not ink.max():
        raise InputError(f"{field} it is all of one grey; a digit is needed, dark on light or light on dark")
    ink /= ink.max()
    ink[specks(ink)] = 0
    ink /= ink.max()
    rows, columns = (np.flatnonzero((ink > INK).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    small = np.clip(small, 0, 1) / max(float(small.max()), 1e-9)
    digit = np.zeros((SIDE, SIDE))
    # Where the centre of mass comes to lie, in whole pixels, as far as the frame allows.
    places = []
    for axis, length in enumerate(small.shape):
        mass = small.sum(axis=1 - axis)
        center = float(mass @ np.arange(length)) / float(mass.sum())
        places.append(int(np.clip(round(SIDE / 2 - center), 0, SIDE - length)))
    top, left = places
    digit[top : top + height, left : left + width] = small
    return np.round(255 * digit).astype(np.uint8)
