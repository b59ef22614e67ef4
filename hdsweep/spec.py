"""The sweep file, typed.

``load_sweep`` turns YAML into a ``SweepSpec``. Every complaint carries ``file:line`` and the path
of the key, so the reader keeps where each key stood. What belongs to a method or a data set (names,
ranges) is checked by ``plan``, which knows them; it asks the spec for the line.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    field_validator,
)

from hdsweep.errors import SpecError, did_you_mean


class Strict(BaseModel):
    """Frozen model that refuses unknown keys, NaN and infinity.

    Fields named in ``outside_identity`` say where or how, not what: changing them leaves a trial
    the same trial.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    outside_identity: ClassVar[frozenset[str]] = frozenset()

    def identity(self) -> dict[str, Any]:
        """JSON values that name these parameters; a ContentPath appears as its digest."""
        return self.model_dump(
            mode="json", exclude=set(self.outside_identity), context={"identity": True}
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=256)
def _digest_of_state(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_digest(path)


def _existing_file(path: Path) -> Path:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
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


# --- YAML with line numbers -----------------------------------------------------------------------

Where = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-4`` as the number it is (YAML 1.2) and refuses repeated keys."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the keys of a sweep file stand, for messages."""

    path: Path
    lines: Mapping[Where, int] = field(default_factory=dict)

    def error(self, where: Where, message: str) -> SpecError:
        """``file:line: key.path: message``; a missing key is placed at its nearest parent."""
        line = next(
            (self.lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in self.lines), 1
        )
        dotted = ".".join(str(part) for part in where)
        return SpecError(f"{self.path}:{line}: {dotted + ': ' if dotted else ''}{message}")


def _walk(node: yaml.Node, where: Where, lines: dict[Where, int], path: Path) -> None:
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                raise SpecError(f"{path}:{line}: key '{key}' is given twice; keep one")
            seen.add(key)
            lines[(*where, key)] = line
            _walk(value_node, (*where, key), lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*where, index), lines, path)


def _read_yaml(path: Path) -> tuple[dict[str, Any], Source]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise SpecError(f"{path}: no such sweep file{did_you_mean(path.name, siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SpecError(f"{path}: cannot be read as a sweep file: {reason}") from None
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Where, int] = {}
            if node is not None:
                _walk(node, (), lines, path)
            value = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        if "could not determine a constructor for the tag" in str(error.problem):
            problem = (
                f"YAML tags are not allowed in a sweep file ({error.problem}); write plain values"
            )
        else:
            problem = f"this is not YAML: {error.problem}"
        raise SpecError(f"{path}:{line}: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}:1: this is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise SpecError(
            f"{path}:1: a sweep file is a mapping with name, method, data, seeds and arms; "
            f"found {'nothing' if value is None else type(value).__name__}"
        )
    return value, Source(path, lines)


# --- The typed file -------------------------------------------------------------------------------

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
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
    name: str = Field(pattern=_NAME, max_length=100)
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
    raw, source = _read_yaml(path)
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
    duplicates = [seed for n, seed in enumerate(file.seeds) if seed in file.seeds[:n]]
    if duplicates:
        where = ("seeds", len(file.seeds) - 1 - file.seeds[::-1].index(duplicates[0]))
        raise source.error(
            where, f"seed {duplicates[0]} is listed twice; a replicate counts once, remove one"
        )
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
        data_name=data_name,
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
        return source.error(where[:-1], f"'{loc[-1]}' is missing")
    message = detail["msg"].removeprefix("Value error, ")
    found = detail.get("input")
    if isinstance(found, str | int | float | bool | list | tuple | None) and loc:
        shown = repr(found)
        message = f"{message}; found {shown if len(shown) <= 80 else shown[:77] + '...'}"
    return source.error(where, message[:1].lower() + message[1:])


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
    if not re.match(_NAME, name):
        raise source.error(where, f"'{name}' is not a name; use letters, digits, '.', '_' and '-'")
    own = dict(block)
    method = own.pop("method", file.method)
    if not isinstance(method, str):
        raise source.error(where, "no method; name one here or at the top of the file")
    knobs = {key: _knob(value, ("params", key), source) for key, value in file.params.items()}
    knobs |= {key: _knob(value, (*where, key), source) for key, value in own.items()}
    return Arm(name, method, knobs)


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
    values = value["grid"]
    if not isinstance(values, list) or not values:
        raise source.error((*where, "grid"), "an empty grid runs nothing; list at least one value")
    for n, item in enumerate(values):
        if isinstance(item, dict) or (isinstance(item, float) and not math.isfinite(item)):
            raise source.error((*where, "grid", n), f"{item!r} cannot be a grid value")
        if any(
            item == other and isinstance(item, bool) == isinstance(other, bool)
            for other in values[:n]
        ):
            raise source.error((*where, "grid", n), f"grid lists {item!r} twice; remove one")
    return Grid(tuple(values))


def file_schema() -> dict[str, Any]:
    """JSON Schema of the sweep file itself, knowing no method."""
    return _File.model_json_schema()
