"""A trial: what to run, and what happened.

``Trial`` is the identity of one run and all a worker needs to run it. ``TrialRecord`` is what is
kept, as ``record.json``; once its status is ``ok`` it never changes. Neither knows of sweeps or
arms: the same trial may belong to several.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import orjson

from hdsweep.errors import StoreError
from hdsweep.identity import digest

FORMAT = 1  # of records, plans and the store as a whole; a newer one is refused, never guessed at

Status = Literal["ok", "failed", "diverged", "pruned"]
STATUSES: tuple[Status, ...] = get_args(Status)

Ending = Literal["ok", "failed", "diverged", "pruned", "infeasible"]
ENDINGS: tuple[Ending, ...] = get_args(Ending)


@dataclass(frozen=True, slots=True)
class Trial:
    """What to run.

    Args:
        id: 20 hex digits, the digest of ``identity`` with the seed.
        method: Name below ``trainables``.
        version: The method's declared version.
        params: The method's parameters, validated, defaults filled in; JSON values.
        data_name: Name below ``trainables.data``.
        data_params: The ``data:`` block, validated; JSON values.
        fingerprint: Digest of the data's content, 64 hex digits.
        seed: The replicate.
        identity: What of the parameters names the trial (paths left out or replaced by content).
    """

    id: str
    method: str
    version: int
    params: Mapping[str, Any]
    data_name: str
    data_params: Mapping[str, Any]
    fingerprint: str
    seed: int
    identity: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON values from which ``from_json`` makes an equal trial."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trial:
        """Inverse of ``to_json``."""
        return cls(**{f.name: value[f.name] for f in fields(cls)})


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """What happened.

    Args:
        id: 20 hex digits.
        status: ``ok``, ``failed``, ``diverged`` (NaN or infinite loss) or ``pruned``.
        trial: ``Trial.to_json()``.
        metrics: Metric -> group -> value; None where undefined. The mean over groups is not stored.
        missing: Metric -> group -> why it is undefined.
        threshold: Scores of at least this were called anomalous; None where the method chose none.
        scalars: The method's own measurements.
        artifacts: Names below ``artifacts/``.
        error: For a trial that is not ok: ``kind``, ``message``, ``traceback``.
        definitions: Metric -> its definition in words, as it was computed.
        provenance: Host, device, threads, packages, git state, digest of the method's source.
        started: UTC, ISO 8601.
        wall_s: Seconds from start to record, of the attempt that finished.
    """

    id: str
    status: Status
    trial: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    missing: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    threshold: float | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()
    error: Mapping[str, str] | None = None
    definitions: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    wall_s: float = 0.0

    @property
    def ending(self) -> Ending:
        """What people are told: the status, but for a trial that the data cannot serve."""
        if self.status == "failed" and (self.error or {}).get("kind") == "infeasible":
            return "infeasible"
        return self.status

    def to_bytes(self) -> bytes:
        """The content of ``record.json``."""
        value = {"format": FORMAT} | {f.name: getattr(self, f.name) for f in fields(self)}
        text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        # A file name that is not UTF-8 may stand in a method's message.
        return text.encode(errors="backslashreplace")

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> TrialRecord:
        """Inverse of ``to_bytes``.

        Args:
            content: Of a ``record.json``.
            where: Named in the message.

        Raises:
            StoreError: Not a record, or one of a newer version.
        """
        try:
            value = _read(content)
            if not isinstance(value, dict) or not isinstance(value["format"], int):
                raise TypeError("no format number")
            if value["format"] > FORMAT:
                raise newer_format(where, value["format"])
            value.setdefault("threshold", None)  # as in records from before there were any
            values = {name: value[name] for name in _RECORD_FIELDS}
            record = cls(**values | {"artifacts": tuple(values["artifacts"])})
            if record.status not in STATUSES:
                raise ValueError(f"unknown status {record.status!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{where}: not a trial record ({type(error).__name__}: {error}); "
                "move its folder away and run the sweep again to redo that trial"
            ) from None
        return record


def require_own_id(record: TrialRecord, trial_id: str, where: str) -> None:
    """Raise StoreError for a record that is not of the trial whose folder it is in.

    Args:
        record: As it was read.
        trial_id: Name of its folder.
        where: Named in the message.
    """
    trial = record.trial
    try:
        told, identity, seed = trial["id"], trial["identity"], trial["seed"]
        made = digest({**identity, "seed": seed}) if identity else trial_id  # imported ones
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{where}: its record does not say what was run: {error!r}") from None
    if not trial_id == record.id == told == made:
        wrong = next(i for i in (record.id, told, made) if i != trial_id)
        raise StoreError(f"{where}: its record is of trial {wrong}")


_RECORD_FIELDS = tuple(f.name for f in fields(TrialRecord))


def _read(content: bytes) -> Any:
    try:
        return orjson.loads(content)  # a report reads 100,000 of them
    except ValueError:
        return json.loads(content)  # half a character, of a file name that is not UTF-8


def newer_format(where: str, found: int) -> StoreError:
    """The message for anything written by a later hdsweep."""
    return StoreError(
        f"{where}: written by a newer hdsweep (format {found}, this one reads up to {FORMAT}); "
        "upgrade hdsweep or name another --store"
    )
