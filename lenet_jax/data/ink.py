"""Ink on paper: grey values of a photo -> strength of its strokes, without uneven light, printed lines and boxes."""

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

MAX_SIDE = 320  # pixels; photos are reduced to it. The strokes of a digit a tenth as high are still two pixels wide
INK_THRESHOLD = 0.2  # strength relative to the strongest ink above which a pixel belongs to a stroke
MAX_BRIGHT_RING = 0.2  # bright share of the border of a picture in which a sheet lies on something darker
MIN_SHEET_FILL, MIN_SHEET_SIDE = 0.9, 0.3  # share of its rectangle that a sheet fills; its sides, relative to a picture
MIN_PAPER = 0.7  # share of a sheet that is not ink
MAX_STROKE = 0.5  # width of a stroke, relative to the shorter side of the picture
MIN_SHEET_PIXELS = 64  # pixels, of a sheet
MAX_LINE = 0.035  # width of a printed line, relative to the picture
MIN_LINE_LENGTH = 0.8  # relative to the picture, which a printed line crosses
MIN_LINE_STRENGTH = 0.08  # relative to the strongest ink
MAX_SLOPE = 0.07  # of printed lines, either way: 4 degrees
MIN_BOX_SIDE = 40  # pixels
SQUARE = np.ones((3, 3))  # diagonal neighbours are connected

Plane = Float[np.ndarray, "rows columns"]
Part = Float[np.ndarray, "part_rows part_columns"]


def reduced(grey: Plane, side: int = MAX_SIDE) -> Part:
    """The picture with its longer side reduced to `side` pixels, by means of rectangles."""
    if max(grey.shape) <= side:
        return grey
    rows, columns = (max(1, round(side * length / max(grey.shape))) for length in grey.shape)
    return np.asarray(Image.fromarray(grey.astype(np.float32)).resize((columns, rows), Image.Resampling.BOX), float)


def smooth(grey: Plane) -> Plane:
    """The picture without its noise; strokes of small pictures are too thin for that."""
    return np.asarray(ndimage.gaussian_filter(grey, max(grey.shape) / 400) if max(grey.shape) > 100 else grey)


def sheet(grey: Plane) -> Part:
    """The part of a picture that shows a sheet of paper, if one lies on something darker; else the whole picture."""
    bright = smooth(grey) > (np.percentile(grey, 5) + np.percentile(grey, 95)) / 2
    ring = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    shapes, count = ndimage.label(bright)
    if not count or ring.mean() > MAX_BRIGHT_RING:
        return grey
    largest = shapes == 1 + np.argmax(ndimage.sum_labels(bright, shapes, range(1, count + 1)))
    filled = ndimage.binary_fill_holes(largest)
    rows, columns = (np.flatnonzero(filled.mean(axis) > filled.mean(axis).max() * MIN_SHEET_FILL) for axis in (1, 0))
    where = slice(rows[0] + 1, rows[-1]), slice(columns[0] + 1, columns[-1])
    part = filled[where]
    large = min(part.shape) > MIN_SHEET_PIXELS and (np.array(part.shape) > MIN_SHEET_SIDE * np.array(grey.shape)).all()
    rectangle = large and part.mean() > MIN_SHEET_FILL and part.sum() > MIN_SHEET_FILL * filled.sum()
    return grey[where] if rectangle and largest[where].mean() > MIN_PAPER else grey


def is_light(grey: Plane) -> bool:
    """Whether the ink is lighter than the paper: it is the smaller part of most neighbourhoods."""
    small = reduced(grey, 48)
    size = int(min(small.shape) / 2) | 1
    return bool(((small - ndimage.median_filter(small, size, mode="nearest")) ** 3).sum() > 0)


def paper(grey: Plane, size: float) -> Plane:
    """Brightness of the paper: the picture without dark strokes narrower than `size` pixels.

    A morphological closing leaves gradients, shadows and their edges as they are.
    """
    odd = int(size) | 1
    margin = min(odd, min(grey.shape) - 1)
    wide = np.pad(grey, margin, mode="reflect", reflect_type="odd")  # continues a gradient over the border
    return np.asarray(ndimage.grey_closing(wide, size=(odd, odd)))[margin:-margin, margin:-margin]


