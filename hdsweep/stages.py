"""Work that trials share, done once and named by what it was made from.

A stage's folder is ``ROOT/stages/<name>/<key>``; the key is the digest of name, version, inputs,
the data with their parameters, and the source of the code. It is built beside its place and renamed
into it, so that a folder of that name is always whole.

Who builds holds a lease (see ``lease.py``). One who lost it, stopped for long, and goes on later
finds the stage built by another, and takes it: both built the same, and only the rename decides, so
a lost lease costs time and never a result.

A builder may leave checkpoints beside the stage's place, for whoever builds it after this one was
killed.

Who reads holds a shared lock on ``stage.json`` until its trial ends, so that trimming the cache
never takes a folder from under a running trial.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from hdsweep.errors import HdsweepError, StoreError
from hdsweep.identity import digest
from hdsweep.lease import Lease

NOTE = "stage.json"
_LOCK = "lock"
_PROGRESS = "-checkpoint"
_POLL_S = 0.1
_LONGEST_POLL_S = 1.0  # a hundred waiters must not keep a file server busy
_PROBE_BYTES = 1 << 20


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


class Note(BaseModel):
    """What stands in a stage's ``stage.json``."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    inputs: dict[str, Any]
    build_s: float = Field(ge=0, allow_inf_nan=False)
    size_bytes: int = Field(ge=0)
    host: str


def stage_key(stage: Stage, data: str, source: str) -> str:
    """20 hex digits that name a stage's content.

    Args:
        stage: What is asked for.
        data: Digest of the data's content, and of the parameters by which they are read.
        source: Digest of the code that reads the data and builds.
    """
    content = {"stage": stage.name, "version": stage.version, "inputs": stage.inputs}
    return digest(content | {"data": data, "source": source})


def folder_of(root: Path, stage: Stage, key: str) -> Path:
    """Where a stage is or will be, in the store ``root``."""
    return root / "stages" / stage.name / key


def progress_of(folder: Path) -> Path:
    """Where the builder of the stage ``folder`` keeps its checkpoints until it is whole."""
    return folder.parent / f".{folder.name}{_PROGRESS}"


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
        A folder to be read only, and what protects it from being removed until ``let_go``.

    Raises:
        StoreError: The store cannot be read or written, or is full.
    """
    target = folder_of(root, stage, key)
    while (held := _hold(target)) is None:
        with _asking(target) as lease:
            ours = _take(lease, target)
            if not ours:
                with idle():
                    ours = _wait(target, lease)
            if ours:
                _make(target, lease, stage, build)
    return target, held


def offer(root: Path, stage: Stage, key: str, build: Callable[[Path], None]) -> bool:
    """Build a stage unless it is there or another process is at it; never wait.

    Returns:
        Whether the stage is there now.

    Raises:
        StoreError: As ``obtain``.
    """
    target = folder_of(root, stage, key)
    if not is_whole(target):
        with _asking(target) as lease:
            if _take(lease, target):
                _make(target, lease, stage, build)
    return is_whole(target)


def let_go(held: int) -> None:
    """End the protection that ``obtain`` gave; what is mapped into memory stays readable."""
    _close(held)


# --- building -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _asking(target: Path) -> Iterator[Lease]:
    with _writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    lease = Lease(target)
    try:
        yield lease
    finally:
        lease.release()


def _take(lease: Lease, target: Path) -> bool:
    with _writing(target.parent):
        return lease.take()


def _wait(target: Path, lease: Lease) -> bool:
    """Wait until a stage is there (False), or is this process's to build (True)."""
    pause = _POLL_S
    while not is_whole(target):
        if _take(lease, target):
            return True
        time.sleep(pause)
        pause = min(1.2 * pause, _LONGEST_POLL_S)
    return False


def _make(target: Path, lease: Lease, stage: Stage, build: Callable[[Path], None]) -> None:
    try:
        if not is_whole(target):
            _build(target, stage, build)
    except Exception:
        # Who took over may have removed what its holder, dead to all appearance, had half built;
        # and a holder that woke up and was faster takes away the checkpoints of both.
        if not (lease.lost() or is_whole(target)):
            raise


def _build(target: Path, stage: Stage, build: Callable[[Path], None]) -> None:
    home = target.parent
    with _partial(target) as partial:
        for other in home.glob(f".{target.name}-*"):
            if other not in (partial, progress_of(target)):
                remove_if_abandoned(other)
        began = time.monotonic()
        folder = partial / "stage"
        with _writing(home):
            folder.mkdir()
        try:
            build(folder)
        except HdsweepError:
            raise
        except Exception:
            # Libraries wrap what they run into: numpy writes half an array and gives no errno.
            with _writing(home):
                _write_durably(partial / "probe", bytes(_PROBE_BYTES))
            raise
        built_s = round(time.monotonic() - began, 3)
        _require_plain(folder, stage)
        note = Note(
            name=stage.name, version=stage.version, inputs=dict(stage.inputs),
            build_s=built_s, size_bytes=size_of(folder), host=socket.gethostname(),
        )  # fmt: skip
        with _writing(home):
            _write_durably(folder / NOTE, note.model_dump_json(indent=1).encode() + b"\n")
            for path in (*folder.rglob("*"), folder):  # private as temporary files are made, and
                path.chmod(0o755 if path.is_dir() else 0o644)  # colleagues read a store too
                _sync(path)  # after a power cut the name must not stand for empty files
            try:
                os.rename(folder, target)
            except OSError:
                if is_whole(target):  # one that took this lease over has finished first
                    return
                if not os.path.lexists(target):
                    raise
                set_aside(target)  # damaged: somebody has removed its note
                os.rename(folder, target)
        shutil.rmtree(progress_of(target), ignore_errors=True)


