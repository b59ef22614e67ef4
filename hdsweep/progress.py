"""What a person sees while a sweep runs: a live block on a terminal, a line per trial elsewhere.

The block is redrawn in place and left standing at the end. It writes to a descriptor of its own,
duplicated when it is made, because the launcher sends descriptors 1 and 2 to a log file.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hdsweep.errors import StoreError, first_line
from hdsweep.execute import Job
from hdsweep.metrics import Metric
from hdsweep.store import Store
from hdsweep.terminal import Console
from hdsweep.trial import TrialRecord
from hdsweep.values import value_of

_SHOWN_RUNNING = 8  # lines; a node has eight GPUs


@contextlib.contextmanager
def terminal(descriptor: int) -> Iterator[Console]:
    """A console on a duplicate of ``descriptor``, unaffected when that one is redirected later."""
    with os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="replace") as file:
        yield Console(file=file, highlight=False, soft_wrap=not file.isatty())


class Progress:
    """Listener that shows a run; a context manager.

    Args:
        console: Where to write.
        name: Of the sweep.
        total: Says how many trials there are to be, as far as that is known now, finished ones
            included: a search adds some, and others are skipped.
        cached: Says how many of them were finished before this run.
        metric: Whose best configuration is shown.
        larger_is_better: What is good of it; None where nobody says, and no best is shown.
        store: For values that a record lacks.
        groups: Of the data; a value is their mean unless ``metric`` names one.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        *,
        total: Callable[[], int],
        cached: Callable[[], int],
        metric: Metric,
        larger_is_better: bool | None,
        store: Store,
        groups: Sequence[str],
    ) -> None:
        self._console, self._name, self._metric = console, name, metric
        self._larger_is_better = larger_is_better
        self._total, self._cached = total, cached
        self._store, self._groups = store, groups
        self._running: dict[str, tuple[Job, float]] = {}
        self._done: dict[str, TrialRecord] = {}
        self._values: dict[str, list[float]] = defaultdict(list)
        self._recent: list[Text] = []
        self._began_s = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._block, console=self._console, refresh_per_second=4,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
        self._console.file.flush()

    def say(self, text: str) -> None:
        """One line above the block."""
        self._console.print(Text(text, style="dim"))
        self._console.file.flush()

    def started(self, job: Job) -> None:
        """See hdsweep.execute.Listener."""
        self._running[job.trial.id] = (job, time.monotonic())

    def finished(self, job: Job, record: TrialRecord) -> None:
        """See hdsweep.execute.Listener."""
        self._running.pop(job.trial.id, None)
        self._done[record.id] = record
        value = self._value(record)
        if value is not None:
            self._values[job.cell].append(value)
        self._note(self._line(job, record, value))

    def lost(self, job: Job, reason: str) -> None:
        """See hdsweep.execute.Listener."""
        self._running.pop(job.trial.id, None)
        self._note(Text.assemble(("lost    ", "yellow"), f"{job.label}: {reason}"))

    def _note(self, line: Text) -> None:
        if self._live:
            self._recent = [*self._recent[-2:], line]
        else:
            done = self._cached() + len(self._done)
            self._console.print(Text(f"[{done}/{max(done, self._total())}] ") + line)
            self._console.file.flush()

    def _line(self, job: Job, record: TrialRecord, value: float | None) -> Text:
        style = {"ok": "green", "failed": "red", "diverged": "red"}.get(record.status, "yellow")
        line = Text.assemble((f"{record.status:<9}", style), job.label)
        if value is not None:
            line.append(f"  {self._metric} {value:.4f}")
        if record.error:
            line.append(f": {first_line(record.error['message'])}")
        line.append(f"  ({_duration(record.wall_s)}, {record.id[:8]})", "dim")
        return line

    def _value(self, record: TrialRecord) -> float | None:
        try:
            value, _ = value_of(self._store, record, self._metric, self._groups)
        except StoreError:  # the report will name what is damaged; the run goes on
            return None
        return None if math.isnan(value) else value

    def _best(self) -> str:
        if not self._values or self._larger_is_better is None:
            return ""
        sign = 1 if self._larger_is_better else -1
        means = {cell: sum(found) / len(found) for cell, found in self._values.items()}
        best = max(means, key=lambda cell: sign * means[cell])
        seeds = len(self._values[best])
        plural = "seed" if seeds == 1 else "seeds"
        # Values of an earlier run are not looked up, so they are not spoken for.
        when = "in this run" if self._cached() else "so far"
        return f"best {self._metric} {means[best]:.4f}  {best} ({seeds} {plural} {when})"

    def _eta(self) -> str:
        # By trials still to come and not by the share that is done: that falls as a search grows.
        left = self._total() - self._cached() - len(self._done)
        if not self._done or left <= 0:
            return ""
        return f"ETA {_duration((time.monotonic() - self._began_s) / len(self._done) * left)}"

    def _block(self) -> RenderableType:
        done = self._cached() + len(self._done)
        total = max(done, self._total())
        failed = sum(record.status in ("failed", "diverged") for record in self._done.values())
        pruned = sum(record.status == "pruned" for record in self._done.values())
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self._name, style="bold"),
            ProgressBar(total=max(1, total), completed=done, width=24),
            f"{done}/{total} done",
            f"{len(self._running)} running",
            Text(f"{failed} failed", style="red" if failed else ""),
            *([Text(f"{pruned} pruned", style="yellow")] if pruned else []),
            f"{self._cached()} cached",
            _duration(time.monotonic() - self._began_s),
            self._eta(),
        )
        rows: list[RenderableType] = [head]
        now = time.monotonic()
        for job, since in list(self._running.values())[:_SHOWN_RUNNING]:
            rows.append(Text(f"  running {job.label}  {_duration(now - since)}", style="cyan"))
        if len(self._running) > _SHOWN_RUNNING:
            rows.append(Text(f"  and {len(self._running) - _SHOWN_RUNNING} more", style="cyan"))
        rows += [Text("  ") + line for line in self._recent]
        if best := self._best():
            rows.append(Text(f"  {best}"))
        return Group(*rows)


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
