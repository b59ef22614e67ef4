"""Knobs as their methods take them: what is known before a search draws anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hdsweep.configure import Checked, configurations, drawn
from hdsweep.errors import MethodError, SpecError
from hdsweep.knobs import Value
from hdsweep.spec import load_sweep
from tests.refusals import SEARCH, edited, refusal

Write = Callable[..., Path]

LOSSES = """\
name: losses
method: dinomaly
data: {name: hdmap, root: maps}
seeds: [1, 2]
params: {weights: random, max_steps: 100, lr_warmup_steps: 10}
arms:
  baseline: {}
  tuned:
    variant: {choice: [topk, gem]}
    q_percent: {log_uniform: [1, 100], when: {variant: topk}}
    gem_p: {uniform: [1, 10], when: {variant: gem}}
    batch_size: {int: [4, 32], step: 4}
search: {trials: 6, maximize: auroc}
"""


def checked(path: Path) -> Checked:
    return configurations(load_sweep(path))


def refused(path: Path) -> str:
    with pytest.raises(SpecError) as error:
        checked(path)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}:")


def test_grids_are_settled_and_distributions_stay_open(sweep_file: Write) -> None:
    found = checked(sweep_file(SEARCH))
    assert [(one.arm, dict(one.knobs)) for one in found.settled] == [("weak", {})]
    assert [(one.arm, dict(one.knobs)) for one in found.open] == [
        ("drawn", {"fault": "none"}),
        ("drawn", {"fault": "nan"}),
    ]
    assert [list(one.setting.drawn) for one in found.open] == [["strength", "level"], ["strength"]]
    for one in found.open:
        assert not set(one.setting.drawn) & set(one.identity)
        assert one.identity["fault"] == one.knobs["fault"]
        assert "sleep_s" in one.identity


def test_a_method_is_tried_at_both_ends_of_every_range(sweep_file: Write) -> None:
    first, second = checked(sweep_file(SEARCH)).open
    tried = [dict(params) for params in first.tried]
    assert {0.1, 10.0} <= {params["strength"] for params in tried}
    assert {0, 8} <= {params["level"] for params in tried}
    assert {params["level"] for params in map(dict, second.tried)} == {0}  # it does not apply


def test_a_knob_is_tried_only_where_it_applies(sweep_file: Write) -> None:
    # dinomaly refuses a q_percent that its variant does not use: no such thing may be tried
    (one,) = checked(sweep_file(LOSSES)).open
    tried = [params.model_dump() for params in one.tried]
    by_variant = {
        variant: [params for params in tried if params["variant"] == variant]
        for variant in ("topk", "gem")
    }
    assert {1.0, 100.0} <= {params["q_percent"] for params in by_variant["topk"]}
    assert {1.0, 10.0} <= {params["gem_p"] for params in by_variant["gem"]}
    assert {params["gem_p"] for params in by_variant["topk"]} == {3}
    assert {params["batch_size"] for params in tried} == {4, 32}


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("log_uniform: [1, 100]", "uniform: [0, 200]", 10, "tuned.q_percent: input should be grea"),
        ("log_uniform: [1, 100]", "uniform: [1, 200]", 10, "or equal to 100; found 200.0"),
        ("log_uniform: [1, 100]", "uniform: [-1, 50]", 10, "greater than 0; found -1.0"),
        ("log_uniform: [1, 100]", "choice: [1, 200]", 10, "found 200"),
        ("log_uniform: [1, 100]", "int: [1, 101]", 10, "found 101"),
        ("uniform: [1, 10]", "uniform: [0.5, 10]", 11, "arms.tuned.gem_p: input should be greater"),
        ("int: [4, 32], step: 4", "uniform: [4, 32]", 12, "draw whole numbers with int: [low, hi"),
        ("int: [4, 32], step: 4", "log_uniform: [4, 32]", 12, "draw whole numbers with int: [low"),
        ("int: [4, 32], step: 4", "uniform: [4, 32], step: 0.5", 12, "draw whole numbers with int"),
        ("choice: [topk, gem]", "choice: [topk, gem, tpok]", 9, "did you mean 'topk'?"),
        (
            "batch_size:",
            "batchsize:",
            12,
            ("arms.tuned: unknown knob 'batchsize' of method dinomaly; did you mean 'batch_size'?"),
        ),
        ("lr_warmup_steps: 10}", "lr_warmup_steps: 10, lr: {uniform: [0, 1]}}", 5, "params.lr: i"),
        ("lr_warmup_steps: 10}", "lr_warmup_steps: {int: [100, 200]}}", 7, "must be less than"),
    ],
)
def test_a_range_that_the_method_does_not_take_is_named_with_its_line(
    sweep_file: Write, old: str, new: str, line: int, words: str
) -> None:
    message = refused(sweep_file(edited(LOSSES, (old, new))))
    assert words in message
    assert message.startswith(f"{line}: "), message


def test_such_a_refusal_is_one_line_of_the_command_line(sweep_file: Write) -> None:
    text = edited(SEARCH, ("log_uniform: [0.1, 10]", "uniform: [0, 200]"))
    line, message = refusal(sweep_file(text))
    assert (line, message) == (
        9, "arms.drawn.strength: input should be less than or equal to 100; found 200.0",
    )  # fmt: skip


def test_a_uniform_with_a_whole_step_may_draw_whole_numbers(sweep_file: Write) -> None:
    text = edited(LOSSES, ("int: [4, 32], step: 4", "uniform: [4, 32], step: 4"))
    (one,) = checked(sweep_file(text)).open
    found = drawn(one, {"variant": "topk", "q_percent": 5.0, "batch_size": 8.0})
    assert found.params["batch_size"] == 8


_JOINT = "max_steps: 100, lr_warmup_steps: 10"


def test_a_rule_over_several_knobs_may_refuse_some_corners(sweep_file: Write) -> None:
    text = edited(
        LOSSES, (_JOINT, "max_steps: {int: [50, 200]}, lr_warmup_steps: {int: [10, 100]}")
    )
    _, tuned = checked(sweep_file(text)).open
    tried = [dict(params) for params in tuned.tried]
    assert all(params["lr_warmup_steps"] < params["max_steps"] for params in tried)
    taken: dict[str, Value] = {
        "max_steps": 200, "lr_warmup_steps": 100, "variant": "gem", "gem_p": 2.0, "batch_size": 4,
    }  # fmt: skip
    assert drawn(tuned, taken).params["max_steps"] == 200
    with pytest.raises(MethodError, match="lr_warmup_steps 100 must be less than max_steps 50"):
        drawn(tuned, {**taken, "max_steps": 50})


def test_a_rule_that_refuses_every_corner_is_told(sweep_file: Write) -> None:
    text = edited(LOSSES, (_JOINT, "max_steps: {int: [5, 9]}, lr_warmup_steps: {int: [10, 100]}"))
    message = refused(sweep_file(text))
    assert message.startswith("7: arms.baseline: lr_warmup_steps 10 must be less than max_steps 5")
    assert message.endswith("(at max_steps=5, lr_warmup_steps=10)")


def test_what_was_drawn_is_a_configuration_like_any_other(sweep_file: Write) -> None:
    _, one = checked(sweep_file(SEARCH)).open
    (fixed,) = checked(
        sweep_file(
            edited(
                SEARCH,
                ("    fault: {grid: [none, nan]}\n", ""),
                ("    level: {int: [0, 8], when: {fault: none}}\n", ""),
                ("strength: {log_uniform: [0.1, 10]}", "{fault: nan, strength: 2.5}"),
                ("search: {trials: 6, maximize: auroc}\n", ""),
            ).replace("  drawn:\n    {", "  drawn: {")
        )
    ).settled[1:]
    found = drawn(one, {"strength": 2.5})
    assert dict(found.knobs) == {"fault": "nan", "strength": 2.5}
    assert (found.encoded, found.params) == (fixed.encoded, fixed.params)
    with pytest.raises(MethodError, match="strength: input should be less than or equal to 100"):
        drawn(one, {"strength": 101.0})


def test_what_any_value_of_a_range_warns_of_is_said_once(sweep_file: Write) -> None:
    text = edited(
        LOSSES, ("    variant:", "    validation: {choice: [none, from_test]}\n    variant:")
    )
    baseline, tuned = checked(sweep_file(text))
    assert baseline.warnings == ()
    (warning,) = tuned.warnings
    assert warning.startswith("validation is drawn from the test items")
