"""A search draws what Optuna draws, and a killed one goes on as if it had not been."""

from __future__ import annotations

import json
import math
import os
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hdsweep.errors import SpecError, StoreError
from hdsweep.knobs import Choice, Drawn, Range, holds
from hdsweep.search import (
    Asked,
    Exported,
    Study,
    Told,
    aggregate,
    best,
    check_options,
    dashboard,
    draws,
    export,
    importance,
)
from hdsweep.search.options import CLASSES, _plain_arguments
from hdsweep.search.study import seed_of
from hdsweep.strategy import Search

Space = Mapping[str, Drawn]
Log = list[Asked | Told]
Knobs = Mapping[str, Any]
Loss = Callable[[Knobs], float]

SMALL = {"nsga2": {"population_size": 6}, "cmaes": {"popsize": 5}}  # several generations


def _search(sampler: str = "tpe", **more: Any) -> Search:
    asked: dict[str, Any] = {"sampler": sampler, "trials": 100, "minimize": "loss", **more}
    return Search(**asked)


# --- Functions with known minima ------------------------------------------------------------------


def _sphere(knobs: Knobs) -> float:
    return float((knobs["x"] - 1) ** 2 + (knobs["y"] + 2) ** 2 + (knobs["n"] - 3) ** 2)


def _rosenbrock(knobs: Knobs) -> float:
    x, y = knobs["x"], knobs["y"]
    return float((1 - x) ** 2 + 100 * (y - x * x) ** 2)


def _branin(knobs: Knobs) -> float:
    x, y = knobs["x"], knobs["y"]
    bowl = y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6
    return float(bowl**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)


def _hartmann(knobs: Knobs) -> float:
    x = np.array([knobs[f"x{n}"] for n in range(6)])
    alpha = np.array([1.0, 1.2, 3.0, 3.2])
    a = np.array(
        [
            [10, 3, 17, 3.5, 1.7, 8],
            [0.05, 10, 17, 0.1, 8, 14],
            [3, 3.5, 1.7, 10, 17, 8],
            [17, 8, 0.05, 10, 0.1, 14],
        ]
    )
    p = 1e-4 * np.array(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ]
    )
    return float(-alpha @ np.exp(-(a * (x - p) ** 2).sum(axis=1)))


def _ackley(knobs: Knobs) -> float:
    x = np.array(
        [math.log10(knobs["lr"]) + 3, knobs["y"], {"a": 0.0, "b": 1.0, "c": 2.0}[knobs["c"]]]
    )
    waves = np.exp(np.cos(2 * math.pi * x).mean())
    return float(-20 * np.exp(-0.2 * np.sqrt((x * x).mean())) - waves + 20 + math.e)


FUNCTIONS: dict[str, tuple[Space, Loss]] = {
    "sphere": (
        {
            "x": Range("float", -5, 5),
            "y": Range("float", -5, 5, step=0.5),
            "n": Range("int", 0, 10),
        },
        _sphere,
    ),
    "rosenbrock": ({"x": Range("float", -2, 2), "y": Range("float", -1, 3)}, _rosenbrock),
    "branin": ({"x": Range("float", -5, 10), "y": Range("float", 0, 15)}, _branin),
    "hartmann": ({f"x{n}": Range("float", 0, 1) for n in range(6)}, _hartmann),
    "ackley": (
        {
            "lr": Range("float", 1e-5, 1e-1, log=True),
            "y": Range("float", -5, 5),
            "c": Choice(("a", "b", "c")),
        },
        _ackley,
    ),
}


def _seeds(loss: Loss, knobs: Knobs, random_state: np.random.Generator) -> float:
    """Mean over three seeds, with noise."""
    return loss(knobs) + float(random_state.normal(0, 0.1, 3).mean())


