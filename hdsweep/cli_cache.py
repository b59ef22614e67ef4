"""The commands below ``hdsweep cache``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.table import Table
from rich.text import Text

from hdsweep import cache
from hdsweep.cache import Kept
from hdsweep.errors import SpecError, StoreError, did_you_mean
from hdsweep.stages import size_of
from hdsweep.store import Store
from hdsweep.terminal import Console
from hdsweep.views import RESULTS, Format, FormatOption, StoreOption, print_json

cache_app = typer.Typer(help="List and remove work that trials share.", no_args_is_help=True)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would go, remove nothing.")]
_SHOWN_DIGITS = 8
_UNREADABLE = re.compile(r"[0-9a-f]{16,}")  # digests tell people nothing
_SIZE = re.compile(r"(\d+(\.\d+)?|\.\d+)\s*[A-Za-z]*", re.ASCII)
_AGES = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"))


@cache_app.command("list")
def cache_list(store: StoreOption = RESULTS, format: FormatOption = Format.terminal) -> None:
    """List the stages of a store, the one used last first."""
    root = _root(store)
    found = cache.kept(root)
    left = cache.leftovers(root)
    left_bytes = sum(size_of(folder) for folder in left)
    total = sum(one.size_bytes for one in found)
    if format is Format.json:
        stages = [
            {"name": one.name, "key": one.key, "folder": str(one.folder),
             "size_bytes": one.size_bytes, "build_s": one.build_s,
             "used": datetime.fromtimestamp(one.used_s, UTC).isoformat(timespec="seconds"),
             "inputs": one.inputs}
            for one in found
        ]  # fmt: skip
        half = {"count": len(left), "size_bytes": left_bytes}
        print_json({"store": str(root), "stages": stages, "size_bytes": total, "leftovers": half})
        return
    console = _console()
    if found:
        console.print(_table(found))
    console.print(Text(f"{_many(len(found), 'stage')}, {_size(total)}"))
    if left:
        what = f"{_many(len(left), 'leftover')} of killed processes, {_size(left_bytes)}"
        console.print(Text(f"{what}: hdsweep cache trim {_size(total)} removes them"))
    for path in cache.strangers(root):
        console.print(Text.assemble(("warning: ", "yellow"), f"{_plain(str(path))}: is no stage"))


@cache_app.command("trim")
def cache_trim(
    size: Annotated[str, typer.Argument(help="That may stay, as in 10GB, 500MB, 2GiB or 0.")],
    store: StoreOption = RESULTS,
    dry_run: DryRun = False,
) -> None:
    """Remove the stages that were not used for longest, until the rest fits into a size.

    Records are not touched. A stage that is needed again is built again; one that a running trial
    uses stays. Exit status 1 when the rest does not fit for that reason.
    """
    limit = _bytes(size)
    root = _root(store)
    removed, in_use = cache.trim(root, limit, dry_run=dry_run)
    rest = sum(one.size_bytes for one in cache.kept(root))
    if dry_run:
        rest -= sum(one.size_bytes for one in removed)
    _tell(removed, in_use, dry_run)
    _console().print(Text(f"{_size(rest)} {'would be' if dry_run else 'are'} left"))
    if rest > limit:
        raise typer.Exit(1)


@cache_app.command("remove")
def cache_remove(
    stages: Annotated[
        list[str] | None, typer.Argument(help="Keys, their first 4 digits or more, or names.")
    ] = None,
    store: StoreOption = RESULTS,
    all: Annotated[bool, typer.Option("--all", help="Every stage.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Remove stages by key or by name.

    Exit status 1 when one of them is used by a running trial and stays.
    """
    if bool(stages) == all:
        raise SpecError("name the stages to remove by key or name, or say --all")
    root = _root(store)
    found = cache.kept(root)
    chosen = found if all else list(_chosen(stages or (), found))
    if not dry_run:
        cache.remove_leftovers(root)
    gone: list[Kept] = []
    in_use: list[Kept] = []
    for one in chosen:
        free = not cache.is_used(one) if dry_run else cache.remove(one)
        (gone if free else in_use).append(one)
    _tell(gone, in_use, dry_run)
    if in_use:
        raise typer.Exit(1)