def strength(grey: Plane, light: bool) -> Plane:
    """How much each pixel is darker than the paper, or lighter if the ink is; from 0, in units of the grey values."""
    dark = grey.max() + grey.min() - grey if light else grey
    soft, size = smooth(dark), MAX_STROKE * min(grey.shape)
    ink: Plane = paper(soft, size) - soft
    if not ink.max():
        return ink
    strokes = ink > ink.max() / 2
    width = 2 * np.percentile(ndimage.distance_transform_edt(np.pad(strokes, 1))[1:-1, 1:-1][strokes], 98)
    background = paper(soft, np.clip(2.5 * width + 4, 7, max(7, size)))  # the narrower, the less shade counts as ink
    ink = background - dark
    if not light and grey.min() >= 0:  # ink reflects a fraction of the light that falls on it
        ink *= background.max() / np.maximum(background, background.max() / 10)
    return np.asarray(np.maximum(ink - max(np.median(ink), 0), 0))


def lines(ink: Plane, least: float) -> Plane:
    """Strength of printed lines, nearly horizontal, that are stronger than `least`; 0 elsewhere.

    A line is a narrow peak in a profile of the picture: the strength that `MIN_LINE_LENGTH` of a row exceeds, for rows
    of each slope.
    """
    rows, columns = ink.shape
    found = np.zeros_like(ink)
    down, across = np.arange(rows)[:, None], np.arange(columns) - columns // 2
    sample = slice(None, None, max(1, columns // 80))
    rank = int((1 - MIN_LINE_LENGTH) * len(across[sample]))
    reach = int(MAX_SLOPE * columns / 2)
    shifts = [np.round(across * steps * 2 / columns).astype(int) for steps in range(-reach, reach + 1)]
    profiles = np.empty((len(shifts), rows))
    for profile, shift in zip(profiles, shifts, strict=True):
        sloping = ink[np.clip(down + shift[sample], 0, rows - 1), np.arange(columns)[sample]]
        profile[:] = np.partition(sloping, rank, axis=1)[:, rank]
    profiles -= ndimage.grey_opening(profiles, (1, max(3, int(MAX_LINE * rows) | 1)))
    for profile, shift in zip(profiles, shifts, strict=True):
        if profile.max() > least:
            np.maximum(found, profile[np.clip(down - shift, 0, rows - 1)], out=found)
    return np.where(found > least, found, 0)


def without_lines(ink: Plane, level: float) -> tuple[Plane, Plane]:
    """Ink without the lines of ruled and squared paper, and these; `level` is the strength of the strongest ink.

    Strokes that cross a line are restored from both sides of it.
    """
    if min(ink.shape) < MIN_BOX_SIDE:
        return ink, np.zeros_like(ink)
    soft, least = smooth(ink), MIN_LINE_STRENGTH * level
    both = [ndimage.grey_dilation(lines(soft, least), (3, 1)), ndimage.grey_dilation(lines(soft.T, least).T, (1, 3))]
    left = np.maximum(ink - 1.3 * both[0] - 1.3 * both[1], 0)
    size = int(0.03 * min(ink.shape)) | 1
    for line, across in zip(both, ((size, 1), (1, size)), strict=True):
        restored = np.minimum(ndimage.grey_closing(left, across), ink)
        left = np.where(line > 0, np.maximum(left, restored), left)
    return left, np.maximum(*both)


def without_boxes(ink: Plane, level: float) -> Plane:
    """Ink without printed boxes: connected strokes with lines along three sides or all of the rectangle they fill."""
    shapes, _ = ndimage.label(smooth(ink) > INK_THRESHOLD * level, SQUARE)
    for label, inner in enumerate(ndimage.find_objects(shapes), 1):
        if not inner or min(side.stop - side.start for side in inner) < MIN_BOX_SIDE:
            continue
        where = tuple(slice(max(0, side.start - 2), side.stop + 2) for side in inner)
        own = shapes[where] == label
        left, printed = without_lines(np.where(own, ink[where], 0), level)
        high, wide = (max(4, length // 8) for length in own.shape)
        edges = [printed[:high].max(0), printed[-high:].max(0), printed[:, :wide].max(1), printed[:, -wide:].max(1)]
        if sum((edge > 0).mean() > MIN_LINE_LENGTH for edge in edges) >= 3:
            ink = ink.copy()
            beside = ndimage.binary_dilation(printed > 0, iterations=3) & ~own  # the fainter edges of the lines
            ink[where] = np.where(own, left, np.where(beside, 0, ink[where]))
    return ink