def _target_of(progress: Path) -> Path:
    return progress.with_name(progress.name[1:].removesuffix(_PROGRESS))


def _require_plain(folder: Path, stage: Stage) -> None:
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ValueError(f"stage '{stage.name}' holds files and folders only, found {path}")
    if (folder / NOTE).exists():
        raise ValueError(f"stage '{stage.name}': the name {NOTE} is the engine's")


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A folder beside a stage's place, locked against removal, and gone afterwards."""
    while True:
        with _writing(target.parent):
            partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            handle = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, FileNotFoundError):  # trimmed before it could be locked
                continue
            raise _cannot_write(target.parent, error) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # about to be trimmed
            os.close(handle)
            continue
        except OSError:  # without locks, trimming leaves it alone
            break
        if (partial / _LOCK).exists():
            break
        os.close(handle)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _close(handle)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(home, error) from None


def _cannot_write(home: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{home}: a stage cannot be written: {error.strerror or error}; free space or mend "
        "permissions and run the same command again, finished trials are kept"
    )


# --- reading --------------------------------------------------------------------------------------


def is_whole(folder: Path) -> bool:
    """Whether a folder is a finished stage."""
    return os.path.isfile(folder / NOTE)


def _hold(folder: Path) -> int | None:
    """An open, locked descriptor of a stage that is in use from now on; None when it is not there.

    Its time of last use is now.
    """
    note = folder / NOTE
    try:
        handle = os.open(note, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{note}: cannot be read: {error.strerror}") from None
    try:
        with contextlib.suppress(OSError):  # a filesystem without locks: then nothing protects it
            fcntl.flock(handle, fcntl.LOCK_SH)
        here = os.path.samestat(os.stat(note), os.fstat(handle))
    except FileNotFoundError:
        here = False
    except BaseException:
        _close(handle)
        raise
    if not here:  # removed before it was ours
        _close(handle)
        return None
    with contextlib.suppress(OSError):  # a store that may only be read
        os.utime(note)
    return handle


def _close(handle: int) -> None:
    with contextlib.suppress(OSError):  # a child of a fork may have the file open for longer
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


# --- removing -------------------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; what vanishes meanwhile has none."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            size += 0 if path.is_dir() else found.st_size
    return size


@contextlib.contextmanager
def locked(path: Path, flags: int = 0) -> Iterator[bool]:
    """Hold a file's lock against all others, if it can be had at once.

    Args:
        path: To be locked.
        flags: To open it with; O_CREAT where it may be missing.

    Yields:
        Whether it is held.

    Raises:
        FileNotFoundError: The file is gone, or another of the same name.
        StoreError: The filesystem has no locks.
    """
    handle = os.open(
        path, os.O_RDWR | os.O_NOFOLLOW | flags, 0o600
    )  # NFS wants to write where it locks
    try:
        free = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be locked ({error.strerror}), so nobody can tell whether a trial "
                "uses it; remove stages by hand when none runs"
            ) from None
        if not os.path.samestat(os.stat(path), os.fstat(handle)):
            raise FileNotFoundError(path)
        yield free
    finally:
        _close(handle)


def set_aside(folder: Path) -> None:
    """Remove a folder: at once as a whole its name, then its content.

    Raises:
        FileNotFoundError: It is not there.
    """
    while True:
        aside = Path(tempfile.mkdtemp(prefix=".removed-", dir=folder.parent))
        try:
            os.rename(folder, aside / folder.name)
        except FileNotFoundError:  # it, or the empty folder, which was trimmed
            if not os.path.lexists(folder):
                shutil.rmtree(aside, ignore_errors=True)
                raise
        else:
            shutil.rmtree(aside, ignore_errors=True)
            return


def is_abandoned(folder: Path) -> bool:
    """Whether a half built or half removed stage is a dead process's."""
    if folder.name.startswith(".removed-"):
        return True  # as a whole; who removes it and who helps do not mind each other
    if folder.name.endswith(_PROGRESS):
        return not Lease(_target_of(folder)).is_held()
    try:
        with locked(folder / _LOCK) as free:
            return free
    except FileNotFoundError:
        return True
    except (OSError, StoreError):
        return False


def remove_if_abandoned(folder: Path) -> None:
    """Remove a half built or half removed stage, if it is a dead process's."""
    if folder.is_symlink():
        return
    if folder.name.startswith(".removed-"):
        shutil.rmtree(folder, ignore_errors=True)
        return
    if folder.name.endswith(_PROGRESS):
        lease = Lease(_target_of(folder))  # taken, so that nobody begins to go on with it
        with contextlib.suppress(OSError):
            if lease.take():
                shutil.rmtree(folder, ignore_errors=True)
            lease.release()
        return
    # Under the lock that its builder would take, even if that one has not got so far.
    with contextlib.suppress(OSError, StoreError), locked(folder / _LOCK, os.O_CREAT) as free:
        if free:
            shutil.rmtree(folder, ignore_errors=True)