def _plain_space(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """Written out again, so that a mistake of ours is not compared with itself."""
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, knob in space.items():
        if isinstance(knob, Choice):
            found[name] = optuna.distributions.CategoricalDistribution(knob.values)  # type: ignore[arg-type]
        elif knob.kind == "int":
            found[name] = optuna.distributions.IntDistribution(int(knob.low), int(knob.high))
        else:
            found[name] = optuna.distributions.FloatDistribution(
                knob.low, knob.high, log=knob.log, step=knob.step
            )
    return found


def _plain_study(**more: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(**more)


# --- The same as plain Optuna ---------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_suggestions_are_bit_for_bit_those_of_optuna_with_the_same_seeds(function: str) -> None:
    space, loss = FUNCTIONS[function]
    search = _search(seed=7)
    study = Study(space, search, "arm/cell")
    plain, distributions = _plain_study(), _plain_space(space)
    noise = np.random.default_rng(1)
    running: list[tuple[Asked, optuna.Trial]] = []
    for number in range(70):
        plain.sampler = optuna.samplers.TPESampler(seed=seed_of(search, "arm/cell", number))
        trial = plain.ask(distributions)
        asked = study.ask()
        assert dict(asked.knobs) == trial.params
        running.append((asked, trial))
        if len(running) == 4:  # three under way, the oldest told
            asked, trial = running.pop(0)
            value = _seeds(loss, asked.knobs, noise)
            study.tell(Told(asked.number, "complete", (value,)))
            plain.tell(trial, value)


def test_pruned_failed_and_infeasible_configurations_weigh_as_in_optuna() -> None:
    space, loss = FUNCTIONS["branin"]
    search = _search(maximize="auroc", minimize=(), constraints="latency_ms <= 20")
    study = Study(space, search, "k")
    plain, distributions = _plain_study(direction="maximize"), _plain_space(space)
    for number in range(60):
        plain.sampler = optuna.samplers.TPESampler(seed=seed_of(search, "k", number))
        trial, asked = plain.ask(distributions), study.ask()
        assert dict(asked.knobs) == trial.params
        value = -loss(asked.knobs)
        if number % 5 == 3:
            study.tell(Told(number, "pruned", curve={10: value - 1, 20: value}))
            trial.report(value - 1, 10)
            trial.report(value, 20)
            plain.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif number % 7 == 5:
            study.tell(Told(number, "failed"))
            plain.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            above = asked.knobs["x"] - 2  # type: ignore[operator]
            study.tell(Told(number, "complete", (value,), {"latency_ms <= 20": above}))
            trial.set_constraint("latency_ms <= 20", above)
            plain.tell(trial, value)


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_search_finds_what_a_plain_optuna_run_finds(function: str) -> None:
    """Best true value after 100 configurations, 20 times each: one distribution, p > 0.01."""
    space, loss = FUNCTIONS[function]
    distributions = _plain_space(space)
    ours, plain = [], []
    for repeat in range(20):
        noise = np.random.default_rng([repeat, 0])
        study, found = Study(space, _search(seed=repeat), "k"), []
        for _ in range(100):
            asked = study.ask()
            study.tell(Told(asked.number, "complete", (_seeds(loss, asked.knobs, noise),)))
            found.append(loss(asked.knobs))
        ours.append(min(found))

        noise = np.random.default_rng([repeat, 1])
        stock = _plain_study(sampler=optuna.samplers.TPESampler(seed=repeat))
        for _ in range(100):
            trial = stock.ask(distributions)
            stock.tell(trial, _seeds(loss, trial.params, noise))
        plain.append(min(loss(trial.params) for trial in stock.trials))
    p = stats.mannwhitneyu(ours, plain).pvalue
    medians = statistics.median(ours), statistics.median(plain)
    print(f"{function}: medians {medians[0]:.4g} and {medians[1]:.4g}, p = {p:.2f}")
    assert p > 0.01


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_what_breaks_a_constraint_is_tried_less(sampler: str) -> None:
    space: Space = {"x": Range("float", 0, 1), "y": Range("float", 0, 1)}
    shares = {}
    for constraints in ((), ("x <= 0.3",)):
        options = {"population_size": 10} if sampler == "nsga2" else {}
        search = _search(sampler, constraints=constraints, options=options)
        study, feasible = Study(space, search, "k"), []
        for number in range(120):
            x, y = (float(study_knob) for study_knob in study.ask().knobs.values())  # type: ignore[arg-type]
            above = dict.fromkeys(constraints, x - 0.3)
            study.tell(Told(number, "complete", (-x - y,), above))
            feasible.append(x <= 0.3)
        shares[constraints] = sum(feasible[60:])
    assert shares["x <= 0.3",] > 30 + shares[()]


# --- Killed at any moment -------------------------------------------------------------------------

CONDITIONAL: Space = {
    "variant": Choice(("baseline", "topk", "weighted")),
    "q": Range("float", 0.5, 50, log=True, when={"variant": ("topk",)}),
    "depth": Range("int", 1, 4, when={"variant": ("topk", "weighted")}),
    "tau": Range("float", 0.1, 0.7, step=0.2, when={"depth": (2, 3)}),
    "lr": Range("float", 1e-4, 1e-1, log=True),
}
MIXED: Space = {
    "x": Range("float", -5, 5),
    "n": Range("int", 1, 64, log=True),
    "odd": Range("int", 1, 9, step=2),
    "c": Choice((1, True, "1", None, [1, 2])),
}


def _loss(knobs: Knobs) -> float:
    return float(sum(v for v in knobs.values() if isinstance(v, int | float)))


class _Run:
    """Asks and tells in an order drawn from a seed, up to ``parallel`` at once."""

    def __init__(self, space: Space, search: Search, seed: int, parallel: int) -> None:
        self.space, self.search, self.parallel = space, search, parallel
        self.random = random.Random(seed)
        self.log: Log = []
        self.running: list[Asked] = []
        self.study = Study(space, search, "arm/cell")

    def step(self) -> None:
        if len(self.running) < self.parallel:
            asked = self.study.ask()
            self.running.append(asked)
            self.log.append(asked)
            return
        asked = self.running.pop(self.random.randrange(len(self.running)))
        told = self._outcome(asked)
        self.study.tell(told)
        self.log.append(told)

    def _outcome(self, asked: Asked) -> Told:
        value, kind = _loss(asked.knobs), self.random.random()
        if kind < 0.1:
            return Told(asked.number, "failed")
        if kind < 0.2:
            return Told(asked.number, "pruned", curve={1: value, 5: value / 2})
        objectives = len(self.search.maximize) + len(self.search.minimize)
        above = dict.fromkeys(self.search.constraints, value - 3)
        values = (value, -(value**2))[:objectives]
        return Told(asked.number, "complete", values, above, {1: value / 3})

    def kill(self) -> None:
        """All but what is on disk is lost."""
        self.log = [_from_json(line) for line in json.loads(json.dumps([*map(_json, self.log)]))]
        told = {line.number for line in self.log if isinstance(line, Told)}
        asked = {line.number: line for line in self.log if isinstance(line, Asked)}
        self.running = [asked[one.number] for one in self.running]
        assert not told & {one.number for one in self.running}
        self.study = Study(self.space, self.search, "arm/cell", self.log)
        assert self.study.skipped == ()


def _json(line: Asked | Told) -> dict[str, Any]:
    if isinstance(line, Asked):
        return {"number": line.number, "knobs": dict(line.knobs)}
    curve = {str(step): value for step, value in line.curve.items()}
    return {
        "number": line.number, "state": line.state, "values": list(line.values),
        "constraints": dict(line.constraints), "curve": curve,
    }  # fmt: skip


def _from_json(line: dict[str, Any]) -> Asked | Told:
    if "knobs" in line:
        return Asked(line["number"], line["knobs"])
    curve = {int(step): value for step, value in line["curve"].items()}
    return Told(line["number"], line["state"], tuple(line["values"]), line["constraints"], curve)


def _same_when_killed(
    space: Space, search: Search, seed: int, parallel: int, steps: int, kills: set[int]
) -> None:
    whole, killed = (_Run(space, search, seed, parallel) for _ in range(2))
    for step in range(steps):
        if step in kills:
            killed.kill()
        whole.step()
        killed.step()
        assert whole.log[-1] == killed.log[-1], f"at step {step}"
    assert [repr(_json(line)) for line in whole.log] == [repr(_json(line)) for line in killed.log]


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "nsga2"])
@pytest.mark.parametrize("space", [MIXED, CONDITIONAL], ids=["mixed", "conditional"])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), parallel=st.integers(1, 6), data=st.data())
def test_a_killed_search_goes_on_as_if_it_had_not_been(
    sampler: str, space: Space, seed: int, parallel: int, data: st.DataObject
) -> None:
    steps = 90
    kills = data.draw(st.sets(st.integers(0, steps - 1), min_size=1, max_size=4))
    search = _search(sampler, options=SMALL.get(sampler, {}), seed=seed)
    _same_when_killed(space, search, seed, parallel, steps, kills)


