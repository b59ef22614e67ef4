"""Commands about a store as a whole: ``export archive`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.text import Text

from hdsweep import archive, views
from hdsweep.doctor import Finding, examine, machine
from hdsweep.errors import printable
from hdsweep.store import Store
from hdsweep.terminal import Console
from hdsweep.views import Format, FormatOption, StoreOption

_SHOWN = 20  # lines
_STYLES = {"problem": "red", "leftover": "yellow", "note": "dim"}


def export_archive(
    file: Annotated[Path, typer.Argument(help="To be written: a name in .tar, .tar.gz or .tgz.")],
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With its trials; all that there is by default."),
    ] = None,
    predictions: Annotated[
        bool,
        typer.Option(
            "--predictions/--no-predictions",
            help="Per test item, from which any metric is computed; most of the size.",
        ),
    ] = True,
    store: StoreOption = views.RESULTS,
) -> None:
    """Pack finished trials and sweeps into one file, for hdsweep import elsewhere.

    Example: hdsweep export archive topk_q.tar.gz --sweep topk_q
    """
    opened = Store(store)
    saved = archive.save(opened, file, sweep or (), predictions=predictions)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    _print_left(console, "left out", saved.left_out)
    what = f"{_many(len(saved.trials), 'trial')}, {_many(len(saved.sweeps), 'sweep')}"
    console.print(Text(f"{file}: {what}, {decimal(saved.size_bytes)}"))
    console.print(Text(f"hdsweep import {file} --store FOLDER takes them over"))


def doctor(
    store: StoreOption = views.RESULTS,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mend what can be; what is damaged is moved, not removed."),
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compute metrics again from predictions, and compare.")
    ] = False,
    format: FormatOption = Format.terminal,
) -> None:
    """Look for damage and leftovers in a store, and at what trials run on.

    Exit status 1 when something was found that is not mended; notes do not count.
    """
    opened = Store(store)
    if opened.root.is_dir():
        opened.check()
        found = [*machine.examine(), *examine(opened, deep=deep, repair=repair)]
    else:
        found = list(machine.examine())
    open_ = [one for one in found if one.level != "note" and not one.mended]
    if format is Format.json:
        views.print_json(
            {"store": str(opened.root), "ok": not open_, "findings": [_json(one) for one in found]}
        )
    else:
        _print_findings(opened, found, len(open_), repair)
    if open_:
        raise typer.Exit(1)


def _json(one: Finding) -> dict[str, object]:
    return {
        "level": one.level, "where": one.where, "what": one.what, "to_do": one.to_do,
        "can_be_repaired": one.mend is not None, "mended": one.mended,
    }  # fmt: skip


def _print_findings(store: Store, found: Sequence[Finding], left: int, repair: bool) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for one in found:
        word, style = ("mended", "green") if one.mended else (one.level, _STYLES[one.level])
        done = "" if one.mended and one.level == "leftover" else f": {one.to_do}"
        said = f"{one.where}: {one.what}{done}"
        console.print(Text.assemble((f"{word}: ", style), printable(said)))
    if not store.root.is_dir():
        console.print(Text(f"{store.root}: no store is here"))
    mendable = sum(one.mend is not None and not one.mended for one in found)
    if mendable and not repair:
        console.print(Text(f"hdsweep doctor --repair mends {mendable} of them"))
    if not left:
        console.print(Text("nothing is wrong"))


def _print_left(console: Console, word: str, left: Mapping[str, str]) -> None:
    for name, why in list(left.items())[:_SHOWN]:
        console.print(Text.assemble((f"{word}: ", "yellow"), f"{name} {why}"))
    if len(left) > _SHOWN:
        console.print(Text(f"and {len(left) - _SHOWN} more", "yellow"))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
