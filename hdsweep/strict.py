"""Frozen models that say what they were given: parameters of methods, of data, of a sweep file.

Each complaint of a model becomes one message at the place in the file where it arose.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from hdsweep.errors import SpecError, did_you_mean
from hdsweep.yamlfile import Source, Where

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


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
    if detail["type"] in ("extra_forbidden", "missing") and detail["loc"][-1:] != loc[-1:]:
        loc = (*loc, detail["loc"][-1])  # a key of the file, whatever it is called
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
        if not (isinstance(found, str) and shown in message):
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
    if detail["type"] == "string_pattern_mismatch" and detail["ctx"]["pattern"] == NAME:
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
