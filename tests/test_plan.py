"""What a sweep asks for, against what the store has."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hdsweep.data import fingerprint, make_if_absent
from hdsweep.errors import SpecError
from hdsweep.identity import digest
from hdsweep.method import load_dataset
from hdsweep.plan import Plan, configurations, make_plan, validate_data
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.trial import TrialRecord
from tests.conftest import SWEEP

Write = Callable[..., Path]


def plan_of(path: Path, store: Store, content: str = "f" * 64) -> Plan:
    spec = load_sweep(path)
    params = validate_data(spec, load_dataset(spec.data_name).params)
    return make_plan(spec, configurations(spec), params, content, store)


def ids(plan: Plan) -> list[str]:
    return [t.id for cell in plan.cells for t in cell.trials]


def test_a_plan_is_arms_by_grid_by_seeds(sweep_file: Write, tmp_path: Path) -> None:
    plan = plan_of(sweep_file(), Store(tmp_path / "r"))
    assert [(c.arm, dict(c.knobs)) for c in plan.cells] == [
        ("weak", {}),
        ("strong", {"strength": 1.0}),
        ("strong", {"strength": 2.0}),
    ]
    assert plan.counts() == {
        "planned": 6, "new": 6, "cached": 0, "stale": 0, "failed": 0, "diverged": 0, "pruned": 0,
        "infeasible": 0,
    }  # fmt: skip


def test_an_id_is_the_digest_of_what_the_record_keeps(sweep_file: Write, tmp_path: Path) -> None:
    plan = plan_of(sweep_file(), Store(tmp_path / "r"))
    for cell in plan.cells:
        for trial in cell.trials:
            assert trial.id == digest({**trial.identity, "seed": trial.seed})


def test_trials_come_seed_by_seed_so_that_every_arm_has_a_result_early(
    sweep_file: Write, tmp_path: Path
) -> None:
    plan = plan_of(sweep_file(), Store(tmp_path / "r"))
    assert [trial.seed for _, trial in plan.trials()] == [1, 1, 1, 2, 2, 2]
    labels = [cell.label(trial) for cell, trial in plan.pending()]
    assert labels[1] == "strong strength=1.0 seed=1"


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["strength", "level", "sleep_s"]), st.integers(0, 50), min_size=1
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_knobs_and_the_spelling_of_numbers_do_not_change_ids(
    tmp_path_factory: pytest.TempPathFactory, knobs: dict[str, int], rng: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("spelling")
    base = yaml.safe_load(SWEEP)
    one, other = dict(knobs), [(k, float(v)) for k, v in knobs.items()]
    rng.shuffle(other)
    found = []
    for n, block in enumerate((one, dict(other))):
        path = folder / f"{n}.yaml"
        path.write_text(yaml.safe_dump({**base, "arms": {"weak": block}}, sort_keys=False))
        found.append(ids(plan_of(path, Store(folder / "r"))))
    assert found[0] == found[1]


def test_a_default_written_out_names_the_same_trial(sweep_file: Write, tmp_path: Path) -> None:
    store = Store(tmp_path / "r")
    short = plan_of(sweep_file(SWEEP.replace("{strength: 0.5}", "{}")), store)
    long = plan_of(sweep_file(SWEEP.replace("{strength: 0.5}", "{strength: 1.0, level: 0}")), store)
    assert ids(short) == ids(long)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seeds: [1, 2]", "seeds: [1, 3]"),
        ("strength: 0.5", "strength: 0.25"),
    ],
)
def test_what_matters_changes_an_id(sweep_file: Write, tmp_path: Path, old: str, new: str) -> None:
    store = Store(tmp_path / "r")
    before = set(ids(plan_of(sweep_file(), store)))
    after = set(ids(plan_of(sweep_file(SWEEP.replace(old, new)), store)))
    assert before != after


def test_the_content_of_the_data_names_a_trial_and_its_place_does_not(
    sweep_file: Write, tmp_path: Path
) -> None:
    store = Store(tmp_path / "r")
    here = ids(plan_of(sweep_file(), store))
    moved = ids(plan_of(sweep_file(SWEEP.replace("root: labels", "root: /elsewhere")), store))
    gpus = ids(plan_of(sweep_file(SWEEP.replace("cpus: 1", "cpus: 4")), store))
    assert here == moved == gpus
    assert set(here).isdisjoint(ids(plan_of(sweep_file(), store, "0" * 64)))


def test_a_configuration_that_two_arms_share_runs_once(sweep_file: Write, tmp_path: Path) -> None:
    text = SWEEP.replace("weak: {strength: 0.5}", "weak: {strength: 2}")
    plan = plan_of(sweep_file(text), Store(tmp_path / "r"))
    assert len(ids(plan)) == 6
    assert plan.counts()["planned"] == 4
    assert len(plan.pending()) == 4


def _keep(store: Store, plan: Plan, trial_id: str, **changes: Any) -> None:
    trial = next(t for c in plan.cells for t in c.trials if t.id == trial_id)
    store.put(replace(TrialRecord(trial_id, "ok", trial.to_json()), **changes))


def test_finished_failed_and_stale_trials_are_told_apart(sweep_file: Write, tmp_path: Path) -> None:
    store = Store(tmp_path / "r")
    plan = plan_of(sweep_file(), store)
    first, second, third, *_ = ids(plan)
    _keep(store, plan, first)
    _keep(store, plan, second, status="failed")
    _keep(store, plan, third, provenance={"source": "another"})
    plan = plan_of(sweep_file(), store)
    assert [plan.state[i] for i in (first, second, third)] == ["cached", "failed", "stale"]
    assert len(plan.pending()) == 3
    assert len(plan.pending(["failed"])) == 4
    assert len(plan.pending(["failed", "stale"])) == 5


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "weak: {strength: 0.5}", "weak: {strenght: 0.5}", 7,
            "arms.weak: unknown knob 'strenght' of method tests.methods.noise; did you mean",
        ),
        ("strength: 0.5", "strength: -1", 7, "arms.weak.strength: input should be greater"),
        ("grid: [1, 2]", "grid: [1, 200]", 8, "found 200"),
        ("grid: [1, 2]", "grid: [1, '1.0']", 8, "are the same trial"),
        ("strength: 0.5", "level: 1.5", 7, "arms.weak.level"),
        ("strength: 0.5", "fault: rais", 7, "found 'rais'"),
        ("method: tests.methods.noise", "method: dinomly", 3, "did you mean 'dinomaly'?"),
        ("weak: {strength: 0.5}", "weak: {method: patchcor}", 7, "unknown method 'patchcor'"),
        ("arms:", "params: {nope: 1}\narms:", 6, "params: unknown knob 'nope'"),
        ("arms:", "params: {level: -1}\narms:", 6, "params.level"),
    ],
)  # fmt: skip
def test_a_knob_that_the_method_refuses_is_named_with_its_line(
    sweep_file: Write, old: str, new: str, line: int, words: str
) -> None:
    path = sweep_file(SWEEP.replace(old, new))
    with pytest.raises(SpecError) as error:
        configurations(load_sweep(path))
    assert words in str(error.value)
    assert str(error.value).startswith(f"{path}:{line}: "), str(error.value)


def test_a_data_block_is_checked_like_the_rest(sweep_file: Write) -> None:
    path = sweep_file(SWEEP.replace("make: {items: 40}", "mak: {items: 40}"))
    spec = load_sweep(path)
    with pytest.raises(SpecError, match=r":4: data\.mak: unknown key 'mak'; did you mean 'make'"):
        validate_data(spec, load_dataset(spec.data_name).params)


def test_a_fingerprint_follows_content_and_names(tmp_path: Path) -> None:
    dataset = load_dataset("tests.methods.labels")
    one = dataset.params.model_validate({"root": tmp_path / "one", "make": {"items": 4}})
    two = dataset.params.model_validate({"root": tmp_path / "two", "make": {"items": 4}})
    said: list[str] = []
    assert make_if_absent(dataset, one, said.append)
    assert make_if_absent(dataset, two, said.append)
    assert not make_if_absent(dataset, two, said.append)
    assert len(said) == 2
    before = fingerprint(dataset, one)
    assert fingerprint(dataset, two) == before
    assert fingerprint(dataset, one) == before  # from memory
    changed = tmp_path / "two" / "x" / "000.txt"
    changed.write_text("x 0 1\n")
    assert fingerprint(dataset, two) != before
    changed.write_text("x 0 0\n")
    assert fingerprint(dataset, two) == before
    changed.rename(changed.with_name("900.txt"))
    assert fingerprint(dataset, two) != before
