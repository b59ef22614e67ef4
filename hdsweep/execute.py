"""run_trial: the one path from a Trial to a TrialRecord, in whatever process it runs.

Inline or under Ray, on the first attempt or the fifth, a trial is seeded, bound to its threads,
run, measured and kept by this function and no other; so the two launchers cannot disagree. It
writes the record last and returns it; a process killed before that leaves a trial that has not
finished, and its checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from threadpoolctl import threadpool_limits

from hdsweep import data, outcomes, provenance
from hdsweep.context import Context, interval_between_checkpoints
from hdsweep.deadline import Overdue, deadline
from hdsweep.errors import (
    DataChanged,
    DataError,
    Diverged,
    HdsweepError,
    Infeasible,
    Stopped,
    StoreError,
)
from hdsweep.machine import Machine
from hdsweep.method import (
    Data,
    Dataset,
    Method,
    Outcome,
    dataset_module,
    load_dataset,
    load_method,
    method_module,
)
from hdsweep.stopping import Watch, shared_rungs
from hdsweep.storage import PATIENCE_S, Patience, full, refusal
from hdsweep.store import Store
from hdsweep.strict import Strict
from hdsweep.trial import Status, Trial, TrialRecord


@dataclass(frozen=True, slots=True)
class Job:
    """A trial with what it occupies while it runs.

    Args:
        trial: What to run.
        label: A readable name.
        gpus: Share of a GPU, or a whole number of them.
        threads: CPU threads.
        rerun: Whether to run it although it has finished; its earlier result is kept aside.
        share: Whether it uses the store's stages, or does all work itself.
        stages: Folders below the store of the stages it asks for, in its order, each after those
            that are asked for while it is built.
        cell: A readable name of the configuration that it is a replicate of.
        watch: How it may be stopped early.
        timeout_s: How long it may take; None sets no end.
        patience_s: How long it waits for storage that refuses what it has computed.
        cpus: Processors that it holds, where they are more than its threads.
        attempts: What came of it before, and with what; kept in its record.
        grows: Kinds of memory, ``gpu`` and ``host``, of which it can be given more: running out of
            one is then raised and not recorded.
    """

    trial: Trial
    label: str
    gpus: float
    threads: int
    rerun: bool = False
    share: bool = True
    stages: tuple[str, ...] = ()
    cell: str = ""
    watch: Watch | None = None
    timeout_s: float | None = None
    patience_s: float = PATIENCE_S
    cpus: int = 0
    attempts: tuple[Mapping[str, Any], ...] = ()
    grows: tuple[str, ...] = ()


class OutOfMemory(Exception):
    """A trial needs more memory than it has, and can be given more.

    Args:
        of: ``gpu`` or ``host``.
        message: What was raised.
    """

    def __init__(self, of: str, message: str) -> None:
        super().__init__(of, message)
        self.of = of
        self.message = message


class Listener(Protocol):
    """Who wants to know how a run goes; called in the driver's process."""

    def started(self, job: Job) -> None:
        """The trial was given to a worker."""

    def finished(self, job: Job, record: TrialRecord) -> None:
        """The trial has a record."""

    def lost(self, job: Job, reason: str) -> None:
        """The trial's worker was lost; it will be tried again, or is left for the next run."""


def thread_environment(threads: int) -> dict[str, str]:
    """Environment that binds numerical libraries; it must be set before they are loaded.

    PASSIVE: threads that spin while they wait make two busy cores up to fifty times slower.
    """
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic cuBLAS needs it
    }


def run_trial(
    job: Job,
    store: Store,
    origin: Mapping[str, Any],
    *,
    capture: bool,
    checkpoint_interval_s: float | None = None,
) -> TrialRecord:
    """Run a trial and keep its record, unless the one that stands stays.

    That is an ``ok`` one, or of a trial that this sweep has stopped by the same rule.

    Args:
        job: The trial and its threads.
        store: Where the record goes.
        origin: ``provenance.of_process()`` of the driver, with the digest of the method's source.
        capture: Whether what the method prints goes to ``log.txt`` instead of the terminal.
        checkpoint_interval_s: Least time between two checkpoints; None: as the environment has it.

    Returns:
        The record that stands. A method's failure is a record, not an exception.

    Raises:
        StoreError: The store cannot be written; nothing is recorded.
        DataChanged: The data are not those that name the trial; nothing is recorded.
        OutOfMemory: Of a kind of memory that ``job.grows`` names; nothing is recorded.
    """
    interval_s = checkpoint_interval_s
    if interval_s is None:
        interval_s = interval_between_checkpoints()
    with store.running(job.trial.id):  # another sweep may be running the same trial
        standing = store.record(job.trial.id)
        if standing is not None and not job.rerun and _stays(standing, job, store):
            return standing
        try:
            return _run(job, store, origin, capture, interval_s)
        except OSError as error:
            if refusal(error) is not None:
                raise _no_room(store, error) from None
            raise


