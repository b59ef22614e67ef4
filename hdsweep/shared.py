"""What a plan's trials share: the stages they ask for, and which of them are there already.

Asked of pending trials only, and never of methods that declare no stage. What is asked for while a
stage is built counts as long as that stage is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hdsweep.context import key_of
from hdsweep.identity import canonical_json
from hdsweep.method import Data, Stage, load_method
from hdsweep.plan import Plan, declares, validated
from hdsweep.planner import State
from hdsweep.stages import NOTE, Note, folder_of, is_whole
from hdsweep.store import Store
from hdsweep.trial import Trial


@dataclass(frozen=True, slots=True)
class SharedStage:
    """A stage that pending trials need.

    Args:
        name: As in ``features``.
        key: 20 hex digits.
        folder: Where it is or will be, below the store, ``stages/<name>/<key>``.
        exists: Whether it is there.
        size_bytes: Of all its files; None where that is not known.
        trials: How many pending trials use it.
    """

    name: str
    key: str
    folder: str
    exists: bool
    size_bytes: int | None
    trials: int = 0


@dataclass(frozen=True, slots=True)
class SharedWork:
    """What the pending trials of a plan share.

    Args:
        stages: Each once, what a stage needs for being built before it.
        folders: Trial id -> folders of its stages, below the store, in the order in which they are
            asked for or built; trials without any are left out.
    """

    stages: tuple[SharedStage, ...] = ()
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def shared_work(plan: Plan, data: Data, store: Store, rerun: Collection[State] = ()) -> SharedWork:
    """Look up what the pending trials of a plan share.

    Args:
        plan: Of which the methods are asked.
        data: As loaded.
        store: Where the stages are.
        rerun: Finished trials that are pending too, as of ``Plan.pending``.
    """
    look = Look(data, store)
    if not any(declares(load_method(name), "stages") for name in plan.methods):
        return SharedWork()
    waiting = {trial.id for _, trial in plan.pending(rerun)}
    folders: dict[str, tuple[str, ...]] = {}
    for cell in plan.cells:
        pending = [t for t in cell.trials if t.id in waiting and t.id not in folders]
        folders |= look.folders(pending)
    uses = Counter(folder for of_trial in folders.values() for folder in of_trial)
    stages = (replace(look.found[folder], trials=n) for folder, n in uses.items())
    return SharedWork(tuple(stages), folders)


class Look:
    """What is known of stages: each is named and looked for once.

    Args:
        data: As loaded.
        store: Where the stages are.
    """

    def __init__(self, data: Data, store: Store) -> None:
        self._data, self._root = data, store.root
        self._named: dict[tuple[object, ...], str] = {}
        self.found: dict[str, SharedStage] = {}

    def folders(self, trials: Sequence[Trial]) -> dict[str, tuple[str, ...]]:
        """Trial id -> folders of its stages, of the trials of one configuration that have any."""
        method = load_method(trials[0].method) if trials else None
        if method is None or not declares(method, "stages"):
            return {}
        params = validated(method, trials[0])
        before: list[Stage] = []
        same: tuple[str, ...] = ()
        found: dict[str, tuple[str, ...]] = {}
        for trial in trials:
            asked = list(method.stages(params, self._data, trial.seed))
            if asked != before:  # most are the same for every seed
                before, same = asked, self._folders(asked, trial)
            if same:
                found[trial.id] = same
        return found

    def _folders(self, asked: Sequence[Stage], trial: Trial) -> tuple[str, ...]:
        """Folders of stages, each after those that it needs for being built."""
        folders: dict[str, None] = {}

        def add(stage: Stage) -> None:
            folder = self._folder(stage, trial)
            if folder not in folders:
                for need in () if self.found[folder].exists else stage.needs:
                    add(need)
                folders[folder] = None

        for stage in asked:
            add(stage)
        return tuple(folders)

    def _folder(self, stage: Stage, trial: Trial) -> str:
        inputs = canonical_json(stage.inputs)
        name = (stage.name, stage.version, inputs, stage.code, trial.fingerprint)
        if name not in self._named:
            key = key_of(stage, trial)
            folder = str(folder_of(Path(), stage, key))
            exists, size_bytes = _look_at(self._root / folder)
            self._named[name] = folder
            self.found[folder] = SharedStage(stage.name, key, folder, exists, size_bytes)
        return self._named[name]


def _look_at(folder: Path) -> tuple[bool, int | None]:
    if not is_whole(folder):
        return False, None
    try:
        return True, Note.model_validate_json((folder / NOTE).read_bytes()).size_bytes
    except (OSError, ValueError):
        return True, None  # damaged or removed meanwhile
