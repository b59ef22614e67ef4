"""The configurations of a sweep: its knobs as methods take them, before any data is looked at.

A grid gives configurations that are known; a distribution gives an open one, which becomes known as
often as a search draws from it. Open ones are tried at the ends of their ranges, so that a value
that a method does not take is told with its line before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ValidationError

from hdsweep.errors import HdsweepError, MethodError, SpecError, did_you_mean
from hdsweep.identity import canonical_json, encoded_knobs
from hdsweep.knobs import Arm, Choice, Drawn, Range, Setting, Value, holds
from hdsweep.method import Method, load_method
from hdsweep.spec import SweepSpec
from hdsweep.strict import Strict, first_error, in_plain_words
from hdsweep.yamlfile import Where


@dataclass(frozen=True, slots=True)
class Configuration:
    """Knobs that the method has accepted.

    Args:
        arm: Name of its arm.
        method: Name of its method.
        version: Declared by the method.
        knobs: The swept and drawn knobs, name -> value as validated.
        params: All parameters, defaults filled in.
        identity: What of them names a trial.
        encoded: ``identity`` as canonical JSON.
        warnings: What the method says a person should know before it is run.
    """

    arm: str
    method: str
    version: int
    knobs: Mapping[str, Any]
    params: Mapping[str, Any]
    identity: Mapping[str, Any]
    encoded: bytes
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Open:
    """A grid cell that leaves knobs to a search.

    Args:
        arm: Name of its arm.
        method: Name of its method.
        version: Declared by the method.
        knobs: The swept knobs, name -> value as validated.
        setting: Its values and what is drawn.
        identity: What names all its trials: the parameters but for those that are drawn.
        tried: Parameters at the ends of the ranges, as the method takes them.
        warnings: As of Configuration, of any that was tried.
    """

    arm: str
    method: str
    version: int
    knobs: Mapping[str, Any]
    setting: Setting
    identity: Mapping[str, Any]
    tried: tuple[Strict, ...]
    warnings: tuple[str, ...] = ()

    @property
    def searched(self) -> dict[str, Any]:
        """What a search of it is of, as JSON: on the same data, two that are equal are one."""
        space = {name: _words_of(knob) for name, knob in self.setting.drawn.items()}
        return {
            "method": self.method, "version": self.version, "params": self.identity,
            "space": space,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checked:
    """What a sweep file asks for.

    Args:
        settled: In file order.
        open: Likewise.
    """

    settled: tuple[Configuration, ...]
    open: tuple[Open, ...] = ()

    def __iter__(self) -> Iterator[Configuration | Open]:
        return iter((*self.settled, *self.open))


def configurations(spec: SweepSpec, *, resolve: bool = True) -> Checked:
    """Check every knob with its method.

    Args:
        spec: The sweep.
        resolve: As of ``Strict.identity``; without it no trial can be named.

    Raises:
        SpecError: A knob that the method does not have or does not accept, with its line.
    """
    settled: list[Configuration] = []
    open_: list[Open] = []
    searched: dict[bytes, str] = {}  # by which arm
    for arm in spec.arms:
        method = _method(spec, arm)
        _check_names(spec, arm, method)
        first: dict[bytes, Mapping[str, Any]] = {}
        for setting in arm.settings():
            if setting.drawn:
                one = _open(spec, arm, setting, method, resolve)
                key = canonical_json(one.searched)
                if key in searched:
                    other = f"arm {searched[key]}" if searched[key] != arm.name else "another cell"
                    raise spec.source.error(
                        ("arms", arm.name), f"searches the same as {other}; remove one"
                    )
                searched[key] = arm.name
                open_.append(one)
                continue
            made = _settled(spec, arm, setting, method, resolve)
            if made.encoded in first:
                raise spec.source.error(
                    ("arms", arm.name),
                    f"{_words(first[made.encoded])} and {_words(made.knobs)} are the same trial; "
                    "remove one",
                )
            first[made.encoded] = made.knobs
            settled.append(made)
    return Checked(tuple(settled), tuple(open_))


def drawn(of: Open, knobs: Mapping[str, Value]) -> Configuration:
    """An open configuration with the knobs that a search drew.

    Raises:
        MethodError: The method does not take them together.
    """
    method = load_method(of.method)
    try:
        params = method.params.model_validate({**of.setting.values, **knobs})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"]))
        said = in_plain_words(detail)
        raise MethodError(f"{where}: {said}" if where else said) from None
    return _configuration(of.arm, of.method, method, params, (*of.knobs, *knobs), resolve=True)


def _configuration(
    arm: str, name: str, method: Method, params: Any, swept: Iterator[str] | Any, *, resolve: bool
) -> Configuration:
    dumped, identity = params.model_dump(mode="json"), params.identity(resolve=resolve)
    return Configuration(
        arm=arm,
        method=name,
        version=method.version,
        knobs={knob: dumped[knob] for knob in swept},
        params=dumped,
        identity=identity,
        encoded=encoded_knobs(identity),
        warnings=tuple(method.warn(params)),
    )


def _settled(
    spec: SweepSpec, arm: Arm, setting: Setting, method: Method, resolve: bool
) -> Configuration:
    swept = [name for name in arm.swept if name in setting.values]
    try:
        params = method.params.model_validate(setting.values)
    except ValidationError as error:
        raise _cell_error(spec, arm, swept, setting.values, error, method) from None
    try:
        return _configuration(arm.name, arm.method, method, params, swept, resolve=resolve)
    except HdsweepError as error:
        raise spec.source.error(("arms", arm.name), str(error)) from None


def _open(spec: SweepSpec, arm: Arm, setting: Setting, method: Method, resolve: bool) -> Open:
    """Try a method with what may be drawn; what it refuses for one knob alone is a mistake."""
    swept = [name for name in arm.swept if name in setting.values]
    found: list[Configuration] = []
    tried: list[Strict] = []
    refused: SpecError | None = None
    for probe in _probes(setting.drawn):
        values = {**setting.values, **probe}
        try:
            params = method.params.model_validate(values)
        except ValidationError as error:
            told = _cell_error(spec, arm, [*swept, *probe], values, error, method)
            if error.errors(include_url=False)[0]["loc"]:
                raise told from None
            refused = refused or told  # a rule over several knobs: others may fit together
            continue
        try:
            found.append(
                _configuration(arm.name, arm.method, method, params, swept, resolve=resolve)
            )
        except HdsweepError as error:
            raise spec.source.error(("arms", arm.name), str(error)) from None
        tried.append(params)
    if not found:
        raise refused or AssertionError("nothing was tried")
    one = found[0]
    return Open(
        arm=arm.name,
        method=arm.method,
        version=method.version,
        knobs=one.knobs,
        setting=setting,
        identity={k: v for k, v in one.identity.items() if k not in setting.drawn},
        tried=tuple(tried),
        warnings=tuple(dict.fromkeys(text for probe in found for text in probe.warnings)),
    )


_GOLDEN = 0.6180339887498949  # of a range: a value that is not round, unless it must be


def _probes(space: Mapping[str, Drawn]) -> Iterator[dict[str, Value]]:
    """Draws in which each knob has its extreme values once, where it applies."""
    yield _applying(space, {})
    for name, knob in space.items():
        for value in _extremes(knob):
            wanted: dict[str, Value] = {name: value}
            pending = [knob]
            while pending:
                for parent, allowed in (pending.pop().when or {}).items():
                    wanted.setdefault(parent, allowed[0])
                    pending.append(space[parent])
            yield _applying(space, wanted)


def _applying(space: Mapping[str, Drawn], wanted: Mapping[str, Value]) -> dict[str, Value]:
    """A draw: what is wanted, and of all others the first value."""
    found: dict[str, Value] = {}
    for name, knob in space.items():  # parents come first
        if holds(knob.when, found):
            found[name] = wanted.get(name, _extremes(knob)[0])
    return found


def _extremes(knob: Drawn) -> list[Value]:
    if isinstance(knob, Choice):
        return list(knob.values)
    low, high = knob.ends
    if knob.kind == "int":
        return [int(low), int(high)]
    if knob.step is not None:
        return [low, low + knob.step, high]
    return [low, high, low + _GOLDEN * (high - low)]


# --- complaints -----------------------------------------------------------------------------------


def _method(spec: SweepSpec, arm: Arm) -> Method:
    try:
        return load_method(arm.method)
    except SpecError as error:
        where: Where = ("arms", arm.name, "method")
        own = where in spec.source.lines
        raise spec.source.error(where if own else ("method",), str(error)) from None


def _check_names(spec: SweepSpec, arm: Arm, method: Method) -> None:
    for name in arm.knobs:
        if name not in method.params.model_fields:
            own = ("arms", arm.name, name) in spec.source.lines
            where: Where = ("arms", arm.name, name) if own else ("params", name)
            hint = did_you_mean(name, method.params.model_fields)
            line = spec.source.error(where, "").args[0].split(": ")[0]
            block = f"arms.{arm.name}" if own else "params"
            raise SpecError(f"{line}: {block}: unknown knob '{name}' of method {arm.method}{hint}")


def _cell_error(
    spec: SweepSpec,
    arm: Arm,
    swept: list[str],
    values: Mapping[str, Any],
    error: ValidationError,
    method: Method,
) -> SpecError:
    loc = error.errors(include_url=False)[0]["loc"]
    block: Where = ("arms", arm.name)
    if (
        loc
        and (*block, loc[0]) not in spec.source.lines
        and ("params", loc[0]) in spec.source.lines
    ):
        block = ("params",)
    message = str(first_error(error, spec.source, block, method.params))
    if not loc and swept:  # a rule over several knobs: say for which cell it failed
        message += f" (at {_words({name: values[name] for name in swept})})"
    knob = arm.knobs.get(str(loc[0])) if loc else None
    if isinstance(knob, Range) and knob.kind == "float" and "integer" in message:
        message += "; draw whole numbers with int: [low, high]"
    return SpecError(message)


def _words_of(knob: Drawn) -> dict[str, Any]:
    """A distribution as JSON."""
    values = {f.name: getattr(knob, f.name) for f in fields(knob)}
    return {"kind": type(knob).__name__} | {k: v for k, v in values.items() if v is not None}


def _words(knobs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in knobs.items()) or "two cells"
