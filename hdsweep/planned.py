"""What a sweep asked for: its plan, and the log of what was decided while it ran.

A plan knows the configurations that the sweep file names. Which ones a search drew, how they did,
which trials will not be run and which configurations were chosen is decided later, and each
decision is a line of a log that only grows. A kill loses nothing; losing the machine's power may
lose the last lines, and then that is decided once more. Lines are these, further keys may follow:

    {"event": "asked", "study", "number", "arm", "knobs": drawn ones, "cell": swept and drawn ones,
     "trials": {seed: id}}
    {"event": "told", "study", "number", "state": complete, failed or pruned,
     "values": [one per objective], "constraints": {name: amount above its bound}, if there are any}
    {"event": "skipped", "trials": [ids], "why"}
    {"event": "chosen", "arm", "knobs": swept and drawn ones, "trials": {seed: id}, "why"}
    {"event": "unchosen", "arm", "why"}

Where two lines say different things of one configuration or trial, the later one holds.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, Literal, get_args

from hdsweep.errors import StoreError
from hdsweep.files import cannot_write, write_whole
from hdsweep.trial import FORMAT, newer_format

Part = Literal["run", "select", "confirm"]
Told = Literal["", "complete", "failed", "pruned"]
_STATES = get_args(Told)[1:]


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One configuration of an arm, with its replicates.

    Args:
        arm: Name in the sweep file.
        knobs: The swept and drawn knobs only, name -> value; empty for an arm without a grid.
        trials: Seed -> trial id, in the file's order of seeds.
        study: Key of the search that drew it.
        number: Its place, from 0, in the order in which that search drew.
        part: ``select``: to choose by, and not reported; ``confirm``: chosen, and reported.
        skipped: Why those of its trials that have no record will not be run.
        state: What its search was told of it; empty before that.
        values: What its search was told, one per objective.
        feasible: Whether it keeps within the constraints of its search, as far as is known.
    """

    arm: str
    knobs: Mapping[str, Any]
    trials: Mapping[int, str]
    study: str | None = None
    number: int | None = None
    part: Part = "run"
    skipped: str = ""
    state: Told = ""
    values: tuple[float, ...] = ()
    feasible: bool = True

    @property
    def name(self) -> str:
        """As in ``topk q_percent=2``."""
        return cell_name(self.arm, self.knobs, self.number)


@dataclass(frozen=True, slots=True)
class PlannedSearch:
    """One study: what a search draws in one cell of an arm's grid.

    Args:
        key: 20 hex digits.
        arm: Name in the sweep file.
        knobs: The grid values of its cell.
        trials: How many configurations it may draw.
        objectives: Names of metrics, canonical.
        maximize: Of each objective, whether it is made large.
        aggregate: What of a configuration's seeds is compared.
        sampler: What draws.
    """

    key: str
    arm: str
    knobs: Mapping[str, Any]
    trials: int
    objectives: tuple[str, ...]
    maximize: tuple[bool, ...]
    aggregate: str
    sampler: str


