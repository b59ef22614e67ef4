"""Commands that look at a sweep file and run nothing: ``plan`` and ``check``.

``ready`` is what they and ``run`` share: all that must be right before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

from hdsweep import data as datafiles
from hdsweep import views
from hdsweep.configure import Checked, configurations
from hdsweep.errors import DataError, HdsweepError, SpecError, did_you_mean
from hdsweep.imported import is_imported
from hdsweep.method import Data, Dataset, load_dataset, load_method
from hdsweep.metrics import POOLED, Metric, evaluate, parse_metric
from hdsweep.plan import Plan, absolute_root, declares, groups_of, make_plan, refuse, validate_data
from hdsweep.planned import PlannedSweep
from hdsweep.shared import shared_work
from hdsweep.spec import SweepSpec, load_sweep
from hdsweep.store import Store
from hdsweep.targets import Targets, require_watched, resolve
from hdsweep.terminal import Console
from hdsweep.views import Format, FormatOption, StoreOption, SweepFile
from hdsweep.yamlfile import Where


@dataclass(frozen=True, slots=True)
class Ready:
    """A sweep that is right as far as that shows before it runs."""

    spec: SweepSpec
    plan: Plan
    planned: PlannedSweep
    data: Data
    store: Store
    targets: Targets


def ready(sweep: Path, store: Path, say: Callable[[Text], None]) -> Ready:
    """Everything that must be right before anything is written."""
    spec = load_sweep(sweep)
    checked = configurations(spec)
    targets = _decisions(spec, checked)
    for line in views.warnings(checked):
        say(line)
    metrics_of(spec)
    opened = Store(store)
    opened.check()
    if is_imported(opened, spec.name):
        raise spec.source.error(
            ("name",), f"results were imported into {opened.root} under this name; choose another"
        )
    dataset = _dataset(spec)
    params = absolute_root(validate_data(spec, dataset.params))
    try:
        datafiles.make_if_absent(dataset, params, lambda text: say(Text(text)))
        content = datafiles.fingerprint(dataset, params)
        loaded = dataset.load(params)
    except DataError as error:
        raise DataError(f"{spec.source.path}: data: {error}") from None
    rule = None
    if spec.stop is not None:
        from hdsweep.stopping import rule_of

        rule = rule_of(spec.name, spec.stop, larger_is_better=bool(targets.watched))
    plan = refuse(make_plan(spec, checked, params, content, opened, rule), loaded)
    groups = groups_of(plan, loaded)
    _check_groups(spec, groups, targets, loaded)
    _check_classes(spec, plan, targets, loaded)
    return Ready(spec, plan, plan.sweep(spec, groups, _how_chosen(spec, targets)), loaded, opened,
                 targets)  # fmt: skip


def _decisions(spec: SweepSpec, checked: Checked) -> Targets:
    """What the sweep decides by; raises SpecError with the line of what it cannot be."""
    targets = resolve(spec)
    require_watched(spec, checked)
    if spec.search is not None and spec.search.options:
        from hdsweep.search import check_options

        try:
            check_options(spec.search)
        except SpecError as error:
            said = str(error).removeprefix("search.options: ")
            raise spec.source.error(("search", "options"), said) from None
    return targets


def _how_chosen(spec: SweepSpec, targets: Targets) -> str:
    if spec.confirmed is None:
        return ""
    by = " and ".join(target.text for target in targets.chosen_by)
    seeds = ", ".join(map(str, spec.seeds))
    return f"best {by} over seed{'s' if len(spec.seeds) > 1 else ''} {seeds}"


def _dataset(spec: SweepSpec) -> Dataset:
    try:
        return load_dataset(spec.data_name)
    except SpecError as error:
        raise spec.source.error(("data", "name"), str(error)) from None


_FEW_GROUPS = 8


def _check_groups(spec: SweepSpec, groups: Sequence[str], targets: Targets, data: Data) -> None:
    for taken in ("mean", POOLED):
        if taken in groups:
            raise DataError(
                f"{spec.source.path}: data: a group is named '{taken}', which stands for all "
                "groups; rename it"
            )
    named: list[tuple[Metric, Where]] = [
        (metric, ("report", "metrics", n)) for n, metric in enumerate(metrics_of(spec))
    ]
    for metric, where in [*named, *((target.metric, target.where) for target in targets.all)]:
        if metric.group is not None and metric.group not in (*groups, POOLED):
            # Of few, all are named: near is not what was meant where groups are numbers.
            few = f"; the groups are {', '.join(groups)}" if len(groups) <= _FEW_GROUPS else ""
            hint = few or did_you_mean(metric.group, (*groups, POOLED))
            raise spec.source.error(where, f"the data have no group '{metric.group}'{hint}")
    for target in targets.all:
        known = target.metric.definition
        if known is not None and known.pixel and data.read_mask is None:
            raise spec.source.error(
                target.where, f"'{target.text}' is never reported: the data have no masks"
            )


def _check_classes(spec: SweepSpec, plan: Plan, targets: Targets, data: Data) -> None:
    """Refuse to decide by a metric that the test items leave undefined, whatever their scores."""
    if any(declares(load_method(name), "tested") for name in plan.methods):
        return  # its rows are not those of the data
    label = np.array([item.is_anomaly for item in data.test], dtype=np.bool_)
    group = [item.group for item in data.test]
    for target in targets.all:
        metric = target.metric
        if metric.definition is None:
            continue
        if metric.definition.pixel:
            normal = [g for g in dict.fromkeys(group) if not label[np.array(group) == g].any()]
            missing = dict.fromkeys(normal, "no anomalous item")
        else:
            names = [POOLED] * len(group) if metric.group == POOLED else group
            perfect = label.astype(np.float64)
            missing = evaluate([metric.key], names, label, perfect)[1].get(metric.key, {})
        others = [name for name in dict.fromkeys(group) if name not in missing]
        for name, why in missing.items():
            if metric.group in (None, name):
                named = metric.group is not None or not others
                hint = "" if named else f"; name one, as in {metric.key}[group={others[0]}]"
                raise spec.source.error(
                    target.where,
                    f"'{metric.text}' is never reported: group '{name}' has {why}{hint}",
                )


def metrics_of(spec: SweepSpec) -> list[Metric]:
    """The report's metrics; raises SpecError with the line of one that is unknown."""
    scalars = {name for arm in spec.arms for name in load_method(arm.method).scalars}
    asked = {"metrics": spec.report.metrics, "expect": spec.report.expected_metrics()}
    found: dict[str, list[Metric]] = {"metrics": [], "expect": []}
    for block, texts in asked.items():
        for n, text in enumerate(texts):
            found[block].append(_metric(text, scalars, spec, ("report", block, n)))
    for text, margin in spec.report.margins.items():
        where = ("report", "margins", text)
        metric = _metric(text, scalars, spec, where)
        if metric.group is not None:
            raise spec.source.error(where, "a margin holds for all groups; name the metric alone")
        if metric.definition is not None and margin >= 1:
            raise spec.source.error(
                where, f"{margin:g} is no difference of rates, which lie in [0, 1]; half a point "
                "is 0.005"
            )  # fmt: skip
    return found["metrics"]


