"""Commands about how a sweep decides: ``replay`` and ``export``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from hdsweep import views
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.imported import is_imported
from hdsweep.method import load_method
from hdsweep.spec import SweepSpec, check_strategy, load_sweep
from hdsweep.store import Store
from hdsweep.strategy import Mode, Race, Search, Stop
from hdsweep.strict import Strict, in_plain_words
from hdsweep.terminal import Console
from hdsweep.views import Format, FormatOption, StoreOption

if TYPE_CHECKING:
    from hdsweep.replay import Cost, Replayed

export_app = typer.Typer(help="Write results for other tools.", no_args_is_help=True)

Block = TypeVar("Block", bound=Strict)


class Rule(StrEnum):
    """Stopping rules, and to have none."""

    asha = "asha"
    hyperband = "hyperband"
    median = "median"
    patience = "patience"
    none = "none"


class Sampler(StrEnum):
    """Of Optuna."""

    random = "random"
    tpe = "tpe"
    gp = "gp"
    cmaes = "cmaes"
    nsga2 = "nsga2"


class Good(StrEnum):
    """Which values of a metric are good."""

    max = "max"
    min = "min"


_NONE = "none"
_DECIDES = "Of the rule; as in the block stop of a sweep file."


def replay(
    sweep: Annotated[
        str, typer.Argument(help="A sweep file, or the name of a sweep in the store.")
    ],
    store: StoreOption = views.RESULTS,
    stop: Annotated[Rule | None, typer.Option(help="Another stopping rule, or none.")] = None,
    metric: Annotated[str | None, typer.Option(help="That the rule watches.")] = None,
    mode: Annotated[Good | None, typer.Option(help="Which values of it are good.")] = None,
    grace: Annotated[int | None, typer.Option(help=_DECIDES)] = None,
    reduction: Annotated[float | None, typer.Option(help=_DECIDES)] = None,
    brackets: Annotated[int | None, typer.Option(help=_DECIDES)] = None,
    interval: Annotated[int | None, typer.Option(help=_DECIDES)] = None,
    startup: Annotated[int | None, typer.Option(help=_DECIDES)] = None,
    patience: Annotated[int | None, typer.Option(help=_DECIDES)] = None,
    min_delta: Annotated[float | None, typer.Option(help=_DECIDES)] = None,
    race: Annotated[
        str | None, typer.Option(help="After how many seeds to compare, as in 3,5,7; or none.")
    ] = None,
    race_metric: Annotated[
        str | None, typer.Option(help="Of the race; the report's first by default.")
    ] = None,
    race_mode: Annotated[Good | None, typer.Option(help="Which values of it are good.")] = None,
    level: Annotated[
        float | None, typer.Option(help="Of the race: that the best is dropped, at most.")
    ] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="Another one for the search.")] = None,
    trials: Annotated[int | None, typer.Option(help="Configurations the search draws.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Of the simulated machine.")] = 8,
    format: FormatOption = Format.terminal,
) -> None:
    """Tell what a stopping rule, a race or a search would have chosen and cost.

    Nothing is run: records and curves of a full run are replayed. Without options it is under the
    blocks of the sweep file; options are added to them or stand in their place.
    """
    from hdsweep.replay import replayed

    opened = Store(store)
    spec = _spec(sweep, opened)
    rule = {
        "metric": metric, "mode": mode, "grace": grace, "reduction": reduction,
        "brackets": brackets, "interval": interval, "startup": startup, "patience": patience,
        "min_delta": min_delta,
    }  # fmt: skip
    racing = {"metric": race_metric, "mode": race_mode, "level": level}
    spec = replace(
        spec,
        stop=_stop(spec, stop, _given(rule)),
        race=_race(spec, race, _given(racing)),
        search=_search(spec, sampler, _given({"trials": trials})),
    )
    check_strategy(spec)
    if (spec.search, spec.stop, spec.race) == (None, None, None):
        raise SpecError(
            f"sweep {spec.name}: has no rule to replay; add one, as in --stop asha or --race 3,5"
        )
    found = replayed(spec, opened, gpus)
    if format is Format.json:
        views.print_json(found.to_json())
    else:
        _print(Console(highlight=False), found)


def _spec(sweep: str, store: Store) -> SweepSpec:
    """Of a file, or as a sweep in the store was last run."""
    path = Path(sweep)
    if path.is_file():
        return load_sweep(path)
    known = store.sweeps()
    if sweep not in known:
        raise SpecError(
            f"{sweep}: is no file, and no sweep in {store.root}{did_you_mean(sweep, known)}"
        )
    return _kept(store, sweep)


def _kept(store: Store, name: str) -> SweepSpec:
    if is_imported(store, name):
        raise SpecError(f"{name}: was imported, so nothing is known of how its trials were chosen")
    return load_sweep(store.root / "sweeps" / name / "sweep.yaml")


# --- options in the place of blocks ---------------------------------------------------------------


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    plain = {n: v.value if isinstance(v, StrEnum) else v for n, v in options.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _made(block: type[Block], values: Mapping[str, Any], prefix: str = "") -> Block:
    """A block from options. Raises SpecError with the option's name."""
    try:
        return block.model_validate(dict(values))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        name = prefix + str(detail["loc"][0]).replace("_", "-") if detail["loc"] else "stop"
        raise SpecError(f"--{name}: {in_plain_words(detail)}") from None


