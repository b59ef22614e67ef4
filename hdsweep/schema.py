"""JSON Schema of the sweep file, for completion and red underlines in an editor.

Which knobs an arm may have depends on its method, so the schema says: if ``method`` is this, then
``params`` and arms have those. An arm with a method of its own is checked against that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hdsweep.method import load_dataset, load_method, names_in
from hdsweep.spec import file_schema
from hdsweep.strict import Strict


def sweep_schema() -> dict[str, Any]:
    """Draft 2020-12 schema with every method and data set that is installed."""
    schema = file_schema()
    definitions = schema.setdefault("$defs", {})
    methods, datasets = names_in("trainables", "METHOD"), names_in("trainables.data", "DATASET")
    for name in methods:
        definitions[f"knobs.{name}"] = _knobs(load_method(name).params, definitions, name)
    by_method = [
        {"if": _has("method", name), "then": {"$ref": f"#/$defs/knobs.{name}"}} for name in methods
    ]
    schema["properties"]["method"] = {"enum": methods, "description": "A module of trainables"}
    schema["properties"]["arms"]["additionalProperties"] = {
        "anyOf": [{"type": "object", "allOf": by_method}, {"type": "null"}]
    }
    schema["allOf"] = [
        {
            "if": _has("method", name),
            "then": {
                "properties": {
                    "params": {"$ref": f"#/$defs/knobs.{name}"},
                    "arms": {
                        "additionalProperties": {
                            "anyOf": [
                                {"required": ["method"]},
                                {"$ref": f"#/$defs/knobs.{name}"},
                                {"type": "null"},
                            ]
                        }
                    },
                }
            },
        }
        for name in methods
    ]
    blocks = []
    for name in datasets:
        block = _nested(load_dataset(name).params.model_json_schema(), definitions, name)
        block["properties"]["name"] = {"const": name}
        block["required"] = ["name", *block.get("required", [])]
        blocks.append(block)
    schema["properties"]["data"] = {"oneOf": blocks}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _has(key: str, value: str) -> dict[str, Any]:
    return {"required": [key], "properties": {key: {"const": value}}}


def _knobs(params: type[Strict], definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """Schema of an arm: each knob a value, a grid of values, or a distribution."""
    block = _nested(params.model_json_schema(), definitions, name)
    properties: dict[str, Any] = {"method": {"const": name}}
    definitions[f"when.{name}"] = _when(list(block["properties"]))
    for knob, value in block["properties"].items():
        kinds = _kinds(value, {"$ref": f"#/$defs/when.{name}"})
        properties[knob] = {
            "description": value.get("description", ""),
            "default": value.get("default"),
            "anyOf": [value, *kinds],
        }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _when(knobs: list[str]) -> dict[str, Any]:
    """Schema of what a knob depends on."""
    one = {"type": ["string", "number", "boolean", "null"]}
    values = {"anyOf": [one, {"type": "array", "minItems": 1, "items": one}]}
    return {
        "type": "object",
        "description": "Other knobs of the arm, and the values at which this one applies",
        "minProperties": 1,
        "properties": dict.fromkeys(knobs, values),
        "additionalProperties": False,
    }


def _kinds(value: dict[str, Any], when: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Schemas of a knob with more than one value.

    Args:
        value: Schema of one value.
        when: Schema of what it depends on.
    """
    yield _kind("grid", {"type": "array", "minItems": 1, "items": value}, when)
    yield _kind("choice", {"type": "array", "minItems": 2, "items": value}, when)
    for number in value.get("anyOf", [value]):
        if number.get("type") not in ("integer", "number"):
            continue
        whole = number["type"] == "integer"
        ends = {"type": "array", "minItems": 2, "maxItems": 2, "items": number}
        step = {"type": number["type"], "exclusiveMinimum": 0}
        log = {"type": "boolean", "description": "Spread evenly in the logarithm"}
        inner = {**number, "type": "integer"}
        yield _kind(
            "int", {**ends, "items": inner}, when, step={**step, "type": "integer"}, log=log
        )
        uniform = _kind("uniform", ends, when, step=step)
        if whole:
            yield {**uniform, "required": ["uniform", "step"]}
        else:
            yield uniform
            above = {"allOf": [number, {"exclusiveMinimum": 0}]}
            yield _kind("log_uniform", {**ends, "items": above}, when)


def _kind(kind: str, values: dict[str, Any], when: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {kind: values, "when": when, **more},
        "required": [kind],
        "additionalProperties": False,
    }


def _nested(schema: dict[str, Any], definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """Move a model's own ``$defs`` into the sweep's, under names that cannot clash."""
    own = schema.pop("$defs", {})

    # A local path is a string like any other, so pydantic's oneOf would refuse what two match.
    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                "anyOf" if k == "oneOf" else k: (
                    v.replace("#/$defs/", f"#/$defs/{name}.") if k == "$ref" else renamed(v)
                )
                for k, v in value.items()
            }
        return [renamed(v) for v in value] if isinstance(value, list) else value

    for key, value in own.items():
        definitions[f"{name}.{key}"] = renamed(value)
    result: dict[str, Any] = renamed(schema)
    return result