def _stays(record: TrialRecord, job: Job, store: Store) -> bool:
    if record.status != "pruned" or job.watch is None:
        return record.status == "ok"
    # A rule compares configurations of one sweep: another sweep's may not be worse.
    same_rule = (record.error or {}).get("rule") == job.watch.rule
    rungs = shared_rungs(store.root, job.watch)
    return same_rule and rungs.why_stopped(job.watch.configuration) is not None


def _run(
    job: Job,
    store: Store,
    origin: Mapping[str, Any],
    capture: bool,
    checkpoint_interval_s: float,
) -> TrialRecord:
    trial, folder = job.trial, store.trial_dir(job.trial.id)
    if job.rerun:
        store.set_aside(trial.id)
    try:
        scratch = Path(tempfile.mkdtemp(prefix="hdsweep-"))
    except OSError as error:
        raise StoreError(f"no scratch folder can be made: {error.strerror}") from None
    method = load_method(trial.method)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        log, lines = stack.enter_context(_log(folder, capture))
        patience = Patience(job.patience_s, _teller(log, capture))
        log.info("%s: starts when no other trial is being measured here", job.label)
        machine = Machine()
        stack.enter_context(machine.computing())
        device = _device(method, job)  # loads torch, which is seconds of work too
        stack.enter_context(threadpool_limits(job.threads))
        context = Context(
            trial, job.threads, store, device, scratch, log, checkpoint_interval_s,
            machine=machine, share=job.share, watch=job.watch, patience=patience,
        )  # fmt: skip
        stack.callback(context.close)
        started, began = datetime.now(UTC), time.monotonic()
        log.info("on %s, %d threads", device, job.threads)
        # Whoever captures what is printed is a worker, whose loss the driver can bear.
        within = deadline(job.timeout_s, lines, give_up=capture)
        status, found = _attempt(method, job, context, within)
        wall_s = round(time.monotonic() - began, 3)
        log.info("%s after %.1f s", status, wall_s)
        record = _record(job, status, found, origin, device, started, wall_s)
        record = patience.insist(partial(store.put, record, replace=job.rerun))
        if found.get("error", {}).get("kind") != "timeout":
            context.forget()
    return record


def _teller(log: logging.Logger, capture: bool) -> Callable[[str], None]:
    """Tells the log, and the person where there is one: a worker's driver tells them itself."""

    def tell(text: str) -> None:
        log.warning("%s", text)
        if not capture:
            print(text, file=sys.stderr, flush=True)

    return tell


def record_ended(
    job: Job, store: Store, origin: Mapping[str, Any], started: datetime, why: str | None = None
) -> TrialRecord:
    """Keep a record of a trial whose process was ended from outside, for a fault of its own.

    Args:
        job: Its trial.
        store: Where the record goes.
        origin: As for ``run_trial``.
        started: When the trial was handed out.
        why: In words, where it ran out of memory; None where it was over its time.

    Returns:
        The record that stands.

    Raises:
        StoreError: The store cannot be written.
    """
    if why is None:
        found = _timeout(Overdue(job.timeout_s or 0.0))
    else:
        error = {"kind": "memory", "message": why, "traceback": ""}
        found = _out_of_memory(job, "host", {"error": error})
    wall_s = (datetime.now(UTC) - started).total_seconds()
    with store.running(job.trial.id):
        return store.put(_record(job, "failed", found, origin, "", started, round(wall_s, 3)))


