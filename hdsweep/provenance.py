"""Where a result came from: code, packages, machine.

Recorded beside a trial, never part of its name.
Environment variables are not recorded: they hold secrets.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
import socket
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "hdsweep", "torch", "torchvision", "timm", "anomalib", "numpy", "scipy", "scikit-learn",
    "faiss-cpu", "ray", "optuna", "tifffile",
)  # fmt: skip


@lru_cache(maxsize=1)
def of_process() -> dict[str, Any]:
    """Python, packages, platform and git state, as JSON values. Looked up once in a process."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "git": _git_state(Path(__file__).parent),
    }


def of_machine(device: str, threads: int) -> dict[str, Any]:
    """Host and device of the running trial, as JSON values.

    Args:
        device: ``cpu`` or ``cuda:0``.
        threads: CPU threads the trial may use.
    """
    found: dict[str, Any] = {"host": socket.gethostname(), "device": device, "threads": threads}
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


@lru_cache(maxsize=64)  # a process has imported what it has, whatever is edited meanwhile
def source_digest(*modules: str) -> str:
    """Digest of the source of trainables and of the ``trainables`` modules they import.

    Read as text, without importing: ``plan`` asks it for every method of a sweep.

    Args:
        modules: Dotted names, as in ``trainables.dinomaly``.

    Returns:
        16 hex digits; the same on every machine for the same source.
    """
    files: dict[str, bytes] = {}
    waiting, seen = list(modules), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for path in _files_of(name):
            content = path.read_bytes()
            files[f"{name}/{path.name}"] = content
            waiting += _trainables_imported(content)
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def _files_of(module: str) -> list[Path]:
    """Files of a module, found by path: ``find_spec`` would import its parents, torch and all."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    for home in (spec.submodule_search_locations or ()) if spec else ():
        place = Path(home, *inner)
        if place.with_suffix(".py").is_file():
            return [place.with_suffix(".py")]
        if (place / "__init__.py").is_file():
            whole = len(inner) == 1 and inner != ["data"]  # a method in a folder is one thing
            return sorted(place.rglob("*.py")) if whole else [place / "__init__.py"]
    return []


def _trainables_imported(content: bytes) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.startswith("trainables.")]


def _git_state(folder: Path) -> dict[str, str] | None:
    """Commit and a digest of the uncommitted difference; None outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return done.stdout

    try:
        if git("ls-files", "--error-unmatch", __file__).strip() == "":
            return None
        diff = git("diff", "HEAD")
        state = {"commit": git("rev-parse", "HEAD").strip()}
    except (OSError, subprocess.SubprocessError):
        return None
    if diff:
        state["diff"] = hashlib.sha256(diff.encode()).hexdigest()[:16]
    return state