@pytest.mark.parametrize(
    ("sampler", "more"),
    [
        ("tpe", {"maximize": "auroc", "minimize": "loss"}),
        ("nsga2", {"maximize": "auroc", "minimize": "loss", "options": {"population_size": 5}}),
        ("tpe", {"constraints": "a <= 3"}),
        ("nsga2", {"constraints": "a <= 3", "options": {"population_size": 5}}),
        ("tpe", {"options": {"multivariate": False, "constant_liar": False}}),
        ("cmaes", {"options": {"popsize": 4, "with_margin": True}}),
        ("cmaes", {"options": {"popsize": 4, "consider_pruned_trials": True, "lr_adapt": True}}),
        ("cmaes", {"options": {"popsize": 4, "use_separable_cma": True, "n_startup_trials": 5}}),
    ],
)
def test_so_does_one_with_other_objectives_constraints_and_options(
    sampler: str, more: dict[str, Any]
) -> None:
    for seed in range(3):
        kills = set(random.Random(seed).sample(range(90), 4))
        _same_when_killed(MIXED, _search(sampler, **more), seed, 1 + 2 * seed, 90, kills)


@pytest.mark.slow
@pytest.mark.parametrize("space", [MIXED, CONDITIONAL], ids=["mixed", "conditional"])
@pytest.mark.parametrize("more", [{}, {"maximize": "auroc"}, {"constraints": "a <= 3"}])
def test_so_does_one_by_gaussian_processes(space: Space, more: dict[str, Any]) -> None:
    _same_when_killed(space, _search("gp", **more), 3, 3, 40, {17, 24, 31})


