"""How trials were run: what they cost, and in what they differ beside the knobs that are swept.

Two arms that were trained for another number of steps, on other data or by other code may differ
for that reason alone. Records know all of it; nobody looks.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hdsweep.planned import PlannedCell
from hdsweep.trial import TrialRecord

_BUDGET = re.compile(
    r"((max|train|num|n|total)_)?(steps|epochs|iterations|images|tiles)|batch(_size)?|"
    r"(image|input|crop|tile)_size|resize|crop|precision|augment|encoder|backbone|weights"
)
"""Names of parameters that give one arm more to learn from than another."""

_SHORT = 12  # digits of a digest that people are shown


@dataclass(frozen=True, slots=True)
class Run:
    """What a record says of how its trial was run.

    Args:
        method: Its name and version, as in ``dinomaly 1``.
        settings: Parameters that are not swept, with their values as text.
        data: Fingerprint of the content of the data.
        facts: Host, device, commit, source and packages -> text, as far as they are known.
        started: UTC, ISO 8601.
        wall_s: Of the attempt that finished.
        gpus: That it held; None where the record does not say.
        scalars: The method's own measurements.
        imported: Name of the file that it was imported from; empty where it was run here.
    """

    method: str
    settings: tuple[tuple[str, str], ...]
    data: str
    facts: Mapping[str, str]
    started: str
    wall_s: float
    gpus: float | None
    scalars: Mapping[str, float] = field(default_factory=dict)
    imported: str = ""


class Runs:
    """Collects runs while records are read; what many have in common is kept once.

    Args:
        swept: Names of the knobs that are swept or drawn.
    """

    def __init__(self, swept: Iterable[str]) -> None:
        self.by_trial: dict[str, Run] = {}
        self._swept = frozenset(swept)
        self._settings: dict[object, tuple[tuple[str, str], ...]] = {}
        self._facts: dict[object, Mapping[str, str]] = {}

    def add(self, record: TrialRecord) -> None:
        """Take down one."""
        trial, origin = record.trial, record.provenance
        gpus = origin.get("gpus")
        imported = origin.get("imported")
        self.by_trial[record.id] = Run(
            method=f"{trial.get('method')} {trial.get('version')}",
            settings=self._settings_of(trial.get("params", {})),
            data=str(trial.get("fingerprint", "")),
            facts=self._facts_of(origin),
            started=record.started,
            wall_s=record.wall_s,
            gpus=float(gpus) if isinstance(gpus, int | float) else None,
            scalars=record.scalars if record.status == "ok" else {},
            imported=str(imported.get("file", "")) if isinstance(imported, dict) else "",
        )

    def _settings_of(self, params: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        swept = self._swept
        fixed = [item for item in params.items() if item[0] not in swept]
        key = repr(fixed)
        if key not in self._settings:
            self._settings[key] = tuple(
                (name, value if isinstance(value, str) else json.dumps(value))
                for name, value in fixed
            )
        return self._settings[key]

    def _facts_of(self, origin: Mapping[str, Any]) -> Mapping[str, str]:
        packages = origin.get("packages")
        # A hundred thousand records come of a few processes.
        named = (
            f"{packages}"
            if not isinstance(packages, dict)
            else "|".join([*packages, *map(str, packages.values())])
        )
        key = (*[str(origin.get(name)) for name in _ORIGIN], named)
        if key not in self._facts:
            self._facts[key] = dict(_facts(origin))
        return self._facts[key]


_ORIGIN = ("git", "source", "host", "python", "threads", "gpu", "device")


def _facts(origin: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Of a record's provenance: name -> text."""
    git = origin.get("git")
    if isinstance(git, dict) and git.get("commit"):
        changed = git.get("diff")
        yield (
            "commit",
            str(git["commit"])[:_SHORT] + (f" with changes {changed}" if changed else ""),
        )
    for name in ("source", "host", "python", "threads"):
        if origin.get(name) is not None:
            yield name, str(origin[name])
    device = origin.get("gpu") or origin.get("device")
    if device:
        yield "device", str(device.get("name", device) if isinstance(device, dict) else device)
    packages = origin.get("packages")
    if isinstance(packages, dict):
        yield from ((str(name), str(version)) for name, version in packages.items())


@dataclass(frozen=True, slots=True)
class Cost:
    """What a configuration cost.

    Args:
        arm, knobs, number: The configuration.
        n, planned: Trials with a record, and planned.
        wall_s: Sum over trials, of the attempts that finished.
        gpu_hours: Sum of wall time times GPUs held; None where records do not say how many.
        scalars: A method's own measurements of cost (latency_ms, memory_mb, speed_up, ...), median
            over its trials that are ok.
    """

    arm: str
    knobs: Mapping[str, Any]
    number: int | None
    n: int
    planned: int
    wall_s: float
    gpu_hours: float | None
    scalars: Mapping[str, float]


