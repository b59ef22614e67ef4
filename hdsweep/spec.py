"""The sweep file, typed.

``load_sweep`` turns YAML into a ``SweepSpec``. Every complaint carries ``file:line`` and the path
of the key. What belongs to a method or a data set (names, ranges) is checked by ``plan``, which
knows them; it asks the spec for the line.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from hdsweep.errors import SpecError, did_you_mean
from hdsweep.identity import canonical_json
from hdsweep.yamlfile import Source, Where, read_yaml

__all__ = [
    "Arm",
    "ContentPath",
    "Grid",
    "Knob",
    "Report",
    "Resources",
    "Source",
    "Strict",
    "SweepSpec",
    "Value",
    "Where",
    "file_digest",
    "file_schema",
    "first_error",
    "in_plain_words",
    "load_sweep",
]


class Strict(BaseModel):
    """Frozen model that refuses unknown keys, NaN and infinity.

    Fields named in ``outside_identity`` say where or how, not what: changing them leaves a trial
    the same trial.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    outside_identity: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes true for 1, and nobody who wrote it meant that
        if isinstance(value, bool):
            found: bool | None = value
        elif isinstance(value, list | tuple):
            found = next((item for item in value if isinstance(item, bool)), None)
        else:
            return value
        if found is not None and _is_number_only(cls, str(info.field_name)):
            raise ValueError(f"{str(found).lower()} is not a number")
        return value

    def identity(self, *, resolve: bool = True) -> dict[str, Any]:
        """JSON values that name these parameters; a ContentPath appears as its digest.

        Args:
            resolve: Whether to look up what only another machine knows. Without, the result tells
                parameters apart but names no trial.

        Raises:
            HdsweepError: It cannot be looked up.
        """
        del resolve  # here nothing has to be
        return self.model_dump(
            mode="json", exclude=set(self.outside_identity), context={"identity": True}
        )


@lru_cache(maxsize=1024)
def _is_number_only(model: type[BaseModel], name: str) -> bool:
    """Whether a field, or what it lists, can be a number and cannot be a bool."""
    kinds = set(_kinds(model.model_fields[name].annotation))
    return not kinds.isdisjoint((int, float)) and kinds.isdisjoint((bool, Any, object))