def test_samplers_that_take_notes_use_them() -> None:
    """Else the tests above would pass on random draws."""
    space: Space = {"x": Range("float", 0, 1), "y": Range("float", 0, 1)}
    for sampler, options in SMALL.items():
        study = Study(space, _search(sampler, options=options), "k")
        far, seen = [], []
        for number in range(100):
            x, y = study.ask().knobs.values()
            seen.append(x)
            far.append(math.hypot(x - 0.2, y - 0.8))  # type: ignore[operator]
            study.tell(Told(number, "complete", (far[-1],)))
        if sampler == "cmaes":  # later generations lie closer
            assert statistics.mean(far[60:]) < 0.5 * statistics.mean(far[:20])
        else:  # children inherit
            assert len(set(seen)) < 80


def test_suggestions_do_not_depend_on_the_process() -> None:
    """Python's order of sets does; knobs that apply together are sets to Optuna."""
    code = (
        "import tests.test_search as t\n"
        "run = t._Run(t.CONDITIONAL, t._search(), 3, 3)\n"
        "for _ in range(70): run.step()\n"
        "print(run.log)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1


def test_studies_of_different_keys_and_seeds_draw_differently() -> None:
    def first(key: str, seed: int) -> Knobs:
        return Study(MIXED, _search(seed=seed), key).ask().knobs

    assert first("a", 0) == first("a", 0)
    assert first("a", 0) != first("b", 0)
    assert first("a", 0) != first("a", 1)


def test_an_edited_range_keeps_what_fits_and_says_what_does_not() -> None:
    for sampler in ("tpe", "nsga2"):
        run = _Run(CONDITIONAL, _search(sampler), 1, 3)
        for _ in range(40):
            run.step()
        edited = {**CONDITIONAL, "lr": Range("float", 1e-3, 1e-1, log=True)}
        study = Study(edited, run.search, "arm/cell", run.log)
        outside = [
            line.number
            for line in run.log
            if isinstance(line, Asked) and line.knobs["lr"] < 1e-3  # type: ignore[operator]
        ]
        assert outside
        assert study.skipped == tuple(outside)
        asked = study.ask()
        assert asked.number == sum(isinstance(line, Asked) for line in run.log)
        assert asked.knobs["lr"] >= 1e-3  # type: ignore[operator]
        for one in run.running:  # what still ran may end, whether it fits or not
            study.tell(Told(one.number, "complete", (1.0,)))


def test_a_knob_more_or_less_makes_a_configuration_another() -> None:
    history: Log = [Asked(0, {"x": 1.0}), Asked(1, {"x": 1.0, "y": 2}), Asked(2, {"y": 2})]
    space: Space = {"x": Range("float", 0, 2), "y": Range("int", 0, 2)}
    assert Study(space, _search(), "k", history).skipped == (0, 2)
    assert Study({"x": space["x"]}, _search(), "k", history).skipped == (1, 2)


# --- Telling --------------------------------------------------------------------------------------


def test_telling_twice_changes_nothing_and_telling_otherwise_is_refused() -> None:
    study = Study(MIXED, _search(), "k")
    study.ask()
    told = Told(0, "complete", (1.0,), seeds={"42": 1.0})
    study.tell(told)
    study.tell(told)
    study.tell(Told(0, "complete", (1.0,)))
    with pytest.raises(ValueError, match="number 0 was told as"):
        study.tell(Told(0, "complete", (2.0,)))


def test_what_was_never_asked_cannot_be_told() -> None:
    with pytest.raises(ValueError, match="number 3 was never asked"):
        Study(MIXED, _search(), "k").tell(Told(3, "failed"))
    with pytest.raises(ValueError, match="told number 0, which was never asked"):
        Study(MIXED, _search(), "k", [Told(0, "failed")])
    with pytest.raises(ValueError, match="asked number 1 where 0 was to come"):
        Study(MIXED, _search(), "k", [Asked(1, {})])


def test_a_complete_one_has_a_value_for_each_objective() -> None:
    space: Space = {"x": Range("float", 0, 2)}
    search, one = _search(maximize="auroc"), Told(0, "complete", (1.0,))
    study = Study(space, search, "k", [Asked(0, {"x": 1.0})])
    with pytest.raises(ValueError, match="number 0 needs 2 values"):
        study.tell(one)
    with pytest.raises(ValueError, match="number 0 needs 2 values"):
        Study(space, search, "k", [Asked(0, {"x": 1.0}), one])


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_values_that_are_not_finite_are_failures_and_nothing_told_stays_running(
    sampler: str,
) -> None:
    study = Study(MIXED, _search(sampler), "k")
    told = [
        Told(0, "complete", (math.nan,)),
        Told(1, "complete", (math.inf,)),
        Told(2, "complete", (1.0,), {"a": math.nan}),
        Told(3, "pruned", curve={1: math.nan, 2: 3.0}),
        Told(4, "pruned"),
        Told(5, "complete", (1.0,)),
    ]
    for line in told:
        study.ask()
        study.tell(line)
        study.tell(line)
    states = [trial.state.name for trial in study._study.trials]
    assert states == ["FAIL", "FAIL", "FAIL", "PRUNED", "PRUNED", "COMPLETE"]
    assert study._study.trials[3].intermediate_values == {2: 3.0}
    study.ask()


# --- Values ---------------------------------------------------------------------------------------


@st.composite
def _spaces(draw: st.DrawFn) -> dict[str, Drawn]:
    space: dict[str, Drawn] = {}
    for n in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["float", "log", "step", "int", "int step", "int log", "choice"])
        )
        low = draw(st.integers(1, 50))
        width = draw(st.integers(1, 50))
        knob: Drawn
        if kind == "float":
            knob = Range("float", -low / 7, width / 3)
        elif kind == "log":
            knob = Range("float", low / 1e5, low / 1e5 + width / 10, log=True)
        elif kind == "step":
            knob = Range(
                "float", low / 10, low / 10 + width / 10, step=draw(st.sampled_from([0.1, 0.03]))
            )
        elif kind.startswith("int"):
            step = draw(st.integers(1, width)) if kind == "int step" else None
            knob = Range("int", low, low + width, log=kind == "int log", step=step)
        else:
            pool: list[Any] = [0, False, 1, True, "a", "1", None, 2.5, [1, "b"], [True]]
            knob = Choice(tuple(draw(st.permutations(pool))[: draw(st.integers(2, 6))]))
        space[f"k{n}"] = knob
    return space


