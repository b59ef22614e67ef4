"""Commands about a store as a whole: ``export archive`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from hdsweep import archive, views
from hdsweep.store import Store
from hdsweep.views import StoreOption

_SHOWN = 20  # lines


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


def _print_left(console: Console, word: str, left: Mapping[str, str]) -> None:
    for name, why in list(left.items())[:_SHOWN]:
        console.print(Text.assemble((f"{word}: ", "yellow"), f"{name} {why}"))
    if len(left) > _SHOWN:
        console.print(Text(f"and {len(left) - _SHOWN} more", "yellow"))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
