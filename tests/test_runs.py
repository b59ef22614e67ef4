"""What arms differ in beside the question, what they cost and where they come from is all told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from analysis.judged import cost
from analysis.runs import Cost, Differs, Run, Runs, costs, differences, origin
from hdsweep.planned import PlannedCell
from hdsweep.trial import TrialRecord


@dataclass(frozen=True)
class Ran:
    """One arm, as its records tell of it; what is a list has a value for each seed."""

    arm: str
    params: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    method: str = "dinomaly"
    version: int = 1
    fingerprint: str = "f" * 64
    wall_s: Sequence[float] = (10.0, 20.0, 30.0)
    scalars: Sequence[Mapping[str, float]] = ({}, {}, {})
    status: str = "ok"


def recorded(*arms: Ran) -> tuple[list[PlannedCell], dict[str, Run]]:
    runs = Runs(name for ran in arms for name in ran.knobs)
    cells = []
    for place, ran in enumerate(arms):
        trials = {seed: f"{place:010d}{seed:010d}" for seed in range(len(ran.wall_s))}
        cells.append(PlannedCell(ran.arm, ran.knobs, {**trials, 99: "f" * 20}))
        for seed, trial_id in trials.items():
            provenance = {
                name: value[seed] if isinstance(value, list) else value
                for name, value in ran.origin.items()
            }
            trial = {
                "method": ran.method,
                "version": ran.version,
                "params": {**ran.params, **ran.knobs},
                "fingerprint": ran.fingerprint,
                "seed": seed,
            }
            runs.add(
                TrialRecord(
                    trial_id,
                    ran.status,  # type: ignore[arg-type]
                    trial,
                    scalars=ran.scalars[seed],
                    provenance=provenance,
                    started=f"2026-01-0{seed + 1}T10:00:00+00:00",
                    wall_s=ran.wall_s[seed],
                )
            )
    return cells, runs.by_trial


def found(*arms: Ran) -> dict[str, Differs]:
    return {one.what: one for one in differences(*recorded(*arms))}


# --- what arms differ in --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_steps", "batch_size", "image_size", "epochs", "encoder"])
def test_what_gives_an_arm_more_to_learn_from_is_serious_beside_the_question(name: str) -> None:
    seen = found(
        Ran("base", {"variant": "baseline", name: 100}),
        Ran("topk", {"variant": "topk", name: 200}),
    )
    assert set(seen) == {name, "variant"}
    assert (seen[name].serious, seen["variant"].serious) == (True, False)
    assert seen[name].text == f"{name}: 100 (base), 200 (topk)"


def test_serious_ones_come_first() -> None:
    arms = [Ran("a", {"x": 1, "max_steps": 1}), Ran("b", {"x": 2, "max_steps": 2})]
    assert [one.what for one in differences(*recorded(*arms))] == ["max_steps", "x"]


@pytest.mark.parametrize("name", ["variant", "max_steps"])
def test_one_parameter_that_arms_differ_in_is_the_question_and_no_doubt(name: str) -> None:
    assert found(Ran("base", {name: 1, "lr": 0.1}), Ran("other", {name: 2, "lr": 0.1})) == {}


def test_a_knob_that_is_swept_is_no_difference() -> None:
    arms = [Ran("base"), Ran("topk", knobs={"q": 1}), Ran("topk", knobs={"q": 2})]
    assert found(*arms) == {}


def test_values_that_are_lists_and_mappings_are_compared_whole() -> None:
    seen = found(
        Ran("a", {"x": 1, "layers": [2, 3], "aug": {"flip": True}}),
        Ran("b", {"x": 2, "layers": [3, 2], "aug": {"flip": True}}),
    )
    assert seen["layers"].text == "layers: [2, 3] (a), [3, 2] (b)"
    assert "aug" not in seen


def test_other_data_or_another_version_or_source_of_the_method_is_serious() -> None:
    base = Ran("base", origin={"source": "aaaa"})
    assert found(base, Ran("x", origin={"source": "bbbb"}))["source"].serious
    other_data = found(base, Ran("x", origin={"source": "aaaa"}, fingerprint="e" * 64))
    assert other_data["data"].serious
    version = found(base, Ran("x", version=2, origin={"source": "aaaa"}))["method"]
    assert version.serious
    assert version.text == "method: dinomaly 1 (base), dinomaly 2 (x)"


def test_two_methods_differ_by_design_and_their_own_parameters_are_not_compared() -> None:
    seen = found(
        Ran("a", {"q": 1, "batch_size": 8}, origin={"source": "aaaa"}),
        Ran("b", {"k": 1, "batch_size": 8}, origin={"source": "bbbb"}, method="patchcore"),
    )
    assert seen == {}


def test_two_methods_on_other_data_are_still_told_of() -> None:
    seen = found(Ran("a"), Ran("b", method="patchcore", fingerprint="e" * 64))
    assert {what: one.serious for what, one in seen.items()} == {"data": True}


def test_another_commit_is_serious_only_with_other_sources() -> None:
    def of(commit: str, source: str) -> dict[str, Any]:
        return {"git": {"commit": commit}, "source": source}

    same = found(Ran("a", origin=of("1" * 40, "s")), Ran("b", origin=of("2" * 40, "s")))
    assert {what: one.serious for what, one in same.items()} == {"commit": False}
    apart = found(Ran("a", origin=of("1" * 40, "s")), Ran("b", origin=of("2" * 40, "t")))
    assert {what: one.serious for what, one in apart.items()} == {"commit": True, "source": True}
    assert apart["commit"].text == f"commit: {'1' * 12} (a), {'2' * 12} (b)"


def test_machines_are_told_and_are_not_serious_and_another_torch_is() -> None:
    seen = found(
        Ran("a", origin={"host": "n1", "gpu": "H100", "packages": {"torch": "2.1", "rich": "1"}}),
        Ran("b", origin={"host": "n2", "gpu": "A100", "packages": {"torch": "2.2", "rich": "2"}}),
    )
    assert {what: one.serious for what, one in seen.items()} == {
        "torch": True,
        "host": False,
        "device": False,
        "rich": False,
    }


def test_arms_that_ran_on_the_same_mixture_do_not_differ_from_each_other() -> None:
    mixed = {"source": ["s", "t", "t"]}
    seen = found(Ran("a", origin=mixed), Ran("b", origin={"source": ["s", "s", "t"]}))
    assert not seen["source"].serious
    assert seen["source"].values == {"s": ("a", "b"), "t": ("a", "b")}
    assert found(Ran("a", origin=mixed), Ran("b", origin={"source": "s"}))["source"].serious


def test_imported_records_are_not_compared_with_runs() -> None:
    imported = Ran("old", {"max_steps": 1, "x": 1}, origin={"imported": {"file": "old.csv"}})
    assert found(Ran("a", {"max_steps": 2, "x": 2}), imported) == {}


def test_the_data_of_an_arm_are_named_in_a_few_digits() -> None:
    seen = found(Ran("a"), Ran("b", fingerprint="e" * 64))
    assert seen["data"].text == f"data: {'f' * 12} (a), {'e' * 12} (b)"


# --- costs ----------------------------------------------------------------------------------------


def test_costs_are_sums_of_time_and_medians_of_what_a_method_measures() -> None:
    ran = Ran(
        "a",
        knobs={"q": 1},
        origin={"gpus": 0.5},
        scalars=[{"latency_ms": 5.0}, {"latency_ms": 100.0}, {"latency_ms": 6.0, "memory_mb": 1.0}],
    )
    (one,) = costs(*recorded(ran))
    assert one == Cost(
        "a", {"q": 1}, None, 3, 4, 60.0, 60 * 0.5 / 3600, {"latency_ms": 6.0, "memory_mb": 1.0}
    )


def test_gpu_hours_are_unknown_when_one_record_does_not_say_how_many_gpus() -> None:
    (one,) = costs(*recorded(Ran("a", origin={"gpus": [1, None, 1]})))
    assert (one.gpu_hours, one.wall_s) == (None, 60.0)
    (none,) = costs(*recorded(Ran("a", origin={"gpus": 0})))
    assert none.gpu_hours == 0


def test_a_trial_that_failed_costs_time_and_measures_nothing() -> None:
    (one,) = costs(*recorded(Ran("a", status="failed", scalars=[{"latency_ms": 1.0}] * 3)))
    assert (one.wall_s, one.scalars) == (60.0, {})


def test_what_was_imported_or_not_run_has_no_cost() -> None:
    assert costs(*recorded(Ran("a", origin={"imported": {"file": "x.csv"}}))) == ()
    assert costs([PlannedCell("a", {}, {1: "f" * 20})], {}) == ()


def test_the_sheet_of_costs_is_the_costs() -> None:
    cells, runs = recorded(
        Ran("a", origin={"gpus": 2}, wall_s=(3600.0, 1800.0, 1800.0)),
        Ran("b", knobs={"q": 5}, scalars=[{"latency_ms": 12.345}, {}, {}]),
    )
    sheet = cost(costs(cells, runs))
    assert sheet is not None
    header = ["arm", "q", "n", "s per trial", "hours", "GPU hours", "latency_ms"]
    assert [*sheet.header] == header
    assert [[cell.text for cell in row] for row in sheet.rows] == [
        ["a", "", "3/4", "2400", "2.000", "4.000", "—"],
        ["b", "5", "3/4", "20.00", "0.01667", "—", "12.35"],
    ]
    assert any("GPU hours are missing" in line for line in sheet.caption)
    assert cost(()) is None


# --- where results come from ----------------------------------------------------------------------


def test_the_origin_lists_every_machine_and_commit_once_and_when_it_was() -> None:
    _, runs = recorded(
        Ran("a", origin={"host": ["n1", "n2", "n1"], "git": {"commit": "1" * 40, "diff": "d00d"}}),
        Ran("b", origin={"host": "n2", "git": {"commit": "2" * 40}}),
        Ran("c", origin={"imported": {"file": "old.csv"}, "host": "elsewhere"}),
    )
    told = origin(runs.values())
    assert told["host"] == "n1, n2"
    assert told["commit"] == f"{'1' * 12} with changes d00d, {'2' * 12}"
    assert told["imported from"] == "old.csv"
    assert told["method"] == "dinomaly 1"
    assert told["trials started"] == "2026-01-01 10:00 to 2026-01-03 10:00 UTC"
    assert origin([]) == {}