@settings(max_examples=40, deadline=None)
@given(space=_spaces(), sampler=st.sampled_from(["random", "tpe", "cmaes", "nsga2"]))
def test_values_lie_in_their_ranges_and_survive_json_to_the_bit(
    space: dict[str, Drawn], sampler: str
) -> None:
    study = Study(space, _search(sampler, options=SMALL.get(sampler, {})), "k")
    log: Log = []
    for number in range(16):
        asked = study.ask()
        log.append(asked)
        for name, knob in space.items():
            value = asked.knobs[name]
            again = json.loads(json.dumps(value))
            assert (again, type(again)) == (value, type(value))
            if isinstance(knob, Choice):
                assert repr(value) in map(repr, knob.values)
                continue
            assert type(value) is (int if knob.kind == "int" else float)
            assert isinstance(value, int | float)
            assert knob.low <= value <= knob.high
            if knob.step is not None:
                steps = (value - knob.low) / knob.step
                assert steps == pytest.approx(round(steps), abs=1e-6)
        told = Told(number, "complete", (number % 5 * 1.0,))
        study.tell(told)
        log.append(told)
    again_study = Study(space, study._search, "k", log)
    assert again_study.skipped == ()
    assert again_study.ask() == study.ask()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_knobs_are_drawn_only_where_they_apply(seed: int) -> None:
    run = _Run(CONDITIONAL, _search(seed=seed), seed, 2)
    for _ in range(50):
        run.step()
    for line in run.log:
        if isinstance(line, Asked):
            applying = [n for n, knob in CONDITIONAL.items() if holds(knob.when, line.knobs)]
            assert list(line.knobs) == applying


def test_knobs_that_apply_at_times_are_searched_and_not_only_drawn_at_random() -> None:
    space: Space = {
        "variant": Choice(("a", "b")),
        "x": Range("float", 0, 1, when={"variant": ("a",)}),
    }
    study, drawn = Study(space, _search(), "k"), []
    for number in range(80):
        knobs = study.ask().knobs
        x = knobs.get("x", 2.0)
        if number >= 40 and "x" in knobs:
            drawn.append(x)
        study.tell(Told(number, "complete", (abs(x - 0.9),)))  # type: ignore[operator]
    assert statistics.median(drawn) == pytest.approx(0.9, abs=0.1)  # type: ignore[type-var]


