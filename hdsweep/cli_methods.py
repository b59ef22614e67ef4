"""The command ``methods``: what can be swept, told by the methods themselves."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hdsweep import views
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.method import Method, load_method, method_module, names_in
from hdsweep.strict import Strict
from hdsweep.terminal import Console
from hdsweep.views import Format, FormatOption


def methods(
    name: Annotated[
        str | None, typer.Argument(help="A method, or a variant of one, as in dinomaly or topk.")
    ] = None,
    format: FormatOption = Format.terminal,
) -> None:
    """List the methods, or the knobs of one: values, defaults and what they do.

    Example: hdsweep methods patchcore
    """
    known = names_in("trainables", "METHOD")
    console = Console(highlight=False)
    if name is None:
        found = [_method(each, load_method(each)) for each in known]
        if format is Format.json:
            views.print_json(found)
        else:
            _print_methods(console, found)
        return
    chosen, note = _chosen(name, known)
    method = load_method(chosen)
    value = {**_method(chosen, method), "knobs": list(knobs_of(method.params))}
    if format is Format.json:
        views.print_json(value)
    else:
        _print_method(console, value, note)


def _chosen(name: str, known: list[str]) -> tuple[str, str]:
    """A method, and a remark where the name is one of its values and not its own."""
    if name in known or "." in name:
        return name, ""
    for each in known:
        for knob in knobs_of(load_method(each).params):
            if name in knob["choices"]:
                return each, f"{name} is a value of its knob {knob['name']}"
    raise SpecError(f"no method is named '{name}'{did_you_mean(name, known)}")


def _method(name: str, method: Method) -> dict[str, Any]:
    module = importlib.import_module(method_module(name))
    about = inspect.getdoc(module) or inspect.getdoc(method.params) or ""
    return {
        "name": name,
        "version": method.version,
        "about": about.partition("\n\n")[0].replace("\n", " "),
        "source": method.source,
        "curve": list(method.curve),
        "scalars": list(method.scalars),
    }


def knobs_of(params: type[Strict]) -> Iterator[dict[str, Any]]:
    """Of each parameter: ``name``, ``values`` in words, ``choices``, ``default``, ``about``."""
    schema = params.model_json_schema()
    said = _described(params)
    for name, field in schema.get("properties", {}).items():
        yield {
            "name": name,
            "values": _values(field, schema),
            "choices": _choices(field, schema),
            "default": field.get("default"),
            "about": field.get("description") or said.get(name, ""),
        }


def _resolved(field: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] = schema.get("$defs", {}).get(reference, field)
    return found


def _choices(field: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Any]:
    found = _resolved(field, schema)
    inner = [*found.get("anyOf", ()), *found.get("oneOf", ())]
    own = [found["const"]] if "const" in found else list(found.get("enum", ()))
    return own + [value for one in inner for value in _choices(one, schema)]


def _values(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    found = _resolved(field, schema)
    inner = [*found.get("anyOf", ()), *found.get("oneOf", ())]
    if inner:
        return " or ".join(dict.fromkeys(_values(one, schema) for one in inner))
    if "const" in found:
        return str(found["const"])
    if "enum" in found:
        return " | ".join(map(str, found["enum"]))
    kind = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true | "
            "false", "array": "list", "object": "mapping", "null": "nothing"}  # fmt: skip
    words = kind.get(str(found.get("type")), "text")
    if found.get("type") == "array" and isinstance(found.get("items"), dict):
        words = f"list of {_values(found['items'], schema)}"
    ends = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {found[key]:g}" for key, sign in ends.items() if key in found]
    return f"{words} {', '.join(bounds)}" if bounds else words


_ARGUMENT = re.compile(r"^    (\w[\w, ]*): (.*)$")


def _described(params: type[Strict]) -> dict[str, str]:
    """Parameter -> what the docstrings of its class and that one's parents say of it."""
    found: dict[str, str] = {}
    for parent in reversed(params.__mro__):
        names: list[str] = []
        for line in _arguments(parent.__doc__):
            match = _ARGUMENT.match(line)
            if match:
                names = [name.strip() for name in match[1].split(",")]
                found |= dict.fromkeys(names, match[2])
            elif names and line.startswith("        "):
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            else:
                names = []
    return found


def _arguments(text: str | None) -> list[str]:
    lines = inspect.cleandoc(text or "").splitlines()
    heads = [n for n, line in enumerate(lines) if line in ("Args:", "Attributes:")]
    return lines[heads[0] + 1 :] if heads else []


def _print_methods(console: Console, found: list[dict[str, Any]]) -> None:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("method", "what it is", "source"):
        grid.add_column(head)
    for one in found:
        grid.add_row(Text(one["name"], style="bold"), Text(one["about"]), Text(one["source"]))
    console.print(grid)
    console.print(Text("hdsweep methods NAME lists the knobs of one", style="dim"))


def _print_method(console: Console, value: Mapping[str, Any], note: str) -> None:
    console.print(Text(f"{value['name']}, version {value['version']}", style="bold"))
    console.print(Text(value["about"]))
    if value["source"]:
        console.print(Text(f"source: {value['source']}"))
    if note:
        console.print(Text(note))
    console.print()
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("knob", "values", "default", "what it does"):
        grid.add_column(head, overflow="fold")
    for knob in value["knobs"]:
        default = "" if knob["default"] is None else str(knob["default"])
        plain = knob["about"].replace("``", "")
        grid.add_row(
            Text(knob["name"], style="bold"), Text(knob["values"]), Text(default), Text(plain)
        )
    console.print(grid)
    for key, words in (("curve", "reports while it runs"), ("scalars", "measures")):
        if value[key]:
            console.print(Text(f"\n{words}: {', '.join(value[key])}"))
