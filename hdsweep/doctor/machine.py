"""Checks of the machine: Python, packages and GPUs, without importing what is slow to import."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from hdsweep.doctor.finding import Finding

_NEEDED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*(?P<bounds>[^;]*)(?P<extra>;.*)?")
_AT_LEAST = re.compile(r">=\s*([0-9.]+)")
_PYTHON = (3, 11)


def examine() -> Iterator[Finding]:
    """Look at what trials run on."""
    if sys.version_info < _PYTHON:
        yield Finding("python", f"is {sys.version.split()[0]}", "install Python 3.11 or newer")
    try:
        needed = metadata.requires("hdsweep") or []
    except metadata.PackageNotFoundError:
        needed = []
        yield Finding("hdsweep", "is not installed", "pip install it, for its requirements", "note")
    for line in needed:
        yield from _package(line)
    if importlib.util.find_spec("ray") is None:
        yield Finding(
            "ray", "cannot be imported", "pip install 'ray[default,tune]'; --inline works"
        )
    gpus = gpu_names()
    try:
        for_cpu = metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        for_cpu = False
    if gpus and for_cpu:
        yield Finding("torch", f"is built for the CPU, beside {gpus[0]}", "install it for CUDA")


def gpu_names() -> list[str]:
    """GPUs as their driver names them; none where it is not installed."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _package(line: str) -> Iterator[Finding]:
    asked = _NEEDED.match(line)
    if asked is None or asked["extra"]:
        return
    name, bound = asked["name"], _AT_LEAST.search(asked["bounds"])
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        yield Finding(name, "is not installed", f"pip install '{line}'")
        return
    if bound is not None and _numbers(found) < _numbers(bound[1]):
        yield Finding(name, f"is {found}, older than {bound[1]}", f"pip install -U '{line}'")


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version; what follows it (rc1, +cpu) does not matter here."""
    found = [int(part) for part in re.match(r"[0-9.]*", version)[0].split(".") if part]  # type: ignore[index]
    while found and not found[-1]:
        found.pop()
    return tuple(found)