# --- Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "options", "words"),
    [
        ("tpe", {"n_startup_trails": 5}, "did you mean 'n_startup_trials'"),
        ("tpe", {"seed": 5}, "unknown option 'seed' of sampler tpe"),
        ("tpe", {"constraints_func": 5}, "unknown option 'constraints_func'"),
        ("tpe", {"prior_weight": 1.0}, "unknown option 'prior_weight'"),
        ("cmaes", {"restart_strategy": "ipop"}, "unknown option 'restart_strategy'"),
        ("gp", {"independent_sampler": "tpe"}, "unknown option 'independent_sampler'"),
        ("random", {"n_startup_trials": 5}, "of sampler random; it takes none"),
        ("tpe", {"n_startup_trials": "5"}, "n_startup_trials is a whole number; found '5'"),
        ("tpe", {"n_ei_candidates": True}, "n_ei_candidates is a whole number; found True"),
        ("tpe", {"n_ei_candidates": 0}, "n_ei_candidates is at least 1; found 0"),
        ("tpe", {"group": 1}, "group is true or false; found 1"),
        ("tpe", {"group": True, "multivariate": False}, "refuses: "),
        ("nsga2", {"population_size": 1}, "population_size is at least 2"),
        ("nsga2", {"crossover_prob": 1.5}, "refuses: 'crossover_prob' must be"),
        ("nsga2", {"crossover": "blx"}, "unknown option 'crossover'"),
        ("cmaes", {"use_separable_cma": True, "with_margin": True}, "refuses: "),
    ],
)
def test_options_that_the_sampler_does_not_take_are_refused(
    sampler: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        check_options(_search(sampler, options=options))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("tpe", {"n_startup_trials": 0, "n_ei_candidates": 1, "group": True, "multivariate": None}),
        ("gp", {"n_startup_trials": 1, "deterministic_objective": True}),
        ("cmaes", {"n_startup_trials": 0, "popsize": 2}),
        ("cmaes", {"n_startup_trials": 0, "popsize": None, "lr_adapt": True}),
        ("nsga2", {"population_size": 2, "mutation_prob": 0.5, "swapping_prob": 0}),
    ],
)
def test_options_that_are_accepted_can_be_drawn_with(sampler: str, options: dict[str, Any]) -> None:
    search = _search(sampler, options=options)
    check_options(search)
    study = Study(MIXED, search, "k")
    for number in range(8):
        study.tell(Told(number, "complete", (_loss(study.ask().knobs),)))


def test_every_option_that_is_offered_is_free_of_deprecation() -> None:
    """A newer Optuna may deprecate one: then it is to be left out."""
    values = {"int": 8, "float": 0.5, "bool": True}
    for sampler, kind in CLASSES.items():
        for name, kinds in _plain_arguments(sampler).items():
            with _ignoring_experiments():
                getattr(optuna.samplers, kind)(**{name: values[kinds[0]]})


@contextmanager
def _ignoring_experiments() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def test_cmaes_seeks_one_objective_without_constraints() -> None:
    with pytest.raises(SpecError, match="one objective"):
        check_options(_search("cmaes", maximize="auroc"))
    with pytest.raises(SpecError, match="no constraints"):
        check_options(_search("cmaes", constraints="latency_ms <= 20"))


def test_a_sweep_without_a_search_does_not_import_optuna() -> None:
    code = (
        "import sys, hdsweep.search as s; from hdsweep.strategy import Search;"
        "s.check_options(Search(trials=1, maximize='auroc'));"
        "print('optuna' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# --- What follows from a history ------------------------------------------------------------------


UP, DOWN = True, False


def test_seeds_are_aggregated_as_asked() -> None:
    values = [0.9, 0.7, 0.95]
    assert aggregate(values, "mean", UP, 0.9) == pytest.approx(0.85)
    assert aggregate(values, "median", UP, 0.9) == 0.9
    assert aggregate(values, "worst", UP, 0.9) == 0.7
    assert aggregate(values, "worst", DOWN, 0.9) == 0.95
    # One end of the two-sided interval at 80 % is the one-sided bound at 90 %.
    low, high = stats.t.interval(0.8, 2, np.mean(values), stats.sem(values))
    assert aggregate(values, "lower_bound", UP, 0.9) == pytest.approx(low)
    assert aggregate(values, "lower_bound", DOWN, 0.9) == pytest.approx(high)


@pytest.mark.parametrize("how", ["mean", "median", "worst", "lower_bound"])
def test_an_aggregate_that_is_undefined_is_nan(how: Any) -> None:
    assert math.isnan(aggregate([], how, UP, 0.9))
    assert math.isnan(aggregate([1.0, math.nan], how, UP, 0.9))
    assert math.isnan(aggregate([1.0], how, UP, 0.9)) == (how == "lower_bound")


def test_the_best_is_complete_and_feasible() -> None:
    lines = [
        Told(0, "complete", (0.9,), {"a": 0.1}),
        Told(1, "failed"),
        Told(2, "complete", (0.7,), {"a": 0.0}),
        Told(3, "complete", (0.8,), {"a": -1.0}),
        Told(4, "complete", (0.8,)),
        Told(5, "complete", (math.nan,)),
        Told(6, "pruned", curve={1: 2.0}),
    ]
    assert best(_search(maximize="auroc", minimize=()), lines) == (3,)
    assert best(_search(), lines) == (2,)
    assert best(_search(), lines[:2]) == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=30))
def test_the_best_of_several_objectives_are_those_that_none_dominates(
    points: list[tuple[int, ...]],
) -> None:
    search = _search(maximize=("a", "b"))
    told = [Told(n, "complete", tuple(map(float, point))) for n, point in enumerate(points)]
    loss = [(-a, -b, c) for a, b, c in points]
    expected = tuple(
        n
        for n, one in enumerate(loss)
        if not any(
            other != one and all(x <= y for x, y in zip(other, one, strict=True)) for other in loss
        )
    )
    assert best(search, told) == expected


