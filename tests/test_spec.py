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
from hdsweep.knobs import Choice, Grid, Range
from hdsweep.method import load_dataset, load_method
from hdsweep.spec import load_sweep
from hdsweep.strategy import Confirmed
from hdsweep.strict import ContentPath, Strict
from hdsweep.yamlfile import Loader
from tests.conftest import SWEEP
from tests.refusals import RACE, SEARCH, STOP, edited, refusal

Write = Callable[..., Path]


def test_a_sweep_file_becomes_arms_with_shared_and_own_knobs(sweep_file: Write) -> None:
    text = SWEEP.replace("arms:", "params: {level: 2, strength: 9}\narms:")
    spec = load_sweep(sweep_file(text))
    assert [arm.name for arm in spec.arms] == ["weak", "strong"]
    assert spec.arms[0].knobs == {"level": 2, "strength": 0.5}
    assert spec.arms[1].knobs["strength"] == Grid((1, 2))
    assert [setting.values for setting in spec.arms[1].settings()] == [
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
    assert len(spec.seeds) == len(spec.arms[1].settings()) == 20_000


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
        ("{grid: [1, 2]}", "{log_uniform: [1, 2]}", 8, "a distribution is drawn by a search"),
        ("grid: [1, 2]", "grid: [.nan]", 8, "cannot be a grid value"),
        ("strength: 0.5", "strength: .inf", 7, "write a finite number"),
        ("baseline: weak", "baseline: week", 10, "no arm is named 'week'; did you mean 'weak'?"),
        ("baseline: weak", "baseline: strong srength=1", 10, "did you mean 'strength'?"),
        (
            "baseline: weak",
            "baseline: strong strength=3",
            10,
            "no configuration 'strong strength=3'",
        ),
        (
            "baseline: weak",
            "baseline: strong strength",
            10,
            "'strength' is not a knob with its value",
        ),
        ("baseline: weak", "margins: {auroc: 0}", 10, "report.margins.auroc"),
        ("method: tests.methods.noise\n", "", 6, "no method"),
        ("name: noise", "name: ../evil", 1, "name"),
        ("gpus: 0,", "gpus: 1.5,", 9, "a fraction never spans devices"),
        ("seeds: [1, 2]", "seeds: [1]\nseeds: [2]", 6, "'seeds' is given twice"),
        ("seeds: [1, 2]", "seeds: !!python/object/apply:os.getcwd []", 5, "YAML tags are not"),
        ("seeds: [1, 2]", "seeds: [1, 2", 6, "this is not YAML"),
        ("seeds: [1, 2]\n", "", 1, "'seeds' is missing"),
        ("seeds: [1, 2]", "seeds: [1, 2]\nserch: {trials: 3}", 6, "did you mean 'search'?"),
        ("strength: 0.5", "strength: {a: {b: 1}}", 7, "a knob is a value, {grid: [...]} or one"),
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


def test_a_file_can_search_stop_race_and_confirm(sweep_file: Write) -> None:
    spec = load_sweep(sweep_file(STOP))
    drawn = spec.arms[1].knobs
    assert drawn["strength"] == Range("float", 0.1, 10, log=True)
    assert drawn["level"] == Range("int", 0, 8, when={"fault": ("none",)})
    assert drawn["fault"] == Grid(("none", "nan"))
    assert spec.search is not None
    assert (spec.search.maximize, spec.search.sampler) == (("auroc",), "tpe")
    assert spec.stop is not None
    assert (spec.stop.rule, spec.stop.mode) == ("asha", "min")
    race = load_sweep(sweep_file(RACE)).race
    assert race is not None
    assert race.looks == (2, 3)
    text = edited(SEARCH, ("seeds: [1, 2, 3]", "seeds: {select: [4, 5], confirm: [6, 7, 8]}"))
    spec = load_sweep(sweep_file(text))
    assert spec.seeds == (4, 5)
    assert spec.confirmed == Confirmed(select=(4, 5), confirm=(6, 7, 8))


@pytest.mark.parametrize(
    ("text", "knob"),
    [
        ("{uniform: [0, 1]}", Range("float", 0, 1)),
        ("{uniform: [0, 1], step: 0.25}", Range("float", 0, 1, step=0.25)),
        ("{uniform: [-3, 1e-4]}", Range("float", -3, 1e-4)),
        ("{log_uniform: [1e-4, 1e-2]}", Range("float", 1e-4, 1e-2, log=True)),
        ("{int: [1, 9], log: true}", Range("int", 1, 9, log=True)),
        ("{int: [1, 9], log: false, step: 2}", Range("int", 1, 9, step=2)),
        ("{int: [1.0, 9.0]}", Range("int", 1, 9)),
        ("{choice: [1, true, a, ~, [1]]}", Choice((1, True, "a", None, [1]))),
        (
            "{choice: [1, 2], when: {fault: [none, nan]}}",
            Choice((1, 2), when={"fault": ("none", "nan")}),
        ),
    ],
)
def test_distributions_are_read(sweep_file: Write, text: str, knob: object) -> None:
    path = sweep_file(edited(SEARCH, ("{log_uniform: [0.1, 10]}", text)))
    found = load_sweep(path).arms[1].knobs["strength"]
    assert found == knob
    if isinstance(found, Range):
        assert isinstance(found.low, int if found.kind == "int" else float)


Row = tuple[str, str, int, str]
_STRENGTH = "log_uniform: [0.1, 10]"
_LEVEL = "int: [0, 8], when: {fault: none}"
_NOT_ENDS = (
    "[.nan, 1]",
    "[0, .inf]",
    "[a, 1]",
    "[true, 2]",
    "[1]",
    "[1, 2, 3]",
    "3",
    "{a: 1}",
    "~",
)

KNOBS: list[Row] = [
    (_STRENGTH, "log_uniform: [0, 10]", 9, "strength.log_uniform: a logarithmic range lies above"),
    (_STRENGTH, "log_uniform: [-1, 10]", 9, "found low -1, write a small positive number"),
    (_STRENGTH, "log_uniform: [10, 0.1]", 9, "low 10 is not below high 0.1"),
    (_STRENGTH, "uniform: [1, 1.0]", 9, "low 1 is not below high 1.0; write uniform: [low, high]"),
    *(
        (_STRENGTH, f"uniform: {e}", 9, "uniform: [low, high], two numbers; found")
        for e in _NOT_ENDS
    ),
    (_STRENGTH, "uniform: [-1e308, 1e308]", 9, "wider than a number can be"),
    *(
        (
            _STRENGTH,
            f"uniform: [0, 1], step: {step}",
            9,
            ("strength.step: a step is a number above 0 and up to 1"),
        )
        for step in ("2", "0", "-0.5", "true", ".nan", "a", "~")
    ),
    (
        _STRENGTH,
        "log_uniform: [1, 2], step: 1",
        9,
        "'step' says nothing of a knob with log_uniform",
    ),
    (_STRENGTH, "log_uniform: [1, 2], log: true", 9, "'log' says nothing of a knob with log_unif"),
    (_STRENGTH, "uniform: [1, 2], log: true", 9, "'log' says nothing of a knob with uniform"),
    (_STRENGTH, "uniform: [1, 2], stp: 1", 9, "did you mean 'step'?"),
    (
        _STRENGTH,
        "grid: [1, 2], wen: {fault: nan}",
        9,
        ("strength.wen: 'wen' says nothing of a knob with grid; did you mean 'when'?"),
    ),
    (
        _STRENGTH,
        "log_uniform: [1, 2], grid: [1]",
        9,
        "one distribution; found keys log_uniform, grid",
    ),
    (_STRENGTH, "log_unifrom: [1, 2]", 9, "did you mean 'log_uniform'?"),
    (_STRENGTH, "when: {fault: none}", 9, "found keys when; known: choice, grid, int, log_uniform"),
    (_STRENGTH, "", 9, "a knob is a value, {grid: [...]} or one distribution; found nothing"),
    (_STRENGTH, "choice: []", 9, "an empty choice runs nothing"),
    (_STRENGTH, "choice: [1]", 9, "a choice of one value is none; list two, or write the value"),
    (_STRENGTH, "choice: [1, 1.0]", 9, "choice lists 1.0 twice"),
    (_STRENGTH, "choice: [1, {a: 1}]", 9, "cannot be a choice value"),
    (_LEVEL, "int: [1.5, 3]", 10, "level.int: the ends of a range of whole numbers are whole"),
    (_LEVEL, "int: [0, 1e17]", 10, "up to 2**53 only"),
    (_LEVEL, "int: [0, 8], log: true", 10, "a logarithmic range lies above 0"),
    (_LEVEL, "int: [1, 8], log: 1", 10, "level.log: log is true or false; found 1"),
    (_LEVEL, "int: [1, 8], log: true, step: 2", 10, "of a range that is not logarithmic"),
    (_LEVEL, "int: [0, 8], step: 1.5", 10, "a step is a whole number above 0 and up to 8"),
    (
        "when: {fault: none}",
        "when: {fautl: none}",
        10,
        ("drawn.level.when.fautl: arm drawn has no knob 'fautl'; did you mean 'fault'?"),
    ),
    ("when: {fault: none}", "when: {level: 1}", 10, "'level' cannot depend on itself"),
    (
        "when: {fault: none}",
        "when: {fault: nun}",
        10,
        "'fault' is never 'nun' here; it is 'none', ",
    ),
    ("when: {fault: none}", "when: {fault: [none, nun]}", 10, "'fault' is never 'nun' here"),
    ("when: {fault: none}", "when: {strength: 1}", 10, "'strength' is drawn from a range; a knob "),
    ("when: {fault: none}", "when: {}", 10, "write the knob that it depends on"),
    ("when: {fault: none}", "when: [fault]", 10, "write the knob that it depends on"),
    ("when: {fault: none}", "when: {fault: []}", 10, "write a value or a list of them; found []"),
    ("when: {fault: none}", "when: {fault: {a: 1}}", 10, "write a value or a list of them"),
    (
        "{grid: [none, nan]}",
        "{choice: [none, nan], when: {level: 1}}",
        8,
        ("drawn.fault.when: fault and level depend on one another"),
    ),
    (
        "fault: {grid: [none, nan]}",
        ("fault: {choice: [none, nan]}\n    sleep_s: {grid: [0, 1], when: {fault: nan}}"),
        9,
        "every value of a grid runs, and 'fault' is drawn; write a choice",
    ),
    (
        "search: {trials: 6, maximize: auroc}\n",
        "",
        9,
        (
            "drawn.strength: a distribution is drawn by a "
            "search; add a block such as search: {trials: 40, maximize: auroc}"
        ),
    ),
]

_SEARCH = "trials: 6, maximize: auroc"
_OBJECTIVE = "maximize: auroc"
_SPACE = f"fault: {{grid: [none, nan]}}\n    strength: {{{_STRENGTH}}}\n    level: {{{_LEVEL}}}"

SEARCHES: list[Row] = [
    (_SEARCH, "trials: 0, maximize: auroc", 11, "search.trials: input should be greater than or "),
    (_SEARCH, "trials: 1.5, maximize: auroc", 11, "search.trials"),
    (_SEARCH, "trials: true, maximize: auroc", 11, "search.trials: true is not a number"),
    (_SEARCH, "maximize: auroc", 11, "'trials' is missing"),
    (_SEARCH, "trials: 6", 11, "search: say what is sought: maximize: auroc, or minimize: latency"),
    (_SEARCH, "trials: 6, maximize: []", 11, "say what is sought"),
    (_SEARCH, "trials: 6, maximze: auroc", 11, "unknown key 'maximze'; did you mean 'maximize'?"),
    (_SEARCH, "trials: 6, maximize: 3", 11, "search.maximize"),
    (_OBJECTIVE, "maximize: [auroc, auroc]", 11, "an objective is listed twice; remove one"),
    (_OBJECTIVE, "maximize: auroc, minimize: auroc", 11, "an objective is listed twice"),
    (_OBJECTIVE, "maximize: auroc, sampler: tpee", 11, "unknown sampler 'tpee'; did you"),
    (_OBJECTIVE, "maximize: auroc, aggregate: meen", 11, "'meen'; did you mean 'mean'?"),
    (_OBJECTIVE, "maximize: auroc, confidence: 0.8", 11, "aggregate mean does not use confidence"),
    (_OBJECTIVE, "maximize: auroc, parallel: 0", 11, "search.parallel"),
    (
        _OBJECTIVE,
        "maximize: auroc, options: {n_startup_trial: 3}",
        11,
        "did you mean 'n_startup_tri",
    ),
    (_OBJECTIVE, "maximize: [auroc, ap], sampler: cmaes", 11, "search.sampler: cmaes seeks one"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), [*KNOBS, *SEARCHES])
def test_a_mistake_in_a_search_is_named_with_its_line(
    sweep_file: Write, old: str, new: str, line: int, words: str
) -> None:
    where, message = refusal(sweep_file(edited(SEARCH, (old, new))))
    assert words in message
    assert where == line, message


_CHOICE = ("fault: {grid: [none, nan]}", "fault: {choice: [none, nan]}")
_ALONE = (f"    level: {{{_LEVEL}}}\n", "")


def sampled(sampler: str, more: str = "") -> tuple[str, str]:
    return ("maximize: auroc", f"maximize: auroc, sampler: {sampler}{more}")


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([_CHOICE, sampled("gp")], "search.sampler: gp cannot draw a knob that depends on another"),
        ([_CHOICE, sampled("cmaes")], "cmaes cannot draw a knob that depends on another drawn one"),
        ([_ALONE, sampled("cmaes")], "two or more numbers and no choices, and arm drawn draws str"),
        (
            [(_LEVEL, "choice: [0, 1]"), sampled("cmaes")],
            "no choices, and arm drawn draws strength, level; use tpe",
        ),
        ([sampled("cmaes", ", constraints: ap >= 0.5")], "cmaes knows no constraints"),
        (
            [("{log_uniform: [0.1, 10]}", "1"), (_LEVEL, "grid: [0, 1]")],
            "search: no arm has a knob to search; give one a distribution",
        ),
        (
            [("[1, 2, 3]", "[1]"), ("maximize: auroc", "maximize: auroc, aggregate: lower_bound")],
            "search.aggregate: one seed has no spread to bound by; list two seeds, or mean",
        ),
    ],
)
def test_what_a_search_cannot_do_is_refused(
    sweep_file: Write, edits: list[tuple[str, str]], words: str
) -> None:
    text = edited(SEARCH, *edits)
    line, message = refusal(sweep_file(text))
    assert words in message
    assert text.splitlines()[line - 1].startswith("search:"), message


