"""Work that trials share, done once and named by what it was made from.

A stage's folder is ``ROOT/stages/<name>/<key>``; the key is the digest of name, version, inputs,
the data's fingerprint and the source of the code. It is built beside its place and renamed into it,
so that a folder of that name is always whole.

Who builds holds a lease: a file with the holder's process and host, renewed by a thread of the
holder. A holder that died on this machine is found out at once, one on another machine when its
lease was not renewed for LEASE_S on the waiter's own clock; a slow one keeps renewing. A holder
that was stopped for longer and wakes again finds the stage built by another, and takes it: both
built the same, and only the rename decides, so a lost lease costs time and never a result.

Who reads holds a shared lock on ``stage.json`` until its trial ends, so that trimming the cache
never takes a folder from under a running trial.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from filelock import SoftFileLease, Timeout

from hdsweep.identity import digest

LEASE_S = 30.0  # a network filesystem may show a renewed lease some seconds late
_BEAT_S = 3.0
_POLL_S = 0.1
_NOTE = "stage.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """What names a piece of shared work, before it is done.

    Args:
        name: What it is, a plain word as in ``tokens``; folders are grouped by it.
        version: Raised by the author when building may give another result.
        inputs: JSON values that, with the data's content, determine the result.
        code: Module, or folder of modules, that builds it, as in ``trainables.encoders``: a stage
            is a cache, and one of another source is built anew although nobody raised ``version``.
        needs: Stages that are asked for while it is built; not part of its name.
    """

    name: str
    version: int
    inputs: Mapping[str, object]
    code: str
    needs: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a stage's name is a plain word, found {self.name!r}")


@dataclass(frozen=True, slots=True)
class Kept:
    """A stage in the cache.

    Args:
        name: Of the stage.
        key: 20 hex digits.
        folder: Where it is.
        inputs: What it was made from.
        size_bytes: Of all its files.
        build_s: Seconds that building it took, those of stages it asked for included.
        used_s: When it was last asked for, in seconds since the epoch.
    """

    name: str
    key: str
    folder: Path
    inputs: Mapping[str, object]
    size_bytes: int
    build_s: float
    used_s: float


def stage_key(stage: Stage, fingerprint: str, source: str) -> str:
    """20 hex digits that name a stage's content.

    Args:
        stage: What is asked for.
        fingerprint: Of the data.
        source: Digest of the code that reads the data and builds.
    """
    content = {"stage": stage.name, "version": stage.version, "inputs": stage.inputs}
    return digest(content | {"data": fingerprint, "source": source})


def folder_of(root: Path, stage: Stage, key: str) -> Path:
    """Where a stage is or will be, in the store ``root``."""
    return root / "stages" / stage.name / key


def obtain(
    root: Path,
    stage: Stage,
    key: str,
    build: Callable[[Path], None],
    *,
    idle: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> tuple[Path, int]:
    """The finished folder of a stage, built now by this process if nobody has or is about to.

    Args:
        root: The store.
        stage: What is asked for.
        key: Its name.
        build: Writes into the empty folder it is given; whatever it raises is passed on and leaves
            nothing behind.
        idle: Entered while another process builds.

    Returns:
        A folder to be read only, and an open file descriptor that protects it from being removed
        until it is closed.
    """
    target = folder_of(root, stage, key)
    while True:
        held = _hold(target)
        if held is not None:
            return target, held
        target.parent.mkdir(parents=True, exist_ok=True)
        lease = _lease(target)  # one object for the whole wait: it remembers when it saw a renewal
        if not _try_build(lease, target, stage, build):
            with idle():
                while not target.is_dir() and not _try_build(lease, target, stage, build):
                    time.sleep(_POLL_S)


def offer(root: Path, stage: Stage, key: str, build: Callable[[Path], None]) -> bool:
    """Build a stage unless it is there or another process is at it; never wait.

    Returns:
        Whether the stage is there now.
    """
    target = folder_of(root, stage, key)
    if target.is_dir():
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    return _try_build(_lease(target), target, stage, build)


def _lease(target: Path) -> SoftFileLease:
    return SoftFileLease(
        target.parent / f".{target.name}.lease",
        lease_duration=LEASE_S,
        heartbeat_interval=_BEAT_S,
        thread_local=False,
    )


def _try_build(
    lease: SoftFileLease, target: Path, stage: Stage, build: Callable[[Path], None]
) -> bool:
    """Whether the stage is there now; False when another process holds the lease."""
    try:
        lease.acquire(timeout=0)
    except Timeout:
        return False
    try:
        if not target.is_dir():
            _build(target, stage, build)
    except Exception:
        # Who took over may have removed what it held for a dead process's.
        if lease.compromise is None:
            raise
        return target.is_dir()
    finally:
        lease.release()
    return True


def _build(target: Path, stage: Stage, build: Callable[[Path], None]) -> None:
    home = target.parent
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=home))
    began = time.monotonic()
    with _locked(partial, fcntl.LOCK_EX):
        try:
            for other in home.glob(f".{target.name}-*"):
                _remove_if_abandoned(other)
            build(partial)
            note = {
                "name": stage.name,
                "version": stage.version,
                "inputs": stage.inputs,
                "build_s": round(time.monotonic() - began, 3),
                "size_bytes": sum(p.stat().st_size for p in partial.rglob("*") if p.is_file()),
                "host": socket.gethostname(),
            }
            (partial / _NOTE).write_text(json.dumps(note, indent=1) + "\n")
            for path in (*partial.rglob("*"), partial):  # private as temporary files are made, and
                path.chmod(0o755 if path.is_dir() else 0o644)  # colleagues read a store too
                _sync(path)  # after a power cut the name must not stand for empty files
            try:
                os.rename(partial, target)
            except OSError:
                if not target.is_dir():  # else one that took this lease over has finished first
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[bool]:
    """Hold the operating system's lock on a file or folder, if it can be had at once."""
    handle = os.open(path, os.O_RDONLY)
    try:
        free = True
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(handle)


