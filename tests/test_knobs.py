"""Knobs of an arm: which combinations run, and what is left to a search."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdsweep.identity import canonical_json
from hdsweep.knobs import Arm, Choice, Drawn, Grid, Knob, Range, Setting, holds

NAMES = "abcdef"
VALUES = (0, 1, 2)


@st.composite
def arms(draw: st.DrawFn) -> Arm:
    """Knobs that depend on earlier ones at random, in whatever order of the file."""
    knobs: dict[str, Knob] = {}
    for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
        kind = draw(st.sampled_from(["fixed", "grid", "choice", "int", "uniform"]))
        if kind == "fixed":
            knobs[name] = draw(st.sampled_from(VALUES))
            continue
        parents = [  # of a range of floats nothing may depend; on what is drawn, no grid
            one for one, knob in knobs.items()
            if not (isinstance(knob, Range) and knob.kind == "float")
            and not (kind == "grid" and isinstance(knob, Range | Choice))
        ]  # fmt: skip
        chosen = (
            draw(st.lists(st.sampled_from(parents), unique=True, max_size=2)) if parents else []
        )
        allowed = st.lists(st.sampled_from(VALUES), unique=True, min_size=1, max_size=2)
        when = {parent: tuple(draw(allowed)) for parent in chosen} or None
        some = tuple(draw(st.lists(st.sampled_from(VALUES), unique=True, min_size=2)))
        kinds: dict[str, Grid | Range | Choice] = {
            "grid": Grid(some, when),
            "choice": Choice(some, when),
            "int": Range("int", 0, 2, when=when),
            "uniform": Range("float", 0, 1, when=when),
        }
        knobs[name] = kinds[kind]
    order = draw(st.permutations(list(knobs)))
    return Arm("arm", "method", {name: knobs[name] for name in order})


def by_brute_force(arm: Arm) -> set[bytes]:
    """Every combination of all grids, each cut to the knobs that apply there."""
    grids = {name: knob.values for name, knob in arm.knobs.items() if isinstance(knob, Grid)}
    found = set()
    for picked in itertools.product(*grids.values()):
        chosen = dict(zip(grids, picked, strict=True))

        def known(name: str, chosen: Mapping[str, Any] = chosen) -> Any:
            return chosen.get(name, arm.knobs[name])

        def applies(name: str) -> bool:
            knob = arm.knobs[name]
            if not isinstance(knob, Grid | Range | Choice):
                return True
            return all(
                applies(parent)
                and (isinstance(known(parent), Range | Choice) or known(parent) in allowed)
                for parent, allowed in (knob.when or {}).items()
            )

        values, drawn = {}, {}
        for name in filter(applies, arm.knobs):
            knob = known(name)
            if not isinstance(knob, Range | Choice):
                values[name] = knob
                continue
            left = {
                p: a for p, a in (knob.when or {}).items() if isinstance(known(p), Range | Choice)
            }
            drawn[name] = replace(knob, when=left or None)
        found.add(written(Setting(values, drawn)))
    return found


def written(setting: Setting) -> bytes:
    """A setting without the order of its knobs."""
    drawn = {
        name: [type(knob).__name__, repr(replace(knob, when=None)), dict(knob.when or {})]
        for name, knob in setting.drawn.items()
    }
    return canonical_json([dict(setting.values), drawn])


@settings(max_examples=300, deadline=None)
@given(arms())
def test_settings_are_those_that_brute_force_finds(arm: Arm) -> None:
    found = [written(setting) for setting in arm.settings()]
    assert len(set(found)) == len(found)
    assert set(found) == by_brute_force(arm)


@settings(max_examples=200, deadline=None)
@given(arms(), st.randoms(use_true_random=False))
def test_the_order_of_knobs_in_the_file_does_not_change_what_runs(
    arm: Arm, rng: random.Random
) -> None:
    names = list(arm.knobs)
    rng.shuffle(names)
    other = replace(arm, knobs={name: arm.knobs[name] for name in names})
    assert set(map(written, other.settings())) == set(map(written, arm.settings()))


@settings(max_examples=200, deadline=None)
@given(arms())
def test_a_drawn_knob_comes_after_those_that_it_depends_on(arm: Arm) -> None:
    for setting in arm.settings():
        assert list(setting.values) == [name for name in arm.knobs if name in setting.values]
        before: set[str] = set()
        for name, knob in setting.drawn.items():
            assert set(knob.when or ()) <= before
            before.add(name)
    assert arm.draws() == [s.drawn for s in arm.settings() if s.drawn]


@settings(max_examples=200, deadline=None)
@given(arms(), st.randoms(use_true_random=False))
def test_what_a_search_draws_and_the_grid_together_satisfy_every_condition(
    arm: Arm, rng: random.Random
) -> None:
    for setting in arm.settings():
        drawn: dict[str, Any] = {}
        for name, knob in setting.drawn.items():
            if holds(knob.when, drawn):
                drawn[name] = value_of(knob, rng)
        whole = {**setting.values, **drawn}
        for name, one in arm.knobs.items():
            when = one.when if isinstance(one, Grid | Range | Choice) else None
            assert (name in whole) == holds(when, whole)


def value_of(knob: Drawn, rng: random.Random) -> Any:
    if isinstance(knob, Choice):
        return rng.choice(knob.values)
    return rng.randint(0, 2) if knob.kind == "int" else rng.random()


def test_a_grid_that_applies_in_one_cell_runs_there_only() -> None:
    arm = Arm(
        "arm", "method",
        {
            "q": Grid((1, 5), when={"variant": ("topk",)}),
            "variant": Grid(("gem", "topk")),
            "lr": Range("float", 1e-4, 1e-2, log=True, when={"variant": ("gem", "topk")}),
        },
    )  # fmt: skip
    settled = [(dict(setting.values), list(setting.drawn)) for setting in arm.settings()]
    assert settled == [
        ({"variant": "gem"}, ["lr"]),
        ({"q": 1, "variant": "topk"}, ["lr"]),
        ({"q": 5, "variant": "topk"}, ["lr"]),
    ]
    assert arm.swept == ("q", "variant", "lr")
    assert all(knobs["lr"].when is None for knobs in arm.draws())


def test_true_is_not_one_where_a_knob_depends_on_it() -> None:
    assert holds({"flag": (True,)}, {"flag": True})
    assert not holds({"flag": (True,)}, {"flag": 1})
    assert not holds({"flag": (1,)}, {"flag": True})
    assert holds({"flag": (1,)}, {"flag": 1.0})
    assert not holds({"flag": (1,)}, {})


@pytest.mark.parametrize(
    ("knob", "last"),
    [
        (Range("float", 0.1, 0.7, step=0.2), 0.7),  # in binary 0.1 + 3 * 0.2 lies above 0.7
        (Range("float", 0.0, 1.0, step=0.3), 0.9),
        (Range("float", 0.0, 1.0, step=1.0), 1.0),
        (Range("float", -1.0, 1.0, step=0.75), 0.5),
        (Range("float", 0, 1e-5, step=3e-6), 9e-6),
        (Range("int", 1, 10, step=4), 9),
        (Range("float", 2.0, 3.0), 3.0),
        (Range("int", 1, 10, log=True), 10),
    ],
)
def test_the_last_value_of_a_range_is_whole_steps_from_the_first(knob: Range, last: float) -> None:
    assert knob.ends == (knob.low, last)
