"""Synthetic handwritten words of many writers, of known difficulty.

A twin of word images cut out of forms that many people filled in, for a machine that has none of
them: every writer copies the same text several times, so what tells two images apart is the hand
or the word, and a method has to find the hand.

- A letter is a skeleton of pen strokes through a few points, curved and inked.
- A writer has a style: slant, stroke width, roundness, proportions, gaps, steadiness, ink, and how
  often the pen stays down between letters; and letter forms, a shift of every point of the
  alphabet, which no statistic of a whole word shows.
- A session (nine repetitions) drifts a little from the style of its writer, a word a little from
  that of its session, and each point of a word wobbles.

The free constants are chosen so that six plain statistics of a word image (slant, ink, darkness,
stroke width, height and length) tell whether two different words of unseen writers are by one hand
with AUC .81 (.74 to .81 with other seeds), each of them alone with .53 to .74: neither trivial nor
hopeless. A network of four convolutions that was trained on 40 other writers reaches .86.
``tests/test_handwriting_generator.py`` holds the statistics.

Every writer, and every repetition of one, has a random stream of its own, named by the seed and its
index: with more writers or more repetitions the others stay as they are.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hdsweep.method import Strict
from trainables.data.folders import MARKER

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = NDArray[np.float64]
Whole = NDArray[np.intp]

TABLE = "words.csv"
COLUMNS = ("image_path", "label", "detected_word", "repetition")
SESSION = 9  # repetitions

# No word is there twice: a writer, a word and a repetition name an image.
_COPYBOOK = """
the quick brown fox jumps over one lazy dog while seven of my friends walk home from work and talk
about their plans for next week in quiet voices they hope that it will be sunny so we can visit old
market by river where people sell bread cheese fruit honey warm milk then sit down under big green
tree until evening comes back with cold wind before every judge knows zebra exactly
"""
TEXT = tuple(_COPYBOOK.split())

# Strokes of each letter in tenths of an x-height, from the baseline up; the first one is the body,
# and ends where the pen goes on to the next letter.
_ALPHABET = {
    "a": "8,9 4,10 0,6 1,1 4,0 8,5 8,10 8,3 9,0 11,1",
    "b": "1,20 0,10 1,1 4,0 8,3 8,8 6,10 6,8 9,8",
    "c": "8,8 5,10 1,8 0,4 2,0 5,0 9,3",
    "d": "8,8 4,10 0,6 1,1 4,0 8,5 8,20 8,4 9,0 11,1",
    "e": "0,5 7,6 7,9 4,10 1,8 0,4 2,0 5,0 9,3",
    "f": "8,17 6,20 3,17 3,8 3,1 5,0 7,1|0,10 7,10",
    "g": "8,9 4,10 0,6 1,1 4,0 8,5 8,10 8,0 7,-8 4,-10 1,-7 5,-3 9,1",
    "h": "0,20 0,10 0,0 0,6 4,10 7,8 7,3 8,0 10,1",
    "i": "1,10 1,3 2,0 4,1|1,14 1,15",
    "j": "3,10 3,0 2,-8 0,-10 -2,-7 1,-3 5,1|3,14 3,15",
    "k": "0,20 0,10 0,0 0,5 4,9 6,8 4,5 1,5 5,2 8,0 9,1",
    "l": "0,20 0,8 1,1 3,0 5,2",
    "m": "0,10 0,0 0,6 3,10 5,8 5,0 5,6 8,10 10,8 10,2 11,0 13,1",
    "n": "0,10 0,0 0,6 4,10 7,8 7,2 8,0 10,1",
    "o": "5,10 1,9 0,4 3,0 7,1 8,6 5,10 7,8 10,9",
    "p": "0,10 0,-5 0,-10 0,0 0,7 4,10 8,7 7,2 4,0 1,1 5,1 9,1",
    "q": "8,9 4,10 0,6 1,1 4,0 8,5 8,10 8,0 8,-10 10,-7 10,-2 11,1",
    "r": "0,10 0,0 0,6 3,10 6,10 7,8",
    "s": "7,9 4,10 1,8 3,6 6,4 7,2 4,0 1,1 4,0 8,1",
    "t": "3,17 3,8 3,2 5,0 7,1|0,11 7,11",
    "u": "0,10 0,3 3,0 6,2 8,6 8,10 8,2 9,0 11,1",
    "v": "0,10 2,4 4,0 6,5 8,10 10,9",
    "w": "0,10 1,3 3,0 5,4 6,8 7,3 9,0 11,5 12,10 14,9",
    "x": "0,10 4,5 8,0 9,1|8,10 4,5 0,0",
    "y": "0,10 0,4 3,1 6,3 8,10 8,0 6,-8 3,-10 1,-7 5,-3 9,1",
    "z": "0,10 8,10 4,5 0,0 8,0 9,1",
}

# Each property of a style: its centre, and its standard deviation over writers; where the name says
# log, of the logarithm. Lengths are in x-heights.
_STYLE = {
    "slant": (0.15, 0.20),  # tangent
    "log_pen": (np.log(0.17), 0.25),
    "roundness": (0.80, 0.25),  # 0: straight strokes, 1: a spline through the points
    "log_width": (np.log(0.90), 0.15),
    "gap": (0.25, 0.09),
    "log_size": (0.0, 0.12),
    "ascender": (1.85, 0.15),
    "descender": (0.85, 0.15),
    "log_wobble": (np.log(0.045), 0.35),
    "bounce": (0.0, 0.04),  # of letters about the baseline; its sign means nothing
    "climb": (0.03, 0.04),  # of the baseline
    "ink": (0.78, 0.12),  # 1 is black
    "joins": (0.45, 0.45),  # share of the letters that are joined to the next
}
_LIMIT = 2.2  # standard deviations: a style beyond could not be read
_FORMS = 0.1  # standard deviation of a writer's own shift of a point
_DRIFT = 0.25  # of a session, in units of the spread over writers
_HASTE = 0.62  # of a word

_X_HEIGHT = 0.25  # of the height of an image
_MARGIN = 1.5  # pixels
_FINE = 4  # pixels are drawn this much smaller, and averaged
_STEPS = 5  # straight pieces between two points of a stroke


class Params(Strict):
    """Synthetic handwritten words: writers who copy one text.

    Args:
        writers: How many.
        words: Length of the text, from its beginning.
        repetitions: How often each writer copies the text; nine are a session.
        height: Of an image, in pixels; letters grow with it.
        width: Of an image, in pixels; a word that is too long is written smaller.
        spread: How far apart the writers are, in units of the difficulty stated above; with 0 all
            have the same hand.
        seed: Names the writers and all that varies.
    """

    writers: int = Field(300, ge=1, le=999)
    words: int = Field(65, ge=1, le=len(TEXT))
    repetitions: int = Field(18, ge=1, le=99)
    height: int = Field(32, ge=16, le=256)
    width: int = Field(96, ge=32, le=1024)
    spread: float = Field(1.0, ge=0, le=2)
    seed: int = Field(1, ge=0)


def write(params: Params, root: Path) -> None:
    """Write ``<writer>/<word>_<repetition>.png`` and ``words.csv`` below ``root``.

    Gray pictures of one size, in the order of the text. The same ``params`` write the same bytes.
    """
    text = TEXT[: params.words]
    with (root / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for index in range(params.writers):
            name = f"w{index:03d}"
            (root / name).mkdir()
            for repetition, images in enumerate(writer_images(params, index)):
                for word, image in zip(text, images, strict=True):
                    path = f"{name}/{word}_{repetition}.png"
                    image.save(root / path, format="PNG")
                    table.writerow((path, name, word, repetition))
    (root / MARKER).write_text(params.model_dump_json(indent=2) + "\n", encoding="utf-8")


def writer_images(params: Params, writer: int) -> Iterator[list[Image]]:
    """The text as one writer copies it, once per repetition: a gray picture of each word."""
    text = _text(TEXT[: params.words])
    rng = _stream(params.seed, writer)
    style = params.spread * rng.standard_normal(len(_STYLE))
    forms = params.spread * _FORMS * rng.standard_normal((_points_of_alphabet(), 2))
    for repetition in range(params.repetitions):
        drift = _stream(params.seed, writer, 0, repetition // SESSION)
        session = style + _DRIFT * drift.standard_normal(len(_STYLE))
        rng = _stream(params.seed, writer, 1, repetition)
        yield _copy(params, text, session, forms, rng)


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@dataclass(frozen=True, slots=True)
class _Text:
    """A text as points of its letters and pieces of strokes, all words after one another.

    Args:
        point: Shape (points, 2), in x-heights, each letter from its own origin.
        form: Shape (points,), place in the alphabet.
        letter: Shape (points,), which letter it belongs to.
        extent: Shape (letters,), width.
        word: Shape (letters,), which word it belongs to.
        begins: Shape (words,), the first letter of each.
        piece: Shape (pieces, 4), the points that a piece goes between, and their neighbours.
        strokes: First and last piece + 1 of each stroke, and the letter it leads to from the one
            before, or -1 within a letter; one list for each word.
    """

    point: Floats
    form: Whole
    letter: Whole
    extent: Floats
    word: Whole
    begins: Whole
    piece: Whole
    strokes: tuple[tuple[tuple[int, int, int], ...], ...]


def _strokes_of(letter: str) -> list[list[tuple[float, float]]]:
    strokes = ([pair.split(",") for pair in s.split()] for s in _ALPHABET[letter].split("|"))
    return [[(int(x) / 10, int(y) / 10) for x, y in stroke] for stroke in strokes]


def _points_of_alphabet() -> int:
    return sum(len(stroke) for letter in _ALPHABET for stroke in _strokes_of(letter))


@lru_cache(maxsize=8)
def _text(words: tuple[str, ...]) -> _Text:
    glyphs = {letter: _strokes_of(letter) for letter in _ALPHABET}
    first_form, forms = {}, 0
    for name, glyph in glyphs.items():
        first_form[name], forms = forms, forms + sum(map(len, glyph))
    point: list[tuple[float, float]] = []
    form: list[int] = []
    letter: list[int] = []
    word: list[int] = []
    begins: list[int] = []
    extent: list[float] = []
    piece: list[tuple[int, int, int, int]] = []
    strokes: list[tuple[tuple[int, int, int], ...]] = []
    for number, spelling in enumerate(words):
        begins.append(len(extent))
        found: list[tuple[int, int, int]] = []
        body_end = -1
        for name in spelling:
            here = len(extent)
            if body_end >= 0:
                start = len(point)
                piece.append((body_end - 1, body_end, start, start + 1))
                found.append((len(piece) - 1, len(piece), here))
            form_of = first_form[name]
            for n, stroke in enumerate(glyphs[name]):
                start, last = len(point), len(point) + len(stroke) - 1
                first_piece = len(piece)
                piece += [
                    (max(k - 1, start), k, k + 1, min(k + 2, last)) for k in range(start, last)
                ]
                found.append((first_piece, len(piece), -1))
                point += stroke
                form += range(form_of, form_of + len(stroke))
                form_of += len(stroke)
                body_end = last if n == 0 else body_end
            letter += [here] * (len(point) - len(letter))
            extent.append(max(x for stroke in glyphs[name] for x, _ in stroke))
            word.append(number)
        strokes.append(tuple(found))
    return _Text(
        np.array(point),
        np.array(form),
        np.array(letter),
        np.array(extent),
        np.array(word),
        np.array(begins),
        np.array(piece),
        tuple(strokes),
    )


def _copy(
    params: Params, text: _Text, session: Floats, forms: Floats, rng: np.random.Generator
) -> list[Image]:
    """One repetition of the text, in the style of its session."""
    words, letters = len(text.begins), len(text.extent)
    haste = _HASTE * rng.standard_normal((words, len(_STYLE)))
    z = np.clip(session + haste, -_LIMIT, _LIMIT)
    style = {name: c + s * z[:, k] for k, (name, (c, s)) in enumerate(_STYLE.items())}
    each, word = text.word, text.word[text.letter]

    # Points, each letter from its own origin
    point = text.point + forms[text.form]
    wobble = np.exp(style["log_wobble"])[word, None]
    point += wobble * rng.standard_normal(point.shape)
    x, y = point[:, 0] * np.exp(style["log_width"])[word], point[:, 1]
    y = np.where(y > 1, 1 + (y - 1) * (style["ascender"][word] - 1), y)
    y = np.where(y < 0, y * style["descender"][word], y)

    # Letters along the baseline
    advance = text.extent * np.exp(style["log_width"])[each] + style["gap"][each]
    advance += 0.05 * rng.standard_normal(letters)
    origin = np.cumsum(advance) - advance
    origin -= origin[text.begins][each]
    bounce = style["bounce"][each] * rng.standard_normal(letters)
    x += origin[text.letter]
    y += bounce[text.letter] + style["climb"][word] * x
    x += style["slant"][word] * y

    # Strokes through the points: cubic Hermite pieces, whose tangents a straight hand shortens
    before, start, end, after = (np.stack([x, y], 1)[text.piece[:, k]] for k in range(4))
    in_word = word[text.piece[:, 1]]
    curl = 0.5 * style["roundness"][in_word, None]
    t = (np.arange(_STEPS + 1) / _STEPS)[:, None, None]
    curve = (1 + 2 * t) * (1 - t) ** 2 * start + t**2 * (3 - 2 * t) * end
    curve += curl * (t * (1 - t) ** 2 * (end - before) - t**2 * (1 - t) * (after - start))
    curve = curve.transpose(1, 0, 2)  # pieces, steps, xy

    # Onto the paper: a word in the middle of its image, as it was cut out
    pixel = params.height * _X_HEIGHT * np.exp(style["log_size"])
    first_piece = np.array([strokes[0][0] for strokes in text.strokes])
    low = np.minimum.reduceat(curve.min(1), first_piece)
    high = np.maximum.reduceat(curve.max(1), first_piece)
    pen = np.exp(style["log_pen"])
    room = np.array([params.width, params.height]) - 2 * _MARGIN
    fit = np.min(room / (high - low + pen[:, None]), axis=1)
    pixel = np.minimum(pixel, fit)
    middle = (low + high) / 2
    slack = np.maximum(room - pixel[:, None] * (high - low + pen[:, None]), 0)
    shift = 0.25 * slack * rng.uniform(-1, 1, (words, 2))
    curve = (curve - middle[in_word, None]) * pixel[in_word, None, None] * (1, -1)
    curve += np.array([params.width, params.height]) / 2 + shift[in_word, None]

    joined = rng.random(letters) < style["joins"][each]
    thick = np.maximum(np.rint(_FINE * pen * pixel), 2).astype(int)
    paper = np.rint(255 * (1 - np.clip(style["ink"], 0.2, 1))).astype(int)
    curve = np.round(_FINE * curve)
    return [
        _drawn(
            params,
            [curve[a:b] for a, b, to in strokes if to < 0 or joined[to]],
            int(thick[n]),
            int(paper[n]),
        )
        for n, strokes in enumerate(text.strokes)
    ]


def _drawn(params: Params, strokes: list[Floats], thick: int, ink: int) -> Image:
    """A picture of strokes, each of shape (pieces, steps, 2), in fine pixels."""
    import PIL.Image
    import PIL.ImageDraw

    image = PIL.Image.new("L", (params.width * _FINE, params.height * _FINE), 255)
    draw = PIL.ImageDraw.Draw(image)
    radius = thick / 2
    for stroke in strokes:
        draw.line(stroke.ravel().tolist(), fill=ink, width=thick)
        knots = [*stroke[:, 0].tolist(), stroke[-1, -1].tolist()]
        for x, y in knots:  # round ends, and no gap where the stroke turns
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return image.reduce(_FINE)
