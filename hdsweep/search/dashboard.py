"""The searches of a sweep as a file that optuna-dashboard opens.

A copy to look at: nothing is ever read from it, and it may be deleted.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdsweep.errors import StoreError
from hdsweep.knobs import Drawn
from hdsweep.search.history import Asked, Told, paired
from hdsweep.search.options import arguments
from hdsweep.strategy import Search

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

MARK = "hdsweep"  # name of the attribute that each of our studies has

# Optuna's tables by the name of their revision; another one is left to Optuna, which is slow.
SCHEMA = "v3.2.0.a"
_INSERTS = {
    "trials": "INSERT INTO trials (trial_id, number, study_id, state, datetime_start,"
    " datetime_complete) VALUES (?, ?, ?, ?, ?, ?)",
    "params": "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)"
    " VALUES (?, ?, ?, ?)",
    "values": "INSERT INTO trial_values (trial_id, objective, value, value_type)"
    " VALUES (?, ?, ?, 'FINITE')",
    "curve": "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value,"
    " intermediate_value_type) VALUES (?, ?, ?, 'FINITE')",
    "user": "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
    "system": "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """One study of the file.

    Args:
        name: Unique in the file.
        space: Drawn knobs, each after those that it depends on.
        search: What was sought, and how.
        history: What was asked and told.
        attributes: To show with the study, as its arm and fixed knobs. JSON values.
        of_each: Number -> what to show with the configuration, as the ids of its trials.
    """

    name: str
    space: Mapping[str, Drawn]
    search: Search
    history: Sequence[Asked | Told]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    of_each: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def export(path: Path, studies: Iterable[Exported]) -> None:
    """Write studies into one SQLite file, in place of an earlier export.

    Raises:
        StoreError: Something else is there, or it cannot be written.
    """
    _check_replaceable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        _write(temporary, studies)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # it says nothing that the error above does not
            temporary.unlink(missing_ok=True)


def _write(path: Path, studies: Iterable[Exported]) -> None:
    import optuna

    from hdsweep.search import draws

    with draws.quiet(), closing(_connection(path)) as connection:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"creator": lambda: _connection(path)}
        )
        try:
            for one in studies:
                study = _empty_study(storage, one)
                if storage.get_current_version() == SCHEMA:
                    study_id = storage.get_study_id_from_name(one.name)
                    _insert(connection, study_id, _trials(one))
                else:
                    study.add_trials(_trials(one))
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    # The file is complete when it is renamed; until then nothing in it needs to last.
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = MEMORY")
    return connection


def _empty_study(storage: RDBStorage, one: Exported) -> Study:
    import optuna

    from hdsweep.search import draws

    search = one.search
    study = optuna.create_study(
        storage=storage, study_name=one.name, directions=draws.directions(search)
    )
    study.set_metric_names([*search.maximize, *search.minimize])
    drawn_by = {
        "sampler": search.sampler,
        "arguments": arguments(search, one.space),
        "seed": search.seed,
        "aggregate": search.aggregate,
        "optuna": optuna.__version__,
    }
    study.set_user_attr(MARK, drawn_by)
    for name, value in one.attributes.items():
        study.set_user_attr(name, value)
    return study


def _trials(one: Exported) -> Iterator[FrozenTrial]:
    import optuna

    from hdsweep.search import draws

    space = draws.Space(one.space, one.search)
    for number, (asked, told) in paired(one.history).items():
        attributes = dict(one.of_each.get(number, {}))
        if told is not None and told.seeds:
            attributes["seeds"] = dict(told.seeds)
        try:
            yield space.trial(asked, told, attributes)
        except ValueError:  # drawn from a range that was edited since
            attributes["outside the edited knobs"] = dict(asked.knobs)
            yield optuna.create_trial(state=draws.STATES["failed"], user_attrs=attributes)


def _insert(connection: sqlite3.Connection, study_id: int, trials: Iterable[FrozenTrial]) -> None:
    """Add trials as ``Study.add_trials`` does, which takes 7 ms for each; this takes 0.1 ms."""
    from optuna.distributions import distribution_to_json

    rows: dict[str, list[tuple[object, ...]]] = {table: [] for table in _INSERTS}
    first = connection.execute("SELECT COALESCE(MAX(trial_id), 0) + 1 FROM trials").fetchone()[0]
    encoded: dict[str, str] = {}  # knob -> distribution, the same in all trials
    for number, trial in enumerate(trials):
        at = first + number
        dates = (_utc(trial.datetime_start), _utc(trial.datetime_complete))
        rows["trials"].append((at, number, study_id, trial.state.name, *dates))
        for name, value in trial.params.items():
            distribution = trial.distributions[name]
            if name not in encoded:
                encoded[name] = distribution_to_json(distribution)
            inner = distribution.to_internal_repr(value)
            rows["params"].append((at, name, inner, encoded[name]))
        for n, value in enumerate(trial.values or ()):
            rows["values"].append((at, n, value))
        for step, value in trial.intermediate_values.items():
            rows["curve"].append((at, step, value))
        for key, value in trial.user_attrs.items():
            rows["user"].append((at, key, json.dumps(value)))
        for key, value in trial.system_attrs.items():
            rows["system"].append((at, key, json.dumps(value)))
    with connection:
        for table, statement in _INSERTS.items():
            connection.executemany(statement, rows[table])


def _utc(time: datetime | None) -> str | None:
    if time is None:
        return None
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", timespec="microseconds")


def _check_replaceable(path: Path) -> None:
    """Raises StoreError unless nothing is there, or an earlier export."""
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            rows = connection.execute(
                "SELECT COUNT(*) FROM studies WHERE study_id NOT IN"
                " (SELECT study_id FROM study_user_attributes WHERE key = ?)",
                (MARK,),
            )
            ours = rows.fetchone()[0] == 0
        finally:
            connection.close()
    except sqlite3.Error:
        ours = False
    if not ours:
        raise StoreError(
            f"{path}: is no search that hdsweep exported and is left as it is; "
            "write to another path, or move it away"
        )