# --- Importance -----------------------------------------------------------------------------------


def _random_history(space: Space, count: int, loss: Loss) -> Log:
    study = Study(space, _search("random"), "k")
    log: Log = []
    for number in range(count):
        asked = study.ask()
        log += [asked, Told(number, "complete", (loss(asked.knobs),))]
    return log


@pytest.mark.parametrize("evaluator", ["ped_anova", "fanova"])
def test_the_knob_that_matters_is_found_and_the_evaluator_named(evaluator: Any) -> None:
    space: Space = {"x": Range("float", 0, 1), "y": Range("float", 0, 1), "c": Choice(("a", "b"))}
    log = _random_history(space, 100, lambda k: (k["x"] - 0.3) ** 2 + 0.01 * k["y"])
    found = importance(space, _search(), log, evaluator)
    assert (found.evaluator, found.trials, found.reason) == (evaluator, 100, "")
    assert next(iter(found.values)) == "x"
    assert found.values["x"] > 0.6
    assert sum(found.values.values()) == pytest.approx(1)
    assert found == importance(space, _search(), log, evaluator)


def test_importance_is_of_one_objective() -> None:
    space: Space = {"x": Range("float", 0, 1), "y": Range("float", 0, 1)}
    log = [
        replace(line, values=(line.values[0], -line.values[0])) if isinstance(line, Told) else line
        for line in _random_history(space, 80, lambda k: k["x"])
    ]
    search = _search(maximize="b", minimize="a")
    for objective in (0, 1):
        assert importance(space, search, log, objective=objective).values["x"] > 0.8


def test_too_few_or_equal_configurations_give_a_reason() -> None:
    space: Space = {"x": Range("float", 0, 1), "y": Range("float", 0, 1)}
    few = importance(space, _search(), _random_history(space, 5, _loss))
    assert (few.values, few.trials) == ({}, 5)
    assert few.reason == "5 complete configurations; it takes 20"
    same = importance(space, _search(), _random_history(space, 30, lambda _: 1.0))
    assert same.reason == "all configurations have one and the same value"


def test_importance_passes_over_what_does_not_fit_and_says_where_nothing_is_left() -> None:
    space: Space = {"x": Range("float", 0, 1), "y": Range("float", 0, 1)}
    log = _random_history(space, 60, lambda k: k["x"])
    half: Space = {**space, "x": Range("float", 0, 0.5)}
    assert 20 <= importance(half, _search(), log).trials < 60
    same: Log = []
    for n in range(40):
        same += [Asked(n, {"x": 0.5, "y": 0.5}), Told(n, "complete", (n / 7,))]
    found = importance(space, _search(), same, "fanova")
    assert (found.values, found.trials) == ({}, 40)
    assert "variance" in found.reason


# --- The file for optuna-dashboard ----------------------------------------------------------------


def _exported(name: str, search: Search, steps: int = 90, seed: int = 0) -> Exported:
    run = _Run(CONDITIONAL, search, seed, 3)
    for _ in range(steps):
        run.step()
    log = [replace(line, seeds={"42": 1.5}) if isinstance(line, Told) else line for line in run.log]
    each = {line.number: {"trials": [f"{line.number:020x}"]} for line in log}
    return Exported(name, CONDITIONAL, search, log, {"arm": "tuned", "fixed": {"k": 1}}, each)


