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

from hdsweep.configure import configurations
from hdsweep.data import fingerprint, make_if_absent
from hdsweep.errors import SpecError
from hdsweep.identity import digest
from hdsweep.method import load_dataset
from hdsweep.plan import Plan, make_plan, validate_data
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.trial import TrialRecord
from tests.conftest import SWEEP
from tests.refusals import SEARCH, edited, refusal

Write = Callable[..., Path]


def plan_of(path: Path, store: Store, content: str = "f" * 64, rule: str | None = None) -> Plan:
    spec = load_sweep(path)
    params = validate_data(spec, load_dataset(spec.data_name).params)
    return make_plan(spec, configurations(spec), params, content, store, rule)


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
        "infeasible": 0, "skipped": 0,
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


# --- searches -------------------------------------------------------------------------------------


def keys(plan: Plan) -> list[str]:
    return [search.key for search in plan.searches]


def test_a_plan_names_the_searches_and_not_what_they_will_draw(
    sweep_file: Write, tmp_path: Path
) -> None:
    path = sweep_file(SEARCH)
    plan = plan_of(path, Store(tmp_path / "r"))
    assert [cell.arm for cell in plan.cells] == ["weak"]
    assert [(s.open.arm, dict(s.open.knobs), s.trials) for s in plan.searches] == [
        ("drawn", {"fault": "none"}, 6),
        ("drawn", {"fault": "nan"}, 6),
    ]
    assert len(set(keys(plan))) == 2
    assert plan.methods == {"tests.methods.noise"}
    planned = plan.sweep(load_sweep(path), ("x", "y"))
    assert [search.key for search in planned.searches] == keys(plan)
    assert [cell.arm for cell in planned.cells] == ["weak"]


@pytest.mark.parametrize(
    "edits",
    [
        [("  drawn:", "  renamed:")],
        [("[1, 2, 3]", "[4]")],
        [("[1, 2, 3]", "{select: [1], confirm: [2]}")],
        [("trials: 6", "trials: 7")],
        [("trials: 6", "trials: 6, sampler: nsga2, seed: 3")],
        [("maximize: auroc", "minimize: eer")],
        [("{strength: 0.5}", "{strength: 0.75}")],
        [("[0.1, 10]", "[1e-1, 10.0]")],
        [("root: labels", "root: /elsewhere")],
        [
            ("    strength: {log_uniform: [0.1, 10]}\n", ""),
            ("arms:", "params: {strength: {log_uniform: [0.1, 10]}, sleep_s: 0}\narms:"),
            ("  weak: {strength: 0.5}\n", ""),
        ],
    ],
)
def test_a_search_keeps_its_key_while_what_it_searches_is_the_same(
    sweep_file: Write, tmp_path: Path, edits: list[tuple[str, str]]
) -> None:
    store = Store(tmp_path / "r")
    before = keys(plan_of(sweep_file(SEARCH), store))
    assert keys(plan_of(sweep_file(edited(SEARCH, *edits)), store)) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[0.1, 10]", "[0.1, 11]"),
        ("log_uniform: [0.1, 10]", "uniform: [0.1, 10]"),
        ("{log_uniform: [0.1, 10]}", "{choice: [0.1, 10]}"),
        ("strength: {log_uniform: [0.1, 10]}", "strength: 1\n    sleep_s: {uniform: [0, 1]}"),
        ("    fault:", "    sleep_s: 0.5\n    fault:"),
        ("grid: [none, nan]", "choice: [none, nan]"),
    ],
)
def test_what_a_search_is_about_changes_its_key(
    sweep_file: Write, tmp_path: Path, old: str, new: str
) -> None:
    store = Store(tmp_path / "r")
    before = set(keys(plan_of(sweep_file(SEARCH), store)))
    after = set(keys(plan_of(sweep_file(edited(SEARCH, (old, new))), store)))
    assert before.isdisjoint(after)


def test_data_and_the_version_of_a_method_change_the_key_of_a_search(
    sweep_file: Write, tmp_path: Path
) -> None:
    path, store = sweep_file(SEARCH), Store(tmp_path / "r")
    plan = plan_of(path, store)
    assert set(keys(plan)).isdisjoint(keys(plan_of(path, store, "0" * 64)))
    one = plan.searches[0].open
    assert plan.planner.study_key(one) == plan.searches[0].key
    assert plan.planner.study_key(replace(one, version=one.version + 1)) != plan.searches[0].key
    assert plan.planner.study_key(replace(one, method="another")) != plan.searches[0].key


def asked(study: str, number: int, **knobs: float) -> dict[str, Any]:
    cell = {"fault": "none", **knobs}
    return {
        "event": "asked", "study": study, "number": number, "arm": "drawn", "knobs": knobs,
        "cell": cell, "trials": {},
    }  # fmt: skip


