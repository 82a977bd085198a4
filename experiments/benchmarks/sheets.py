"""Synthetic sheets of paper: a digit of MNIST as a photo of it would look, drawn in the ways that people take photos.

Every function of `KINDS` takes a random generator, a digit [28, 28] and another one that some kinds need, and returns
a picture. Brightness is 0 to 1; lengths are pixels of a sheet of about 420 x 320.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

Digit = np.ndarray
Kind = Callable[[np.random.Generator, Digit, Digit], Image.Image]


def size_of(rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns of a sheet, upright or across."""
    sides = int(rng.integers(280, 360)), int(rng.integers(360, 480))
    return sides if rng.random() < 0.5 else sides[::-1]


def enlarged(digit: Digit, side: int) -> np.ndarray:
    """Ink of a digit, 0 to 1, in a frame of `side` x `side` that its own margins are a part of."""
    large = Image.fromarray(digit.astype(np.float32) / 255).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(large), 0, 1)


def trimmed(ink: np.ndarray) -> np.ndarray:
    """Ink without empty rows and columns around it."""
    rows, columns = np.nonzero(ink > 0.1)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def put(size: tuple[int, int], ink: np.ndarray, top: int, left: int) -> np.ndarray:
    """Ink on an empty sheet; what lies outside is cut off."""
    sheet = np.zeros(size)
    rows, columns = np.indices(ink.shape)
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    sheet[rows[inside], columns[inside]] = ink[inside]
    return sheet


def written(rng: np.random.Generator, digit: Digit, size: tuple[int, int], margin: int = 12) -> np.ndarray:
    """Ink of a digit anywhere on a sheet, but `margin` pixels from its edges; a third to two thirds of its height."""
    ink = trimmed(enlarged(digit, int(rng.integers(140, 240))))
    top, left = (int(rng.integers(margin, whole - part - margin)) for whole, part in zip(size, ink.shape, strict=True))
    return put(size, ink, top, left)


def painted(ink: np.ndarray, paper: np.ndarray | float, pen: float) -> np.ndarray:
    """Brightness of paper with ink on it."""
    return (1 - ink) * paper + ink * pen


def saved(brightness: np.ndarray) -> Image.Image:
    """A grey or coloured picture of 8 bits."""
    return Image.fromarray(np.round(255 * np.clip(brightness, 0, 1)).astype(np.uint8))


def grained(rng: np.random.Generator, size: tuple[int, int], amount: float = 0.01) -> np.ndarray:
    """Noise of a camera."""
    return rng.normal(0, amount, size)


def stripes(size: tuple[int, int], spacing: float, phase: float, width: float, degrees: float) -> np.ndarray:
    """Lines of equal distance, 0 to 1; of 0 degrees they are horizontal."""
    down, across = np.indices(size)
    angle = np.deg2rad(degrees)
    position = down * np.cos(angle) + across * np.sin(angle) + phase
    distance = np.abs((position + spacing / 2) % spacing - spacing / 2)
    return np.clip(width / 2 + 0.5 - distance, 0, 1)


def side_of(rng: np.random.Generator, ink: np.ndarray, softness: float) -> np.ndarray:
    """0 to 1: the two sides of an edge that crosses the ink at any angle; it is softer for a larger number."""
    down, across = np.indices(ink.shape)
    row, column = ndimage.center_of_mass(ink)
    angle = rng.uniform(0, 2 * np.pi)
    distance = (down - row) * np.sin(angle) + (across - column) * np.cos(angle) + rng.uniform(-40, 40)
    return 1 / (1 + np.exp(-np.clip(distance / softness, -50, 50)))


