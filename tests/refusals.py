"""Sweeps that search, race and stop, and what the command line says of one that it refuses."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest

from hdsweep import cli
from tests.conftest import SWEEP


def edited(text: str, *edits: tuple[str, str]) -> str:
    """A sweep file with each of ``edits``, (old, new), made; ``old`` stands in it once."""
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} in\n{text}"
        text = text.replace(old, new)
    return text


SEARCH = """\
name: found
method: tests.methods.noise
data: {name: tests.methods.labels, root: labels, make: {items: 8}}
seeds: [1, 2, 3]
arms:
  weak: {strength: 0.5}
  drawn:
    fault: {grid: [none, nan]}
    strength: {log_uniform: [0.1, 10]}
    level: {int: [0, 8], when: {fault: none}}
search: {trials: 6, maximize: auroc}
report: {metrics: [auroc]}
"""

RACE = edited(
    SWEEP,
    ("seeds: [1, 2]", "seeds: [1, 2, 3, 4, 5]"),
    ("resources:", "race: {metric: auroc, looks: [2, 3]}\nresources:"),
)

STOP = edited(SEARCH, ("report:", "stop: {rule: asha, metric: loss, mode: min}\nreport:"))


def refusal(sweep: Path) -> tuple[int, str]:
    """Line and message of the one complaint with which ``hdsweep run`` ends; nothing is written."""
    said, printed = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(printed),
    ):
        patch.chdir(sweep.parent)
        patch.setattr(sys, "argv", ["hdsweep", "run", sweep.name, "--inline"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    *before, complaint = said.getvalue().splitlines()
    assert ended.value.code == 2, said.getvalue()
    assert printed.getvalue() == ""
    # Test data are made where there are none, which is said; the store is what must not exist.
    assert all(line.startswith("making ") for line in before), said.getvalue()
    assert not (sweep.parent / "results").exists()
    found = re.fullmatch(rf"error: {re.escape(sweep.name)}:(\d+): (.+)", complaint)
    assert found is not None, complaint
    return int(found[1]), found[2]