@dataclass(frozen=True, slots=True)
class PlannedSweep:
    """What a sweep asked for: the rows a report must show, finished or not.

    Args:
        name: Folder below ``sweeps``.
        question: In the author's words.
        metrics: Default metrics of the report.
        baseline: The arm or configuration that others are compared with.
        expect: Success criteria, stated before the run.
        groups: The data's groups in their order of report.
        cells: In file order; see ``decided`` for those that are not in the file.
        searches: In file order.
        confirm: Seeds to report chosen configurations on.
        select: In words, how they are chosen; empty where ``confirm`` is.
        arms: In file order; by default those of cells and searches, in their order.
        unchosen: Why nothing was chosen of some arms, in words.
        margins: Metric -> difference that was declared not to matter.
    """

    name: str
    question: str
    metrics: tuple[str, ...]
    baseline: str | None
    expect: tuple[str, ...]
    groups: tuple[str, ...]
    cells: tuple[PlannedCell, ...]
    searches: tuple[PlannedSearch, ...] = ()
    confirm: tuple[int, ...] = ()
    select: str = ""
    arms: tuple[str, ...] = ()
    unchosen: str = ""
    margins: Mapping[str, float] = field(default_factory=dict)

    def labels(self) -> dict[str, str]:
        """Trial id -> readable name; a trial that two cells share has the first one's."""
        found: dict[str, str] = {}
        for cell in self.cells:
            words = cell.name
            for seed, trial_id in cell.trials.items():
                found.setdefault(trial_id, f"{words} seed={seed}")
        return found

    def skipped(self) -> dict[str, str]:
        """Trial id -> why it will not be run, of those that no other cell asks for."""
        found: dict[str, str] = {}
        wanted = {i for cell in self.cells if not cell.skipped for i in cell.trials.values()}
        for cell in self.cells:
            found |= {i: cell.skipped for i in cell.trials.values() if i not in wanted}
        return found

    def arm_names(self) -> list[str]:
        """Every arm, in the order of the file as far as it is known."""
        known = [*self.arms, *(c.arm for c in self.cells), *(s.arm for s in self.searches)]
        return list(dict.fromkeys(known))

    def decided(self, events: Iterable[Mapping[str, Any]]) -> PlannedSweep:
        """The sweep with what its log of decisions adds.

        Of an arm come first the cells of its plan, then what its searches drew, by search and
        number, then what was chosen. Searches and arms that the plan does not name stay out: they
        are of an earlier version of the file.

        Args:
            events: As ``read_log`` returns them.
        """
        events = list(events)
        asked, told, skipped, chosen = _sorted_out(events)
        unchosen = "; ".join(e["why"] for e in events if e["event"] == "unchosen")
        arms = self.arm_names()
        cells: dict[str, list[PlannedCell]] = {arm: [] for arm in arms}
        for cell in self.cells:
            cells[cell.arm].append(_with(cell, skipped))
        for search in self.searches:
            for number, event in sorted(asked.get(search.key, {}).items()):
                drawn = _drawn(search, event, told.get((search.key, number)), bool(self.confirm))
                cells[search.arm].append(_with(drawn, skipped))
        for event in chosen if self.confirm else ():
            if event["arm"] in cells:
                of_arm = cells[event["arm"]]
                of_arm.append(_with(_chosen(event, of_arm), skipped))
        every = tuple(cell for arm in arms for cell in cells[arm])
        return replaced(self, cells=every, unchosen=unchosen)

    def to_bytes(self) -> bytes:
        """The content of ``plan.json``: without what the log of decisions adds."""
        planned = tuple(c for c in self.cells if c.study is None and c.part != "confirm")
        value = asdict(replaced(self, cells=planned, unchosen=""))
        return json.dumps({"format": FORMAT, **value}, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> PlannedSweep:
        """Inverse of ``to_bytes``. Raises StoreError when it is not one."""
        try:
            value = json.loads(content)
            if value["format"] > FORMAT:
                raise newer_format(where, value["format"])
            listed = {name: tuple(value[name]) for name in _LISTED}
            sweep = cls(**{f.name: value[f.name] for f in fields(cls)} | listed)
            return replaced(
                sweep,
                cells=tuple(map(_cell, value["cells"])),
                searches=tuple(map(_search, value["searches"])),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{where}: not a plan ({type(error).__name__}: {error}); "
                "run the sweep again to write it anew, its trials are kept"
            ) from None


_LISTED = ("metrics", "expect", "groups", "confirm", "arms")


def cell_name(arm: str, knobs: Mapping[str, Any], number: int | None = None) -> str:
    """A configuration for people: ``topk q_percent=2``, or ``tuned #12 lr=0.003162`` if drawn."""
    drawn = number is not None
    words = (f"{name}={knob_text(value, drawn=drawn)}" for name, value in knobs.items())
    return " ".join([arm, *([f"#{number}"] if drawn else ()), *words])


def drawn_of(drawn: int, trials: int) -> str:
    """How far a search is, for people; ``trials`` may have been lowered below what was drawn."""
    if drawn > trials:
        return f"{drawn} configurations, more than trials: {trials}, drawn"
    return f"{drawn} of {trials} configurations drawn"


def knob_text(value: object, *, drawn: bool) -> str:
    """A knob's value for people: a drawn number has more digits than anybody reads."""
    return f"{value:.4g}" if drawn and isinstance(value, float) else str(value)


def _cell(value: Mapping[str, Any]) -> PlannedCell:
    trials = _by_seed(value["trials"])
    return PlannedCell(**{**value, "trials": trials, "values": tuple(value["values"])})


def _search(value: Mapping[str, Any]) -> PlannedSearch:
    listed = {name: tuple(value[name]) for name in ("objectives", "maximize")}
    return PlannedSearch(**{**value, **listed})


def _by_seed(trials: Mapping[str, str]) -> dict[int, str]:
    return {int(seed): trial_id for seed, trial_id in trials.items()}


# --- decisions ------------------------------------------------------------------------------------

_Event = Mapping[str, Any]


def _sorted_out(
    events: Iterable[_Event],
) -> tuple[
    dict[str, dict[int, _Event]], dict[tuple[str, int], _Event], dict[str, str], list[_Event]
]:
    asked: dict[str, dict[int, _Event]] = {}
    told: dict[tuple[str, int], _Event] = {}
    skipped: dict[str, str] = {}
    chosen: list[_Event] = []
    for event in events:
        kind = event["event"]
        if kind == "asked" and "same_as" not in event:  # a sampler may repeat itself
            asked.setdefault(event["study"], {})[event["number"]] = event
        elif kind == "told":
            told[event["study"], event["number"]] = event
        elif kind == "skipped":
            skipped |= dict.fromkeys(event["trials"], event["why"])
        elif kind == "chosen":
            same = [(one["arm"], one["knobs"]) == (event["arm"], event["knobs"]) for one in chosen]
            chosen = [one for one, again in zip(chosen, same, strict=True) if not again]
            chosen.append(event)
    return asked, told, skipped, chosen


def _drawn(
    search: PlannedSearch, event: _Event, told: _Event | None, confirmed: bool
) -> PlannedCell:
    said: _Event = told or {"state": "", "values": ()}
    return PlannedCell(
        arm=search.arm,  # the arm may have been renamed since
        knobs=event["cell"],
        trials=_by_seed(event["trials"]),
        study=search.key,
        number=event["number"],
        part="select" if confirmed else "run",
        state=said["state"],
        values=tuple(said["values"]),
        feasible=all(above <= 0 for above in said.get("constraints", {}).values()),
    )


def _chosen(event: _Event, drawn: Iterable[PlannedCell]) -> PlannedCell:
    arm, knobs, trials = event["arm"], event["knobs"], _by_seed(event["trials"])
    for cell in drawn:
        if cell.study is not None and cell.knobs == knobs:
            return PlannedCell(arm, knobs, trials, cell.study, cell.number, "confirm")
    return PlannedCell(arm, knobs, trials, part="confirm")


def _with(cell: PlannedCell, skipped: Mapping[str, str]) -> PlannedCell:
    if skipped:
        for trial_id in cell.trials.values():
            if trial_id in skipped:
                return replaced(cell, skipped=skipped[trial_id])
    return cell


_FIELDS: Mapping[str, Mapping[str, type]] = {
    "asked": {
        "study": str, "number": int, "arm": str, "knobs": dict, "cell": dict, "trials": dict,
    },
    "told": {"study": str, "number": int, "state": str, "values": list},
    "skipped": {"trials": list, "why": str},
    "chosen": {"arm": str, "knobs": dict, "trials": dict, "why": str},
    "unchosen": {"arm": str, "why": str},
}  # fmt: skip


def read_log(path: Path) -> list[dict[str, Any]]:
    """The decisions of a log, in order; a sweep that has not run has none.

    What follows the last line end is what a kill cut, and left out.

    Raises:
        StoreError: A line that is no decision, or a log that cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    return log_from_bytes(content, str(path))


def log_from_bytes(content: bytes, where: str) -> list[dict[str, Any]]:
    """As ``read_log``, of a log's content; ``where`` is named in the message."""
    found = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            event = json.loads(line, parse_float=_finite, parse_constant=_finite)
            _check(event)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{where}:{number}: not a decision ({type(error).__name__}: {error}); cut the file "
                "before this line and run the sweep again, finished trials are kept"
            ) from None
        found.append(event)
    return found


