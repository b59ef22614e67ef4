"""Shared by all tests: an isolated cache folder, and sweeps of a method that needs no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from hdsweep import cli

settings.register_profile("busy", deadline=None)  # a busy machine is no failure
settings.load_profile("busy")

ROOT = Path(__file__).parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def hdsweep(tmp_path: Path) -> Run:
    """Run the command line in a process of its own, in ``tmp_path``."""

    def run(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hdsweep.cli", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def invoke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Invoke:
    """Run the command line in this process: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hdsweep", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return run


def interruptible() -> None:
    """For a child process: a runner started in the background ignores SIGINT, and so would it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


SWEEP = """\
name: noise
question: Does strength separate the classes?
method: tests.methods.noise
data: {name: tests.methods.labels, root: labels, make: {items: 40}}
seeds: [1, 2]
arms:
  weak: {strength: 0.5}
  strong: {strength: {grid: [1, 2]}}
resources: {gpus: 0, cpus: 1}
report: {metrics: [auroc, tpr@5], baseline: weak}
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Callable[[str], Path]:
    """Write a sweep file; the text of a small valid one by default."""

    def write(text: str = SWEEP, name: str = "noise.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def records(store: Path) -> dict[str, bytes]:
    """Trial id -> bytes of its record."""
    return {p.parent.name: p.read_bytes() for p in store.glob("trials/*/*/record.json")}


def read(done: subprocess.CompletedProcess[str]) -> dict:  # type: ignore[type-arg]
    """The JSON that a command printed."""
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)
