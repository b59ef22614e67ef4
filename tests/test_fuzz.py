"""Whatever stands in a sweep file or on the command line, hdsweep answers: no traceback, no hang.

The mutations are drawn from seeded generators, so a case that fails here fails again.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from hdsweep import cli
from hdsweep.errors import HdsweepError
from hdsweep.spec import load_sweep
from tests.conftest import ROOT, SWEEP
from tests.refusals import RACE, SEARCH, STOP

FEW, MANY = 150, 2500
CASE_S = 20.0  # of processor time; no case takes a second

NASTY = [
    "null", "~", "true", "no", "0", "-1", "1", "1e400", "-1e-400", ".nan", ".inf", "-.inf", "0x1F",
    "0o17", "017", "1_000", "2026-01-01", "1:30", "9" * 25, "9" * 400, "1e-4", "''", "' '", "[]",
    "{}", "[[]]", "[null]", "{a: }", "{grid: []}", "{grid: [1, 1]}", "{grid: {a: 1}}",
    "{grid: [[1]]}", "{uniform: [1, 0]}", "{log_uniform: [0, 1]}", "{int: [1.5, 3]}",
    "{choice: []}", "{choice: [{}]}", "{int: [0, 99999999999999999999]}", "{grid: [1], int: [1]}",
    "&a [*a]", "*a", "&a x", "!!python/name:os", "!x y", "!!binary aGk=", "!!set {a}", "<<", "? x",
    "\u202etxet", "é", "𝔘", "\u2028", "\ufeff", "x\0y", "\x1b[31m", "../x", "/etc/passwd",
    "os.path", "a.b.c", ".", "..", "tpr@", "tpr@0", "tpr@1e9", "auroc[=]", "auroc[x=y]", "x" * 5000,
    "[" * 150, "{a: " * 150, "'", '"', "- - -", "|", ">", "%", "@", "`", "#", ": :", "---", "...",
    "\t", "select", "confirm", "baseline", "{select: [1], confirm: [1]}", "{select: 1}",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", " ", "x", "é\u202e", "a" * 3000, "../x", "auroc", "tpr@1", "none", [], [[]],
    [1, 1], ["x"] * 300, {}, {"a": 1}, {"grid": [1, 2]}, {"grid": [[1]]}, {"uniform": [0, 1]},
    {"log_uniform": [1e-9, 1e9]}, {"int": [0, 3]}, {"choice": ["a", 1, None]}, {"when": {"x": 1}},
    {"int": [0, 3], "when": {"x": 1}}, {1: 2}, {"select": [1, 2], "confirm": [3]},
]  # fmt: skip


class Hang(BaseException):
    """A case that took too long; no handler of ours catches it."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, CASE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# --- sweep files ----------------------------------------------------------------------------------


def originals() -> list[str]:
    files = sorted((ROOT / "sweeps").glob("*.yaml"))
    return [SWEEP, SEARCH, RACE, STOP, *(path.read_text() for path in files)]


def _pieces(text: str) -> list[str]:
    """Words, marks, spaces and line ends; joined they are the text."""
    found, last = [], ""
    for c in text:
        kind = "word" if c.isalnum() or c in "_." else c if c in " \n" else "mark"
        if found and kind == last != "mark":
            found[-1] += c
        else:
            found.append(c)
        last = kind
    return found