def draws_of(events: Iterable[_Event], where: Path) -> dict[str, dict[int, _Event]]:
    """Study -> number -> its draw, in the order of drawing.

    Raises:
        StoreError: One is missing; what was drawn later rests on it.
    """
    found: dict[str, dict[int, _Event]] = {}
    for event in events:
        if event["event"] != "asked":
            continue
        of_study, number = found.setdefault(event["study"], {}), event["number"]
        if number not in of_study and number != len(of_study):
            raise StoreError(
                f"{where}: number {number} of study {event['study']} where {len(of_study)} is to "
                "come; cut the file before that one and run the sweep again, finished trials are "
                "kept"
            )
        of_study[number] = event
    return found


def append_to_log(path: Path, event: _Event) -> None:
    """Add a decision, in one call to the system; what a kill left of another goes first.

    Raises:
        StoreError: The log cannot be written.
        ValueError: A number is NaN or infinite.
    """
    line = _line(event)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    except OSError as error:
        raise cannot_write(path, error) from None


def write_log(path: Path, events: Sequence[_Event]) -> None:
    """Make a log whole, in the place of another; what is raised is that of ``append_to_log``."""
    content = b"".join(map(_line, events))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise cannot_write(path, error) from None


def _line(event: _Event) -> bytes:
    text = json.dumps(event, ensure_ascii=False, allow_nan=False)
    # As in records: a file name that is not UTF-8 may stand in a reason.
    return f"{text}\n".encode(errors="backslashreplace")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _check(event: _Event) -> None:
    """Raise TypeError, KeyError or ValueError for what nobody could have decided."""
    for name, kind in _FIELDS.get(event["event"], {}).items():
        if not isinstance(event[name], kind):
            raise TypeError(f"{name} is {event[name]!r}")
    if event["event"] in ("asked", "chosen"):
        _by_seed(event["trials"])
    if event["event"] == "told":
        if event["state"] not in _STATES:
            raise ValueError(f"state is {event['state']!r}")
        for value in (*event["values"], *event.get("constraints", {}).values()):
            if not isinstance(value, int | float):
                raise TypeError(f"{value!r} is no number")