def test_what_was_drawn_so_far_is_in_the_plan_with_its_states(
    sweep_file: Write, tmp_path: Path
) -> None:
    path, store = sweep_file(SEARCH), Store(tmp_path / "r")
    first, second = keys(plan_of(path, store))
    for event in (
        asked(first, 0, strength=2.5, level=3),
        asked(second, 0, strength=1.5),
        {"event": "told", "study": second, "number": 0, "state": "failed", "values": []},
        asked("0" * 20, 0, strength=1.0),  # of a search that the file no longer has
        asked(first, 1, strength=1000.0, level=0),  # which the method does not take
        asked(first, 2, strength=1.0, level=8),
    ):
        store.decide("found", event)
    plan = plan_of(path, store)
    found = [cell for cell in plan.cells if cell.study is not None]
    assert [(cell.study, cell.number, dict(cell.knobs)) for cell in found] == [
        (first, 0, {"fault": "none", "strength": 2.5, "level": 3}),
        (second, 0, {"fault": "nan", "strength": 1.5}),
        (first, 2, {"fault": "none", "strength": 1.0, "level": 8}),
    ]
    assert found[0].name == "drawn #0 fault=none strength=2.5 level=3"
    assert all(plan.state[trial.id] == "new" for cell in found for trial in cell.trials)
    _keep(store, plan, found[0].trials[0].id)
    _keep(store, plan, found[1].trials[2].id, status="failed")
    plan = plan_of(path, store)
    states = [[plan.state[trial.id] for trial in cell.trials] for cell in plan.cells[1:]]
    assert states == [["cached", "new", "new"], ["new", "new", "failed"], ["new"] * 3]
    # With other seeds they are the same configurations, and what is finished stays so.
    more = edited(SEARCH, ("[1, 2, 3]", "{select: [1, 2, 3, 4], confirm: [5]}"))
    plan = plan_of(sweep_file(more), store)
    assert [cell.key for cell in plan.cells[1:]] == [cell.key for cell in found]
    assert [len(cell.trials) for cell in plan.cells] == [4] * 4
    assert {cell.part for cell in plan.cells} == {"select"}
    assert plan.counts()["cached"] == 1


def test_a_drawn_configuration_is_the_trial_that_a_value_written_out_names(
    sweep_file: Write, tmp_path: Path
) -> None:
    path, store = sweep_file(SEARCH), Store(tmp_path / "r")
    store.decide("found", asked(keys(plan_of(path, store))[1], 0, strength=0.5))
    drawn = plan_of(path, store).cells[1]
    written = edited(SEARCH, ("{strength: 0.5}", "{strength: 0.5, fault: nan}"))
    fixed = plan_of(sweep_file(written), store).cells[0]
    assert [trial.id for trial in drawn.trials] == [trial.id for trial in fixed.trials]
    assert drawn.key == fixed.key


def test_a_chosen_configuration_has_trials_with_other_seeds(
    sweep_file: Write, tmp_path: Path
) -> None:
    plan = plan_of(sweep_file(SEARCH), Store(tmp_path / "r"))
    again = plan.planner.again(plan.cells[0], (7, 8), "confirm")
    assert ([t.seed for t in again.trials], again.part) == ([7, 8], "confirm")
    assert (again.key, dict(again.knobs)) == (plan.cells[0].key, dict(plan.cells[0].knobs))
    seeds = plan_of(
        sweep_file(edited(SEARCH, ("[1, 2, 3]", "[7, 8]"))), Store(tmp_path / "r")
    ).cells[0]
    assert [t.id for t in again.trials] == [t.id for t in seeds.trials]


def test_what_another_rule_stopped_is_to_be_run_again(sweep_file: Write, tmp_path: Path) -> None:
    path, store = sweep_file(), Store(tmp_path / "r")
    first = ids(plan_of(path, store))[0]
    stopped = {"kind": "stopped", "message": "asha", "rule": "one"}
    _keep(store, plan_of(path, store), first, status="pruned", error=stopped)
    assert plan_of(path, store, rule="one").state[first] == "pruned"
    assert plan_of(path, store, rule="two").state[first] == "new"
    assert plan_of(path, store).state[first] == "new"


@pytest.mark.parametrize(
    ("trials", "each"), [(7, [3, 2, 2]), (8, [3, 3, 2]), (9, [3, 3, 3]), (3, [1, 1, 1])]
)
def test_a_shared_budget_is_split_evenly_and_the_first_cells_get_the_rest(
    sweep_file: Write, tmp_path: Path, trials: int, each: list[int]
) -> None:
    text = edited(
        SEARCH,
        ("[none, nan]", "[none, nan, diverge]"),
        ("trials: 6", f"budget: shared, trials: {trials}"),
    )
    plan = plan_of(sweep_file(text), Store(tmp_path / "r"))
    assert [search.trials for search in plan.searches] == each
    alone = plan_of(sweep_file(text.replace("shared", "per_cell")), Store(tmp_path / "r"))
    assert [search.trials for search in alone.searches] == [trials] * 3


def test_a_budget_that_leaves_a_cell_nothing_is_refused(sweep_file: Write) -> None:
    text = edited(SEARCH, ("trials: 6", "budget: shared, trials: 1"))
    line, message = refusal(sweep_file(text))
    assert line == 11
    assert message.startswith("search.trials: 1 trials cannot be shared by 2 grid cells")


def test_two_arms_that_search_the_same_are_refused(sweep_file: Write) -> None:
    again = "  again: {fault: nan, strength: {log_uniform: [0.1, 10]}}\nsearch:"
    line, message = refusal(sweep_file(edited(SEARCH, ("search:", again))))
    assert (line, message) == (11, "arms.again: searches the same as arm drawn; remove one")
