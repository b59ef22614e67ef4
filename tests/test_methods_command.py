"""``hdsweep methods`` tells of every knob what a sweep file may say, and the rest in words."""

from __future__ import annotations

import json

import pytest

from hdsweep.cli_methods import knobs_of
from hdsweep.method import load_method, names_in
from tests.conftest import Run

METHODS = names_in("trainables", "METHOD")


@pytest.mark.parametrize("name", METHODS)
def test_every_knob_has_values_a_default_and_a_description(name: str) -> None:
    params = load_method(name).params
    found = {knob["name"]: knob for knob in knobs_of(params)}
    assert list(found) == list(params.model_fields)
    for knob in found.values():
        assert knob["values"], knob
        assert knob["about"], knob
        declared = params.model_fields[knob["name"]].get_default(call_default_factory=True)
        assert json.dumps(knob["default"]) == json.dumps(declared)  # tuples are lists


def test_values_are_told_in_words(hdsweep: Run) -> None:
    done = hdsweep("methods", "patchcore", "--format", "json")
    knobs = {knob["name"]: knob for knob in json.loads(done.stdout)["knobs"]}
    assert knobs["nbits"]["values"] == "exact or whole number ≥ 1, ≤ 24"
    assert knobs["slide_score"]["values"] == "max | top_k"
    assert knobs["nprobe"]["about"] == "Cells that are searched for each patch."


def test_a_variant_leads_to_its_method_and_a_misspelling_to_the_nearest(hdsweep: Run) -> None:
    done = hdsweep("methods", "topk")
    assert done.returncode == 0
    assert done.stdout.startswith("dinomaly, version ")
    assert "topk is a value of its knob variant" in done.stdout
    wrong = hdsweep("methods", "patchcor")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: no method is named 'patchcor'; did you mean 'patchcore'?\n"
    listed = hdsweep("methods").stdout
    assert all(name in listed for name in METHODS)