def mutated_text(text: str, rng: random.Random) -> str:
    """Text after one to four edits of its pieces or lines."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        parts = _pieces(text) if rng.random() < 0.7 else text.splitlines(keepends=True)
        if not parts:
            return rng.choice(NASTY)
        a, b = rng.randrange(len(parts)), rng.randrange(len(parts))
        edit = rng.randrange(7)
        if edit == 0:
            del parts[a]
        elif edit == 1:
            parts.insert(b, parts[a])
        elif edit == 2:
            parts[a], parts[b] = parts[b], parts[a]
        elif edit == 3:
            parts[a] = rng.choice(NASTY)
        elif edit == 4:
            parts.insert(a, rng.choice(NASTY))
        elif edit == 5:
            del parts[min(a, b) : max(a, b)]
        else:
            word = parts[a]
            place = rng.randrange(len(word) + 1)
            parts[a] = (
                word[:place] + chr(rng.choice([0, 9, 32, 58, 91, 0x7F, 0x300])) + word[place:]
            )
        text = "".join(parts)
    return text


def mutated_tree(text: str, rng: random.Random) -> str:
    """Text of the same mapping after one to three changes of what stands somewhere in it."""
    tree = yaml.safe_load(text)
    for _ in range(rng.randrange(1, 4)):
        node, above = tree, None
        while isinstance(node, dict | list) and node and (above is None or rng.random() < 0.75):
            above = node
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            node = node[key]
        edit = rng.randrange(4)
        if above is None:
            break
        if edit == 0:
            above[key] = rng.choice(VALUES)
        elif edit == 1:
            del above[key]
        elif isinstance(above, dict):
            above[rng.choice(VALUES[14:20] if edit == 2 else list(tree))] = node
        else:
            above.append(rng.choice(VALUES))
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=rng.random() < 0.5)


def fuzz_files(home: Path, cases: int, seed: int) -> dict[int, int]:
    """Exit statuses of ``hdsweep check`` on as many files, how often each."""
    rng, sources, statuses = random.Random(seed), originals(), {0: 0, 2: 0}
    runner = CliRunner()
    path = home / "mutated.yaml"
    for case in range(cases):
        mutate = mutated_text if rng.random() < 0.6 else mutated_tree
        text = mutate(rng.choice(sources), rng)
        content = text.encode(errors="surrogatepass")
        if rng.random() < 0.03:
            place = rng.randrange(len(content) + 1)
            content = content[:place] + bytes([rng.randrange(128, 256)]) + content[place:]
        path.write_bytes(content)
        with time_limit():
            result = runner.invoke(cli.app, ["check", str(path), "--format", "json"])
        if result.exit_code not in statuses or not isinstance(result.exception, SystemExit | None):
            kept = "".join(traceback.format_exception(*(result.exc_info or (None,) * 3)))
            pytest.fail(f"seed {seed}, case {case}: {result.exception!r}\n{text}\n{kept[-3000:]}")
        statuses[result.exit_code] += 1
        assert os.listdir(home) == [path.name], (seed, case)
    return statuses


def test_a_mutated_sweep_file_is_checked_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    statuses = fuzz_files(tmp_path, FEW, seed=1)
    assert min(statuses.values()) > FEW // 20  # some mutations do not matter, most do


@pytest.mark.long
@pytest.mark.parametrize("seed", [11, 12])
def test_thousands_of_mutated_sweep_files_are_checked_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    statuses = fuzz_files(tmp_path, MANY // 2, seed=seed)
    assert min(statuses.values()) > MANY // 40


@pytest.mark.parametrize("key", ["ar[ms", "int", "str", "a(b)", "none"])
def test_a_key_that_looks_like_a_type_is_an_unknown_key(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{SWEEP}{key}: 1\n")
    with pytest.raises(HdsweepError, match=re.escape(f"a.yaml:11: {key}: unknown key '{key}'")):
        load_sweep(path)


# --- the command line -----------------------------------------------------------------------------

WORDS = [
    "", " ", "-", "--", "-1", "0", "1", "3", "1e9", "nan", "inf", "9" * 30, "x", "noise", "weak",
    "strong", "auroc", "tpr@5", "tpr@", "auroc[x=y]", "noise.yaml", "nowhere.yaml", "results",
    "nowhere", ".", "..", "../x", "x/y", "\x1b[31m", "é", "\u202e", "a" * 300, "strength=1",
    "strength=", "=", "weak=1", "json", "html", "terminal", "latex", "all", "none", "3,5", "1,1",
    "a,b", "10GB", "1%", "50 %", "[red]", ":x:", "strong strength=1", "0123456789", "ffff", "*",
    "out.tar", "rows.csv",
]  # fmt: skip
ALWAYS = {
    "run": ["--inline"],  # Ray takes seconds to start
    "watch": ["--host", "256.0.0.1"],  # nothing listens there, or it would serve for ever
}


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Names of every command, with those of its groups."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path


def drawn(command: Any, rng: random.Random, ids: list[str]) -> list[str]:
    """Arguments and options of a command, with values of any kind."""
    given: list[str] = []
    words = [*WORDS, *ids]
    for parameter in command.params:
        if parameter.name in ("help", "host", "open", "inline", "address"):
            continue
        if parameter.param_type_name == "argument":
            many = (
                rng.choice([0, 1, 1, 2]) if parameter.nargs == -1 or not parameter.required else 1
            )
            given += [rng.choice(words) for _ in range(many)]
        elif rng.random() < 0.3:
            kind = parameter.bare_type
            choices = [*kind] if isinstance(kind, type) and issubclass(kind, StrEnum) else []
            given.append(rng.choice([*parameter.opts, *parameter.secondary_opts]))
            if not getattr(parameter, "is_flag", False):
                known = choices and rng.random() < 0.7
                value = rng.choice(choices) if known else rng.choice(words)
                given.append(str(value))
    if rng.random() < 0.1:
        given.insert(rng.randrange(len(given) + 1), rng.choice(["--nope", "-x", *words]))
    return given


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep that ran, and a table of results."""
    home = tmp_path_factory.mktemp("fuzz")
    (home / "noise.yaml").write_text(SWEEP)
    (home / "rows.csv").write_text("arm,seed,auroc\na,1,0.5\na,2,0.6\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        done = CliRunner().invoke(cli.app, ["run", "noise.yaml", "--inline"])
        assert done.exit_code == 0, done.output
        done = CliRunner().invoke(cli.app, ["export", "archive", "out.tar"])
        assert done.exit_code == 0, done.output
    return home


def fuzz_arguments(
    ran: Path, home: Path, each: int, seed: int, patch: Callable[[Path], None]
) -> int:
    rng, runner, count = random.Random(seed), CliRunner(), 0
    group = typer.main.get_command(cli.app)
    for path in leaves(group):
        command: Any = group
        for name in path:
            command = command.commands[name]
        for case in range(each):
            # Each command begins with the same folder, two below what it might climb to.
            place = home / f"{'-'.join(path)}-{case}/in/deep"
            shutil.copytree(ran, place)
            patch(place)
            ids = [p.name for p in place.glob("results/trials/*/*")][:2]
            arguments = [*path, *drawn(command, rng, [*ids, ids[0][:8]]), *ALWAYS.get(path[0], [])]
            with time_limit():
                result = runner.invoke(cli.app, arguments)
            allowed = SystemExit | HdsweepError | OSError | None  # what main makes a message of
            if not isinstance(result.exception, allowed) or result.exit_code not in (0, 1, 2):
                kept = "".join(traceback.format_exception(*(result.exc_info or (None,) * 3)))
                pytest.fail(f"hdsweep {arguments}: {result.exception!r}\n{kept[-3000:]}")
            assert os.listdir(home / f"{'-'.join(path)}-{case}") == ["in"], arguments
            count += 1
            patch(home)
            shutil.rmtree(home / f"{'-'.join(path)}-{case}")
    return count


def test_arguments_of_any_kind_are_taken_or_refused(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzz_arguments(ran, tmp_path, 1, seed=1, patch=monkeypatch.chdir)


@pytest.mark.long
def test_hundreds_of_arguments_of_any_kind_are_taken_or_refused(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fuzz_arguments(ran, tmp_path, 40, seed=11, patch=monkeypatch.chdir) > 500