def _written(block: Strict) -> dict[str, Any]:
    return block.model_dump(mode="json", exclude_unset=True)


def _stop(spec: SweepSpec, rule: Rule | None, options: Mapping[str, Any]) -> Stop | None:
    if rule is Rule.none or (rule is None and spec.stop is None):
        _refuse(options, "a stopping rule; add --stop asha")
        return None
    own = {} if spec.stop is None else _written(spec.stop)
    if rule is not None and rule != own.get("rule"):
        own = {name: own[name] for name in ("metric", "mode", "grace") if name in own}
        own["rule"] = rule.value
    if "metric" in options:
        own.pop("mode", None)
    values = {**own, **options}
    if "metric" not in values:
        names = sorted({name for arm in spec.arms for name in load_method(arm.method).curve})
        if len(names) != 1:
            listed = f": {', '.join(names)}" if names else "; its methods report none"
            raise SpecError(f"--metric: say which curve the rule is to watch{listed}")
        values["metric"] = names[0]
    return _made(Stop, values)


def _race(spec: SweepSpec, looks: str | None, options: Mapping[str, Any]) -> Race | None:
    if looks == _NONE or (looks is None and spec.race is None):
        _refuse({f"race-{n}" if n != "level" else n: v for n, v in options.items()},
                "a race; add --race 3,5")  # fmt: skip
        return None
    own: dict[str, Any] = (
        {"metric": spec.report.metrics[0]} if spec.race is None else _written(spec.race)
    )
    if "metric" in options:
        own.pop("mode", None)
    if looks is not None:
        try:
            own["looks"] = [int(word) for word in looks.split(",")]
        except ValueError:
            raise SpecError(
                f"--race: '{looks}' is no list of numbers of seeds; write it as 3,5,7, or none"
            ) from None
    return _made(Race, {**own, **options}, "race-")


def _search(spec: SweepSpec, sampler: Sampler | None, options: Mapping[str, Any]) -> Search | None:
    if spec.search is None:
        given = {**options, **({} if sampler is None else {"sampler": sampler})}
        _refuse(given, "a search: without one its configurations are replayed as they are listed")
        return None
    own = _written(spec.search)
    if sampler is not None and sampler != spec.search.sampler:
        own.pop("options", None)  # are those of the other one
        own["sampler"] = sampler.value
    return _made(Search, {**own, **options})


def _refuse(options: Mapping[str, Any], what: str) -> None:
    for name in options:
        raise SpecError(f"--{name.replace('_', '-')}: the sweep has no block for it, {what}")


# --- what is printed ------------------------------------------------------------------------------


