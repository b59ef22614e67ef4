"""The commands below ``hdsweep data``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from rich.table import Table as Grid
from rich.text import Text

from hdsweep import data as datafiles
from hdsweep.errors import DataError, SpecError, did_you_mean
from hdsweep.method import load_dataset
from hdsweep.strict import Strict, in_plain_words
from hdsweep.terminal import Console
from hdsweep.views import Format, FormatOption, print_json
from hdsweep.yamlfile import Loader

data_app = typer.Typer(help="Make and check data sets.", no_args_is_help=True)

DataName = Annotated[str, typer.Argument(help="Name of a data set, as in hdmap.")]
Root = Annotated[Path, typer.Argument(help="Its folder.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE; repeatable.")]


@data_app.command("make")
def data_make(name: DataName, root: Root, set: Settings = None) -> None:
    """Write a synthetic data set in the published layout."""
    dataset = load_dataset(name)
    if dataset.generator is None:
        raise DataError(f"data set '{name}' has no generator; copy the published data to {root}")
    params = _from_settings(dataset.generator.params, set)
    datafiles.write_data(dataset, params, root)
    files = (p for p in root.rglob("*") if p.is_file() and p.name != datafiles.MADE)
    _console().print(f"wrote {sum(1 for _ in files)} files to {_printable(str(root))}")


@data_app.command("check")
def data_check(
    name: DataName, root: Root, set: Settings = None, format: FormatOption = Format.terminal
) -> None:
    """Read every file of a data set; exit status 2 when something would spoil a sweep."""
    dataset = load_dataset(name)
    params = _from_settings(dataset.params, [f"root={root}", *(set or ())])
    found = dataset.check(params)
    problems = [_printable(line) for line in found.problems]
    warnings = [_printable(line) for line in found.warnings]
    if format is Format.json:
        print_json(
            {"ok": not problems, "rows": [dict(row) for row in found.rows],
             "problems": problems, "warnings": warnings}
        )  # fmt: skip
    else:
        console = _console()
        grid = Grid(box=None, pad_edge=False, header_style="bold")
        for head in found.rows[0] if found.rows else ():
            grid.add_column(head)
        for row in found.rows:
            grid.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        console.print(grid)
        for warning in warnings:
            console.print(Text.assemble(("warning: ", "yellow"), warning))
        for problem in problems:
            console.print(Text.assemble(("problem: ", "red"), problem))
        if not problems:
            console.print("ok")
    if problems:
        raise typer.Exit(2)


def _console() -> Console:
    # A path may hold [x] or :x:, which are no markup.
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # a file name need not be UTF-8


def _from_settings(params: type[Strict], settings: Sequence[str] | None) -> Any:
    values: dict[str, Any] = {}
    for setting in settings or ():
        key, sign, value = setting.partition("=")
        if not sign:
            raise SpecError(f"--set {setting}: write NAME=VALUE")
        if key not in params.model_fields:
            raise SpecError(f"--set {key}: unknown{did_you_mean(key, params.model_fields)}")
        try:
            values[key] = value if key == "root" else yaml.load(value, Loader)  # noqa: S506
        except (yaml.YAMLError, ValueError, LookupError):
            values[key] = value
    try:
        return params.model_validate(values)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"]))
        raise SpecError(f"--set {where}: {in_plain_words(detail)}") from None
