"""Trials on the GPUs of a node or a cluster, through Ray Tune.

Tune is the executor here and nothing more. One ``Tuner`` with one ``Searcher`` that hands out what
the agenda gives; a fresh one each time, never ``Tuner.restore``: what is finished is known from the
store, which is checked again by the worker before a trial starts and by the driver after ``fit``.
So Tune's own state may be lost, lag or lie, and its files live in a folder that is thrown away.

Its costs are cut where they can be: actors are reused (a fresh process imports torch anew, 2 s a
trial), its loggers and snapshots are off, and results come back once per trial.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hdsweep.agenda import Agenda
from hdsweep.context import LEAVING
from hdsweep.errors import DataChanged, HdsweepError, StoreError
from hdsweep.execute import Job, Listener, OutOfMemory, origin_of, run_trial, thread_environment
from hdsweep.launch.lost import Losses
from hdsweep.launch.processes import ask_to_leave, ending_with_this_one
from hdsweep.retries import LOSSES
from hdsweep.stopping import Watch
from hdsweep.storage import Gate
from hdsweep.store import Store
from hdsweep.trial import Trial

_LEAVE_S = 20.0  # a machine that is taken away gives half a minute and more
_ASK_S = 4.0  # for checkpoints, when the driver is interrupted: somebody waits for the terminal
_TERMINATED = 128 + signal.SIGTERM

# Read by Ray when it is imported, so they stand before the import below.
os.environ.setdefault("RAY_worker_niceness", "0")  # at 15, workers starve on a busy machine
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "10")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it swallows Ctrl-C and lets fit() return

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where trials are placed.

    Args:
        address: Of a running cluster; None starts Ray on this machine.
        gpus: Logical GPUs to declare on this machine instead of those that are found.
        cpus: Logical CPUs likewise.
    """

    address: str | None = None
    gpus: int | None = None
    cpus: int | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What each trial occupies.

    Args:
        threads: CPU threads.
        gpus: Share of a GPU, or a whole number of them.
    """

    threads: int
    gpus: float


class _Worker(tune.Trainable):  # type: ignore[misc] # ray is not typed
    """Runs one trial per ``step``; the same process takes one trial after another."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What a trial holds while it runs."""
        job = config["job"]
        cpus = max(job["cpus"], job["threads"])
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": job["gpus"]}])

    def setup(self, config: dict[str, Any]) -> None:
        self._config = config
        # Ray ends workers by SIGTERM, and turns it into the SystemExit that a method might raise;
        # a trial that was ended has not failed.
        self._runs = False
        signal.signal(signal.SIGTERM, self._told_to_end)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        config = self._config
        job = _job(config["job"])
        self._runs = True
        try:
            record = run_trial(job, Store(Path(config["store"])), config["origin"], capture=True)
            result: dict[str, Any] = {"status": record.status}
        except KeyboardInterrupt:
            os._exit(_TERMINATED)  # all that was held has been let go
        except OutOfMemory as error:
            result = {"status": "memory", "of": error.of, "message": error.message}
        except (StoreError, DataChanged) as error:
            result = {"status": "unwritten", "message": str(error)}
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            gc.collect()  # hand GPU memory to whoever shares the device
            torch.cuda.empty_cache()
        self._runs = False
        return {**result, "done": True}

    def _told_to_end(self, _signum: int, _frame: object) -> None:
        """Leave at the next checkpoint; at once where there is none for too long, or no trial."""
        if not self._runs:
            os._exit(_TERMINATED)
        if LEAVING.is_set():
            raise KeyboardInterrupt
        LEAVING.set()
        again = threading.Timer(_LEAVE_S, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial keeps its own checkpoint in the store."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing, likewise."""


class _Planned(Searcher):  # type: ignore[misc]
    """Hands out what the agenda gives."""

    def __init__(self, agenda: Agenda, store: Store, watcher: _Watcher, losses: Losses) -> None:
        super().__init__(metric="done", mode="max")
        self._agenda = agenda
        self._watcher, self._losses = watcher, losses
        self._store = str(store.root)
        self._origins: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given in case of a restore; there is none

    def suggest(self, trial_id: str) -> Any:
        # Where one result could not be written, the others would be computed for nothing too.
        if self._watcher.unwritten:
            return Searcher.FINISHED
        if not self._watcher.is_open:
            return None
        job = self._agenda.next()
        if job is None:
            return Searcher.FINISHED if self._agenda.is_done else None
        method = job.trial.method
        if method not in self._origins:
            self._origins[method] = origin_of(job)
        given = self._losses.handed_out(job)
        return {"job": _job_json(given), "store": self._store, "origin": self._origins[method]}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: what happened is in the store, and the watcher looks there."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the plan is made anew from the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class _Watcher(tune.Callback):  # type: ignore[misc]
    """Tells the agenda and the listener what Tune does with the trials."""

    def __init__(
        self, agenda: Agenda, store: Store, listener: Listener, losses: Losses, gate: Gate
    ) -> None:
        self._agenda, self._store, self._listener = agenda, store, listener
        self._losses, self._gate = losses, gate
        self.is_open = True
        self.actors: dict[str, str] = {}  # of running trials, as Ray names them
        self.unwritten: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        # While all workers wait for storage, nobody asks for a trial, and nobody would be told.
        try:
            self.is_open = self._gate.is_open()
        except StoreError as error:
            self.is_open, self.unwritten = False, str(error)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.actors[_id_of(trial)] = _actor_of(trial)
        self._losses.started(self._agenda.running(_id_of(trial)))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        job = self._agenda.running(_id_of(trial))
        if result.get("status") == "memory":
            self._losses.out_of_memory(job, result["of"], result["message"])
            return
        record = self._store.record(job.trial.id)
        if result.get("status") == "unwritten" or record is None:
            self.unwritten = result.get("message", f"{job.label}: its record has gone")
            self._listener.lost(job, self.unwritten)
            return
        self._agenda.finished(job, record)
        self._listener.finished(job, record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error()
        self._losses.lost(self._agenda.running(_id_of(trial)), str(error))


def _id_of(trial: Any) -> str:
    return str(trial.config["job"]["trial"]["id"])


def _actor_of(trial: Any) -> str:
    actor = trial.temporary_state.ray_actor
    return "" if actor is None else str(actor._actor_id.hex())  # noqa: SLF001 - as messages name it


def launch(
    agenda: Agenda,
    store: Store,
    listener: Listener,
    shape: Shape,
    cluster: Cluster,
    log: Path,
    say: Callable[[str], None],
    gate: Gate,
) -> None:
    """Run what the agenda gives on Ray until each trial has a record or lost too many workers.

    Args:
        agenda: What is to be run.
        store: Readable and writable under the same path on every node.
        listener: Told what happens.
        shape: What a trial occupies.
        cluster: Where to run.
        log: File that takes Ray's own output.
        say: Told where the dashboard is.
        gate: Closed while the store cannot be written.

    Raises:
        HdsweepError: The cluster cannot be reached, or can never hold one of these trials.
        StoreError: Workers cannot write the store.
    """
    interrupt = signal.getsignal(signal.SIGTERM)
    with _quiet(log), contextlib.ExitStack() as guard:
        context = _connect(cluster, shape)
        signal.signal(signal.SIGTERM, interrupt)  # ray.init put its own there
        own = contextlib.nullcontext() if cluster.address else ending_with_this_one()
        try:
            guard.enter_context(own)
            if context.dashboard_url:
                say(_dashboard(context.dashboard_url))
            capacity = _capacity(shape)
            agenda.open(capacity)
            losses = Losses(agenda, store, listener, _largest(shape))
            in_vain = 0
            while in_vain <= LOSSES and agenda.has_work():
                known = len(agenda.ran)
                stopped = _fit(agenda, store, listener, losses, gate, capacity)
                for job, record in agenda.recover():
                    if record is None:
                        losses.lost(job, stopped.get(job.trial.id, ""))
                    else:
                        listener.finished(job, record)
                in_vain = 0 if len(agenda.ran) > known else in_vain + 1
        except KeyboardInterrupt:
            ask_to_leave(_ASK_S)
            raise
        finally:
            ray.shutdown()


def _fit(
    agenda: Agenda, store: Store, listener: Listener, losses: Losses, gate: Gate, capacity: int
) -> dict[str, str]:
    """Run until there is no more, or Tune gives up; of which trials it then says why."""
    watcher = _Watcher(agenda, store, listener, losses, gate)
    why: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="hdsweep-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            _Worker,
            tune_config=tune.TuneConfig(
                search_alg=_Planned(agenda, store, watcher, losses),
                num_samples=-1,  # until the agenda has no more
                max_concurrent_trials=capacity + 1,  # one waits, so that no GPU idles
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.config["job"]["label"]),
                trial_dirname_creator=_id_of,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                callbacks=[watcher],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        try:
            tuner.fit()
        except (ray.exceptions.RayError, RuntimeError, tune.error.TuneError) as error:
            if isinstance(error.__cause__, HdsweepError):  # of ours, raised while Tune called us
                raise error.__cause__ from None
            # Tune gives up as a whole over some lost workers; the caller counts what is missing.
            print(f"Ray Tune stopped: {type(error).__name__}: {error}", flush=True)
            why = {i: str(error) for i, actor in watcher.actors.items() if actor in str(error)}
    if watcher.unwritten:
        raise StoreError(watcher.unwritten)
    return why


def _job_json(job: Job) -> dict[str, Any]:
    value = {f.name: getattr(job, f.name) for f in fields(job)}
    watch = None if job.watch is None else job.watch.to_json()
    # A worker has no use for the stages.
    return value | {"trial": job.trial.to_json(), "stages": (), "watch": watch}


def _job(value: Mapping[str, Any]) -> Job:
    watch = None if value["watch"] is None else Watch.from_json(value["watch"])
    return Job(**{**value, "trial": Trial.from_json(value["trial"]), "watch": watch})


def _connect(cluster: Cluster, shape: Shape) -> Any:
    environment = thread_environment(shape.threads)
    try:
        _knock(cluster.address)
        if cluster.address:
            context = ray.init(
                address=cluster.address,
                runtime_env={"env_vars": environment},
                logging_level="ERROR",
                log_to_driver=False,
            )
        else:
            os.environ.update(environment)  # inherited by workers; a runtime_env starts them twice
            context = ray.init(
                address="local",
                num_gpus=cluster.gpus,
                num_cpus=cluster.cpus,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                logging_level="ERROR",
                log_to_driver=False,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        where = cluster.address or "this machine"
        raise HdsweepError(f"Ray on {where}: cannot be started or reached: {first}") from None
    _check_fit(shape)
    return context


def _knock(address: str | None) -> None:
    """Raise OSError at once where nobody listens; Ray itself would try for minutes."""
    host, sign, port = (address or "").removeprefix("ray://").rpartition(":")
    if sign and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            pass


def _check_fit(one: Shape) -> None:
    """Refuse what would wait for ever: a trial that no single node can hold."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(n.get("CPU", 0) >= one.threads and n.get("GPU", 0) >= one.gpus for n in nodes):
        return
    ray.shutdown()
    has = "; ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
    raise HdsweepError(
        f"resources: a trial asks for {one.threads} CPUs and {one.gpus:g} GPUs and no node has "
        f"them (found {has}); lower resources in the sweep file, or declare logical ones with "
        "--cpus and --gpus"
    )


def _largest(one: Shape) -> int:
    """Processors of the largest machine that such trials can run on."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max((int(n.get("CPU", 0)) for n in nodes if n.get("GPU", 0) >= one.gpus), default=1)


def _capacity(one: Shape) -> int:
    """How many such trials the cluster holds at once."""
    total = ray.cluster_resources()
    by_cpu = int(total.get("CPU", 1) // one.threads)
    if not one.gpus:
        return max(1, by_cpu)
    per_gpu = int(1 / one.gpus + 1e-9) if one.gpus <= 1 else 1  # a fraction never spans devices
    by_gpu = int(total.get("GPU", 0) // max(one.gpus, 1)) * per_gpu
    return max(1, min(by_cpu, by_gpu))


def _dashboard(url: str) -> str:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    address = f"Ray dashboard: http://{url}"
    if is_token_auth_enabled():
        # Ray guards it: whoever reaches it can run code as this user, from any local account.
        address += "  (asks for the token that `ray get-auth-token` prints)"
    return address


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send all that this process and its children print to ``log``.

    File descriptors, not ``sys.stdout``: much of Ray's chatter comes from C++ and from children.
    The live view writes to a descriptor of its own that was duplicated before.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in (*saved, target):
            os.close(descriptor)
