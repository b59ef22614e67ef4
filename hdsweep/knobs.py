"""Knobs of an arm: a value, a grid of values that all run, or a distribution that a search draws.

A knob may depend on others of its arm, ``when: {variant: topk}``; where that does not hold, it is
left out and its method's default stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice
from typing import Any, Literal

from hdsweep.errors import did_you_mean
from hdsweep.identity import canonical_json
from hdsweep.yamlfile import Source, Where

Scalar = str | int | float | bool | None
Value = Scalar | list[Any]

When = Mapping[str, tuple[Value, ...]]
"""Other knobs of the arm -> the values of which each must have one."""

KINDS = ("uniform", "log_uniform", "int", "choice")
"""Of distributions, as the file names them."""

EXTRAS: Mapping[str, tuple[str, ...]] = {"uniform": ("step",), "int": ("step", "log")}
"""Kind -> what else may be said of it."""

_MOST_WHOLE = 2**53  # beyond it a float no longer names one integer, and samplers reckon in floats
_MOST_LISTED = 8  # values in a message
_MOST_DEPENDED = 100  # numbers of a range that a knob may depend on, as if they were listed


@dataclass(frozen=True, slots=True)
class Grid:
    """Every value runs."""

    values: tuple[Value, ...]
    when: When | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, that a search draws from.

    Args:
        kind: What they are.
        low: Above 0 where ``log``.
        high: Above ``low``.
        log: Whether they are spread evenly in their logarithm.
        step: Distance of neighbours, for whole numbers without ``log`` and for ``uniform``.
        when: Where the knob applies.
    """

    kind: Literal["float", "int"]
    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: When | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The extreme values that may be drawn."""
        if self.step is None:
            return self.low, self.high
        # In decimals: in binary, 0.1 + 3 * 0.2 lies above 0.7.
        low, high, step = (Decimal(str(one)) for one in (self.low, self.high, self.step))
        return self.low, float(low + (high - low) // step * step)


@dataclass(frozen=True, slots=True)
class Choice:
    """Values without an order that a search draws from."""

    values: tuple[Value, ...]
    when: When | None = None


Drawn = Range | Choice
Knob = Value | Grid | Range | Choice


@dataclass(frozen=True, slots=True)
class Setting:
    """One combination of an arm's grids.

    Args:
        values: Knobs that have a value, in file order.
        drawn: Knobs that a search is to draw, each after those that it depends on; their ``when``
            names drawn knobs only.
    """

    values: Mapping[str, Value]
    drawn: Mapping[str, Drawn]


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of the comparison: a method and its knobs, the file's shared ``params`` included."""

    name: str
    method: str
    knobs: Mapping[str, Knob]

    def settings(self) -> list[Setting]:
        """Each combination of the grids, fixed knobs included, in file order."""
        order = _parents_first(self.knobs)
        found: list[dict[str, Any]] = [{}]
        for name in order:
            found = [{**one, **part} for one in found for part in _options(name, self, one)]
        settings = []
        for one in found:
            values = {
                name: one[name] for name in self.knobs if name in one and not _drawn(one, name)
            }
            drawn = {name: one[name] for name in order if name in one and _drawn(one, name)}
            settings.append(Setting(values, drawn))
        return settings

    def draws(self) -> list[Mapping[str, Drawn]]:
        """What a search is to draw, of each setting that leaves something to it."""
        if not any(isinstance(knob, Range | Choice) for knob in self.knobs.values()):
            return []  # a grid may be large
        return [setting.drawn for setting in self.settings() if setting.drawn]

    @property
    def swept(self) -> tuple[str, ...]:
        """Knobs with more than one value, in file order."""
        return tuple(n for n, knob in self.knobs.items() if isinstance(knob, Grid | Range | Choice))


def parse_setting(text: str) -> tuple[str, dict[str, str]]:
    """Inverse of how a configuration is named: ``topk q_percent=5`` is topk, {q_percent: "5"}.

    Args:
        text: An arm, then any of its swept knobs, in any order.

    Raises:
        ValueError: A word that is no knob with a value.
    """
    arm, *words = text.split() or [""]
    wanted = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"'{word}' is not a knob with its value; write it as in q_percent=5")
        wanted[name] = value
    return arm, wanted


