"""A look at every file of a data set of whole-slide images."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hdsweep.method import Check, DataError
from hdsweep.strict import file_digest
from trainables.data.folders import MARKER, first, is_folder, names_in, require_root, some
from trainables.data.inspection import most_common
from trainables.data.repeats import leaks, repeats
from trainables.data.slides import (
    SPLITS,
    Look,
    Params,
    Place,
    Split,
    look,
    places_in,
    require_holes,
    verify,
)

_THREADS = 4


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a slide holds; ``found`` is None where it cannot be used."""

    place: Place
    digest: str = ""
    found: Look | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Part:
    """What the slides of one split hold."""

    split: Split
    seen: tuple[_Seen, ...] = ()
    problem: str = ""

    @property
    def looks(self) -> list[Look]:
        return [one.found for one in self.seen if one.found is not None]

    @property
    def names(self) -> dict[str, list[str]]:
        """Of slides, by the digest of their files."""
        names: dict[str, list[str]] = {}
        for one in self.seen:
            if one.digest:
                names.setdefault(one.digest, []).append(one.place.name)
        return names

    def row(self, params: Params) -> dict[str, str | int | float]:
        looks = self.looks
        tiles = [len(one.corners) for one in looks]
        squares = sum(one.squares for one in looks)
        most = params.train_tiles if self.split == "train/normal" else None
        return {
            "split": self.split,
            "slides": len(self.seen),
            "size": most_common([f"{h}x{w}" for w, h in (one.size for one in looks)]),
            "levels": most_common([str(one.levels) for one in looks]),
            "tiles": sum(tiles),
            "used": sum(tiles if most is None else (min(most, n) for n in tiles)),
            "tissue_percent": round(100 * sum(tiles) / squares, 1) if squares else "-",
            "anomalous": sum(int(one.anomalous.sum()) for one in looks),
            "boundaries": sum(one.boundaries for one in looks),
            "duplicates": sum(len(names) - 1 for names in self.names.values()),
        }


def inspect(params: Params) -> Check:
    """Counts, sizes, damage, tissue, labels, and slides that are both trained and tested on.

    Raises:
        DataError: The root is not there.
    """
    root = params.root
    require_root(root, "set 'root' to the folder that holds train and test")
    parts = [_part(params, split) for split in SPLITS]
    problems = [line for part in parts for line in _problems(part)]
    names: list[tuple[str, list[dict[str, list[str]]]]] = [(p.split, [p.names]) for p in parts]
    problems += leaks(names, "slide")
    problems += _one_class(parts)
    problems += _misnamed(params, parts)
    warnings = [line for split, found in names for line in repeats(split, found, "slide")]
    warnings += [line for part in parts for line in _strays(root / part.split, part)]
    warnings += [line for part in parts for line in _labels(params, part)]
    marker = root / MARKER
    if marker.is_file():
        warnings.append(f"{marker} says that these slides are synthetic; say so with the figures")
    return Check(
        rows=tuple(part.row(params) for part in parts),
        problems=tuple(dict.fromkeys(problems)),  # each split reports the folder all of them lack
        warnings=tuple(warnings),
    )


def _part(params: Params, split: Split) -> _Part:
    try:
        places = places_in(params.root, split)
    except DataError as error:
        return _Part(split, problem=str(error))
    with ThreadPoolExecutor(max_workers=min(_THREADS, os.cpu_count() or 1)) as pool:
        return _Part(split, tuple(pool.map(partial(_see, params), places)))


def _see(params: Params, place: Place) -> _Seen:
    try:
        verify(place.path)
        whole = hashlib.sha256()
        for part in place.parts:
            whole.update(file_digest(part).encode())
        digest = whole.hexdigest()
    except DataError as error:
        return _Seen(place, problem=str(error))
    except OSError as error:
        return _Seen(place, problem=f"{error.filename}: cannot be read ({error.strerror})")
    try:
        return _Seen(place, digest, look(params, place))
    except DataError as error:
        return _Seen(place, digest, problem=str(error))


def _problems(part: _Part) -> list[str]:
    if part.problem:
        return [part.problem]
    lines = [one.problem for one in part.seen if one.problem]
    return first(lines, f"more of the {len(part.seen)} slides of {part.split} cannot be used")


def _one_class(parts: Sequence[_Part]) -> list[str]:
    """A sentence when all tiles that are tested on have one label."""
    if any(part.problem or len(part.looks) < len(part.seen) for part in parts):
        return []  # what is missing is said already
    labels = Counter[bool]()
    for part in parts[1:]:
        for one in part.looks:
            labels.update(one.anomalous.tolist())
    if labels[True] and labels[False]:
        return []
    which = "anomalous" if not labels[True] else "normal"
    return [f"no test tile is {which}; change 'tile', 'min_anomalous' or the boundaries"]


def _misnamed(params: Params, parts: Sequence[_Part]) -> list[str]:
    try:
        require_holes(params, [look for part in parts for look in part.looks])
    except DataError as error:
        return [str(error)]
    return []


def _labels(params: Params, part: _Part) -> list[str]:
    """Sentences on boundaries that do not label what a person may expect."""
    lost, glass, lines = [], [], []
    groups: set[str] = set()
    marks = 0
    for one in part.seen:
        if one.found is None:
            continue
        lost += [f"{one.place.name}: {name}" for name in one.found.unmarked]
        if one.found.marked_glass:
            glass.append(f"{one.found.marked_glass} of {one.place.name}")
        groups.update(set(one.found.groups) - set(params.holes))
        marks += one.found.marks
    if lost:
        lines.append(
            f"{len(lost)} boundaries make no tile anomalous ({some(lost)}): nowhere do they cover "
            f"{100 * params.min_anomalous:g} % of a tile of tissue; lower 'tile' or 'min_anomalous'"
        )
    if glass:
        lines.append(
            f"tiles within boundaries have less than {100 * params.min_tissue:g} % of tissue and "
            f"are not tested: {some(glass)}; lower 'min_tissue' to use them"
        )
    if len(groups) > 1:
        lines.append(
            f"the boundaries are in groups {some(sorted(groups))}, and all of them are taken as "
            "anomalous; name those that are holes in 'holes'"
        )
    if marks:
        lines.append(f"{marks} annotations enclose nothing (dots, rulers) and are not used")
    return lines


def _strays(folder: Path, part: _Part) -> list[str]:
    """A sentence when there are boundaries that nothing reads."""
    if part.problem or not is_folder(folder):
        return []
    used = {one.place.boundaries.name for one in part.seen if one.place.boundaries}
    slides = {one.place.path.stem for one in part.seen}
    left = [n for n in names_in(folder) if n.lower().endswith(".xml") and n not in used]
    beside = [name for name in left if Path(name).stem in slides]
    alone = [name for name in left if name not in beside]
    lines = []
    if beside:
        lines.append(
            f"{folder}: {some(beside)} beside normal slides are not read; if something is marked "
            "there, move the slide to test/anomalous"
        )
    if alone:
        lines.append(f"{folder}: no slide has the boundaries {some(alone)}; rename or remove them")
    return lines
