"""A store as one file: the format, written and read with distrust.

The file is a tar, compressed where its name ends in ``.gz`` or ``.tgz``. Its first member is
``manifest.json``: path, size and SHA-256 of every other member, in their order. The same files
give the same bytes, whoever writes them and when.

Nothing here extracts by what a member is called. A reader takes the manifest first, refuses any
path that is not of the store's layout, and then demands of each member that it is the plain file
which the manifest tells next. So links, devices, and paths out of the store have no way in, and
what is unpacked is never more than was told.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hdsweep.errors import StoreError
from hdsweep.files import sync_folder
from hdsweep.trial import FORMAT, newer_format

MANIFEST = "manifest.json"
TRIAL_FILES = ("predictions.parquet", "curve.jsonl", "log.txt", "record.json")
SWEEP_FILES = ("sweep.yaml", "decisions.jsonl", "plan.json")
"""Files of trials and sweeps, those last whose presence says that the others are there."""

_TRIAL = re.compile(
    r"trials/(?P<start>[0-9a-f]{2})/(?P<id>(?P=start)[0-9a-f]{18})/"
    r"(earlier/\d{1,6}/)?(record\.json|predictions\.parquet|curve\.jsonl|log\.txt|artifacts/.+)",
    re.DOTALL,
)
_SWEEP = re.compile(
    r"sweeps/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,99})/"
    r"(sweep\.yaml|plan\.json|decisions\.jsonl|rungs/[^/]+\.jsonl)",
    re.DOTALL,
)


_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_LONGEST_NAME, _LONGEST_PATH = 255, 1024  # bytes; what common filesystems take
_LARGEST_MANIFEST = 256 << 20  # a million files
_CHUNK = 1 << 20
_HEADERS = 16 << 10  # of a member, long names and padding included
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive.

    Args:
        path: Below the store, with slashes.
        size: Bytes.
        sha256: Of its content, 64 hex digits.
    """

    path: str
    size: int
    sha256: str

    @property
    def trial(self) -> str | None:
        """Id of the trial that it is of."""
        found = _TRIAL.fullmatch(self.path)
        return found["id"] if found else None

    @property
    def sweep(self) -> str | None:
        """Name of the sweep that it is of."""
        found = _SWEEP.fullmatch(self.path)
        return found["name"] if found else None


class Changed(Exception):
    """A file is not what it was when its digest was taken."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry)
        self.entry = entry


def write(root: Path, path: Path, entries: Sequence[Entry]) -> int:
    """Write an archive of files below ``root``, whole or not at all.

    Returns:
        Its size in bytes.

    Raises:
        Changed: A file is not what its entry tells.
        OSError: The archive cannot be written.
    """
    home = path.absolute().parent
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=home)
    try:
        with os.fdopen(handle, "wb") as file:
            with contextlib.ExitStack() as stack:
                inside: Any = file
                if path.suffix in (".gz", ".tgz"):
                    zipped = gzip.GzipFile("", "wb", 6, file, mtime=0)
                    inside = stack.enter_context(zipped)
                tar = stack.enter_context(
                    tarfile.open(fileobj=inside, mode="w", format=tarfile.PAX_FORMAT)
                )
                content = _manifest(entries)
                tar.addfile(_member(MANIFEST, len(content)), io.BytesIO(content))
                for entry in entries:
                    _add(tar, root, entry)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.chmod(name, 0o644)
        os.replace(name, path)
        sync_folder(home)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    return size


def _manifest(entries: Sequence[Entry]) -> bytes:
    files = [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in entries]
    return json.dumps({"format": FORMAT, "files": files}, ensure_ascii=False).encode() + b"\n"


def _member(path: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.size, member.mode = size, 0o644
    return member


def _add(tar: tarfile.TarFile, root: Path, entry: Entry) -> None:
    try:
        with (root / entry.path).open("rb") as file:
            counted = _Counted(file, entry.size)
            tar.addfile(_member(entry.path, entry.size), counted)
            grown = file.read(1) and not is_log(entry.path)
        same = counted.sha256.hexdigest() == entry.sha256 and not grown
    except (FileNotFoundError, EOFError):
        same = False
    if not same:
        raise Changed(entry)


class _Counted(io.RawIOBase):
    """A file that is read once, its digest with it; one that is too short raises EOFError."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(min(size, self._left) if size >= 0 else self._left)
        if not content and self._left and size:
            raise EOFError
        self._left -= len(content)
        self.sha256.update(content)
        return content


# --- reading --------------------------------------------------------------------------------------


def is_log(path: str) -> bool:
    """Whether others may add lines to a file of a store while it is read."""
    return path.startswith("sweeps/") and path.endswith(".jsonl")