def _print(console: Console, found: Replayed) -> None:
    console.print(Text(f"{found.sweep}: {_rules(found)}", style="bold"))
    on = f" on {found.gpus} GPU{'s' * (found.gpus > 1)}" if found.gpus_each else ""
    console.print(Text(f"simulated with {found.workers} worker{'s' * (found.workers > 1)}{on}"))
    console.print()
    console.print(_costs(found))
    console.print()
    if found.chosen_by is not None:
        console.print(_choices(found))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="dim"))


def _rules(found: Replayed) -> str:
    words = []
    for name, block in found.rules.items():
        shown = {
            key: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            for key, value in block.items()
            if value not in ({}, [], None)
        }
        words.append(f"{name} {' '.join(f'{key}={value}' for key, value in shown.items())}")
    return "; ".join(words)


def _costs(found: Replayed) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("")
    for head in ("full run", "replay", "saved"):
        grid.add_column(head, justify="right")
    hours = "GPU-hours" if found.gpus_each else "trial-hours"
    rows: list[tuple[str, str, Sequence[float]]] = [
        ("trials run", "{:.0f}", [cost.trials for cost in (found.full, found.replay)]),
        ("trial-steps", "{:,.0f}", [cost.steps for cost in (found.full, found.replay)]),
        (hours, "{:.3g}", [_hours(found, cost) for cost in (found.full, found.replay)]),
        ("makespan, h", "{:.3g}", [c.makespan_s / 3600 for c in (found.full, found.replay)]),
    ]
    for name, form, (before, after) in rows:
        saved = f"{100 * (1 - after / before):.0f} %" if before else ""
        grid.add_row(name, form.format(before), form.format(after), saved)
    for name in ("stopped", "skipped", "failed"):
        pair = [getattr(cost, name) for cost in (found.full, found.replay)]
        if any(pair):
            grid.add_row(name, *map(str, pair), "")
    return grid


def _hours(found: Replayed, cost: Cost) -> float:
    return cost.gpu_hours if found.gpus_each else cost.trial_hours


def _choices(found: Replayed) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    sign = "largest" if found.larger_is_better else "smallest"
    for head in (f"{sign} {found.chosen_by}", "best of the full run", "", "replay's choice", "",
                 "regret", "ran in full"):  # fmt: skip
        number = head in ("", "regret", "ran in full")
        grid.add_column(head, justify="right" if number else "left")
    for one in found.choices:
        grid.add_row(
            Text(one.arm), _configuration(one.arm, one.full), _number(one.full_value),
            _configuration(one.arm, one.replay), _number(one.replay_value),
            _number(one.regret), f"{one.left} of {one.of}",
        )  # fmt: skip
    return grid


def _configuration(arm: str, name: str | None) -> Text:
    """Without the arm, which stands in the same line."""
    return Text("none" if name is None else name.removeprefix(f"{arm} "))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


# --- export ---------------------------------------------------------------------------------------


@export_app.callback()
def _export() -> None:
    """Write results for other tools."""


@export_app.command("optuna")
def export_optuna(
    name: Annotated[
        str | None, typer.Argument(help="Name of a sweep; the latest by default.")
    ] = None,
    store: StoreOption = views.RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="SQLite file; optuna.db beside the sweep by default.")
    ] = None,
    mode: Annotated[
        Good | None, typer.Option(help="Which values of the report's first metric are good.")
    ] = None,
) -> None:
    """Write a sweep's searches and grids as studies that optuna-dashboard opens.

    It is a copy to look at: nothing is ever read from it.
    """
    from hdsweep.search import export
    from hdsweep.studies import exported

    opened = Store(store)
    planned = opened.sweep(name)
    good: Mode | None = None if mode is None else mode.value
    studies = exported(opened, planned, _kept(opened, planned.name), good)
    path = opened.root / "sweeps" / planned.name / "optuna.db" if out is None else out
    export(path, studies)
    console = Console(soft_wrap=True, highlight=False)
    for study in studies:
        many = len({line.number for line in study.history})
        console.print(Text(f"{study.name}: {many} configuration{'s' * (many != 1)}"))
    console.print(Text(f"optuna-dashboard {shlex.quote(f'sqlite:///{path}')}"))
