"""Boundaries that pathologists draw on a slide, and how much of a tile lies within them.

Two formats are read, both in pixels of the slide's largest level:

- ASAP: ``ASAP_Annotations/Annotations/Annotation[@Type]/Coordinates/Coordinate[@X,@Y]``. Polygons,
  rectangles and splines (by their points) are boundaries.
- Aperio ImageScope: ``Annotations/Annotation/Regions/Region/Vertices/Vertex[@X,@Y]``. Freehand
  regions and rectangles are boundaries; a region with ``NegativeROA="1"`` is a hole.

Dots, points, rulers and arrows enclose nothing and mark nothing; they are counted only. What is
within at least one boundary and within no hole is marked. A boundary that crosses itself encloses
what the even-odd rule says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hdsweep.method import DataError
from trainables.data.folders import unreadable

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Floats = NDArray[np.float64]

POINTS = 16  # on each side of a tile, at which its share is counted

_ASAP_BOUNDARIES = ("Polygon", "Rectangle", "Spline")
_ASAP_MARKS = ("Dot", "PointSet", "None")
_APERIO_BOUNDARIES = ("0", "1")  # freehand, rectangle
_APERIO_ELLIPSE = "2"


@dataclass(frozen=True, slots=True)
class Boundary:
    """One closed outline.

    Args:
        name: What a message calls it: its number in the file, and the name it was given.
        group: Of ASAP; empty where there is none.
        corners: Shape (n, 2), x and y; n is at least 3.
        is_hole: Whether the file itself says that it is a hole.
    """

    name: str
    group: str
    corners: Floats
    is_hole: bool = False


@dataclass(frozen=True, slots=True)
class Annotations:
    """What one file holds.

    Args:
        path: The file.
        boundaries: In its order.
        marks: Annotations that enclose nothing.
    """

    path: Path
    boundaries: tuple[Boundary, ...]
    marks: int = 0

    def require_within(self, width: int, height: int) -> None:
        """Raise DataError unless every corner lies on a slide of this size."""
        for boundary in self.boundaries:
            x, y = boundary.corners.T
            outside = np.flatnonzero((x < 0) | (y < 0) | (x > width) | (y > height))
            if len(outside):
                at = boundary.corners[outside[0]]
                raise DataError(
                    f"{self.path}: {boundary.name}: point {outside[0] + 1} of {len(x)} is at "
                    f"({at[0]:g}, {at[1]:g}), and the slide is {width} x {height} pixels (width x "
                    "height); export the boundaries in pixels of the largest level, of this slide"
                )


def read_annotations(path: Path) -> Annotations:
    """The boundaries of one file.

    Raises:
        DataError: The file is damaged, of neither format, has no boundary, or has one that is no
            polygon.
    """
    root = _parsed(path)
    if root.tag == "ASAP_Annotations":
        found, marks = _asap(path, root)
    elif root.tag == "Annotations":
        found, marks = _aperio(path, root)
    else:
        raise DataError(
            f"{path}: the outermost element is <{root.tag}>, not <ASAP_Annotations> or "
            "<Annotations>; export the boundaries from ASAP or from Aperio ImageScope"
        )
    if not any(not one.is_hole for one in found):
        others = f", only {marks} dots, rulers or the like" if marks else ""
        raise DataError(
            f"{path}: no boundary is drawn{others}; draw what is anomalous, or move the slide to "
            "test/normal"
        )
    return Annotations(path, tuple(found), marks)


def _parsed(path: Path) -> Element:
    import defusedxml.ElementTree
    from defusedxml import DefusedXmlException

    try:
        root: Element = defusedxml.ElementTree.parse(path).getroot()
    except OSError as error:
        raise unreadable(path, error) from None
    except DefusedXmlException:
        raise DataError(
            f"{path}: it declares entities, which no program for slides writes; export it again"
        ) from None
    except (defusedxml.ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(
            f"{path}: cannot be read as XML ({error}); copy it again from its source"
        ) from None
    return root


def _asap(path: Path, root: Element) -> tuple[list[Boundary], int]:
    found, marks = [], 0
    for number, one in enumerate(root.iter("Annotation"), start=1):
        kind, name = one.get("Type", ""), _called(number, one.get("Name"))
        if kind in _ASAP_MARKS:
            marks += 1
            continue
        if kind not in _ASAP_BOUNDARIES:
            raise DataError(
                f"{path}: {name} is of Type '{kind}'; draw it again as one of "
                f"{', '.join(_ASAP_BOUNDARIES)}"
            )
        points = sorted(
            one.iter("Coordinate"), key=lambda point: _number(path, name, point, "Order")
        )
        corners = _corners(path, name, points)
        found.append(Boundary(name, one.get("PartOfGroup", ""), corners))
    return found, marks


def _aperio(path: Path, root: Element) -> tuple[list[Boundary], int]:
    found, marks = [], 0
    for number, region in enumerate(root.iter("Region"), start=1):
        kind, name = region.get("Type", "0"), _called(number, region.get("Text"))
        if kind == _APERIO_ELLIPSE:
            raise DataError(
                f"{path}: {name} is an ellipse, of which the file keeps the box only; draw it "
                "again with the pen"
            )
        if kind not in _APERIO_BOUNDARIES:
            marks += 1
            continue
        corners = _corners(path, name, list(region.iter("Vertex")))
        found.append(Boundary(name, "", corners, is_hole=region.get("NegativeROA") == "1"))
    return found, marks


def _called(number: int, name: str | None) -> str:
    return f"boundary {number} ('{name}')" if name else f"boundary {number}"


def _corners(path: Path, name: str, points: list[Element]) -> Floats:
    if len(points) < 3:
        raise DataError(
            f"{path}: {name} has {len(points)} points, and a polygon has at least 3; draw it again "
            "or remove it"
        )
    corners = np.array([[_number(path, name, point, axis) for axis in "XY"] for point in points])
    if np.linalg.matrix_rank(corners - corners[0]) < 2:
        raise DataError(
            f"{path}: {name} encloses no area, its {len(points)} points lie on a line; draw it "
            "again or remove it"
        )
    return corners


def _number(path: Path, name: str, point: Element, attribute: str) -> float:
    text = point.get(attribute)
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise DataError(
            f"{path}: {name} has a point with {attribute} = {text!r}, which is no finite number; "
            "export the boundaries again"
        )
    return value


def shares(
    boundaries: tuple[Boundary, ...], holes: tuple[str, ...], x: Floats, y: Floats, side: float
) -> Floats:
    """How much of each tile is marked, in [0, 1], shape (len(y), len(x)).

    It is counted at the 16 x 16 points in the middles of a tile's equal squares, which is exact to
    about 1/16 of the length of the boundary within the tile.

    Args:
        boundaries: Of one slide, at least one.
        holes: Groups whose boundaries are holes.
        x: Left edges of the columns of tiles, ascending, at least ``side`` apart.
        y: Upper edges of the rows of tiles.
        side: Of a tile.
    """
    found = np.zeros((len(y), len(x)))
    drawn = [(one.corners, one.is_hole or one.group in holes) for one in boundaries]
    low = np.array([corners.min(axis=0) for corners, _ in drawn])
    high = np.array([corners.max(axis=0) for corners, _ in drawn])
    columns = np.flatnonzero((x + side >= low[:, 0].min()) & (x <= high[:, 0].max()))
    inner = (np.arange(POINTS) + 0.5) / POINTS * side
    across = (x[columns, None] + inner).ravel()
    for row, top in enumerate(y):
        reached = np.flatnonzero((low[:, 1] <= top + side) & (high[:, 1] >= top))
        marked = np.zeros((POINTS, len(across)), np.bool_)
        unmarked = np.zeros_like(marked)
        for corners, is_hole in (drawn[n] for n in reached):
            (unmarked if is_hole else marked)[:] |= within(corners, across, top + inner)
        if marked.any():
            marked &= ~unmarked
            cells = marked.reshape(POINTS, len(columns), POINTS)
            found[row, columns] = cells.mean(axis=(0, 2))
    return found


def within(corners: Floats, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Which points of a grid lie in a polygon by the even-odd rule, shape (len(y), len(x)).

    Args:
        corners: Shape (n, 2), x and y.
        x: Ascending.
        y: In any order.
    """
    x0, y0 = corners.T
    x1, y1 = np.roll(corners, -1, axis=0).T
    line, edge = np.nonzero((y0 <= y[:, None]) != (y1 <= y[:, None]))
    crossing = x0[edge] + (y[line] - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    count = np.zeros((len(y), len(x) + 1), np.intp)
    np.add.at(count, (line, np.searchsorted(x, crossing)), 1)
    inside: NDArray[np.bool_] = count[:, :-1].cumsum(axis=1) % 2 == 1
    return inside
