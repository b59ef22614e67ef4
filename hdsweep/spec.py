"""The sweep file, typed.

``load_sweep`` turns YAML into a ``SweepSpec``. Every complaint carries ``file:line`` and the path
of the key. What belongs to a method or a data set (names, ranges) is checked by ``plan``, which
knows them; it asks the spec for the line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, WithJsonSchema, field_validator

from hdsweep.deadline import DURATION, seconds_of
from hdsweep.errors import did_you_mean
from hdsweep.knobs import (
    Arm,
    Grid,
    Range,
    check_conditions,
    has_setting,
    parse_setting,
    read_knob,
)
from hdsweep.strategy import Confirmed, Race, Search, Seed, Stop, criterion
from hdsweep.strict import NAME, Strict, first_error
from hdsweep.yamlfile import Source, Where, read_yaml

_DURATION = {
    "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": DURATION}]
}
_NAME_CHARS = 100  # a name becomes a file's


class Resources(Strict):
    """What one trial occupies."""

    gpus: float | None = Field(None, ge=0, description="GPUs per trial; a fraction shares one")
    cpus: int = Field(1, ge=1, description="CPU threads per trial")
    timeout: Annotated[float, Field(gt=0), WithJsonSchema(_DURATION)] | None = Field(
        None, description="After which a trial is stopped as failed: seconds, or 30m, 2h, 1d"
    )

    @field_validator("timeout", mode="before")
    @classmethod
    def _timeout_in_seconds(cls, timeout: object) -> object:
        return seconds_of(timeout)

    @field_validator("gpus")
    @classmethod
    def _gpus_are_a_share_or_whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and not gpus.is_integer():
            raise ValueError("above 1 it must be a whole number: a fraction never spans devices")
        return gpus


class Report(Strict):
    """What the table shows."""

    metrics: tuple[str, ...] = Field(("auroc", "tpr@1"), min_length=1)
    baseline: str | None = Field(
        None, description="Arm, or configuration as in topk q_percent=5, that others are held to"
    )
    margins: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Metric: difference that does not matter; 0.005 is half a point of a rate",
    )
    expect: tuple[str, ...] = ()

    @field_validator("expect")
    @classmethod
    def _criteria_compare(cls, expect: tuple[str, ...]) -> tuple[str, ...]:
        for text in expect:
            if criterion(text) is None:
                raise ValueError(f"'{text}' is not a criterion; write it as 'auroc >= 0.98'")
        return expect

    def expected_metrics(self) -> tuple[str, ...]:
        """The metric that each criterion speaks of."""
        return tuple(found.metric for text in self.expect if (found := criterion(text)))


class _File(Strict):
    name: str = Field(pattern=NAME, max_length=_NAME_CHARS)
    question: str = ""
    method: str | None = None
    data: dict[str, Any]
    params: dict[str, Any] = Field(default_factory=dict)
    seeds: tuple[Seed, ...] | Confirmed
    arms: dict[str, dict[str, Any] | None] = Field(min_length=1)
    search: Search | None = None
    stop: Stop | None = None
    race: Race | None = None
    resources: Resources = Resources()
    report: Report = Report()


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """A checked sweep file.

    Args:
        data: The ``data:`` block without its ``name``; the data set checks it.
        seeds: Replicates, in file order, none twice; with ``confirmed``, those to choose on.
        confirmed: How the choice is made and with which seeds it is reported.
        source: Where each key stood, for messages about method and data.
    """

    name: str
    question: str
    data_name: str
    data: Mapping[str, Any]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    resources: Resources
    report: Report
    source: Source
    search: Search | None = None
    stop: Stop | None = None
    race: Race | None = None
    confirmed: Confirmed | None = None


def load_sweep(path: Path) -> SweepSpec:
    """Read and check a sweep file.

    Raises:
        SpecError: With file, line, what was found and what to do.
    """
    raw, source = read_yaml(path)
    seeds_model = Confirmed if isinstance(raw.get("seeds"), dict) else None
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        if seeds_model is not None:
            _check_confirmed(raw["seeds"], source)
        raise first_error(error, source, (), _File) from None
    data = dict(file.data)
    data_name = data.pop("name", None)
    if not isinstance(data_name, str):
        raise source.error(("data",), "name the data set: data: {name: hdmap, root: ...}")
    seeds = _seeds(file, source)
    arms = tuple(_arm(name, block or {}, file, source) for name, block in file.arms.items())
    for arm in arms:
        check_conditions(arm, arms, partial(_place, arm, source), source)
    _check_baseline(file.report.baseline, arms, source)
    spec = SweepSpec(
        name=file.name,
        question=file.question,
        data_name=_short_name(data_name, "trainables.data."),
        data=data,
        seeds=seeds,
        arms=arms,
        resources=file.resources,
        report=file.report,
        source=source,
        search=file.search,
        stop=file.stop,
        race=file.race,
        confirmed=file.seeds if isinstance(file.seeds, Confirmed) else None,
    )
    check_strategy(spec)
    return spec


def _check_baseline(text: str | None, arms: Sequence[Arm], source: Source) -> None:
    """Refuse a baseline that is no arm, and no configuration of one."""
    if text is None:
        return
    where: Where = ("report", "baseline")
    try:
        name, wanted = parse_setting(text)
    except ValueError as error:
        raise source.error(where, str(error)) from None
    arm = next((arm for arm in arms if arm.name == name), None)
    if arm is None:
        known = did_you_mean(name, [arm.name for arm in arms])
        raise source.error(where, f"no arm is named '{name}'{known}")
    for knob in wanted:
        if knob not in arm.swept:
            known = did_you_mean(knob, arm.swept)
            raise source.error(where, f"arm {name} sweeps no knob '{knob}'{known}")
        if not isinstance(arm.knobs[knob], Grid):
            raise source.error(where, f"{knob} is drawn by a search; name the arm alone")
    if wanted and not any(has_setting(one.values, wanted) for one in arm.settings()):
        raise source.error(where, f"arm {name} has no configuration '{text}'; name one of its grid")


def check_strategy(spec: SweepSpec) -> None:
    """Refuse blocks ``search`` and ``race`` that do not go with the rest, with the line."""
    _check_search(spec)
    _check_race(spec)


def _check_confirmed(block: Mapping[str, Any], source: Source) -> None:
    """Complain of a mapping under ``seeds`` as such, not as of a list that it is not."""
    try:
        Confirmed.model_validate(block)
    except ValidationError as error:
        raise first_error(error, source, ("seeds",), Confirmed) from None


def _seeds(file: _File, source: Source) -> tuple[int, ...]:
    """The seeds to run with, each once."""
    lists: list[tuple[Where, tuple[int, ...]]]
    if isinstance(file.seeds, Confirmed):
        chosen = file.seeds
        lists = [(("seeds", "select"), chosen.select), (("seeds", "confirm"), chosen.confirm)]
    else:
        lists = [(("seeds",), file.seeds)]
    seen: set[int] = set()
    for where, seeds in lists:
        if not seeds:
            raise source.error(where, "list at least 1 value")
        for n, seed in enumerate(seeds):
            if seed in seen:
                raise source.error(
                    (*where, n),
                    f"seed {seed} is listed twice; a replicate counts once, remove one",
                )
            seen.add(seed)
    return lists[0][1]


def _check_search(spec: SweepSpec) -> None:
    """Refuse a search that has nothing to draw, and draws that nobody searches."""
    search, source = spec.search, spec.source
    found = [(arm, drawn) for arm in spec.arms for drawn in arm.draws()]
    for arm, drawn in found:
        if search is None:
            raise source.error(
                _place(arm, source, next(iter(drawn))),
                "a distribution is drawn by a search; add a block such as "
                "search: {trials: 40, maximize: auroc}, or write {grid: [...]}",
            )
        _check_sampler(search, arm, drawn, source)
    if search is None:
        return
    if not found:
        raise source.error(
            ("search",),
            "no arm has a knob to search; give one a distribution, as in "
            "lr: {log_uniform: [1e-4, 1e-2]}, or remove the block",
        )
    if search.budget == "shared" and search.trials < len(found):
        raise source.error(
            ("search", "trials"),
            f"{search.trials} trials cannot be shared by {len(found)} grid cells; give each one "
            "at least",
        )
    if search.aggregate == "lower_bound" and len(spec.seeds) < 2:
        raise source.error(
            ("search", "aggregate"), "one seed has no spread to bound by; list two seeds, or mean"
        )


def _check_sampler(search: Search, arm: Arm, drawn: Mapping[str, Any], source: Source) -> None:
    """Refuse what Optuna would do by drawing at random, with a warning at best."""
    name = search.sampler
    where: Where = ("search", "sampler")
    if len(search.maximize) + len(search.minimize) > 1 and name == "cmaes":
        raise source.error(
            where, "cmaes seeks one objective, and the file has several; use tpe, nsga2, gp, random"
        )
    if any(knob.when for knob in drawn.values()) and name in ("gp", "cmaes"):
        raise source.error(
            where,
            f"{name} cannot draw a knob that depends on another drawn one (arm {arm.name}); use "
            "tpe, or make that other one a grid",
        )
    if name == "cmaes":
        if search.constraints:
            raise source.error(where, "cmaes knows no constraints; use tpe, gp or nsga2")
        numbers = [n for n, knob in drawn.items() if isinstance(knob, Range)]
        if len(numbers) < 2 or len(numbers) < len(drawn):
            raise source.error(
                where,
                f"cmaes searches two or more numbers and no choices, and arm {arm.name} draws "
                f"{', '.join(drawn)}; use tpe",
            )


def _check_race(spec: SweepSpec) -> None:
    race, source = spec.race, spec.source
    if race is None:
        return
    if spec.search is not None:
        raise source.error(
            ("race",),
            "a race compares configurations that the file lists; a search draws its own. "
            "Remove one of the two blocks",
        )
    if race.looks[-1] >= len(spec.seeds):
        raise source.error(
            ("race", "looks"),
            f"a look after {race.looks[-1]} of {len(spec.seeds)} seeds drops nothing; look earlier",
        )
    if sum(len(arm.settings()) for arm in spec.arms) < 2:
        raise source.error(
            ("race",), "one configuration has nothing to race with; remove the block"
        )


def _place(arm: Arm, source: Source, knob: str) -> Where:
    """Where a knob stands: in its arm, or in what all arms share."""
    own: Where = ("arms", arm.name, knob)
    return own if own in source.lines or ("params", knob) not in source.lines else ("params", knob)


def _arm(name: str, block: Mapping[str, Any], file: _File, source: Source) -> Arm:
    where: Where = ("arms", name)
    if not re.fullmatch(NAME, name):
        raise source.error(where, f"{name!r} is not a name; use letters, digits, '.', '_' and '-'")
    if len(name) > _NAME_CHARS:
        raise source.error(where, f"a name has at most {_NAME_CHARS} characters, not {len(name)}")
    own = dict(block)
    method = own.pop("method", file.method)
    if not isinstance(method, str):
        raise source.error(where, "no method; name one here or at the top of the file")
    knobs = {key: read_knob(value, ("params", key), source) for key, value in file.params.items()}
    knobs |= {key: read_knob(value, (*where, key), source) for key, value in own.items()}
    return Arm(name, _short_name(method, "trainables."), knobs)


def _short_name(module: str, package: str) -> str:
    """One module has one name, or its trials would have two ids."""
    name = module.removeprefix(package)
    return module if "." in name else name


def file_schema() -> dict[str, Any]:
    """JSON Schema of the sweep file itself, knowing no method."""
    return _File.model_json_schema()