def plain(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Dark ink on white paper."""
    size = size_of(rng)
    return saved(painted(written(rng, digit, size), rng.uniform(0.9, 1), rng.uniform(0, 0.25)) + grained(rng, size))


def grey(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Recycled paper."""
    size = size_of(rng)
    paper = rng.uniform(0.5, 0.75) + 0.02 * ndimage.gaussian_filter(rng.normal(size=size), 1.5) * 5
    return saved(painted(written(rng, digit, size), paper, rng.uniform(0, 0.2)) + grained(rng, size))


def coloured(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Coloured ink on coloured paper."""
    size = size_of(rng)
    paper, pen = rng.uniform(0.6, 1, 3), rng.uniform(0, 0.45, 3)
    return saved(painted(written(rng, digit, size)[..., None], paper, pen) + grained(rng, size)[..., None])


def dark(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Chalk: light ink on dark paper."""
    size = size_of(rng)
    return saved(painted(written(rng, digit, size), rng.uniform(0.05, 0.3), rng.uniform(0.75, 1)) + grained(rng, size))


def pencil(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Faint strokes with the grain of the paper."""
    size = size_of(rng)
    grain = np.clip(0.75 + 0.8 * ndimage.gaussian_filter(rng.normal(size=size), 1), 0.2, 1)
    paper = rng.uniform(0.85, 0.95)
    return saved(painted(written(rng, digit, size) * grain, paper, rng.uniform(0.45, 0.65)) + grained(rng, size, 0.015))


def marker(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Bold strokes."""
    size = size_of(rng)
    ink = ndimage.grey_dilation(written(rng, digit, size), size=(9, 9))
    return saved(painted(ink, rng.uniform(0.85, 1), rng.uniform(0, 0.2)) + grained(rng, size))


def ruled(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Ruled paper, up to 3 degrees from upright, with lines from faint to as dark as ink."""
    size = size_of(rng)
    lines = stripes(size, rng.uniform(28, 70), rng.uniform(0, 70), rng.uniform(1, 3), rng.uniform(-3, 3))
    paper = painted(lines, rng.uniform(0.85, 1), rng.uniform(0.2, 0.75))
    return saved(painted(written(rng, digit, size), paper, rng.uniform(0, 0.25)) + grained(rng, size))


def squared(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Squared paper, likewise."""
    size = size_of(rng)
    spacing, width, degrees = rng.uniform(18, 50), rng.uniform(1, 2.5), rng.uniform(-3, 3)
    lines = [stripes(size, spacing, rng.uniform(0, 50), width, turn + degrees) for turn in (0, 90)]
    paper = painted(np.maximum(*lines), rng.uniform(0.85, 1), rng.uniform(0.3, 0.75))
    return saved(painted(written(rng, digit, size), paper, rng.uniform(0, 0.25)) + grained(rng, size))


def frame(ink: np.ndarray, gaps: np.ndarray, width: float) -> np.ndarray:
    """A rectangle `gaps` pixels outside the ink: above, below, left, right."""
    rows, columns = np.nonzero(ink > 0.1)
    top, bottom = rows.min() - gaps[0], rows.max() + gaps[1]
    left, right = columns.min() - gaps[2], columns.max() + gaps[3]
    down, across = np.indices(ink.shape)
    inside = np.minimum(np.minimum(down - top, bottom - down), np.minimum(across - left, right - across))
    return np.clip(width / 2 + 0.5 - np.abs(inside), 0, 1)


def box(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """A form: the digit is in a printed box."""
    size = size_of(rng)
    ink = written(rng, digit, size, 40)
    lines = frame(ink, rng.uniform(8, 38, 4), rng.uniform(1.5, 5))
    paper = painted(lines, rng.uniform(0.85, 1), rng.uniform(0, 0.5))
    return saved(painted(ink, paper, rng.uniform(0, 0.25)) + grained(rng, size))


def box_touched(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """The digit crosses one side of its box."""
    size = size_of(rng)
    ink = written(rng, digit, size, 40)
    gaps = rng.uniform(8, 38, 4)
    gaps[rng.integers(4)] = rng.uniform(-20, -4)
    paper = painted(frame(ink, gaps, rng.uniform(1.5, 5)), rng.uniform(0.85, 1), rng.uniform(0, 0.5))
    return saved(painted(ink, paper, rng.uniform(0, 0.25)) + grained(rng, size))


def soft_shadow(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """The soft edge of a shadow crosses the digit."""
    size = size_of(rng)
    ink = written(rng, digit, size)
    light = 1 - rng.uniform(0.3, 0.65) * side_of(rng, ink, rng.uniform(4, 25))
    return saved(light * painted(ink, rng.uniform(0.85, 1), rng.uniform(0.05, 0.25)) + grained(rng, size))


def hard_shadow(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """The sharp edge of a shadow crosses the digit."""
    size = size_of(rng)
    ink = written(rng, digit, size)
    light = 1 - rng.uniform(0.3, 0.65) * side_of(rng, ink, rng.uniform(0.3, 1.5))
    return saved(light * painted(ink, rng.uniform(0.85, 1), rng.uniform(0.05, 0.25)) + grained(rng, size))


def tilted_light(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Light from one side, and less of it towards the corners."""
    size = size_of(rng)
    ink = written(rng, digit, size)
    down, across = (part / whole - 0.5 for part, whole in zip(np.indices(size), size, strict=True))
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.6)
    light = 1 - fall * (0.5 + down * np.sin(angle) + across * np.cos(angle)) - 0.3 * (down**2 + across**2)
    return saved(light * painted(ink, rng.uniform(0.85, 1), rng.uniform(0.05, 0.25)) + grained(rng, size))


def crumpled(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Uneven paper."""
    size = size_of(rng)
    folds = ndimage.gaussian_filter(rng.normal(size=size), 20)
    light = 0.85 + 0.12 * np.clip(folds / folds.std(), -2, 1)
    return saved(light * painted(written(rng, digit, size), 0.95, rng.uniform(0.05, 0.25)) + grained(rng, size))


def noisy(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Taken in the dark."""
    size = size_of(rng)
    sheet = painted(written(rng, digit, size), rng.uniform(0.6, 0.9), rng.uniform(0.1, 0.25))
    return saved(sheet + grained(rng, size, rng.uniform(0.05, 0.12)))


def blurred(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Out of focus."""
    size = size_of(rng)
    ink = ndimage.gaussian_filter(written(rng, digit, size), rng.uniform(2, 5))
    return saved(painted(ink, rng.uniform(0.85, 1), rng.uniform(0, 0.25)) + grained(rng, size))


def jpeg(rng: np.random.Generator, digit: Digit, other: Digit) -> Image.Image:
    """Compressed until blocks show."""
    file = io.BytesIO()
    tilted_light(rng, digit, other).save(file, "JPEG", quality=int(rng.integers(5, 20)))
    return Image.open(file)


def dirty(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Specks as dark as ink."""
    size = size_of(rng)
    ink = written(rng, digit, size)
    for _ in range(rng.integers(3, 9)):
        row, column, side = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(1, 5)
        ink[row : row + side, column : column + side] = 1
    return saved(painted(ink, rng.uniform(0.85, 1), rng.uniform(0, 0.25)) + grained(rng, size))


def table(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """The sheet lies on a dark table that shows on all sides."""
    size = size_of(rng)
    ink = written(rng, digit, size, 50)
    rows, columns = np.nonzero(ink > 0.1)
    edges = [
        rng.uniform(8, limit - 12)
        for limit in (rows.min(), size[0] - rows.max(), columns.min(), size[1] - columns.max())
    ]
    down, across = np.indices(size)
    inside = (down > edges[0]) & (down < size[0] - edges[1]) & (across > edges[2]) & (across < size[1] - edges[3])
    turned = ndimage.rotate(inside.astype(float), rng.uniform(-2, 2), reshape=False, order=1)
    paper = painted(1 - np.clip(turned, 0, 1), rng.uniform(0.85, 1), rng.uniform(0.1, 0.4))
    return saved(painted(ink, paper, rng.uniform(0, 0.2)) + grained(rng, size))


def tiny(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Sheets of 20 to 40 pixels."""
    ink = trimmed(enlarged(digit, int(rng.integers(22, 36))))
    size = tuple(part + int(rng.integers(4, 16)) for part in ink.shape)
    ink = put(size, ink, *(int(rng.integers(2, whole - part - 1)) for whole, part in zip(size, ink.shape, strict=True)))
    return saved(painted(ink, rng.uniform(0.8, 1), rng.uniform(0, 0.25)) + grained(rng, size))


def huge(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """A photo of 2 megapixels, in which the digit is a tenth to a half of the height."""
    size = (1296, 1728)
    ink = trimmed(enlarged(digit, int(rng.integers(180, 900))))
    ink = put(
        size, ink, *(int(rng.integers(40, whole - part - 40)) for whole, part in zip(size, ink.shape, strict=True))
    )
    light = np.linspace(1, rng.uniform(0.6, 1), size[1])
    sheet = light * painted(ink, rng.uniform(0.85, 1), rng.uniform(0.05, 0.25)) + 0.02 * rng.normal(size=size)
    return saved(sheet)


def two(rng: np.random.Generator, digit: Digit, other: Digit) -> Image.Image:
    """Two digits side by side."""
    size = (int(rng.integers(280, 360)), 480)
    inks = [trimmed(enlarged(one, int(rng.integers(140, 200)))) for one in (digit, other)]
    gap = int(rng.integers(8, 50))
    left = max(4, (size[1] - inks[0].shape[1] - inks[1].shape[1] - gap) // 2)
    tops = [int(rng.integers(60, 80)) for _ in inks]
    ink = put(size, inks[0], tops[0], left) + put(size, inks[1], tops[1], left + inks[0].shape[1] + gap)
    return saved(painted(np.clip(ink, 0, 1), rng.uniform(0.85, 1), rng.uniform(0, 0.25)) + grained(rng, size))


def neighbour(rng: np.random.Generator, digit: Digit, other: Digit) -> Image.Image:
    """A part of another digit shows at the edge."""
    size = (int(rng.integers(280, 360)), int(rng.integers(300, 400)))
    ink, part = (trimmed(enlarged(one, int(rng.integers(140, 200)))) for one in (digit, other))
    shown = int(rng.uniform(0.2, 0.6) * part.shape[1])
    left = int(rng.integers(12, max(13, size[1] - ink.shape[1] - shown - 30)))
    ink = put(size, ink, int(rng.integers(40, 70)), left) + put(size, part, int(rng.integers(40, 70)), size[1] - shown)
    return saved(painted(np.clip(ink, 0, 1), rng.uniform(0.85, 1), rng.uniform(0, 0.25)) + grained(rng, size))


def cut(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """An edge of the photo cuts off a fifth to two fifths of the digit."""
    size = size_of(rng)
    ink = trimmed(enlarged(digit, int(rng.integers(140, 220))))
    lost = rng.uniform(0.2, 0.4)
    side = rng.integers(4)
    top, left = (int(rng.integers(12, whole - part - 12)) for whole, part in zip(size, ink.shape, strict=True))
    if side < 2:
        top = -int(lost * ink.shape[0]) if side else size[0] - int((1 - lost) * ink.shape[0])
    else:
        left = -int(lost * ink.shape[1]) if side == 2 else size[1] - int((1 - lost) * ink.shape[1])
    ink = put(size, ink, top, left)
    return saved(painted(ink, rng.uniform(0.85, 1), rng.uniform(0, 0.25)) + grained(rng, size))


def empty(rng: np.random.Generator, _: Digit, __: Digit) -> Image.Image:
    """White, ruled or squared paper, half of it in a shadow, without a digit."""
    size = size_of(rng)
    spacing, degrees = rng.uniform(18, 70), rng.uniform(-3, 3)
    lines = [stripes(size, spacing, rng.uniform(0, 70), rng.uniform(1, 3), turn + degrees) for turn in (0, 90)]
    paper = painted(np.max([np.zeros(size), *lines[: rng.integers(3)]], axis=0), 0.95, rng.uniform(0.2, 0.75))
    shadow = rng.integers(2) * rng.uniform(0.3, 0.6) * side_of(rng, np.ones(size), rng.uniform(0.3, 25))
    return saved((1 - shadow) * paper + grained(rng, size))


def transparent(rng: np.random.Generator, digit: Digit, pen: tuple[float, float]) -> Image.Image:
    """Ink of a drawing program, smooth at its edges; the colour of what is transparent is anything."""
    size = size_of(rng)
    ink = written(rng, digit, size)
    layers = np.full((*size, 4), rng.choice([0.0, 1.0]))
    layers[ink > 0, :3] = rng.uniform(*pen, 3)
    layers[..., 3] = ink
    return saved(layers)


def white_on_transparent(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Nearly white ink on nothing."""
    return transparent(rng, digit, (0.9, 1))


def black_on_transparent(rng: np.random.Generator, digit: Digit, _: Digit) -> Image.Image:
    """Nearly black ink on nothing."""
    return transparent(rng, digit, (0, 0.2))


KINDS: dict[str, Kind] = {
    "plain": plain,
    "grey paper": grey,
    "coloured": coloured,
    "dark paper": dark,
    "pencil": pencil,
    "marker": marker,
    "ruled": ruled,
    "squared": squared,
    "box": box,
    "box, touched": box_touched,
    "soft shadow": soft_shadow,
    "hard shadow": hard_shadow,
    "tilted light": tilted_light,
    "crumpled": crumpled,
    "noise": noisy,
    "blurred": blurred,
    "JPEG": jpeg,
    "specks": dirty,
    "table": table,
    "tiny": tiny,
    "huge": huge,
    "white on transparent": white_on_transparent,
    "black on transparent": black_on_transparent,
    "neighbour": neighbour,
    "cut off": cut,
    "two digits": two,
    "no digit": empty,
}
"""Kinds of sheets, by the names in the table."""

WITHOUT_ANSWER = ("two digits", "no digit")
"""Kinds that no answer is right for: only a note or a refusal is."""
