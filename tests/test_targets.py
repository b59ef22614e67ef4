"""Metrics that decide: what is sought, raced for, chosen by and watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdsweep.configure import configurations
from hdsweep.metrics import parse_metric
from hdsweep.spec import load_sweep
from hdsweep.targets import Targets, non_dominated, require_watched, resolve, watches
from tests.conftest import SWEEP, Invoke
from tests.refusals import RACE, SEARCH, STOP, edited, refusal

Write = Callable[..., Path]

SEEDS = ("seeds: [1, 2, 3]", "seeds: {select: [1, 2], confirm: [3]}")
OTHER_ARM = ("  weak: {strength: 0.5}", "  weak: {method: tests.methods.curves}")
OBJECTIVE = "maximize: auroc"
CONFIRMED = edited(SWEEP, ("seeds: [1, 2]", "seeds: {select: [1, 2], confirm: [3]}"))


def targets(path: Path) -> Targets:
    return resolve(load_sweep(path))


def sought(text: str) -> tuple[str, str]:
    return (OBJECTIVE, text)


def test_objectives_and_constraints_have_directions_and_bounds(sweep_file: Write) -> None:
    wanted = (
        'maximize: ["tpr@1[group=x]", ap], minimize: strength_seen, '
        "constraints: [strength_seen <= 4, auroc > 0.5]"
    )
    found = targets(sweep_file(edited(SEARCH, sought(wanted))))
    assert [(one.text, one.larger_is_better) for one in found.sought] == [
        ("tpr@1[group=x]", True),
        ("ap", True),
        ("strength_seen", False),
    ]
    small, large = found.constraints
    assert (small.text, large.text) == ("strength_seen <= 4", "auroc >= 0.5")
    assert [small.excess(5), small.excess(4), small.excess(1)] == [1, 0, -3]
    assert [large.excess(0.25), large.excess(0.5), large.excess(0.75)] == [0.25, 0, -0.25]
    with pytest.raises(ValueError, match="is no constraint"):
        found.sought[0].excess(1)
    assert found.all == (*found.sought, *found.constraints)
    assert (found.raced, found.chosen_by, found.watched) == (None, (), None)


def test_a_scalar_is_good_as_the_sweep_says(sweep_file: Write) -> None:
    seen = parse_metric("strength_seen", ("strength_seen",))
    plain = targets(sweep_file(SEARCH))
    assert plain.direction(parse_metric("fpr@5")) is False
    assert plain.direction(seen) is None
    bound = targets(
        sweep_file(edited(SEARCH, sought(f"{OBJECTIVE}, constraints: strength_seen < 4")))
    )
    assert bound.direction(seen) is False


def test_a_searched_arm_needs_the_metric_and_others_do_not(sweep_file: Write) -> None:
    text = edited(SEARCH, OTHER_ARM, sought("minimize: strength_seen"))
    (one,) = targets(sweep_file(text)).sought
    assert not one.larger_is_better


@pytest.mark.parametrize(
    ("text", "edits", "chosen"),
    [
        (SEARCH, [SEEDS], [("auroc", True)]),
        (
            SEARCH,
            [SEEDS, sought("minimize: [eer, strength_seen]")],
            [("eer", False), ("strength_seen", False)],
        ),
        (SEARCH, [("[1, 2, 3]", "{select: [1], confirm: [3], by: eer}")], [("eer", False)]),
        (
            SEARCH,
            [("[1, 2, 3]", "{select: [1], confirm: [3], by: strength_seen, mode: max}")],
            [("strength_seen", True)],
        ),
        (
            RACE,
            [("seeds: [1, 2, 3, 4, 5]", "seeds: {select: [1, 2, 3, 4], confirm: [5]}")],
            [("auroc", True)],
        ),
        (CONFIRMED, [], [("auroc", True)]),
        (CONFIRMED, [("metrics: [auroc,", "metrics: [eer,")], [("eer", False)]),
    ],
)
def test_what_is_confirmed_is_chosen_by_what_is_sought(
    sweep_file: Write, text: str, edits: list[tuple[str, str]], chosen: list[tuple[str, bool]]
) -> None:
    found = targets(sweep_file(edited(text, *edits)))
    assert [(one.text, one.larger_is_better) for one in found.chosen_by] == chosen
    assert set(found.chosen_by) <= set(found.all)
    assert len(set(found.all)) == len(found.all)


@pytest.mark.parametrize(
    ("metric", "larger"), [("loss, mode: min", False), ("loss, mode: max", True)]
)
def test_a_rule_watches_a_metric_with_a_direction(
    sweep_file: Write, metric: str, larger: bool
) -> None:
    text = edited(STOP, ("metric: loss, mode: min", f"metric: {metric}"))
    assert targets(sweep_file(text)).watched is larger


def test_the_direction_of_a_known_metric_is_known(sweep_file: Write) -> None:
    text = edited(STOP, OTHER_ARM, ("metric: loss, mode: min", "metric: auroc"))
    spec = load_sweep(sweep_file(text))
    assert resolve(spec).watched is True
    assert (watches(spec, "weak"), watches(spec, "drawn")) == (True, False)
    spec = load_sweep(sweep_file(SEARCH))
    assert not watches(spec, "weak")


Edits = list[tuple[str, str]]


@pytest.mark.parametrize(
    ("text", "edits", "line", "words"),
    [
        (
            SEARCH,
            [sought("maximize: aurok")],
            11,
            "search.maximize: unknown metric 'aurok'; did you mean 'auroc'?",
        ),
        (SEARCH, [sought("maximize: [auroc, tpr]")], 11, "search.maximize.1: 'tpr': metric 'tpr' "),
        (SEARCH, [sought("maximize: auroc!")], 11, "is not a metric; write it as auroc, tpr@1"),
        (
            SEARCH,
            [OTHER_ARM, sought("minimize: cost")],
            11,
            "search.minimize: unknown metric 'cost'",
        ),
        (
            SEARCH,
            [sought("maximize: [tpr@1, tpr@1.0]")],
            11,
            "search.maximize.1: objective 'tpr@1' is listed twice; remove one",
        ),
        (
            SEARCH,
            [sought("maximize: ap, minimize: 'ap '")],
            11,
            "search.minimize: objective 'ap' is listed twice; remove one",
        ),
        (
            SEARCH,
            [sought('maximize: "auroc[group=z]"')],
            11,
            "search.maximize: the data have no group 'z'; the groups are x, y",
        ),
        (
            SEARCH,
            [sought("maximize: pixel_auroc")],
            11,
            "'pixel_auroc' is never reported: the data have no masks",
        ),
        (
            SEARCH,
            [sought('maximize: "aupro[group=pooled]"')],
            11,
            "is never reported: pixel metrics are not pooled",
        ),
        (
            SEARCH,
            [sought("maximize: auroc, constraints: strength_seen 4")],
            11,
            "search.constraints: 'strength_seen 4' is not a constraint; write it as",
        ),
        (
            SEARCH,
            [sought("maximize: auroc, constraints: [ap > 0.5, strength <= 4]")],
            11,
            "search.constraints.1: unknown metric 'strength'; did you mean 'strength_seen'?",
        ),
        (SEARCH, [sought("maximize: auroc, constraints: ap <= 1e999")], 11, "is not a constraint"),
        (
            SEARCH,
            [sought('maximize: auroc, constraints: "ap[group=z] >= 0.5"')],
            11,
            "search.constraints: the data have no group 'z'",
        ),
        (
            STOP,
            [("metric: loss", "metric: los")],
            12,
            "method tests.methods.noise reports no curve of 'los'; did you mean 'loss'?",
        ),
        (
            STOP,
            [("metric: loss, mode: min", "metric: auroc")],
            12,
            "reports no curve of 'auroc'; known: loss",
        ),
        (
            STOP,
            [(", mode: min", "")],
            12,
            "stop.metric: say whether large or small values of 'loss' are good: mode: max",
        ),
        (
            RACE,
            [("metric: auroc", "metric: strength_seen")],
            9,
            "race.metric: say whether large or small values of 'strength_seen' are good",
        ),
        (RACE, [("metric: auroc", "metric: aurok")], 9, "race.metric: unknown metric 'aurok'"),
        (
            RACE,
            [
                ("{strength: 0.5}", "{method: tests.methods.curves}"),
                ("metric: auroc", "metric: strength_seen, mode: max"),
            ],
            9,
            "unknown metric 'strength_seen'",
        ),
        (
            RACE,
            [("metric: auroc", 'metric: "auroc[group=z]"')],
            9,
            "race.metric: the data have no gr",
        ),
        (
            CONFIRMED,
            [("metrics: [auroc,", "metrics: [strength_seen,")],
            10,
            "report.metrics.0: say whether large or small values of 'strength_seen' are good",
        ),
        (
            CONFIRMED,
            [("confirm: [3]", "confirm: [3], by: strength_seen")],
            5,
            "seeds.by: say whether large or small values of 'strength_seen' are good",
        ),
        (CONFIRMED, [("confirm: [3]", "confirm: [3], by: aurok")], 5, "seeds.by: unknown metric"),
        (
            SEARCH,
            [("[1, 2, 3]", "{select: [1], confirm: [2], mode: min}")],
            4,
            "seeds.mode: the choice is by auroc, which has a direction; remove mode",
        ),
        (
            SEARCH,
            [("[1, 2, 3]", "{select: [1], confirm: [2], top: 2}"), sought("maximize: [ap, f1]")],
            4,
            "seeds.top: by ap and f1, all that no other one betters are confirmed; remove top",
        ),
    ],
)
def test_what_no_trial_reports_is_named_with_its_line(
    sweep_file: Write, text: str, edits: Edits, line: int, words: str
) -> None:
    where, message = refusal(sweep_file(edited(text, *edits)))
    assert words in message
    assert where == line, message


@pytest.mark.parametrize(
    ("edit", "line", "words"),
    [
        (
            sought("maximize: auroc"),
            11,
            "group 'y' has no anomalous item among 3; name one, as in auroc[group=x]",
        ),
        (sought('maximize: "tpr@5[group=y]"'), 11, "group 'y' has no anomalous item among 3"),
        (
            sought('maximize: "ap[group=x]", constraints: f1 > 0.5'),
            11,
            "search.constraints: 'f1' is never reported: group 'y' has no anomalous item among 3",
        ),
    ],
)
def test_what_the_test_items_leave_undefined_decides_nothing(
    sweep_file: Write, tmp_path: Path, edit: tuple[str, str], line: int, words: str
) -> None:
    one_class(tmp_path / "labels")
    where, message = refusal(sweep_file(edited(SEARCH, edit)))
    assert words in message
    assert where == line, message


def test_what_they_define_in_one_group_or_in_all_together_may_decide(
    sweep_file: Write, tmp_path: Path, invoke: Invoke
) -> None:
    one_class(tmp_path / "labels")
    text = 'maximize: ["auroc[group=x]", "auroc[group=pooled]"]'
    path = sweep_file(edited(SEARCH, sought(text)))
    assert invoke("plan", path)[0] == 0


def one_class(root: Path) -> None:
    """Six items, of which group y has none that is anomalous."""
    for group, anomalous in (("x", 1), ("y", 0)):
        (root / group).mkdir(parents=True)
        for n in range(3):
            (root / group / f"{n}.txt").write_text(f"{group} {n} {n % 2 * anomalous}\n")


def test_a_method_without_a_curve_cannot_be_stopped(sweep_file: Write) -> None:
    text = edited(
        SWEEP,
        ("method: tests.methods.noise", "method: tests.methods.counter"),
        ("{strength: 0.5}", "{}"),
        ("  strong: {strength: {grid: [1, 2]}}\n", ""),
        ("report:", "stop: {rule: median, metric: loss, mode: min}\nreport:"),
    )
    line, message = refusal(sweep_file(text))
    assert (line, message) == (
        9, ("stop.metric: method tests.methods.counter reports no curve of 'loss'; it reports none "
        "while it runs"),
    )  # fmt: skip


POINTS = st.lists(st.tuples(*[st.integers(0, 4)] * 2), max_size=8)


@given(POINTS, st.tuples(st.booleans(), st.booleans()))
def test_the_front_is_what_nothing_betters(
    points: list[tuple[int, int]], larger: tuple[bool, bool]
) -> None:
    front = non_dominated(dict(enumerate(points)), larger)

    def betters(one: tuple[int, int], other: tuple[int, int]) -> bool:
        gains = [(a - b) * (1 if up else -1) for a, b, up in zip(one, other, larger, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    assert front == [
        n for n, own in enumerate(points) if not any(betters(other, own) for other in points)
    ]


def test_a_rule_that_no_configuration_reports_to_is_refused(sweep_file: Write) -> None:
    text = """\
name: silent
method: dinomaly
data: {name: hdmap, root: data, make: {preset: tiny}}
seeds: [1]
arms:
  one: {weights: random, validation: {grid: [none]}}
stop: {rule: asha, metric: val/auroc}
"""
    line, message = refusal(sweep_file(text))
    assert line == 7
    assert "stop.metric: no configuration reports 'val/auroc' as it stands" in message
    spec = load_sweep(sweep_file(text.replace("[none]", "[none, from_test]")))
    require_watched(spec, configurations(spec))