def has_setting(values: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Whether knobs have the values that ``parse_setting`` found; 5 and 5.0 are one value."""
    return all(name in values and _reads_as(values[name], text) for name, text in wanted.items())


def _reads_as(value: Any, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text


def holds(when: When | None, values: Mapping[str, Any]) -> bool:
    """Whether a knob applies, given the knobs that it depends on."""
    return when is None or all(
        name in values and _is_one_of(values[name], allowed) for name, allowed in when.items()
    )


def _is_one_of(value: object, allowed: Collection[Value]) -> bool:
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def _drawn(one: Mapping[str, Any], name: str) -> bool:
    return isinstance(one[name], Range | Choice)


def _options(name: str, arm: Arm, before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a knob may be, given those that it may depend on; nothing where it does not apply."""
    knob = arm.knobs[name]
    if not isinstance(knob, Grid | Range | Choice):
        return [{name: knob}]
    later: dict[str, tuple[Value, ...]] = {}  # what only a draw decides
    for parent, allowed in (knob.when or {}).items():
        if parent not in before or not (
            _drawn(before, parent) or _is_one_of(before[parent], allowed)
        ):
            return [{}]
        if _drawn(before, parent):
            later[parent] = allowed
    if isinstance(knob, Grid):
        return [{name: value} for value in knob.values]
    return [{name: replace(knob, when=later or None)}]


def _parents_first(knobs: Mapping[str, Knob]) -> list[str]:
    """Names in file order, but each after those that it depends on; a cycle's are left out."""
    order: list[str] = []
    left = list(knobs)
    while left:
        ready = [n for n in left if all(p in order or p not in knobs for p in _parents(knobs[n]))]
        if not ready:
            break
        order.append(ready[0])
        left.remove(ready[0])
    return order


def _parents(knob: Knob) -> Collection[str]:
    return (knob.when or {}) if isinstance(knob, Grid | Range | Choice) else ()


# --- Reading --------------------------------------------------------------------------------------


def read_knob(value: object, where: Where, source: Source) -> Knob:
    """A knob as it stands in the file. Raises SpecError with its line."""
    if isinstance(value, str | bool | int | float | list | None):
        if isinstance(value, float) and not math.isfinite(value):
            raise source.error(where, f"{value} is not a value; write a finite number")
        return value
    if not isinstance(value, dict):
        raise source.error(where, f"a knob is a value or {{grid: [...]}}; found {value!r}")
    kinds = [key for key in value if key in ("grid", *KINDS)]
    if len(kinds) != 1:
        other = next((str(key) for key in value if key not in ("grid", *KINDS, "when")), "")
        found = f"found keys {', '.join(map(str, value))}" if value else "found nothing"
        hint = did_you_mean(other, ["grid", *KINDS]) if not kinds else ""
        raise source.error(
            where, f"a knob is a value, {{grid: [...]}} or one distribution; {found}{hint}"
        )
    kind = kinds[0]
    extras = ("when", *EXTRAS.get(kind, ()))
    for key in value:
        if key not in (kind, *extras):
            hint = did_you_mean(str(key), extras)
            raise source.error((*where, key), f"'{key}' says nothing of a knob with {kind}{hint}")
    when = _when(value["when"], (*where, "when"), source) if "when" in value else None
    at = (*where, kind)
    if kind == "grid":
        return Grid(_values(value[kind], at, source, "grid"), when)
    if kind == "choice":
        values = _values(value[kind], at, source, "choice")
        if len(values) < 2:
            raise source.error(at, "a choice of one value is none; list two, or write the value")
        return Choice(values, when)
    return _range(kind, value, where, when, source)


def _range(
    kind: str, value: Mapping[str, Any], where: Where, when: When | None, source: Source
) -> Range:
    at = (*where, kind)
    low, high = _ends(value[kind], kind, at, source)
    log = kind == "log_uniform" or value.get("log", False)
    if not isinstance(log, bool):
        raise source.error((*where, "log"), f"log is true or false; found {log!r}")
    if log and low <= 0:
        raise source.error(
            at, f"a logarithmic range lies above 0; found low {low}, write a small positive number"
        )
    whole = kind == "int"
    number: Callable[[float], float] = int if whole else float
    step = None
    if "step" in value:
        step = value["step"]
        fits = _is_number(step) and 0 < step <= high - low
        if log or not fits or (whole and not float(step).is_integer()):
            raise source.error(
                (*where, "step"),
                f"a step is {'a whole number' if whole else 'a number'} above 0 and up to "
                f"{high - low:g}, of a range that is not logarithmic; found {step!r}",
            )
        step = number(step)
    return Range("int" if whole else "float", number(low), number(high), log, step, when)


def _ends(ends: object, kind: str, at: Where, source: Source) -> tuple[float, float]:
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))):
        raise source.error(at, f"write {kind}: [low, high], two numbers; found {ends!r}")
    low, high = ends
    if kind == "int" and not (float(low).is_integer() and float(high).is_integer()):
        raise source.error(at, f"the ends of a range of whole numbers are whole; found {ends!r}")
    if kind == "int" and max(abs(low), abs(high)) > _MOST_WHOLE:
        raise source.error(at, f"whole numbers are drawn up to 2**53 only; found {ends!r}")
    if low >= high:
        raise source.error(at, f"low {low} is not below high {high}; write {kind}: [low, high]")
    if not math.isfinite(float(high) - float(low)):
        raise source.error(at, f"the range is wider than a number can be; found {ends!r}")
    return low, high


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _when(value: object, where: Where, source: Source) -> When:
    if not isinstance(value, dict) or not value:
        raise source.error(where, "write the knob that it depends on: when: {variant: topk}")
    found: dict[str, tuple[Value, ...]] = {}
    for name, allowed in value.items():
        listed = allowed if isinstance(allowed, list) else [allowed]
        if not listed or any(isinstance(one, dict | list) for one in listed):
            raise source.error(
                (*where, name), f"write a value or a list of them; found {allowed!r}"
            )
        found[str(name)] = tuple(listed)
    return found