def _opened(path: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{path}")


def test_the_exported_file_holds_what_optuna_itself_would_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = [
        _exported("one", _search(constraints="a <= 3")),
        _exported("two", _search(maximize="auroc"), seed=1),
    ]
    export(tmp_path / "ours.db", studies)
    monkeypatch.setattr(dashboard, "SCHEMA", "another")  # all by Optuna's own means
    export(tmp_path / "theirs.db", studies)
    ours, theirs = _opened(tmp_path / "ours.db"), _opened(tmp_path / "theirs.db")
    assert ours.get_current_version() == ours.get_head_version() != "another"
    for one in studies:
        found = optuna.load_study(study_name=one.name, storage=ours)
        other = optuna.load_study(study_name=one.name, storage=theirs)
        assert found.user_attrs == other.user_attrs
        assert found.directions == other.directions
        assert found.metric_names == other.metric_names
        for a, b in zip(found.trials, other.trials, strict=True):
            for part in ("number", "state", "values", "params", "distributions", "user_attrs",
                         "system_attrs", "intermediate_values", "constraints"):  # fmt: skip
                assert getattr(a, part) == getattr(b, part), part
            assert a.datetime_start is not None
            assert (a.datetime_complete is None) == (a.state.name == "RUNNING")
    for storage in (ours, theirs):
        storage.engine.dispose()


def test_the_exported_file_says_how_it_was_drawn_and_what_ran(tmp_path: Path) -> None:
    one = _exported("topk/lr=0.1", _search(seed=5))
    export(tmp_path / "search.db", [one])
    storage = _opened(tmp_path / "search.db")
    study = optuna.load_study(study_name="topk/lr=0.1", storage=storage)
    assert study.user_attrs["arm"] == "tuned"
    assert study.user_attrs["hdsweep"] == {
        "sampler": "tpe", "arguments": {"group": True}, "seed": 5, "aggregate": "mean",
        "optuna": optuna.__version__,
    }  # fmt: skip
    assert study.metric_names == ["loss"]
    told = {line.number: line for line in one.history if isinstance(line, Told)}
    asked = {line.number: line for line in one.history if isinstance(line, Asked)}
    assert len(study.trials) == len(asked)
    for trial in study.trials:
        assert trial.params == asked[trial.number].knobs
        assert trial.user_attrs["trials"] == [f"{trial.number:020x}"]
        if trial.number not in told:
            assert trial.state.name == "RUNNING"
        elif told[trial.number].state == "complete":
            assert trial.values == list(told[trial.number].values)
            assert trial.intermediate_values == told[trial.number].curve
            assert trial.user_attrs["seeds"] == {"42": 1.5}
    assert {trial.state.name for trial in study.trials} == {"RUNNING", "COMPLETE", "FAIL", "PRUNED"}
    storage.engine.dispose()


def test_an_export_replaces_an_export_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "search.db"
    export(path, [_exported("one", _search(), 6)])
    export(path, [_exported("two", _search(), 6)])
    storage = _opened(path)
    assert optuna.get_all_study_names(storage) == ["two"]
    optuna.create_study(study_name="a person's own", storage=storage)
    storage.engine.dispose()
    notes, table = tmp_path / "notes.txt", tmp_path / "table.db"
    notes.write_text("not to be lost")
    connection = sqlite3.connect(table)
    connection.execute("CREATE TABLE data (x)")
    connection.close()
    (tmp_path / "folder").mkdir()
    for other in (path, notes, table, tmp_path / "folder"):
        before = other.read_bytes() if other.is_file() else None
        with pytest.raises(StoreError, match="is no search that hdsweep exported"):
            export(other, [_exported("three", _search(), 6)])
        assert before is None or other.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {
        "search.db", "notes.txt", "table.db", "folder",
    }  # fmt: skip


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "search.db"
    export(path, [_exported("one", _search(), 6)])
    before = path.read_bytes()
    broken = Exported("two", CONDITIONAL, _search(), [Told(0, "failed")])
    with pytest.raises(ValueError, match="never asked"):
        export(path, [broken])
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["search.db"]


def test_an_export_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        export(tmp_path / "file" / "search.db", [])


@pytest.mark.slow
def test_optuna_dashboard_serves_the_file(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    one, two = _exported("one", _search()), _exported("two", _search(maximize="auroc"), seed=1)
    export(tmp_path / "search.db", [one, two])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"sqlite:///{tmp_path / 'search.db'}"
    command = Path(sys.executable).with_name("optuna-dashboard")
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [command, url, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log
        )  # fmt: skip
    try:
        listed = _read(process, f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        ids = {study["study_name"]: study["study_id"] for study in listed}
        assert set(ids) == {"one", "two"}
        for exported in (one, two):
            detail = _read(process, f"http://127.0.0.1:{port}/api/studies/{ids[exported.name]}")
            told = {line.number: line for line in exported.history if isinstance(line, Told)}
            asked = [line for line in exported.history if isinstance(line, Asked)]
            assert len(detail["trials"]) == len(asked)
            names = {"complete": "Complete", "failed": "Fail", "pruned": "Pruned"}
            for trial in detail["trials"]:
                line = told.get(trial["number"])
                assert trial["state"] == ("Running" if line is None else names[line.state])
                if line is not None and line.state == "complete":
                    assert trial["values"] == list(line.values)
                shown = {one["name"] for one in trial["params"]}
                assert shown == set(asked[trial["number"]].knobs)
        assert detail["objective_names"] == ["auroc", "loss"]
    finally:
        process.terminate()
        process.wait(30)


def _read(process: subprocess.Popen[bytes], url: str) -> Any:
    for _ in range(300):  # it takes a while to listen
        assert process.poll() is None, "optuna-dashboard ended"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.loads(answer.read())
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer from {url}")


def test_labels_of_a_choice_are_its_values_unless_python_takes_two_for_one() -> None:
    assert draws.labels(Choice(("a", 1, None))) == ("a", 1, None)
    assert draws.labels(Choice((1, True))) == ("1", "true")
    assert draws.labels(Choice(("a", [1, 2]))) == ('"a"', "[1,2]")