def record_infeasible(
    job: Job, store: Store, origin: Mapping[str, Any], reason: str
) -> TrialRecord:
    """Keep a record of a trial that its method refuses for a reason, without running it.

    Other arguments, the result and what is raised are those of ``run_trial``. A record that is
    ``ok`` or says the same stands.
    """
    found = _note("infeasible", Infeasible(reason), trace=False)
    with store.running(job.trial.id):
        standing = store.record(job.trial.id)
        if standing is not None and (standing.status == "ok" or standing.error == found["error"]):
            return standing
        return store.put(_record(job, "failed", found, origin, "cpu", datetime.now(UTC), 0.0))


def _record(
    job: Job,
    status: Status,
    found: Mapping[str, Any],
    origin: Mapping[str, Any],
    device: str,
    started: datetime,
    wall_s: float,
) -> TrialRecord:
    machine = provenance.of_machine(device, job.threads) if device else {"threads": job.threads}
    given = {**origin, **machine, "gpus": job.gpus}
    if job.attempts:
        given["attempts"] = list(job.attempts)
    return TrialRecord(
        id=job.trial.id,
        status=status,
        trial=job.trial.to_json(),
        provenance=given,
        started=started.isoformat(timespec="microseconds"),
        wall_s=wall_s,
        **found,
    )


def _attempt(
    method: Method, job: Job, context: Context, within: AbstractContextManager[None]
) -> tuple[Status, dict[str, Any]]:
    """Run the method and keep its outcome; what it raises becomes the note of a failed trial.

    Returns:
        The status and the fields of the record that follow from it.
    """
    trial = job.trial
    try:
        context.require_going()  # before any work: it was handed out while another seed ran
        _seed(trial.seed, method, context.threads)
        dataset = load_dataset(trial.data_name)
        data_params = dataset.params.model_validate(dict(trial.data_params))
        params = method.params.model_validate(dict(trial.params))
        _same_data(dataset, data_params, trial)
        _same_params(params, trial)

        def require_the_same() -> None:
            try:
                _same_data(dataset, data_params, trial)
                _same_params(params, trial)
            except DataChanged:  # checkpoints may be of the data as they were meanwhile
                context.forget()
                raise

        context.require_the_same = require_the_same
        with within:
            loaded = dataset.load(data_params)
            outcome = _until_stopped(method, params, loaded, context)
            outcomes.check(outcome, method, method.tested(params, loaded))
            found = outcomes.measured(outcome, loaded)  # reads masks: before the last look
        require_the_same()
        context.patience.insist(lambda: outcomes.keep(outcome, trial.id, context.store))
        return "ok", found
    except (Diverged, Stopped, Overdue) as error:
        return _ended_by(error, context)
    except (StoreError, DataChanged):
        raise
    except HdsweepError as error:
        if isinstance(error, DataError):  # what was missed may have gone since the plan was made
            context.require_the_same()
        context.log.error("failed: %s", error)
        kind = "infeasible" if isinstance(error, Infeasible) else "request"
        return "failed", _note(kind, error, trace=False)
    except (Exception, SystemExit, GeneratorExit) as error:
        return _failed_by(error, job, context)


def _failed_by(
    error: Exception | SystemExit | GeneratorExit, job: Job, context: Context
) -> tuple[Status, dict[str, Any]]:
    """What is recorded of a trial that its method, or what it was given, has failed."""
    said = refusal(error)
    if said is not None:
        raise _no_room(context.store, said) from None
    context.log.exception("failed: %s", error)
    memory = _memory_of(error)
    if memory is None:
        return "failed", _note("method", error, trace=True)
    if memory in job.grows:
        raise OutOfMemory(memory, f"{type(error).__name__}: {error}") from None
    return "failed", _out_of_memory(job, memory, _note("memory", error, trace=True))


def _ended_by(
    error: Diverged | Stopped | Overdue, context: Context
) -> tuple[Status, dict[str, Any]]:
    """What is recorded of a trial that was ended, and whose method may be right."""
    if isinstance(error, Diverged):
        context.log.warning("diverged: %s", error)
        return "diverged", _note("diverged", error, trace=False)
    if isinstance(error, Stopped):
        context.log.info("stopped: %s", error)
        found = _note("stopped", error, trace=False)
        return "pruned", {"error": {**found["error"], "rule": error.rule}}
    context.log.error("failed: %s", error)
    return "failed", _timeout(error)


