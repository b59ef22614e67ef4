"""Health data maps of a planetary gearbox, in the layout they are kept in.

A health data map (Ha, Park, Na, Kim, Youn, IEEE TIE 65(7) 2018) is the difference signal of a
gearbox after time-synchronous averaging, laid out as planet tooth (31 rows) x ring tooth (95
columns)::

    ROOT/domain_{A,B,C,D}/train/good/*.tiff     float32, one channel, 31 x 95
                          test/good/*.tiff
                          test/fault/*.tiff

Each domain was scaled by the minimum and maximum of its training split, so test values exceed 1.
They are the signal, and nothing here clips, rescales or resizes: a method resizes what it reads,
in one way for training and for testing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from hdsweep.method import Check, Data, DataError, Dataset, Generator, Item, Strict
from trainables.data.folders import (
    MARKER,
    Root,
    files_in,
    first,
    is_folder,
    listing,
    make_hint,
    require_root,
)
from trainables.data.repeats import leaks, repeats
from trainables.data.synthetic import hdmap as synthetic
from trainables.data.synthetic.hdmap import COLUMNS, DOMAINS, ROWS, SPLITS, Domain, Split

_SUFFIXES = (".tiff", ".tif")
_PUBLISHED_COUNT = 1000  # maps per domain and split


class Params(Strict):
    """Health data maps, or their synthetic twin.

    Args:
        root: Folder that holds ``domain_A`` ... ``domain_D``.
        domains: Which of them to use; always reported in the order A, B, C, D.
        make: How to make synthetic maps at ``root`` when nothing is there.
    """

    outside_identity: ClassVar[frozenset[str]] = frozenset({"root", "make"})

    root: Root
    domains: tuple[Domain, ...] = Field(DOMAINS, min_length=1)
    make: synthetic.Params | None = None

    @field_validator("domains")
    @classmethod
    def _once_in_order(cls, domains: tuple[Domain, ...]) -> tuple[Domain, ...]:
        twice = sorted({d for d in domains if domains.count(d) > 1})
        if twice:
            raise ValueError(f"domain {', '.join(twice)} is listed twice; list each domain once")
        return tuple(d for d in DOMAINS if d in domains)


def files(params: Params) -> list[Path]:
    """Every map of the chosen domains, sorted.

    Raises:
        DataError: A folder of the layout is missing or holds no map, or a map cannot be reached.
    """
    return sorted(
        path
        for domain in params.domains
        for split in SPLITS
        for path in _maps_in(params.root, domain, split)
    )


def verify(path: Path) -> None:
    """Raise DataError unless ``path`` is a whole TIFF of one finite 31 x 95 map of real numbers."""
    _finite_map(path, _stored(path))


def load(params: Params) -> Data:
    """The chosen domains, one group each: train on their normal maps, test on both classes.

    Raises:
        DataError: A folder of the layout is missing or holds no map, or a map cannot be reached.
    """
    items: dict[Split, list[Item]] = {split: [] for split in SPLITS}
    for domain in params.domains:
        for split in SPLITS:
            for path in _maps_in(params.root, domain, split):
                name = path.relative_to(params.root).as_posix()
                items[split].append(Item(name, domain, split == "test/fault", path))
    test = items["test/good"] + items["test/fault"]
    return Data(
        train=tuple(items["train/good"]),
        test=tuple(sorted(test, key=lambda item: item.group)),
        groups=params.domains,
        read=read,
    )


def read(item: Item) -> NDArray[np.float32]:
    """The map of ``item``, shape (1, 31, 95), as stored. Raises DataError that names the file."""
    return _finite_map(item.path, _stored(item.path))[None]


def check(params: Params) -> Check:
    """A look at every map: counts, ranges, damage, and maps that are both trained and tested on.

    Raises:
        DataError: The root is not there.
    """
    _require_root(params.root)
    looks = [_look(params.root, domain, split) for domain in params.domains for split in SPLITS]
    marker = params.root / MARKER
    warnings = [line for d in params.domains for line in _counts(d, looks)]
    warnings += [line for look in looks for line in _unlike_float32(look)]
    found = [(s, [look.names for look in looks if look.split == s]) for s in SPLITS]
    for split, names in found:  # over domains too: one may be a copy of another
        warnings += repeats(split, names, "map")
    if marker.is_file():
        warnings.append(f"{marker} says that these maps are synthetic; say so where figures appear")
    else:
        warnings += [line for d in params.domains for line in _never_above_one(d, looks)]
    problems = [line for look in looks for line in look.problems]
    problems += leaks(found, "map", "a fault")
    return Check(
        rows=tuple(look.row() for look in looks),
        problems=tuple(dict.fromkeys(problems)),  # each split reports the folder all of them lack
        warnings=tuple(warnings),
    )


def _require_root(root: Path) -> None:
    require_root(
        root, f"set 'root' to the folder that holds domain_A to domain_D, or {_make(root)}"
    )


def _maps_in(root: Path, domain: Domain, split: Split) -> list[Path]:
    """Sorted maps of one split; raises DataError when there are none."""
    _require_root(root)
    home = root / f"domain_{domain}"
    folder = home / split
    if not is_folder(home):
        raise DataError(
            f"{home}: no such folder, {root} holds {listing(root)}; set 'root' to the folder that "
            f"holds domain_A to domain_D, leave {domain} out of 'domains', or {_make(root)}"
        )
    if not is_folder(folder):
        raise DataError(
            f"{folder}: no such folder, {home} holds {listing(home)}; the layout is "
            f"domain_{domain}/train/good, domain_{domain}/test/good and domain_{domain}/test/fault"
        )
    maps = files_in(folder, _SUFFIXES, "a TIFF")
    if not maps:
        raise DataError(
            f"{folder}: no .tiff or .tif file, the folder holds {listing(folder)}; put the maps "
            f"of domain {domain} there, or {_make(root)}"
        )
    return maps


def _make(root: Path) -> str:
    return make_hint("hdmap", root)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a TIFF holds; its pixels only when they are a map."""

    shape: tuple[int, ...]
    dtype: str
    pixels: NDArray[np.floating[Any]] | None