@pytest.mark.parametrize(
    ("text", "old", "new", "line", "words"),
    [
        (RACE, "looks: [2, 3]", "looks: [2, 5]", 9, "race.looks: a look after 5 of 5 seeds drops"),
        (RACE, "looks: [2, 3]", "looks: [3, 2]", 9, "numbers of seeds rise from look to look"),
        (RACE, "looks: [2, 3]", "looks: [2, 2]", 9, "numbers of seeds rise from look to look"),
        (RACE, "looks: [2, 3]", "looks: [1, 2]", 9, "race.looks.0: input should be greater than"),
        (RACE, "looks: [2, 3]", "looks: []", 9, "race.looks: list at least 1 value"),
        (RACE, "looks: [2, 3]", "look: [2, 3]", 9, "unknown key 'look'; did you mean 'looks'?"),
        (RACE, "looks: [2, 3]", "looks: [2], level: 0.5", 9, "race.level"),
        (RACE, "  strong: {strength: {grid: [1, 2]}}\n", "", 8, "race: one configuration has noth"),
        (
            RACE,
            "resources:",
            "search: {trials: 2, maximize: auroc}\nresources:",
            10,
            "no arm has a",
        ),
        (
            SEARCH,
            "report:",
            "race: {metric: auroc, looks: [2]}\nreport:",
            12,
            "race: a race compares configurations that the file lists",
        ),
        (STOP, "rule: asha", "rule: ashaa", 12, "stop.rule: unknown rule 'ashaa'; did you"),
        (STOP, "rule: asha", "rule: patience", 12, "say how many steps without improvement"),
        (STOP, "rule: asha", "rule: asha, patience: 3", 12, "rule asha does not use patience; rem"),
        (
            STOP,
            "rule: asha",
            "rule: median, reduction: 2",
            12,
            "rule median does not use reduction",
        ),
        (STOP, "rule: asha", "rule: asha, reduction: 1", 12, "stop.reduction"),
        (STOP, "rule: asha", "rule: asha, grace: 0", 12, "stop.grace"),
        (STOP, "rule: asha, ", "", 12, "'rule' is missing"),
        (STOP, "mode: min", "mode: low", 12, "stop.mode"),
        (STOP, "rule: asha", "rule: asha, garce: 1", 12, "did you mean 'grace'?"),
    ],
)
def test_a_mistake_in_stopping_or_racing_is_named_with_its_line(
    sweep_file: Write, text: str, old: str, new: str, line: int, words: str
) -> None:
    where, message = refusal(sweep_file(edited(text, (old, new))))
    assert words in message
    assert where == line, message


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ("{select: [1, 2], confirm: [3, 1]}", "seeds.confirm.1: seed 1 is listed twice"),
        ("{select: [1, 1], confirm: [3]}", "seeds.select.1: seed 1 is listed twice"),
        ("{select: [], confirm: [3]}", "seeds.select: list at least 1 value"),
        ("{select: [1], confirm: []}", "seeds.confirm: list at least 1 value"),
        ("{select: [1]}", "'confirm' is missing"),
        ("{selct: [1], confirm: [2]}", "seeds.selct: unknown key 'selct'; did you mean 'select'?"),
        ("{select: 1, confirm: [2]}", "seeds.select: write a list; found 1"),
        (
            "{select: [-1], confirm: [2]}",
            "seeds.select.0: input should be greater than or equal to",
        ),
        ("{select: [true], confirm: [2]}", "seeds.select: true is not a number"),
        ("{select: [1], confirm: [2], top: 0}", "seeds.top"),
        ("{select: [1], confirm: [2], mode: big}", "seeds.mode"),
        ("{}", "'select' is missing"),
    ],
)
def test_a_mistake_in_seeds_to_confirm_with_is_named(
    sweep_file: Write, seeds: str, words: str
) -> None:
    line, message = refusal(sweep_file(edited(SEARCH, ("seeds: [1, 2, 3]", f"seeds: {seeds}"))))
    assert words in message
    assert line == 4, message