def _root(store: Path) -> Path:
    opened = Store(store)
    if not opened.root.is_dir():
        raise StoreError(f"{store}: no store is here; name another --store")
    opened.check()
    return opened.root


def _bytes(text: str) -> int:
    try:
        if _SIZE.fullmatch(text.strip()):
            return int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, OverflowError):
        pass
    raise SpecError(f"'{text}' is not a size; write one as in 10GB, 500MB, 2GiB or 0")


def _chosen(asked: Sequence[str], found: Sequence[Kept]) -> Iterator[Kept]:
    """Stages by name or by the start of their key, each once."""
    chosen: dict[Path, Kept] = {}
    for word in asked:
        matches = [one for one in found if one.name == word]
        if not matches and re.fullmatch("[0-9a-f]{4,}", word):
            matches = [one for one in found if one.key.startswith(word)]
            if len(matches) > 1:
                keys = ", ".join(one.key for one in matches[:3])
                raise SpecError(f"'{word}': {len(matches)} stages have such a key ({keys})")
        if not matches:
            known = {one.name for one in found}
            hint = did_you_mean(word, known)
            raise SpecError(f"no stage has the name '{word}' or a key that starts so{hint}")
        chosen |= {one.folder: one for one in matches}
    yield from chosen.values()


def _tell(gone: Sequence[Kept], in_use: Sequence[Kept], dry_run: bool) -> None:
    console = _console()
    for one in gone:
        done = "would remove" if dry_run else "removed"
        console.print(Text(f"{done} {_name(one)}, {_size(one.size_bytes)}"))
    for one in in_use:
        console.print(Text(f"in use {_name(one)}, {_size(one.size_bytes)}: stays"))
    if not gone and not in_use:
        console.print("nothing to remove")


def _table(found: Sequence[Kept]) -> Table:
    now = time.time()
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "key", "size", "built in", "used"):
        right = name in ("size", "built in")
        grid.add_column(name, no_wrap=True, justify="right" if right else "left")
    grid.add_column("made from", no_wrap=True, overflow="ellipsis", style="dim")
    told = _tell_apart(found)
    for one in found:
        grid.add_row(
            one.name, one.key[:_SHOWN_DIGITS], _size(one.size_bytes),
            "?" if one.inputs is None else f"{one.build_s:.1f} s",
            _ago(now - one.used_s), Text(_plain(told[one.folder])),
        )  # fmt: skip
    return grid


def _tell_apart(found: Sequence[Kept]) -> dict[Path, str]:
    """For each stage what it was made from, first that by which it differs from its namesakes."""
    values = {one.folder: _scalars(one.inputs or {}) for one in found}
    words = {}
    for one in found:
        mine = values[one.folder]
        others = [values[other.folder] for other in found if other.name == one.name]
        same = [all(other.get(key) == mine[key] for other in others) for key in mine]
        keys = [key for _, key in sorted(zip(same, mine, strict=True), key=lambda pair: pair[0])]
        text = " ".join(f"{key}={mine[key]}" for key in keys)
        words[one.folder] = "damaged note" if one.inputs is None else text
    return words


def _scalars(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Readable scalars of inputs, and of the inputs of other stages that they list."""
    found: dict[str, list[str]] = {}

    def add(values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, list) and all(isinstance(part, dict) for part in value):
                for part in value:
                    add(part)
            elif isinstance(value, str | int | float):
                text = value if isinstance(value, str) else json.dumps(value)
                if not _UNREADABLE.fullmatch(text) and text not in found.setdefault(key, []):
                    found[key].append(text)

    add(inputs)
    return {key: ",".join(texts) for key, texts in found.items() if texts}


def _name(one: Kept) -> str:
    return f"{one.name} {one.key[:_SHOWN_DIGITS]}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _size(size_bytes: int) -> str:
    return ByteSize(size_bytes).human_readable(decimal=True)


def _ago(seconds: float) -> str:
    for unit, name in _AGES:
        if seconds >= unit:
            return f"{_many(int(seconds // unit), name)} ago"
    return "just now"


def _plain(text: str) -> str:
    # A store may be someone else's: no escape sequence of a terminal may come from its notes.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _console() -> Console:
    # What is piped is cut by whoever reads it; a path may hold [x] or :x:, which are no markup.
    plain = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if not plain.is_terminal:
        plain.width = 1000
    return plain
