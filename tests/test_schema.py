"""The JSON Schema of sweep files, as an editor applies it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml

from hdsweep.errors import SpecError
from hdsweep.schema import sweep_schema
from hdsweep.spec import load_sweep
from hdsweep.yamlfile import Loader
from tests.conftest import ROOT
from tests.refusals import edited

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
TUNE, RACE, PARETO = (
    (ROOT / "sweeps" / f"{name}.yaml").read_text()
    for name in ("tune_topk", "race_methods", "pareto_ivfpq")
)
Problems = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def problems() -> Problems:
    """What the schema finds wrong in the text of a sweep."""
    validator = jsonschema.Draft202012Validator(sweep_schema())

    def problems(text: str) -> list[str]:
        sweep = yaml.load(text, Loader)
        return [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(sweep)]

    return problems


def test_the_command_prints_a_schema_that_is_one() -> None:
    command = [sys.executable, "-m", "hdsweep.cli", "schema"]
    printed: dict[str, Any] = json.loads(subprocess.check_output(command))
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed == sweep_schema()


@pytest.mark.parametrize("name", [path.name for path in SWEEPS])
def test_the_schema_accepts_the_published_sweeps_and_refuses_a_misspelling(
    problems: Problems, name: str
) -> None:
    text = (ROOT / "sweeps" / name).read_text()
    assert problems(text) == []
    sweep = yaml.load(text, Loader)
    arm = next(iter(sweep["arms"]))
    sweep["arms"][arm] = {**(sweep["arms"][arm] or {}), "q_percnt": 3}
    assert problems(yaml.safe_dump(sweep)) != []


_Q = "{log_uniform: [1, 100], when: {variant: topk}}"
_STEPS = "{int: [50, 500], step: 50, when: {variant: topk}}"
_SEEDS = "{select: [42, 43, 44], confirm: [123, 456, 789, 1000, 2000]}"
_SEARCH = "{sampler: tpe, trials: 40, maximize: auroc}"
_STOP = "{rule: asha, metric: val/auroc, grace: 200, reduction: 2}"
_RACE = "{metric: auroc, looks: [3, 5, 7]}"


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (TUNE, _Q, "{uniform: [1, 100], step: 0.5, when: {variant: [topk]}}"),
        (TUNE, _Q, "{int: [1, 100], log: true, when: {variant: topk}}"),
        (TUNE, _Q, "{choice: [1, 2.5], when: {variant: topk}}"),
        (TUNE, _Q, "{grid: [1, 2.5], when: {variant: topk, augment: [none, flip]}}"),
        (TUNE, _STEPS, "{uniform: [50, 500], step: 50, when: {variant: topk}}"),
        (TUNE, _SEEDS, "{select: [1], confirm: [2], by: ap, mode: max, top: 3}"),
        (TUNE, _SEEDS, "[1, 2]"),
        (TUNE, _SEARCH, "{sampler: gp, trials: 4, maximize: [auroc, ap], minimize: final_loss}"),
        (TUNE, _SEARCH, "{trials: 4, budget: shared, maximize: ap, seed: 3, parallel: 2}"),
        (TUNE, _SEARCH, "{trials: 4, maximize: ap, aggregate: lower_bound, confidence: 0.8}"),
        (TUNE, _SEARCH, "{trials: 4, minimize: eer, constraints: [ap >= 0.5, final_loss <= 1]}"),
        (TUNE, _SEARCH, "{trials: 4, maximize: ap, options: {multivariate: true}}"),
        (TUNE, _STOP, "{rule: hyperband, metric: loss, mode: min, brackets: 2}"),
        (TUNE, _STOP, "{rule: median, metric: loss, mode: min, interval: 20, startup: 4}"),
        (TUNE, _STOP, "{rule: patience, metric: val/auroc, patience: 200, min_delta: 0.01}"),
        (RACE, _RACE, "{metric: auroc, mode: max, looks: [2], level: 0.1}"),
    ],
)
def test_what_can_be_written_is_in_the_schema(
    problems: Problems, text: str, old: str, new: str
) -> None:
    assert problems(edited(text, (old, new))) == []


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (TUNE, _Q, "{log_unifrom: [1, 100]}"),
        (TUNE, _Q, "{log_uniform: [1]}"),
        (TUNE, _Q, "{log_uniform: [1, 10, 100]}"),
        (TUNE, _Q, "{log_uniform: [0, 100]}"),
        (TUNE, _Q, "{log_uniform: [1, many]}"),
        (TUNE, _Q, "{log_uniform: [1, 10], step: 1}"),
        (TUNE, _Q, "{uniform: [1, 10], log: true}"),
        (TUNE, _Q, "{uniform: [1, 10], grid: [1, 10]}"),
        (TUNE, _Q, "{choice: [1]}"),
        (TUNE, _Q, "{choice: []}"),
        (TUNE, _Q, "{grid: []}"),
        (TUNE, _Q, "{grid: [1], when: {}}"),
        (TUNE, _Q, "{grid: [1], when: {variant: []}}"),
        (TUNE, _Q, "{when: {variant: topk}}"),
        (TUNE, _STEPS, "{int: [0.5, 2]}"),
        (TUNE, _STEPS, "{int: [1, 9], step: 0}"),
        (TUNE, _SEEDS, "{select: [1]}"),
        (TUNE, _SEEDS, "{select: [], confirm: [2]}"),
        (TUNE, _SEEDS, "{select: [1], confirm: [2], best: 3}"),
        (TUNE, _SEEDS, "[-1]"),
        (TUNE, _SEARCH, "{trials: 0, maximize: auroc}"),
        (TUNE, _SEARCH, "{maximize: auroc}"),
        (TUNE, _SEARCH, "{trials: 3, maximze: auroc}"),
        (TUNE, _SEARCH, "{trials: 3, maximize: auroc, sampler: tpee}"),
        (TUNE, _SEARCH, "{trials: 3, maximize: 3}"),
        (TUNE, _STOP, "{rule: asha}"),
        (TUNE, _STOP, "{rule: ashaa, metric: val/auroc}"),
        (TUNE, _STOP, "{rule: asha, metric: val/auroc, reduction: 1}"),
        (RACE, _RACE, "{metric: auroc}"),
        (RACE, _RACE, "{metric: auroc, looks: [1, 3]}"),
        (RACE, _RACE, "{metric: auroc, looks: []}"),
        (RACE, _RACE, "{metric: auroc, looks: [3], level: 0}"),
    ],
)
def test_what_the_schema_refuses_is_refused_by_the_reader_too(
    problems: Problems, sweep_file: Callable[..., Any], text: str, old: str, new: str
) -> None:
    wrong = edited(text, (old, new))
    assert problems(wrong) != []
    with pytest.raises(SpecError):
        load_sweep(sweep_file(wrong))


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (TUNE, _Q, "{log_uniform: [1, 200]}"),  # q_percent is a share
        (TUNE, _Q, "{choice: [1, 200]}"),
        (TUNE, _Q, "{grid: [1], when: {varient: topk}}"),
        (TUNE, _STEPS, "{uniform: [50, 500]}"),  # warmup_steps is a whole number
        (TUNE, "{grid: [topk, gem, focal]}", "{grid: [topk, gme]}"),
        (TUNE, "{grid: [topk, gem, focal]}", "{int: [1, 3]}"),  # variant is no number
        (PARETO, "{int: [4, 8]}", "{int: [4, 80]}"),
        (PARETO, "{choice: [2, 5, 10, 25]}", "{uniform: [2, 250]}"),
    ],
)
def test_the_schema_knows_what_a_method_takes(
    problems: Problems, text: str, old: str, new: str
) -> None:
    assert problems(edited(text, (old, new))) != []