def _until_stopped(method: Method, params: Strict, loaded: Data, context: Context) -> Outcome:
    """Run the method; raises Stopped also where it has caught that and gone on, or failed of it."""
    try:
        outcome = method.run(params, loaded, context)
    except (StoreError, DataChanged):
        raise
    except Exception:
        if context.stopped is None:
            raise
        raise context.stopped from None
    if context.stopped is not None:
        raise context.stopped
    return outcome


def _no_room(store: Store, error: OSError) -> StoreError:
    return StoreError(full(error, store.root))


def _same_data(dataset: Dataset, params: Any, trial: Trial) -> None:
    """Raise DataChanged when the files are no longer those that name the trial."""
    try:
        found = data.fingerprint(dataset, params)
    except DataError as error:
        raise DataChanged(f"data: {error}") from None
    if found != trial.fingerprint:
        raise DataChanged(
            f"{params.root}: the data have changed since the sweep was planned; nothing was "
            "recorded for the trials that were running, run the same command again"
        )


def _same_params(params: Strict, trial: Trial) -> None:
    """Raise DataChanged when a file that a knob names is no longer the one that names the trial."""
    found, planned = params.identity(), trial.identity["params"]
    for knob in found:
        if found[knob] != planned.get(knob):
            raise DataChanged(
                f"the content of {knob} ({getattr(params, knob)}) has changed since the sweep was "
                "planned; nothing was recorded for the trials that were running, run the same "
                "command again"
            )


def _note(kind: str, error: BaseException, *, trace: bool) -> dict[str, Any]:
    message = (
        str(error)
        if isinstance(error, HdsweepError | Diverged | Stopped | Overdue)
        else (f"{type(error).__name__}: {error}")
    )
    trace_text = "".join(traceback.format_exception(error)) if trace else ""
    note = {"kind": kind, "message": message, "traceback": trace_text}
    return {"error": note}


def _timeout(error: Overdue) -> dict[str, Any]:
    found = _note("timeout", error, trace=False)
    return {"error": {**found["error"], "timeout_s": repr(error.timeout_s)}}


def _memory_of(error: BaseException) -> str | None:
    """What memory a trial ran out of, by what was raised."""
    if isinstance(error, MemoryError):
        return "host"
    return "gpu" if type(error).__name__ == "OutOfMemoryError" else None


def _out_of_memory(job: Job, of: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The note of a trial that has had all the memory there is, with what to do."""
    had = "a whole GPU" if of == "gpu" and job.gpus >= 1 else "the memory that it was given"
    do = "a smaller batch or model, or a machine with more, may fit"
    error = found["error"]
    return {"error": {**error, "message": f"{error['message']}: {had} is not enough; {do}"}}


def _device(method: Method, job: Job) -> str:
    if not method.uses_torch:
        return "cpu"
    import torch

    return "cuda:0" if job.gpus > 0 and torch.cuda.is_available() else "cpu"


def _seed(seed: int, method: Method, threads: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries still draw from the global generator
    if method.uses_torch:
        import torch

        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        # A guard for operations that read what was never written; it costs a step some percent.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False


class _Lines(logging.StreamHandler[TextIO]):
    """Lines of a log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nothing: a full disk is told once, by what must be written, and not line by line."""


@contextlib.contextmanager
def _log(folder: Path, capture: bool) -> Iterator[tuple[logging.Logger, TextIO]]:
    """A logger that writes ``log.txt`` anew, with its file, and what is printed when asked to."""
    path = folder / "log.txt"
    path.unlink(missing_ok=True)  # a dying attempt may still hold the old file; let it
    opened = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    with opened as file, contextlib.ExitStack() as stack:
        handler = _Lines(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log = logging.Logger(f"hdsweep.trial.{folder.name}", logging.INFO)
        log.addHandler(handler)
        if capture:
            stack.enter_context(contextlib.redirect_stdout(file))
            stack.enter_context(contextlib.redirect_stderr(file))
        yield log, file


def origin_of(job: Job) -> dict[str, Any]:
    """Provenance that the driver looks up for a trial."""
    modules = (method_module(job.trial.method), dataset_module(job.trial.data_name))
    return {**provenance.of_process(), "source": provenance.source_digest(*modules)}
