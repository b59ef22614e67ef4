"""Reading sweep files: what is accepted, and what each refusal says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field, ValidationError

from hdsweep.errors import SpecError
from hdsweep.method import load_dataset, load_method
from hdsweep.spec import ContentPath, Grid, Strict, load_sweep
from hdsweep.yamlfile import Loader
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
    assert knob_as_read(sweep_file, "1e-4") == 1e-4


def knob_as_read(sweep_file: Write, text: str) -> object:
    spec = load_sweep(sweep_file(SWEEP.replace("strength: 0.5", f"strength: {text}")))
    return spec.arms[0].knobs["strength"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("042", "042"), ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"), ("=", "="), ("0o17", 15), ("0x1F", 31), ("-7", -7), ("0", 0),
        ("+3", 3), ("1.", 1.0), (".5", 0.5), ("-1.5E+3", -1500.0), ("on", True), ("no", False),
        ("~", None), ("'1'", "1"), ("!!str 1", "1"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(sweep_file: Write, text: str, value: object) -> None:
    found = knob_as_read(sweep_file, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="there is one parser only")
def test_the_parser_in_c_reads_what_the_one_in_python_reads() -> None:
    class Slow(yaml.SafeLoader):
        yaml_implicit_resolvers = Loader.yaml_implicit_resolvers

    text = SWEEP + "numbers: [042, 1:30, 1e-4, 0o17, 0x1F, -.inf, 1_0, .5, yes, ~, 2020-01-01, =]\n"
    assert yaml.load(text, Loader) == yaml.load(text, Slow)


def test_a_grid_and_seeds_of_many_thousands_are_read_without_comparing_all_pairs(
    sweep_file: Write,
) -> None:
    # 20,000 squared would take minutes; no time is asserted, the test suite would feel it.
    many = ", ".join(map(str, range(20_000)))
    spec = load_sweep(
        sweep_file(SWEEP.replace("grid: [1, 2]", f"grid: [{many}]").replace("[1, 2]", f"[{many}]"))
    )
    assert len(spec.seeds) == len(list(spec.arms[1].cells())) == 20_000


def test_true_and_one_are_two_values_of_a_grid(sweep_file: Write) -> None:
    spec = load_sweep(sweep_file(SWEEP.replace("grid: [1, 2]", "grid: [1, true, [1], [true]]")))
    assert spec.arms[1].knobs["strength"] == Grid((1, True, [1], [True]))


def test_anchors_and_merge_keys_share_knobs(sweep_file: Write) -> None:
    text = SWEEP.replace("weak: {s", "weak: &base {level: 2, s").replace(
        "strong: {strength", "strong: {<<: *base, strength"
    )
    strong = load_sweep(sweep_file(text)).arms[1]
    assert strong.knobs == {"level": 2, "strength": Grid((1, 2))}


@pytest.mark.parametrize("again", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_that_unfold_into_billions_are_refused(sweep_file: Write, again: str) -> None:
    ten = (again.format(", ".join([f"*a{n}"] * 10)) for n in range(10))
    lines = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {block}" for n, block in enumerate(ten, 1))]
    with pytest.raises(SpecError, match=r":\d+: too large: .* aliases of aliases"):
        load_sweep(sweep_file("\n".join(lines)))


def test_a_module_has_one_name_however_it_is_written(sweep_file: Write) -> None:
    text = SWEEP.replace("tests.methods.noise", "trainables.dinomaly").replace(
        "name: tests.methods.labels", "name: trainables.data.hdmap"
    )
    spec = load_sweep(sweep_file(text))
    assert {arm.method for arm in spec.arms} == {"dinomaly"}
    assert spec.data_name == "hdmap"
    assert load_sweep(sweep_file()).arms[0].method == "tests.methods.noise"


@pytest.mark.parametrize("name", [".", "..", ".x", "a..b", "", "a b", "x.", "dinomly", "1", "os.x"])
def test_what_cannot_be_a_module_is_an_unknown_name(name: str) -> None:
    with pytest.raises(SpecError, match=f"unknown method '{re.escape(name)}'.*dinomaly"):
        load_method(name)
    with pytest.raises(SpecError, match=f"unknown data set '{re.escape(name)}'.*hdmap"):
        load_dataset(name)


class Knobs(Strict):
    """One of each kind of field."""

    number: float = 0
    count: int | None = None
    sizes: tuple[int, ...] = ()
    step: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    bits: Literal["exact", 4, 6] = "exact"
    flag: bool = False
    either: int | bool = 0
    anything: Any = None
    word: str = ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("number", True), ("count", False), ("sizes", [1, True]), ("step", True), ("bits", True)],
)
def test_true_and_false_are_no_numbers(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=r"(true|false) is not a number"):
        Knobs.model_validate({name: value})


def test_true_is_accepted_where_it_has_a_meaning() -> None:
    given = {"flag": True, "either": True, "anything": [True]}
    assert Knobs.model_validate(given).model_dump(exclude_unset=True) == given
    with pytest.raises(ValidationError, match="valid string"):
        Knobs.model_validate({"word": True})


class Weights(Strict):
    """A parameter that is a file."""

    weights: ContentPath


@pytest.mark.parametrize("path", ["~nobody-here/x", "x" * 300, "nowhere", "."])
def test_a_file_that_cannot_be_had_is_a_complaint_about_its_parameter(path: str) -> None:
    with pytest.raises(ValidationError, match="weights"):
        Weights.model_validate({"weights": path})


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
        ("grid: [1, 2]", "grid: [[1, 2], [1.0, 2]]", 8, "lists [1.0, 2] twice"),
        ("grid: [1, 2]", "grid: [[{a: .nan}]]", 8, "cannot be a grid value"),
        ("seeds: [1, 2]", "seeds: [true]", 5, "seeds: true is not a number"),
        ("gpus: 0,", "gpus: true,", 9, "resources.gpus: true is not a number"),
        ("cpus: 1", "cpus: on", 9, "resources.cpus: true is not a number"),
        ("seeds: [1, 2]", "seeds: [1:30]", 5, "found '1:30'"),
        ("seeds: [1, 2]", f"seeds: [1{'0' * 5000}]", 5, "number too long"),
        ("seeds: [1, 2]", f"seeds: [0x{'f' * 5000}]", 5, "number too long"),
        ("seeds: [1, 2]", "seeds: 1", 5, "seeds: write a list; found 1"),
        ("metrics: [auroc, tpr@5]", "metrics: []", 10, "list at least 1 value; found []"),
        ("{gpus: 0, cpus: 1}", "4", 9, "resources: write a mapping; found 4"),
        ("name: noise", 'name: "noise\\n"', 1, "not a name; use letters"),
        ("  weak: {s", '  "weak\\n": {s', 7, r"weak\n: 'weak\n' is not a name"),
        ("  weak: {s", '  "a\\nb": {}\n  "a\\nb": {s', 8, r"key 'a\nb' is given twice"),
        ("  weak: {s", f"  {'w' * 101}: {{s", 7, "at most 100 characters, not 101"),
        ("question: Does", 'question: "a\\0b" #', 2, "the character U+0000"),
        ("  weak: {s", '  "we\\0ak": {s', 7, "the character U+0000"),
        ("root: labels", 'root: "\\ud800"', 4, ""),
        ("  weak: {s", "  ? [weak]\n  : {s", 7, "a key is a single word"),
        ("strength: 0.5", "strength: !!bool maybe", 7, "YAML tags are not allowed"),
        ("strength: 0.5", "strength: !!int ''", 7, "YAML tags are not allowed"),
        ("strength: 0.5", "strength: !!set {a}", 7, "YAML tags are not allowed"),
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
    assert "\n" not in message
    assert words in message
    assert message.startswith(f"{path}:{line}: "), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found nothing"),
        ("just words", "found str"),
        ("- 1\n- 2\n", "found list"),
        ("\x00\x01\x02", "not YAML"),
        ("a: &a [*a]", "nested more than 100 deep"),
        ("a: &a [*a, *a]", "nested more than 100 deep"),
        ("a: *missing", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("[" * 200_000, "nested more than 100 deep"),
        ("- " * 200_000, "nested more than 100 deep"),
        ("{a: " * 200_000, "nested more than 100 deep"),
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
