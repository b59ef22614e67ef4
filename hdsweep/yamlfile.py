"""YAML as a person means it, with the line of every key.

Numbers are those of YAML 1.2: ``1e-4`` is one, ``042`` is no octal and ``1:30`` no count of
seconds. What cannot be part of a sweep is refused here, at its line: tags, repeated keys, text that
no file name or record can hold, and aliases that unfold into more than anybody would write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hdsweep.errors import SpecError, did_you_mean

Where = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_COLLECTIONS = (f"{_TAG}map", f"{_TAG}seq")
_TEXT, _MERGE = f"{_TAG}str", f"{_TAG}merge"
_MAX_DEPTH = 100  # libyaml recurses on the C stack, where too deep is a crash
_MAX_NODES = 1_000_000  # aliases unfolded: a few lines of them can name billions
_MAX_DIGITS = 300  # more is no float, and Python refuses to print 4300
_UNUSABLE = re.compile("[\0\ud800-\udfff]")

_BASE: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class Loader(_BASE):  # type: ignore[misc]
    """SafeLoader with the numbers of YAML 1.2, and without dates."""


_REPLACED = {f"{_TAG}{kind}" for kind in ("int", "float", "timestamp", "value")}
Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    f"{_TAG}int",
    re.compile(r"^([-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    list("-+0123456789"),
)
Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"^([-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
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
        said = f"{dotted}: {message}" if dotted else message
        return SpecError(f"{self.path}:{line}: {_printable(said)}")


def _printable(text: str) -> str:
    """One line, whatever a key or a value holds."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _Walk:
    """Notes the line of every key, and refuses what must not be constructed."""

    def __init__(self, loader: Any, path: Path) -> None:
        self.lines: dict[Where, int] = {}
        self._loader = loader
        self._path = path
        self._nodes = 0

    def visit(self, node: yaml.Node, where: Where) -> None:
        line = node.start_mark.line + 1
        self.lines.setdefault(where, line)
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise self._refused(
                line,
                f"too large: the file unfolds into more than {_MAX_NODES:,} values; look for "
                "aliases of aliases",
            )
        if len(where) > _MAX_DEPTH:
            raise self._refused(line, _TOO_DEEP)
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
            return
        if node.tag not in _COLLECTIONS:
            raise self._refused(line, _no_tags(node.tag))
        if isinstance(node, yaml.MappingNode):
            self._visit_keys(node, where)
        else:
            for index, item in enumerate(node.value):
                self.visit(item, (*where, index))

    def _visit_keys(self, node: yaml.MappingNode, where: Where) -> None:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refused(line, "a key is a single word; found a list or a mapping")
            if key_node.tag != _MERGE:
                self._check_scalar(key_node)
            key = str(key_node.value)
            if key in seen:
                raise self._refused(line, f"key '{key}' is given twice; keep one")
            seen.add(key)
            self.lines[(*where, key)] = line
            self.visit(value_node, (*where, key))

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        text, line = str(node.value), node.start_mark.line + 1
        if found := _UNUSABLE.search(text):
            raise self._refused(
                line,
                f"text holds the character U+{ord(found[0]):04X}, which no file can; remove it",
            )
        if node.tag == _TEXT:
            return
        # A tag that was written out need not fit its text, and then cannot be constructed.
        if (
            node.tag == _MERGE
            or self._loader.resolve(yaml.ScalarNode, text, (True, False)) != node.tag
        ):
            raise self._refused(line, _no_tags(node.tag))
        if len(text) > _MAX_DIGITS:
            raise self._refused(line, f"number too long: {len(text)} characters; write it shorter")

    def _refused(self, line: int, message: str) -> SpecError:
        return SpecError(f"{self._path}:{line}: {_printable(message)}")


_TOO_DEEP = f"this is not YAML that a sweep can hold: nested more than {_MAX_DEPTH} deep"


def _no_tags(tag: str) -> str:
    shown = tag.replace(_TAG, "!!")
    return f"YAML tags are not allowed in a sweep file ({shown}); write plain values"


def read_yaml(path: Path) -> tuple[dict[str, Any], Source]:
    """The mapping that a sweep file is, and where its keys stand.

    Raises:
        SpecError: It cannot be read, is not YAML, or holds what no sweep can.
    """
    text = _text(path)
    try:
        _check_depth(text, path)
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            walk = _Walk(loader, path)
            if node is not None:
                walk.visit(node, ())
            value = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SpecError(f"{path}:{line}: this is not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"{path}:1: this is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise SpecError(
            f"{path}:1: a sweep file is a mapping with name, method, data, seeds and arms; "
            f"found {'nothing' if value is None else type(value).__name__}"
        )
    return value, Source(path, walk.lines)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise SpecError(f"{path}: no such sweep file{did_you_mean(path.name, siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SpecError(f"{path}: cannot be read as a sweep file: {reason}") from None


def _check_depth(text: str, path: Path) -> None:
    depth = 0
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise SpecError(f"{path}:{line}: {_TOO_DEEP}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