def _stored(path: Path) -> _Stored:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            # Looked at before the pixels are: a damaged header may ask for any amount of memory.
            if len(tiff.pages) == 0:
                raise ValueError("it holds no image")
            series = tiff.series[0]
            shape, dtype = tuple(series.shape), np.dtype(series.dtype)
            is_map = shape == (ROWS, COLUMNS) and dtype.kind == "f"
            return _Stored(shape, str(dtype), tiff.asarray() if is_map else None)
    except Exception as error:  # a damaged file makes the reader fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: cannot be read as a TIFF ({reason}); copy it again from its source"
        ) from error


def _finite_map(path: Path, stored: _Stored) -> NDArray[np.float32]:
    """The map of shape (31, 95); raises DataError when it is of another kind or not finite."""
    if stored.pixels is None and stored.shape != (ROWS, COLUMNS):
        raise DataError(
            f"{path}: shape {stored.shape}, not ({ROWS}, {COLUMNS}); keep one map of one channel "
            "per file, in its own size: methods resize what they read"
        )
    if stored.pixels is None:
        raise DataError(
            f"{path}: {stored.dtype} values, not float32; a health data map is not a picture, "
            "export it again as it was computed"
        )
    with np.errstate(over="ignore"):  # a float64 too large for float32 is reported as infinite
        values = stored.pixels.astype(np.float32)
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise DataError(
            f"{path}: {bad} of {values.size} values are NaN or infinite; export the map again or "
            "remove the file"
        )
    return values


@dataclass(slots=True)
class _Look:
    """What the maps of one split hold; ``problems`` has a sentence for each that is damaged."""

    domain: Domain
    split: Split
    count: int = 0
    shapes: set[str] = field(default_factory=set)
    dtypes: set[str] = field(default_factory=set)
    not_finite: int = 0
    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    finite: int = 0
    names: dict[str, list[str]] = field(default_factory=dict)  # by digest of the pixels
    problems: list[str] = field(default_factory=list)

    def row(self) -> dict[str, str | int | float]:
        def shown(value: float) -> str | float:
            return float(f"{value:.4g}") if self.finite else "-"

        return {
            "domain": self.domain,
            "split": self.split,
            "maps": self.count,
            "shape": ", ".join(sorted(self.shapes)) or "-",
            "dtype": ", ".join(sorted(self.dtypes)) or "-",
            "min": shown(self.low),
            "max": shown(self.high),
            "mean": shown(self.total / max(self.finite, 1)),
            "nan_or_inf": self.not_finite,
            "duplicates": sum(len(names) - 1 for names in self.names.values()),
        }


def _look(root: Path, domain: Domain, split: Split) -> _Look:
    look = _Look(domain, split)
    try:
        paths = _maps_in(root, domain, split)
    except DataError as error:
        look.problems.append(str(error))
        return look
    look.count = len(paths)
    damaged: list[str] = []
    for path in paths:
        try:
            _add(look, path.relative_to(root).as_posix(), path)
        except DataError as error:
            damaged.append(str(error))
    look.problems += first(
        damaged, f"more of the {look.count} maps of domain {domain} {split} cannot be used"
    )
    return look


def _add(look: _Look, name: str, path: Path) -> None:
    stored = _stored(path)
    look.shapes.add("x".join(map(str, stored.shape)))
    look.dtypes.add(stored.dtype)
    if stored.pixels is not None:
        finite = stored.pixels[np.isfinite(stored.pixels)].astype(np.float64)
        look.not_finite += stored.pixels.size - finite.size
        look.finite += finite.size
        look.total += float(finite.sum())
        look.low = min(look.low, float(finite.min(initial=np.inf)))
        look.high = max(look.high, float(finite.max(initial=-np.inf)))
    values = _finite_map(path, stored)
    look.names.setdefault(hashlib.sha256(values.tobytes()).hexdigest(), []).append(name)
    if values.min() == values.max():
        raise DataError(
            f"{path}: every value is {values.flat[0]:g}, so the map holds no signal; remove it"
        )


def _counts(domain: Domain, looks: list[_Look]) -> list[str]:
    counts = {look.split: look.count for look in looks if look.domain == domain}
    if all(count == _PUBLISHED_COUNT for count in counts.values()):
        return []
    found = ", ".join(f"{count} in {split}" for split, count in counts.items())
    return [f"domain {domain} has {found}; the published data have {_PUBLISHED_COUNT} in each"]


def _unlike_float32(look: _Look) -> list[str]:
    others = sorted(look.dtypes - {"float32"})
    if not others:
        return []
    return [f"domain {look.domain} {look.split} has {', '.join(others)} maps, read as float32"]


def _never_above_one(domain: Domain, looks: list[_Look]) -> list[str]:
    high = max(look.high for look in looks if look.domain == domain and look.split != "train/good")
    if not np.isfinite(high) or high > 1.0:
        return []
    line = (
        f"domain {domain}: no test value exceeds 1 (the largest is {high:.4g}), as some do in the "
        "published data; make sure that the maps were not clipped or rescaled"
    )
    return [line]


DATASET = Dataset(
    params=Params,
    files=files,
    verify=verify,
    load=load,
    check=check,
    generator=Generator(params=synthetic.Params, write=synthetic.write),
)