def is_archive(path: Path) -> bool:
    """Whether a file begins as a tar or a compressed one; only ``Archive`` is sure."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return False
    return head.startswith(_GZIP) or head[257:262] == b"ustar"


class _Bounded:
    """What tarfile reads from: never more at once, nor altogether, than was told."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.budget = _LARGEST_MANIFEST

    def read(self, size: int) -> bytes:
        self.budget -= size
        if size > _CHUNK or self.budget < 0:
            raise tarfile.ReadError("a header that is far too long")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def walk(path: Path) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """The files of an archive in the order of its manifest, each with its content in pieces.

    The content is to be taken before the next file is asked for; when its pieces end without an
    error, it was what the manifest tells.

    Raises:
        StoreError: It cannot be read, is none of ours, or is not what its manifest tells.
    """
    with contextlib.ExitStack() as stack:
        with _reading(path):
            raw = stack.enter_context(path.open("rb"))
            zipped = raw.read(2) == _GZIP
            raw.seek(0)
            plain: Any = raw
            if zipped:
                plain = stack.enter_context(gzip.GzipFile(fileobj=raw))
            bounded = _Bounded(plain)
            tar: tarfile.TarFile = stack.enter_context(
                tarfile.open(fileobj=bounded, mode="r:", errorlevel=2)  # type: ignore[call-overload]
            )
            entries = _read_manifest(tar, path)
        # Headers count too: what is told of a file is all that may be read for it.
        bounded.budget = sum(e.size for e in entries) + _HEADERS * (len(entries) + 2)
        for entry in entries:
            with _reading(path):
                member = tar.next()
                _require(member, entry)
                content = tar.extractfile(member) if member else None
            if content is not None:
                yield entry, _pieces(path, entry, content)
            tar.members = []  # type: ignore[attr-defined]  # else tarfile remembers each of a million
        with _reading(path):
            if (more := tar.next()) is not None:
                raise tarfile.ReadError(f"{more.name!r} is not in the manifest")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (
        tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError,
    ) as error:  # fmt: skip
        said = _UNSAFE.sub("?", str(error))[:300]
        raise StoreError(
            f"{path}: not an archive of a store, or a damaged one ({said}); nothing was taken "
            "from it, get it once more from where it was written"
        ) from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read_manifest(tar: tarfile.TarFile, path: Path) -> list[Entry]:
    first = tar.next()
    if first is None or first.name != MANIFEST or not first.isreg():
        raise tarfile.ReadError(f"its first member is not {MANIFEST}")
    if first.size > _LARGEST_MANIFEST // 2 or first.issparse():
        raise tarfile.ReadError(f"{MANIFEST} is too large")
    opened = tar.extractfile(first)
    value: Any = None
    if opened is not None:
        value = json.loads(b"".join(iter(lambda: opened.read(_CHUNK), b"")))
    try:
        if value["format"] > FORMAT:
            raise newer_format(str(path), value["format"])
        entries = [Entry(one["path"], one["size"], one["sha256"]) for one in value["files"]]
        for entry in entries:
            _require_ours(entry)
    except (KeyError, TypeError) as error:
        raise tarfile.ReadError(f"{MANIFEST} is not one: {type(error).__name__} {error}") from None
    paths = {entry.path for entry in entries}
    within = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    if len(paths) != len(entries) or paths & within:
        raise tarfile.ReadError(f"{MANIFEST} names a path twice")
    return entries


def _require_ours(entry: Entry) -> None:
    if type(entry.size) is not int or entry.size < 0 or not _SHA256.fullmatch(entry.sha256):
        raise tarfile.ReadError(f"{MANIFEST} tells no size and digest of {entry.path!r}")
    if entry.trial is None and entry.sweep is None:
        raise tarfile.ReadError(f"{entry.path!r} is no path in a store")
    if why := unfit(entry.path):
        raise tarfile.ReadError(f"{entry.path!r}: {why}")


def unfit(path: str) -> str:
    """Why no archive may hold a path, be it never so honest; empty where it may."""
    parts = path.split("/")
    if _UNSAFE.search(path):
        return "its name holds characters that are not safe"
    if any(part in ("", ".", "..") or len(part.encode()) > _LONGEST_NAME for part in parts):
        return "its name is not one below a store"
    if len(path.encode()) > _LONGEST_PATH:
        return "its name is too long"
    return ""


def _require(member: tarfile.TarInfo | None, entry: Entry) -> None:
    if member is None:
        raise tarfile.ReadError(f"ends before {entry.path!r}")
    if member.name != entry.path or member.size != entry.size:
        raise tarfile.ReadError(f"holds {member.name!r} where {entry.path!r} is told")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise tarfile.ReadError(f"{member.name!r} is no plain file")


def _pieces(path: Path, entry: Entry, content: IO[bytes]) -> Iterator[bytes]:
    sha256, left = hashlib.sha256(), entry.size
    while left:
        with _reading(path):
            piece = content.read(min(left, _CHUNK))
            if not piece:
                raise tarfile.ReadError(f"{entry.path!r} is cut short")
        left -= len(piece)
        sha256.update(piece)
        yield piece
    if sha256.hexdigest() != entry.sha256:
        with _reading(path):
            raise tarfile.ReadError(f"{entry.path!r} is not what its checksum says")