def _metric(text: str, scalars: Collection[str], spec: SweepSpec, where: Where) -> Metric:
    try:
        return parse_metric(text, scalars)
    except SpecError as error:
        raise spec.source.error(where, str(error)) from None


def plan(
    sweep: SweepFile, store: StoreOption = views.RESULTS, format: FormatOption = Format.terminal
) -> None:
    """Show what would run and what is finished already; nothing is run."""
    console = Console(soft_wrap=True, highlight=False)
    err = Console(stderr=True, highlight=False)
    made = ready(sweep, store, err.print)
    work = shared_work(made.plan, made.data, made.store)
    if format is Format.json:
        views.print_json(views.plan_as_json(made.spec, made.plan, work, made.store))
    else:
        views.print_plan(console, made.spec, made.plan, work)


def check(
    paths: Annotated[list[Path], typer.Argument(help="Sweep files, or folders of them.")],
    format: FormatOption = Format.terminal,
) -> None:
    """Check sweep files without looking at data or results; exit status 2 if one is wrong."""
    files = [
        f for path in paths for f in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])
    ]
    if not files:
        raise SpecError(f"{paths[0]}: no .yaml files here; name a sweep file")
    results: list[dict[str, Any]] = []
    for path in files:
        try:
            spec = load_sweep(path)
            checked = configurations(spec, resolve=False)
            _decisions(spec, checked)
            metrics_of(spec)
            validate_data(spec, _dataset(spec).params)
            told = [line.plain.removeprefix("warning: ") for line in views.warnings(checked)]
            results.append(
                {"file": str(path), "ok": True, "trials": views.trials_of(spec, checked),
                 "message": "", "warnings": told}
            )  # fmt: skip
        except HdsweepError as error:
            results.append(
                {"file": str(path), "ok": False, "trials": 0, "message": str(error), "warnings": []}
            )
    if format is Format.json:
        views.print_json(results)
    else:
        views.print_checks(Console(soft_wrap=True, highlight=False), results)
    if not all(result["ok"] for result in results):
        raise typer.Exit(2)
