"""One study: configurations of one grid cell of an arm, asked for and told by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hdsweep.identity import digest
from hdsweep.knobs import Drawn
from hdsweep.search.history import Asked, Told, paired
from hdsweep.search.options import arguments
from hdsweep.strategy import Search


def seed_of(search: Search, key: str, number: int) -> int:
    """The seed of one suggestion, from the search's seed, the study's key and the number."""
    entropy = [search.seed, int(digest(key), 16), number]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class Study:
    """Draws configurations, each from all that was asked and told before.

    Args:
        space: Drawn knobs, each after those that it depends on.
        search: Sampler, options, seed and objectives.
        key: Tells the studies of a sweep apart; studies with one key draw alike.
        history: Of an earlier run, in the order in which it came about.

    Raises:
        ValueError: The lines of the history do not follow from one another.
    """

    def __init__(
        self,
        space: Mapping[str, Drawn],
        search: Search,
        key: str,
        history: Sequence[Asked | Told] = (),
    ) -> None:
        import optuna

        from hdsweep.search import draws

        self._draws = draws
        self._search = search
        self._space = draws.Space(space, search)
        self._told: dict[int, Told | None] = {}
        self._skipped: set[int] = set()
        self._memory = draws.Memory()
        notes = search.sampler in draws.TAKES_NOTES
        with draws.quiet():
            self._study = optuna.create_study(
                storage=self._memory,
                study_name=key,
                directions=draws.directions(search),
                sampler=draws.Reseeded(
                    lambda seed: draws.new_sampler(search, space, seed),
                    lambda number: seed_of(search, key, number),
                    self._memory,
                    notes=notes,
                    groups=bool(arguments(search, space).get("group", False)),
                ),
            )
            self._id = self._memory.get_study_id_from_name(key)
            if notes:
                self._ask_again(history)
            else:
                self._add(history)

    @property
    def skipped(self) -> tuple[int, ...]:
        """Numbers of the history whose knobs do not fit the space: nothing is learnt from them.

        They arise where a range of the sweep file was edited under a search.
        """
        return tuple(sorted(self._skipped))

    def ask(self) -> Asked:
        """Draw the next configuration."""
        with self._draws.quiet():
            trial = self._study.ask()
            asked = Asked(trial.number, self._space.draw(trial))
        self._told[asked.number] = None
        return asked

    def tell(self, told: Told) -> None:
        """Say what became of a configuration; to say the same twice changes nothing.

        One whose values or constraints are not finite has failed.

        Raises:
            ValueError: The number was never asked, was told otherwise before, or the values are
                not one per objective.
        """
        told = told.settled()
        if told.number not in self._told:
            raise ValueError(f"number {told.number} was never asked")
        before = self._told[told.number]
        if before is not None:
            if before.outcome != told.outcome:
                raise ValueError(f"number {told.number} was told as {before}; found {told}")
            return
        self._check(told)
        if told.number not in self._skipped:
            with self._draws.quiet():
                self._finish(told)
        self._told[told.number] = told

    def _check(self, told: Told) -> None:
        objectives = len(self._study.directions)
        if told.state == "complete" and len(told.values) != objectives:
            raise ValueError(
                f"number {told.number} needs {objectives} values; found {list(told.values)}"
            )

    def _finish(self, told: Told) -> None:
        from optuna.trial import Trial

        trial_id = self._memory.get_trial_id_from_study_id_trial_number(self._id, told.number)
        if told.constraints or told.curve:
            trial = Trial(self._study, trial_id)
            for name, above in told.constraints.items():
                trial.set_constraint(name, above)
            if self._space.takes_curves:
                for step, value in told.curve.items():
                    trial.report(value, step)
        complete = told.state == "complete"
        self._study.tell(
            told.number,
            list(told.values) if complete else None,
            state=self._draws.STATES[told.state],
        )

    def _add(self, history: Sequence[Asked | Told]) -> None:
        """Rebuild where all that matters is which trials there are."""
        for number, (asked, told) in paired(history).items():
            if told is not None:
                self._check(told)
            self._told[number] = told
            try:
                self._study.add_trial(self._space.trial(asked, told))
            except ValueError:
                self._skip(number)

    def _ask_again(self, history: Sequence[Asked | Told]) -> None:
        """Rebuild where a sampler's notes on the trials matter: it makes them again."""
        paired(history)
        for line in history:
            if isinstance(line, Told):
                self.tell(line)
                continue
            self._told[line.number] = None
            try:
                parameters = self._space.trial(line, None).params
            except ValueError:
                self._skip(line.number)
                continue
            self._study.enqueue_trial(parameters)
            trial = self._study.ask()
            _ = trial.relative_params  # drawn, noted, and outvoted by what the log says
            self._space.draw(trial)

    def _skip(self, number: int) -> None:
        import optuna

        # Samplers look past failed trials, and the numbers stay those of the log.
        self._study.add_trial(optuna.create_trial(state=self._draws.STATES["failed"]))
        self._skipped.add(number)