def _kinds(annotation: Any) -> Iterator[Any]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from map(type, inner)
    elif origin is Annotated:
        yield from _kinds(inner[0])
    elif inner:
        for one in inner:
            yield from _kinds(one)
    else:
        yield annotation


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=256)
def _digest_of_state(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_digest(path)


def _existing_file(path: Path) -> Path:
    try:
        path = path.expanduser().absolute()
        if not path.is_file():
            raise ValueError(f"no such file: {path}")
        path.open("rb").close()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~name of nobody
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    return path


def _serialize_by_content(path: Path, info: SerializationInfo) -> str:
    if info.context and info.context.get("identity"):
        state = path.stat()
        return f"sha256:{_digest_of_state(path, state.st_size, state.st_mtime_ns)}"
    return str(path)


ContentPath = Annotated[
    Path, AfterValidator(_existing_file), PlainSerializer(_serialize_by_content, return_type=str)
]
"""An existing file that a trial depends on: its content, not its path, names the trial."""


# --- The typed file -------------------------------------------------------------------------------

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_NAME_CHARS = 100  # a name becomes a file's
_CONTINUOUS = frozenset({"uniform", "log_uniform", "int", "choice"})
Scalar = str | int | float | bool | None
Value = Scalar | list[Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """Every value runs."""

    values: tuple[Value, ...]


Knob = Value | Grid


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of the comparison: a method and its knobs, the file's shared ``params`` included."""

    name: str
    method: str
    knobs: Mapping[str, Knob]

    def cells(self) -> Iterator[dict[str, Value]]:
        """Each combination of the grids, fixed knobs included, in file order."""
        cells: list[dict[str, Value]] = [{}]
        for name, knob in self.knobs.items():
            values = knob.values if isinstance(knob, Grid) else (knob,)
            cells = [{**cell, name: value} for cell in cells for value in values]
        return iter(cells)

    @property
    def swept(self) -> tuple[str, ...]:
        """Knobs with a grid, in file order."""
        return tuple(name for name, knob in self.knobs.items() if isinstance(knob, Grid))


class Resources(Strict):
    """What one trial occupies."""

    gpus: float | None = Field(None, ge=0, description="GPUs per trial; a fraction shares one")
    cpus: int = Field(1, ge=1, description="CPU threads per trial")

    @field_validator("gpus")
    @classmethod
    def _gpus_are_a_share_or_whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and not gpus.is_integer():
            raise ValueError("above 1 it must be a whole number: a fraction never spans devices")
        return gpus


_CRITERION = re.compile(
    r"^\s*(?P<metric>[^<>=\[\]\s]+(\[[^\[\]]*\])?)\s*(>=|<=|>|<)\s*[-+]?\d*\.?\d+\s*$"
)


class Report(Strict):
    """What the table shows."""

    metrics: tuple[str, ...] = Field(("auroc", "tpr@1"), min_length=1)
    baseline: str | None = None
    expect: tuple[str, ...] = ()

    @field_validator("expect")
    @classmethod
    def _criteria_compare(cls, expect: tuple[str, ...]) -> tuple[str, ...]:
        for text in expect:
            if not _CRITERION.match(text):
                raise ValueError(f"'{text}' is not a criterion; write it as 'auroc >= 0.98'")
        return expect

    def expected_metrics(self) -> tuple[str, ...]:
        """The metric that each criterion speaks of."""
        found = (_CRITERION.match(text) for text in self.expect)
        return tuple(match["metric"] for match in found if match)


class _File(Strict):
    name: str = Field(pattern=_NAME, max_length=_NAME_CHARS)
    question: str = ""
    method: str | None = None
    data: dict[str, Any]
    params: dict[str, Any] = Field(default_factory=dict)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(min_length=1)
    arms: dict[str, dict[str, Any] | None] = Field(min_length=1)
    resources: Resources = Resources()
    report: Report = Report()


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """A checked sweep file.

    Args:
        data: The ``data:`` block without its ``name``; the data set checks it.
        seeds: Replicates, in file order, none twice.
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


_LATER = {
    "search": "searching continuous knobs is not part of this version; use {grid: [...]}",
    "stop": "stopping rules are not part of this version; remove the block",
}


def load_sweep(path: Path) -> SweepSpec:
    """Read and check a sweep file.

    Raises:
        SpecError: With file, line, what was found and what to do.
    """
    raw, source = read_yaml(path)
    for key, message in _LATER.items():
        if key in raw:
            raise source.error((key,), message)
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        raise first_error(error, source, (), _File) from None
    data = dict(file.data)
    data_name = data.pop("name", None)
    if not isinstance(data_name, str):
        raise source.error(("data",), "name the data set: data: {name: hdmap, root: ...}")
    seeds: set[int] = set()
    for n, seed in enumerate(file.seeds):
        if seed in seeds:
            raise source.error(
                ("seeds", n), f"seed {seed} is listed twice; a replicate counts once, remove one"
            )
        seeds.add(seed)
    arms = tuple(_arm(name, block or {}, file, source) for name, block in file.arms.items())
    if file.report.baseline is not None and file.report.baseline not in file.arms:
        raise source.error(
            ("report", "baseline"),
            f"no arm is named '{file.report.baseline}'"
            f"{did_you_mean(file.report.baseline, file.arms)}",
        )
    return SweepSpec(
        name=file.name,
        question=file.question,
        data_name=_short_name(data_name, "trainables.data."),
        data=data,
        seeds=file.seeds,
        arms=arms,
        resources=file.resources,
        report=file.report,
        source=source,
    )


def first_error(
    error: ValidationError, source: Source, at: Where, model: type[BaseModel] | None
) -> SpecError:
    """A pydantic complaint as one message at the place in the file where it arose.

    Args:
        error: What the model said; one complaint is reported.
        source: Knows the lines.
        at: Path in the file of the block that was validated.
        model: Whose field names to suggest for an unknown key at the top of the block.
    """
    details = error.errors(include_url=False)
    # A misspelt key explains a missing one, so it goes first.
    detail = min(details, key=lambda one: one["type"] != "extra_forbidden")
    loc = tuple(part for part in detail["loc"] if not _is_union_branch(part))
    where = (*at, *loc)
    if detail["type"] == "extra_forbidden":
        owner = _owner(model, loc[:-1])
        known = owner.model_fields if owner else ()
        key = str(loc[-1])
        return source.error(where, f"unknown key '{key}'{did_you_mean(key, known)}")
    if detail["type"] == "missing":
        if isinstance(loc[-1], int):
            return source.error(where[:-1], f"entry {loc[-1] + 1} of the list is missing")
        return source.error(where[:-1], f"'{loc[-1]}' is missing")
    message = in_plain_words(detail)
    found = detail.get("input")
    if isinstance(found, str | int | float | bool | list | tuple | None) and loc:
        shown = repr(found)
        message = f"{message}; found {shown if len(shown) <= 80 else shown[:77] + '...'}"
    return source.error(where, message)


_PLAIN = {
    "tuple_type": "write a list",
    "list_type": "write a list",
    "dict_type": "write a mapping",
    "model_type": "write a mapping",
}


def in_plain_words(detail: ErrorDetails) -> str:
    """One of pydantic's complaints without the names of Python's types."""
    if detail["type"] == "too_short":
        least = detail["ctx"]["min_length"]
        return f"list at least {least} value{'s' if least > 1 else ''}"
    if detail["type"] == "string_pattern_mismatch" and detail["ctx"]["pattern"] == _NAME:
        return "not a name; use letters, digits, '.', '_' and '-'"
    message = _PLAIN.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    return message[:1].lower() + message[1:]


def _is_union_branch(part: str | int) -> bool:
    # pydantic adds the branch of a union to a location: 'int', 'literal[...]', 'function-...'
    return isinstance(part, str) and bool(re.search(r"[\[\]()]|^(int|float|str|bool|none)$", part))


def _owner(model: type[BaseModel] | None, loc: Sequence[str | int]) -> type[BaseModel] | None:
    for part in loc:
        if model is None or part not in model.model_fields:
            return None
        annotation = model.model_fields[str(part)].annotation
        options = (annotation, *getattr(annotation, "__args__", ()))
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return model


def _arm(name: str, block: Mapping[str, Any], file: _File, source: Source) -> Arm:
    where: Where = ("arms", name)
    if not re.fullmatch(_NAME, name):
        raise source.error(where, f"{name!r} is not a name; use letters, digits, '.', '_' and '-'")
    if len(name) > _NAME_CHARS:
        raise source.error(where, f"a name has at most {_NAME_CHARS} characters, not {len(name)}")
    own = dict(block)
    method = own.pop("method", file.method)
    if not isinstance(method, str):
        raise source.error(where, "no method; name one here or at the top of the file")
    knobs = {key: _knob(value, ("params", key), source) for key, value in file.params.items()}
    knobs |= {key: _knob(value, (*where, key), source) for key, value in own.items()}
    return Arm(name, _short_name(method, "trainables."), knobs)


def _short_name(module: str, package: str) -> str:
    """One module has one name, or its trials would have two ids."""
    name = module.removeprefix(package)
    return module if "." in name else name


def _knob(value: object, where: Where, source: Source) -> Knob:
    if isinstance(value, str | bool | int | float | list | None):
        if isinstance(value, float) and not math.isfinite(value):
            raise source.error(where, f"{value} is not a value; write a finite number")
        return value
    if not isinstance(value, dict):
        raise source.error(where, f"a knob is a value or {{grid: [...]}}; found {value!r}")
    kinds = set(value)
    if kinds & _CONTINUOUS and len(kinds) == 1:
        raise source.error(where, f"{kinds.pop()}: {_LATER['search']}")
    if kinds != {"grid"}:
        raise source.error(
            where,
            f"a knob is a value or {{grid: [...]}}; found keys {', '.join(map(str, value))}"
            + did_you_mean(str(next(iter(value), "")), ["grid", *sorted(_CONTINUOUS)]),
        )
    return _grid(value["grid"], (*where, "grid"), source)


def _grid(values: object, where: Where, source: Source) -> Grid:
    if not isinstance(values, list) or not values:
        raise source.error(where, "an empty grid runs nothing; list at least one value")
    seen: set[tuple[bool, bytes]] = set()
    for n, item in enumerate(values):
        try:
            if isinstance(item, dict):
                raise TypeError
            key = (isinstance(item, bool), canonical_json(item))  # 1 and 1.0 are one number
        except (TypeError, ValueError):
            raise source.error((*where, n), f"{item!r} cannot be a grid value") from None
        if key in seen:
            raise source.error((*where, n), f"grid lists {item!r} twice; remove one")
        seen.add(key)
    return Grid(tuple(values))


def file_schema() -> dict[str, Any]:
    """JSON Schema of the sweep file itself, knowing no method."""
    return _File.model_json_schema()