def _hold(folder: Path) -> int | None:
    """An open, locked descriptor of a stage that is in use from now on; None when it is not there.

    Its time of last use is now.
    """
    note = folder / _NOTE
    try:
        handle = os.open(note, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        with contextlib.suppress(OSError):  # a filesystem without locks: then nothing protects it
            fcntl.flock(handle, fcntl.LOCK_SH)
        here = os.stat(note)
    except FileNotFoundError:  # removed before it was ours
        os.close(handle)
        return None
    if not os.path.samestat(here, os.fstat(handle)):
        os.close(handle)
        return None
    with contextlib.suppress(OSError):  # a store that may only be read
        os.utime(note)
    return handle


# --- the cache as a whole -------------------------------------------------------------------------


def kept(root: Path) -> list[Kept]:
    """All finished stages of a store, the one used last first."""
    found = []
    for note in (root / "stages").glob(f"*/*/{_NOTE}"):
        folder = note.parent
        if folder.name.startswith("."):
            continue
        with contextlib.suppress(OSError):  # removed meanwhile
            used = note.stat().st_mtime
            try:
                told = json.loads(note.read_bytes())
                inputs, build_s = dict(told["inputs"]), float(told["build_s"])
            except (ValueError, KeyError, TypeError):
                inputs, build_s = {}, 0.0  # damaged: still there, and still of some size
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            found.append(Kept(folder.parent.name, folder.name, folder, inputs, size, build_s, used))
    return sorted(found, key=lambda one: -one.used_s)


def remove(one: Kept) -> bool:
    """Remove a stage at once as a whole; False when a running trial uses it."""
    try:
        with _locked(one.folder / _NOTE, fcntl.LOCK_EX) as free:
            if not free:
                return False
            aside = Path(tempfile.mkdtemp(prefix=".removed-", dir=one.folder.parent))
            os.rename(one.folder, aside / one.key)
    except FileNotFoundError:  # another process was faster
        return True
    shutil.rmtree(aside)
    return True


def trim(root: Path, size_bytes: int) -> tuple[list[Kept], list[Kept]]:
    """Remove the stages that were not used for longest, until all together fit into a size.

    Returns:
        Those removed, and those that would have been but are in use.
    """
    remove_leftovers(root)
    everything = kept(root)
    total = sum(one.size_bytes for one in everything)
    removed: list[Kept] = []
    in_use: list[Kept] = []
    for one in reversed(everything):
        if total <= size_bytes:
            break
        if remove(one):
            removed.append(one)
            total -= one.size_bytes
        else:
            in_use.append(one)
    return removed, in_use


def remove_leftovers(root: Path) -> None:
    """Remove what killed processes left half built or half removed."""
    for other in _hidden(root):
        _remove_if_abandoned(other)


def _hidden(root: Path) -> Iterable[Path]:
    return (p for p in (root / "stages").glob("*/.*-*") if p.is_dir())


def _remove_if_abandoned(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError), _locked(folder, fcntl.LOCK_EX) as free:
        if free:
            shutil.rmtree(folder, ignore_errors=True)
