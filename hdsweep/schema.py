"""JSON Schema of the sweep file, for completion and red underlines in an editor.

Which knobs an arm may have depends on its method, so the schema says: if ``method`` is this, then
``params`` and arms have those. An arm with a method of its own is checked against that one.
"""

from __future__ import annotations

from typing import Any

from hdsweep.method import load_dataset, load_method, names_in
from hdsweep.spec import Strict, file_schema


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
    """Schema of an arm: each knob a value, or a grid of values."""
    block = _nested(params.model_json_schema(), definitions, name)
    properties: dict[str, Any] = {"method": {"const": name}}
    for knob, value in block["properties"].items():
        grid = {"type": "array", "minItems": 1, "items": value}
        properties[knob] = {
            "description": value.get("description", ""),
            "default": value.get("default"),
            "anyOf": [
                value,
                {
                    "type": "object",
                    "properties": {"grid": grid},
                    "required": ["grid"],
                    "additionalProperties": False,
                },
            ],
        }
    return {"type": "object", "properties": properties, "additionalProperties": False}


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
