"""Reading sweep files: what is accepted, and what each refusal says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hdsweep.errors import SpecError
from hdsweep.spec import Grid, load_sweep
from tests.conftest import SWEEP

Write = Callable[..., Path]


def test_a_sweep_file_becomes_arms_with_shared_and_own_knobs(sweep_file: Write) -> None:
    text = SWEEP.replace("arms:", "params: {level: 2, strength: 9}\narms:")
    spec = load_sweep(sweep_file(text))
    assert [arm.name for arm in spec.arms] == ["weak", "strong"]
    assert spec.arms[0].knobs == {"level": 2, "strength": 0.5}
    assert spec.arms[1].knobs["strength"] == Grid((1, 2))
    assert list(spec.arms[1].cells()) == [
        {"level": 2, "strength": 1},
        {"level": 2, "strength": 2},
    ]
    assert spec.seeds == (1, 2)


def test_numbers_in_exponent_form_are_numbers(sweep_file: Write) -> None:
    spec = load_sweep(sweep_file(SWEEP.replace("strength: 0.5", "strength: 1e-4")))
    assert spec.arms[0].knobs["strength"] == 1e-4


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("seeds: [1, 2]", "sedes: [1, 2]", 5, "unknown key 'sedes'; did you mean 'seeds'?"),
        ("cpus: 1", "cpu: 1", 9, "resources.cpu: unknown key 'cpu'; did you mean 'cpus'?"),
        ("seeds: [1, 2]", "seeds: [1, 2, 1]", 5, "seed 1 is listed twice"),
        ("seeds: [1, 2]", "seeds: []", 5, "seeds"),
        ("seeds: [1, 2]", "seeds: [-1]", 5, "found -1"),
        ("grid: [1, 2]", "grid: []", 8, "arms.strong.strength.grid: an empty grid"),
        ("grid: [1, 2]", "grid: [1, 1.0]", 8, "lists 1.0 twice"),
        ("grid: [1, 2]", "gird: [1, 2]", 8, "did you mean 'grid'?"),
        ("{grid: [1, 2]}", "{log_uniform: [1, 2]}", 8, "use {grid: [...]}"),
        ("grid: [1, 2]", "grid: [.nan]", 8, "cannot be a grid value"),
        ("strength: 0.5", "strength: .inf", 7, "write a finite number"),
        ("baseline: weak", "baseline: week", 10, "no arm is named 'week'; did you mean 'weak'?"),
        ("method: tests.methods.noise\n", "", 6, "no method"),
        ("name: noise", "name: ../evil", 1, "name"),
        ("gpus: 0,", "gpus: 1.5,", 9, "a fraction never spans devices"),
        ("seeds: [1, 2]", "seeds: [1]\nseeds: [2]", 6, "'seeds' is given twice"),
        ("seeds: [1, 2]", "seeds: !!python/object/apply:os.getcwd []", 5, "YAML tags are not"),
        ("seeds: [1, 2]", "seeds: [1, 2", 6, "this is not YAML"),
        ("seeds: [1, 2]\n", "", 1, "'seeds' is missing"),
        ("seeds: [1, 2]", "seeds: [1, 2]\nsearch: {trials: 3}", 6, "not part of this version"),
        ("strength: 0.5", "strength: {a: {b: 1}}", 7, "a knob is a value or {grid: [...]}"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    sweep_file: Write, old: str, new: str, line: int, words: str
) -> None:
    assert old in SWEEP
    path = sweep_file(SWEEP.replace(old, new))
    with pytest.raises(SpecError) as error:
        load_sweep(path)
    message = str(error.value)
    assert words in message
    assert message.startswith(f"{path}:{line}: "), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found nothing"),
        ("just words", "found str"),
        ("- 1\n- 2\n", "found list"),
        ("\x00\x01\x02", "not YAML"),
        ("a: &a [*a]", "sweep"),
        ("a: *missing", "not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_what_is_not_a_sweep_file_is_refused_in_one_line(
    sweep_file: Write, text: str, words: str
) -> None:
    with pytest.raises(SpecError) as error:
        load_sweep(sweep_file(text))
    assert words in str(error.value) or "unknown key" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_binary_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(bytes(range(256)))
    for path in (tmp_path / "model.pt", tmp_path):
        with pytest.raises(SpecError, match="cannot be read as a sweep file"):
            load_sweep(path)


def test_a_misspelt_file_name_gets_a_suggestion(sweep_file: Write) -> None:
    path = sweep_file(name="topk_q.yaml")
    with pytest.raises(SpecError, match=r"no such sweep file; did you mean 'topk_q\.yaml'\?"):
        load_sweep(path.with_name("topkq.yaml"))