def test_a_knob_that_arms_share_may_apply_in_one_of_them_only(sweep_file: Write) -> None:
    shared = ("arms:", "params: {level: {grid: [1, 2], when: {fault: nan}}}\narms:")
    arms = (
        f"  weak: {{strength: 0.5}}\n  drawn:\n    {_SPACE}\n",
        "  one: {fault: none, strength: {uniform: [0, 1]}}\n  two: {fault: nan}\n",
    )
    spec = load_sweep(sweep_file(edited(SEARCH, shared, arms)))
    assert [setting.values for setting in spec.arms[0].settings()] == [{"fault": "none"}]
    assert [setting.values["level"] for setting in spec.arms[1].settings()] == [1, 2]
    nowhere = (arms[0], arms[1].replace("fault: nan", "fault: raise"))
    line, message = refusal(sweep_file(edited(SEARCH, shared, nowhere)))
    assert (line, message) == (
        5,
        "params.level.when.fault: 'fault' is never 'nan' here; it is 'none', 'raise'",
    )


def test_only_those_in_a_circle_are_named(sweep_file: Write) -> None:
    text = edited(
        SEARCH,
        (_LEVEL, "choice: [0, 1], when: {sleep_s: 0}"),
        (
            "{grid: [none, nan]}",
            (
                "{choice: [none, nan], when: {level: 1}}\n    "
                "sleep_s: {choice: [0, 1], when: {level: 0}}"
            ),
        ),
    )
    line, message = refusal(sweep_file(text))
    assert (line, message) == (
        9,
        "arms.drawn.sleep_s.when: sleep_s and level depend on one another",
    )


@pytest.mark.parametrize("text", ["strong", "strong strength=2", "strong  strength=2.0"])
def test_a_baseline_is_an_arm_or_one_of_its_configurations(sweep_file: Write, text: str) -> None:
    spec = load_sweep(sweep_file(SWEEP.replace("baseline: weak", f"baseline: {text}")))
    assert spec.report.baseline == text