def costs(cells: Sequence[PlannedCell], runs: Mapping[str, Run]) -> tuple[Cost, ...]:
    """Of every configuration that has a trial with a record of a run here."""
    found = []
    for cell in cells:
        own = [runs[i] for i in cell.trials.values() if i in runs and not runs[i].imported]
        if not own:
            continue
        hours = [run.wall_s * run.gpus / 3600 for run in own if run.gpus is not None]
        measured: dict[str, list[float]] = defaultdict(list)
        for run in own:
            for name, value in run.scalars.items():
                measured[name].append(value)
        found.append(
            Cost(
                arm=cell.arm,
                knobs=cell.knobs,
                number=cell.number,
                n=len(own),
                planned=len(cell.trials),
                wall_s=sum(run.wall_s for run in own),
                gpu_hours=sum(hours) if len(hours) == len(own) else None,
                scalars={name: statistics.median(values) for name, values in measured.items()},
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Differs:
    """Something other than the knobs in which configurations or trials differ.

    Args:
        what: ``max_steps``, ``data``, ``commit``, ``source``, ``torch``, ``device`` ...
        values: Value as text -> names of the arms that have it.
        serious: Whether it may explain a difference of results: steps, data, method version,
            source, commit; a different host is not.
    """

    what: str
    values: Mapping[str, tuple[str, ...]]
    serious: bool

    @property
    def text(self) -> str:
        """As in ``max_steps: 1000 (baseline), 2000 (topk)``."""
        said = (f"{value} ({', '.join(arms)})" for value, arms in self.values.items())
        return f"{self.what}: {', '.join(said)}"


def differences(cells: Sequence[PlannedCell], runs: Mapping[str, Run]) -> tuple[Differs, ...]:
    """In what arms differ that is not swept, the serious ones first.

    One parameter that the file gives each arm another value of is the question of the sweep, and
    none of these; of several, those that give an arm more to learn from are serious.

    Args:
        cells: Of the sweep.
        runs: By trial id.
    """
    params: _Seen = {}
    others: _Seen = {}
    named: dict[str, set[str]] = defaultdict(set)  # arm -> its parameters
    for cell in cells:
        for trial_id in cell.trials.values():
            run = runs.get(trial_id)
            if run is None or run.imported:
                continue
            named[cell.arm].update(name for name, _ in run.settings)
            _note(params, run.settings, cell.arm)
            _note(others, (("method", run.method), ("data", run.data[:_SHORT])), cell.arm)
            _note(others, run.facts.items(), cell.arm)
    everywhere = set.intersection(*named.values()) if named else set()
    params = {name: v for name, v in params.items() if len(v) > 1 and name in everywhere}
    others = {name: values for name, values in others.items() if len(values) > 1}
    if len({method.rpartition(" ")[0] for method in others.get("method", ())}) > 1:
        others = {name: v for name, v in others.items() if name not in ("method", "source")}
    code = {"data", "method", "source", "torch"} | ({"commit"} if "source" in others else set())
    asked = [name for name, values in params.items() if _between(values)]
    found = [
        Differs(what, {value: tuple(arms) for value, arms in values.items()}, _between(values) and
                (_BUDGET.fullmatch(what) is not None if seen is params else what in code))
        for seen in (params, others)
        for what, values in seen.items()
        if [what] != asked
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda one: not one.serious))


_Seen = dict[str, dict[str, dict[str, None]]]
"""What -> value as text -> arms that have it, in order."""


def _note(seen: _Seen, facts: Iterable[tuple[str, str]], arm: str) -> None:
    for what, value in facts:
        seen.setdefault(what, {}).setdefault(value, {})[arm] = None


def _between(values: Mapping[str, Mapping[str, None]]) -> bool:
    """Whether arms differ from each other; not where each of them has every value."""
    every = set().union(*values.values())
    return any(set(arms) != every for arms in values.values())


def origin(runs: Iterable[Run]) -> dict[str, str]:
    """Where results come from, for people: ``what`` -> text."""
    values: dict[str, dict[str, None]] = defaultdict(dict)
    started = []
    for run in runs:
        if run.imported:
            values["imported from"][run.imported] = None
            continue
        if run.started:
            started.append(run.started)
        values["method"][run.method] = None
        values["data fingerprint"][run.data] = None
        for what, value in run.facts.items():
            values[what][value] = None
    found = {what: ", ".join(values[what]) for what in values}
    if started:
        first, last = min(started)[:16].replace("T", " "), max(started)[:16].replace("T", " ")
        found["trials started"] = f"{first} UTC" if first == last else f"{first} to {last} UTC"
    return found
