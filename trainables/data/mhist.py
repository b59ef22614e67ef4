"""MHIST: pictures of colorectal polyps, labelled by seven pathologists.

MHIST (Wei, Suriawinata, Ren, Liu, Lisovsky, Vaickus, Brown, Baker, Tomita, Torresani, Wei,
Hassanpour, AIME 2021) has 3152 pictures of 224 x 224 pixels: hyperplastic polyps (HP) and sessile
serrated adenomas (SSA)::

    ROOT/annotations.csv    Image Name, Majority Vote Label, Number of Annotators who Selected SSA
                            (Out of 7), Partition
         images/*.png

Training is on the HP pictures of the partition ``train``; tested are all pictures of the partition
``test``, where SSA is the anomaly. The SSA pictures of the partition ``train`` are not used. A fact
of every picture is ``votes``: how many of the seven chose SSA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, get_args

from hdsweep.errors import did_you_mean
from hdsweep.method import Check, Data, DataError, Dataset, Generator, Item, Strict
from trainables.data import inspection, pictures
from trainables.data.folders import (
    Root,
    files_in,
    first,
    listing,
    make_hint,
    names_in,
    require_file,
    require_root,
    some,
)
from trainables.data.inspection import Seen
from trainables.data.pictures import KIND, SUFFIXES, shown
from trainables.data.repeats import leaks, repeats
from trainables.data.synthetic import mhist as synthetic
from trainables.data.synthetic.mhist import COLUMNS, SIDE, TABLE, VOTES, Label, Partition
from trainables.data.tables import WHOLE, read_rows, require_named, require_once

GROUP = "mhist"
PUBLISHED: dict[tuple[Partition, Label], int] = {
    ("train", "HP"): 1545,
    ("train", "SSA"): 630,
    ("test", "HP"): 617,
    ("test", "SSA"): 360,
}
_UNUSED: tuple[Partition, Label] = ("train", "SSA")


class Params(Strict):
    """MHIST, or its synthetic twin.

    Args:
        root: Folder that holds ``annotations.csv`` and ``images``.
        make: How to make synthetic pictures at ``root`` when nothing is there.
    """

    outside_identity: ClassVar[frozenset[str]] = frozenset({"root", "make"})

    root: Root
    make: synthetic.Params | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """One picture of the table; ``line`` is where its row begins."""

    line: int
    image: str
    partition: Partition
    label: Label
    votes: int


def files(params: Params) -> list[Path]:
    """The table and every picture that is used, sorted. Raises DataError as ``load`` does."""
    return sorted([params.root / TABLE, *pictures.paths_of(load(params))])


def verify(path: Path) -> None:
    """Raise DataError unless ``path`` is a whole picture, or a table of the right form."""
    if path.suffix.lower() == ".csv":
        _table(path)
    else:
        pictures.verify(path)


def load(params: Params) -> Data:
    """Train on HP of the partition ``train``, test on all of the partition ``test``.

    Raises:
        DataError: The table is missing or says what cannot be, it has no row of a kind that is
            needed, or a picture that a row names is not there.
    """
    rows = _read(params.root)
    items = {kind: _items(params.root, rows, *kind) for kind in PUBLISHED if kind != _UNUSED}
    return Data(
        train=items["train", "HP"],
        test=items["test", "HP"] + items["test", "SSA"],
        groups=(GROUP,),
        read=pictures.read,
    )


def _read(root: Path) -> tuple[_Row, ...]:
    hint = make_hint("mhist", root)
    require_root(root, f"set 'root' to the folder that holds {TABLE} and images, or {hint}")
    for name in (TABLE, "images"):
        if name not in names_in(root):
            raise DataError(
                f"{root / name}: not there, {root} holds {listing(root)}; set 'root' to the folder "
                f"that holds {TABLE} and images, or {hint}"
            )
    require_file(root / TABLE, "a table")
    return _table(root / TABLE)


def _table(path: Path) -> tuple[_Row, ...]:
    """All rows; raises DataError with file and line where one does not have the right form."""
    rows = tuple(_rows(path))
    require_once(path, "image", ((row.line, row.image) for row in rows))
    return rows


def _rows(path: Path) -> Iterator[_Row]:
    for line, (image, label, votes, partition) in read_rows(path, COLUMNS):
        where = f"{path}:{line}"
        for column, word, known in (
            ("Majority Vote Label", label, get_args(Label)),
            ("Partition", partition, get_args(Partition)),
        ):
            if word not in known:
                raise DataError(f"{where}: unknown {column} '{word}'{did_you_mean(word, known)}")
        if not (WHOLE.fullmatch(votes) and int(votes) <= VOTES):
            raise DataError(
                f"{where}: '{votes}' votes for SSA, where a whole number from 0 to {VOTES} should "
                "be; mend the line"
            )
        if not image or set(image) & set("/\\") or image in (".", ".."):
            raise DataError(
                f"{where}: image '{image}' is not the name of a file in images; write its name only"
            )
        yield _Row(
            line,
            image,
            "train" if partition == "train" else "test",
            "HP" if label == "HP" else "SSA",
            int(votes),
        )


def _items(
    root: Path, rows: Sequence[_Row], partition: Partition, label: Label
) -> tuple[Item, ...]:
    found = [row for row in rows if (row.partition, row.label) == (partition, label)]
    if not found and (partition, label) != _UNUSED:
        raise DataError(
            f"{root / TABLE}: no row has label {label} and Partition {partition}; the table needs "
            "HP in train, and HP and SSA in test"
        )
    return tuple(
        Item(
            name=f"images/{row.image}",
            group=GROUP,
            is_anomaly=label == "SSA",
            path=_named(root, row),
            facts={"votes": row.votes},
        )
        for row in found
    )


def _named(root: Path, row: _Row) -> Path:
    path = root / "images" / row.image
    require_named(f"{root / TABLE}:{row.line}", "image", path, KIND)
    return path


@dataclass(frozen=True, slots=True)
class _Look:
    """What the pictures of one label in one partition hold."""

    partition: Partition
    label: Label
    seen: tuple[Seen, ...]
    problems: tuple[str, ...]

    @property
    def is_used(self) -> bool:
        return (self.partition, self.label) != _UNUSED

    def row(self) -> dict[str, str | int | float]:
        return {
            "partition": self.partition,
            "label": self.label,
            "pictures": len(self.seen),
            "used": {"train HP": "to train", "train SSA": "not"}.get(
                f"{self.partition} {self.label}", "to test"
            ),
            "size": inspection.sizes_of(self.seen),
            "mode": inspection.modes_of(self.seen),
            "duplicates": inspection.repeated(self.seen),
        }


def check(params: Params) -> Check:
    """A look at every picture: counts, sizes, damage, votes, and pictures in two splits.

    The SSA pictures of the partition ``train`` are looked at too; what is wrong with them is no
    problem, since nothing reads them.

    Raises:
        DataError: The root is not there, or the table does not have the right form.
    """
    root, rows = params.root, _read(params.root)
    looks = [_look(root, rows, *kind) for kind in PUBLISHED]
    used = [look for look in looks if look.is_used]
    splits = [
        (f"{look.partition} {look.label}", [inspection.by_digest(look.seen)]) for look in used
    ]
    problems = [line for look in used for line in look.problems]
    warnings = [line for look in looks if not look.is_used for line in look.problems]
    warnings += [line for name, found in splits for line in repeats(name, found, "picture")]
    warnings += _against_votes(rows) + _other_sizes(looks) + _unnamed(root, rows)
    unused = sum(len(look.seen) for look in looks if not look.is_used)
    if unused:
        warnings.append(f"{unused} SSA pictures of the partition train are not used")
    warnings += inspection.synthetic(root) or _counts(looks)
    return Check(
        rows=tuple(look.row() for look in looks),
        problems=(*problems, *leaks(splits, "picture", "an SSA picture")),
        warnings=tuple(warnings),
    )


def _look(root: Path, rows: Sequence[_Row], partition: Partition, label: Label) -> _Look:
    try:
        items = _items(root, rows, partition, label)
    except DataError as error:
        return _Look(partition, label, (), (str(error),))
    seen = inspection.see(items)
    problems = first(
        [line for one in seen for line in one.problems],
        f"more of the {len(items)} {label} pictures of {partition} cannot be read",
    )
    return _Look(partition, label, seen, tuple(problems))


def _against_votes(rows: Sequence[_Row]) -> list[str]:
    wrong = [row.image for row in rows if (row.label == "SSA") != (row.votes > VOTES // 2)]
    if not wrong:
        return []
    return [f"{len(wrong)} labels are not that of most votes ({some(wrong)}); the label is used"]


def _other_sizes(looks: Sequence[_Look]) -> list[str]:
    usual = shown((SIDE, SIDE))
    other = [s.name for look in looks for s in look.seen if s.size not in ("", usual)]
    if not other:
        return []
    return [f"{len(other)} pictures are not {usual} ({some(other)}), as all published ones are"]


def _unnamed(root: Path, rows: Sequence[_Row]) -> list[str]:
    """A sentence when pictures are in no row."""
    named = {row.image for row in rows}
    left = [p.name for p in files_in(root / "images", SUFFIXES, KIND) if p.name not in named]
    if not left:
        return []
    return [f"{len(left)} pictures are in no row of {TABLE} ({some(left)}) and are not used"]


def _counts(looks: Sequence[_Look]) -> list[str]:
    found = [len(look.seen) for look in looks]
    if found == list(PUBLISHED.values()):
        return []

    def spelt(counts: Sequence[int]) -> str:
        kinds = (f"{label} in {partition}" for partition, label in PUBLISHED)
        return ", ".join(f"{n} {kind}" for n, kind in zip(counts, kinds, strict=True))

    expected = spelt(list(PUBLISHED.values()))
    return [f"there are {spelt(found)} pictures; the published data have {expected}"]


DATASET = Dataset(
    params=Params,
    files=files,
    verify=verify,
    load=load,
    check=check,
    generator=Generator(params=synthetic.Params, write=synthetic.write),
)