def _values(values: object, where: Where, source: Source, kind: str) -> tuple[Value, ...]:
    if not isinstance(values, list) or not values:
        raise source.error(where, f"an empty {kind} runs nothing; list at least one value")
    seen: set[tuple[bool, bytes]] = set()
    for n, item in enumerate(values):
        try:
            if isinstance(item, dict):
                raise TypeError
            key = (isinstance(item, bool), canonical_json(item))  # 1 and 1.0 are one number
        except (TypeError, ValueError):
            raise source.error((*where, n), f"{item!r} cannot be a {kind} value") from None
        if key in seen:
            raise source.error((*where, n), f"{kind} lists {item!r} twice; remove one")
        seen.add(key)
    return tuple(values)


def check_conditions(
    arm: Arm, arms: Collection[Arm], where_of: Callable[[str], Where], source: Source
) -> None:
    """Refuse a ``when`` that can never hold or goes round in a circle.

    Args:
        arm: Whose knobs may depend on one another.
        arms: Of the file; a knob that several of them share must apply in one only.
        where_of: Name of a knob -> its place in the file.
        source: Knows the lines.

    Raises:
        SpecError: With the line.
    """
    for name, knob in arm.knobs.items():
        if not isinstance(knob, Grid | Range | Choice):
            continue
        where = where_of(name)
        shared = (
            [one for one in arms if one.knobs.get(name) == knob] if where[0] == "params" else []
        )
        for parent, allowed in (knob.when or {}).items():
            said = _mistake(arm, name, parent, allowed, shared)
            if said:
                raise source.error((*where, "when", parent), said)
    circle = _circle(arm.knobs)
    if circle:
        raise source.error(
            (*where_of(circle[0]), "when"), f"{' and '.join(circle)} depend on one another"
        )


def _mistake(
    arm: Arm, name: str, parent: str, allowed: Collection[Value], shared: Collection[Arm]
) -> str:
    """What is wrong with one condition of a knob; empty when nothing is."""
    if parent == name:
        return f"'{name}' cannot depend on itself; name another knob"
    if parent not in arm.knobs:
        hint = did_you_mean(parent, [one for one in arm.knobs if one != name])
        return f"arm {arm.name} has no knob '{parent}'{hint}"
    if isinstance(arm.knobs[name], Grid) and isinstance(arm.knobs[parent], Range | Choice):
        return f"every value of a grid runs, and '{parent}' is drawn; write a choice"
    possible: list[Value] = []
    for one in (arm, *shared):
        found = _possible(one.knobs[parent]) if parent in one.knobs else ()
        if found is None:
            return f"'{parent}' is drawn from a range; a knob depends on values that are listed"
        possible += found
    never = [one for one in allowed if not _is_one_of(one, possible)]
    return f"'{parent}' is never {never[0]!r} here; it is {_few(possible)}" if never else ""


def _possible(knob: Knob) -> Sequence[Value] | None:
    """The values that a knob may have; None where they are not listed."""
    if isinstance(knob, Grid | Choice):
        return knob.values
    if not isinstance(knob, Range):
        return (knob,)
    many = knob.kind != "int" or knob.high - knob.low > _MOST_DEPENDED
    return None if many else list(range(int(knob.low), int(knob.high) + 1, int(knob.step or 1)))


def _few(values: Sequence[Value]) -> str:
    words = list(dict.fromkeys(map(repr, islice(values, _MOST_LISTED + 1))))
    return ", ".join(words[:_MOST_LISTED]) + (", ..." if len(words) > _MOST_LISTED else "")


def _circle(knobs: Mapping[str, Knob]) -> list[str]:
    """Knobs that depend on one another, in file order; not those that only depend on them."""
    placed = set(_parents_first(knobs))
    path = [name for name in knobs if name not in placed][:1]
    while path:
        parent = next(
            one for one in _parents(knobs[path[-1]]) if one in knobs and one not in placed
        )
        if parent in path:
            found = path[path.index(parent) :]
            return [name for name in knobs if name in found]
        path.append(parent)
    return []
