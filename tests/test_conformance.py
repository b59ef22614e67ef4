"""What every method and every data set must hold to, whoever wrote it.

To add one, give it an entry in ``METHODS`` or ``DATASETS`` below; a test fails until it has one.
Each setting is a trial of seconds at most, run by ``run_trial`` as a sweep does, in a real store on
real files. Faults are injected from below: an audit hook of the interpreter sees every file that
is opened, every rename and every socket, so an interrupt strikes at a known place and no code that
is tested has to be replaced.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field, ValidationError

from hdsweep import metrics
from hdsweep.context import CHECKPOINT_INTERVAL_S, key_of
from hdsweep.data import fingerprint, make_if_absent
from hdsweep.errors import DataError
from hdsweep.execute import Job, origin_of, run_trial
from hdsweep.identity import digest
from hdsweep.method import Data, Item, Predictions, Stage, load_dataset, load_method, names_in
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord
from tests.conftest import ROOT
from trainables.dinomaly import VARIANTS

# --- What is run ----------------------------------------------------------------------------------

STRUCK = 5  # the checkpoint during whose writing a fault strikes


@dataclass(frozen=True)
class Settings:
    """How a method is run here.

    Args:
        small: Name -> parameters of a trial that takes well under a second, of more than
            ``STRUCK`` steps. Together they go through every branch of the method's own code.
        stochastic: Whether another seed is to give other scores.
        trained: Whether it works in steps: reports a curve, and offers checkpoints.
        localises: Whether it hands out anomaly maps where the data have masks.
        shares_stages: Settings whose trials are to share all their stages.
        dear: Settings that are run by the slow tests only.
        data: What it is run on where nothing else is said.
        refuses: Data sets that cannot serve it, and says so.
    """

    small: Mapping[str, Mapping[str, object]]
    stochastic: bool = True
    trained: bool = True
    localises: bool = True
    shares_stages: tuple[str, ...] = ()
    dear: frozenset[str] = frozenset()
    data: str = "hdmap"
    refuses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How a data set is generated and read here.

    Args:
        make: Parameters of the generator, for few and small files.
        params: Of the data set, beside ``root``, written in the order of report.
        reordered: The same, written in another order.
        has_anomalies: Whether its test items are of both classes; else methods make some of them.
    """

    make: Mapping[str, object]
    params: Mapping[str, object] = field(default_factory=dict)
    reordered: Mapping[str, object] = field(default_factory=dict)
    has_anomalies: bool = True


ENCODER: dict[str, object] = {
    "encoder": "vit_tiny_patch16_224",
    "weights": "random",
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 4,
    "num_heads": 2,
    "resize": [16, 12],
    "crop": None,
}
DINOMALY = ENCODER | {
    "decoder_depth": 2,
    "max_steps": 8,  # three are an epoch: the fault strikes in the second, the third is cut short
    "lr_warmup_steps": 3,
    "batch_size": 5,
}
SHORT: dict[str, dict[str, object]] = {  # schedules that end before training does
    "topk": {"warmup_steps": 5},
    **{variant: {"p_schedule_steps": 6} for variant in VARIANTS if "p" in VARIANTS[variant]},
}
VALIDATED = {"validation": "from_test", "validate_every": 3, "validation_percent": 50}

PATCHES: dict[str, object] = {
    "encoder": "resnet18",
    "weights": "random",
    "resize": [32, 48],
    "crop": None,
    "pretrain_embed_dimension": 32,
    "target_embed_dimension": 32,
    "coreset_percent": 40,
}
IVFPQ: dict[str, object] = {"nbits": 4, "m": 8, "n_clusters": 2, "score_rule": "max_nn"}

RESNET: dict[str, object] = {
    "encoder": "resnet10t",
    **dict.fromkeys(("patch_size", "embed_dim", "depth", "num_heads")),
}
WORDS = ENCODER | {
    "projection_dim": 16,
    "embedding_dim": 8,
    "embedder_epochs": 2,
    "embedder_batch_size": 8,
    "embedder_lr": 1e-3,
    "session": 3,
    "window": 2,
    "block": 2,
    "ratios": [0.5],
    "hidden": 8,
    "attention": 4,
    "epochs": 8,
    "batch_size": 4,
    "patience": 8,
}

METHODS: dict[str, Settings] = {
    "dinomaly": Settings(
        small={
            **{v: DINOMALY | SHORT.get(v, {}) | {"variant": v} for v in VARIANTS},
            "tokens_none": DINOMALY | {"tokens": "none"},
            "augment_roll": DINOMALY | {"augment": "roll"},
            "validation": DINOMALY | VALIDATED,
        },
        shares_stages=tuple(VARIANTS),
    ),
    "mil": Settings(
        small={
            "as_published": WORDS,
            "wider": WORDS | {"hidden": 16, "lr": 3e-3},
            "resnet": WORDS | RESNET | {"centre": "bag", "classifier_hidden": 4},
            "softmax": WORDS | {"margin": 0, "augment": "none", "threshold_rule": "f1"},
        },
        localises=False,
        shares_stages=("as_published", "wider"),
        data="handwriting",
        refuses=("hdmap", "mhist", "mvtec", "slides", "visa"),
    ),
    "noising": Settings(small={"as_published": PATCHES}, trained=False),
    "patchcore": Settings(
        small={
            "softmax_k9": PATCHES,
            "ivfpq": PATCHES | IVFPQ | {"nprobe": 2},
            "variance": PATCHES | {"coreset": "variance_k_center", "layers": "high"},
            "random_joint": PATCHES | {"coreset": "random", "memory_bank": "joint"},
            "transformer": PATCHES | ENCODER,
        },
        trained=False,
    ),
}

DATASETS: dict[str, Layout] = {
    "handwriting": Layout(
        make={"writers": 8, "words": 3, "repetitions": 6, "height": 16, "width": 32},
        params={"writers": [3, 2, 3]},
        reordered={"writers": [3, 2, 3]},
        has_anomalies=False,
    ),
    "hdmap": Layout(
        make={"train": 3, "good": 3, "fault": 3},
        params={"domains": ["A", "B", "C", "D"]},
        reordered={"domains": ["D", "A", "C", "B"]},
    ),
    "mhist": Layout(make={"train_hp": 6, "train_ssa": 1, "test_hp": 3, "test_ssa": 3}),
    "mvtec": Layout(
        make={"categories": ["bottle", "zipper"], "size": [40, 32], "train": 6, "good": 3}
        | {"defect": 1},
        params={"categories": ["bottle", "zipper"]},
        reordered={"categories": ["zipper", "bottle"]},
    ),
    "slides": Layout(
        make={"train": 2, "normal": 1, "anomalous": 1, "size": 512, "tile": 64},
        params={"tile": 64, "train_tiles": 8},
        reordered={"train_tiles": 8, "tile": 64},
    ),
    "visa": Layout(
        make={"categories": ["candle", "pcb1"], "size": [40, 32], "train": 6, "good": 3}
        | {"defect": 1},
        params={"categories": ["candle", "pcb1"]},
        reordered={"categories": ["pcb1", "candle"]},
    ),
}
NANS = "tests.methods.nans"


def names(table: Mapping[str, object], package: str, constant: str) -> list[str]:
    """Those that exist and have an entry; a test of its own speaks of the others."""
    return [name for name in names_in(package, constant) if name in table]


methods = pytest.mark.parametrize("method", names(METHODS, "trainables", "METHOD"))
datasets = pytest.mark.parametrize("dataset", names(DATASETS, "trainables.data", "DATASET"))
settings = pytest.mark.parametrize(
    ("method", "setting"),
    [
        pytest.param(
            method,
            setting,
            id=f"{method}-{setting}",
            marks=[pytest.mark.slow] if setting in METHODS[method].dear else [],
        )
        for method in names(METHODS, "trainables", "METHOD")
        for setting in METHODS[method].small
    ],
)


@pytest.mark.parametrize(
    ("table", "package", "constant"),
    [(METHODS, "trainables", "METHOD"), (DATASETS, "trainables.data", "DATASET")],
    ids=["METHODS", "DATASETS"],
)
def test_every_method_and_data_set_has_an_entry_here(
    table: Mapping[str, object], package: str, constant: str
) -> None:
    assert sorted(table) == names_in(package, constant)


# --- How it is run --------------------------------------------------------------------------------

Watch = Callable[[str, tuple[Any, ...]], None]
_watching: list[Watch] = []
_hooked: list[object] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _watching:
        watch(event, arguments)


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Show ``watch`` what the interpreter is about to do; what it raises prevents it."""
    if not _hooked:
        sys.addaudithook(_audit)  # which cannot be taken back
        _hooked.append(_audit)
    _watching.append(watch)
    try:
        yield
    finally:
        _watching.remove(watch)


_NAME_LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_CONTACTS = {"socket.connect", "socket.sendto", "socket.sendmsg"}


def no_network(attempts: list[str]) -> Watch:
    """Prevent and note what would reach another machine."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        reaches_out = event in _CONTACTS and arguments[0].family != socket.AF_UNIX
        if reaches_out or event in _NAME_LOOKUPS:
            attempts.append(f"{event} {arguments[-1] if reaches_out else arguments[0]}")
            raise OSError("the conformance suite allows no network")

    return watch


Sees = Callable[[str, tuple[Any, ...]], bool]


def a_checkpoint(event: str, arguments: tuple[Any, ...]) -> bool:
    """A checkpoint was written and is about to get its name."""
    return event == "os.rename" and Path(os.fspath(arguments[1])).parent.name == "checkpoint"


def opening(path: Path) -> Sees:
    """``path`` is about to be read."""

    def sees(event: str, arguments: tuple[Any, ...]) -> bool:
        return event == "open" and str(arguments[0]) == str(path)

    return sees


def strike(sees: Sees, signal_number: int, *, at: int = 1) -> Watch:
    """Send this process a signal when ``sees`` is true for the ``at``-th time."""
    seen = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if sees(event, arguments) and next(seen) == at:
            signal.raise_signal(signal_number)

    return watch


@dataclass(frozen=True)
class Result:
    """What a trial left.

    Args:
        curve: Points without the time.
        attempts: To reach another machine.
    """

    record: TrialRecord
    predictions: Predictions | None
    curve: list[dict[str, Any]]
    folder: Path
    attempts: list[str]


class Bench:
    """Runs trials of small settings; each data set is generated once.

    Args:
        home: Where data and stores are.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._stores = itertools.count()
        self._straight: dict[tuple[str, str, int, str], Result] = {}

    def data(self, dataset: str) -> Any:
        """Validated parameters of generated data."""
        layout = DATASETS.get(dataset, Layout(make={}))
        given = {"root": self.home / "data" / dataset, "make": layout.make, **layout.params}
        params = load_dataset(dataset).params.model_validate(given)
        make_if_absent(load_dataset(dataset), params, print)
        return params

    def loaded(self, dataset: str) -> Data:
        return load_dataset(dataset).load(self.data(dataset))

    def new_store(self) -> Path:
        return self.home / f"store-{next(self._stores)}"

    def job(self, method: str, setting: str, seed: int, dataset: str = "") -> Job:
        dataset = dataset or METHODS[method].data
        data = self.data(dataset)
        content = fingerprint(load_dataset(dataset), data)
        params = load_method(method).params.model_validate(METHODS[method].small[setting])
        identity = {"method": method, "params": params.identity(), "data": content}
        trial = Trial(
            id=digest({**identity, "seed": seed}),
            method=method,
            version=load_method(method).version,
            params=params.model_dump(mode="json"),
            data_name=dataset,
            data_params=data.model_dump(mode="json"),
            fingerprint=content,
            seed=seed,
            identity=identity,
        )
        return Job(trial, f"{method} {setting}", gpus=0, threads=1)

    def run(
        self,
        method: str,
        setting: str,
        store: Path,
        *,
        seed: int = 1,
        dataset: str = "",
        checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S,
        fault: Watch | None = None,
    ) -> Result:
        """Run a trial in this process, or what is left of it; ``fault`` may end it early."""
        job, home = self.job(method, setting, seed, dataset), Store(store)
        attempts: list[str] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(watched(no_network(attempts)))
            if fault is not None:
                stack.enter_context(watched(fault))
            record = run_trial(
                job,
                home,
                origin_of(job),
                capture=True,
                checkpoint_interval_s=checkpoint_interval_s,
            )
        folder = home.trial_dir(record.id)
        return Result(record, home.predictions(record.id), curve_of(folder), folder, attempts)

    def straight(self, method: str, setting: str, *, seed: int = 1, dataset: str = "") -> Result:
        """The trial run once, undisturbed; those that share stages do it in one store."""
        key = (method, setting, seed, dataset)
        if key not in self._straight:
            shared = setting in METHODS[method].shares_stages
            store = self.shared(method, dataset) if shared else self.new_store()
            self._straight[key] = self.run(method, setting, store, seed=seed, dataset=dataset)
        return self._straight[key]

    def shared(self, method: str, dataset: str = "") -> Path:
        return self.home / f"shared-{method}-{dataset}"

    def moment(self, method: str) -> tuple[Sees, int]:
        """Where a fault is to strike: amid the training, or the reading of what is tested."""
        if METHODS[method].trained:
            return a_checkpoint, STRUCK
        items = self.loaded(METHODS[method].data).test
        return opening(items[len(items) // 2].path), 1


def curve_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "curve.jsonl"
    points = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: v for name, v in point.items() if name != "time_s"} for point in points]


def stages_in(store: Path) -> set[str]:
    """Name and key of each finished stage."""
    return {p.parent.relative_to(store).as_posix() for p in store.glob("stages/*/*/stage.json")}


def same(one: Result, other: Result) -> None:
    """Equal to the last bit in all that a report could show, but times and memory."""
    assert (one.record.status, other.record.status) == ("ok", "ok")
    assert one.record.id == other.record.id
    assert one.predictions is not None
    assert other.predictions is not None
    assert one.predictions.item == other.predictions.item
    assert one.predictions.group == other.predictions.group
    assert one.predictions.is_anomaly.tolist() == other.predictions.is_anomaly.tolist()
    assert one.predictions.score.tobytes() == other.predictions.score.tobytes()
    assert one.record.metrics == other.record.metrics
    assert one.record.missing == other.record.missing
    assert one.curve == other.curve


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(autouse=True)
def _as_a_worker_would(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # else nobody would try the network
        monkeypatch.delenv(name, raising=False)
    # A runner started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    if "torch" in sys.modules:  # a trial leaves its process so, and other tests share this one
        sys.modules["torch"].use_deterministic_algorithms(mode=False)


# --- Methods --------------------------------------------------------------------------------------


@settings
def test_the_same_seed_gives_the_same_result_to_the_last_bit(
    bench: Bench, method: str, setting: str
) -> None:
    same(bench.run(method, setting, bench.new_store()), bench.straight(method, setting))


@settings
def test_another_seed_gives_another_result_if_the_method_draws_at_random(
    bench: Bench, method: str, setting: str
) -> None:
    one, other = (bench.straight(method, setting, seed=seed) for seed in (1, 2))
    assert one.predictions is not None
    assert other.predictions is not None
    assert one.record.id != other.record.id
    equal = one.predictions.score.tobytes() == other.predictions.score.tobytes()
    assert equal != METHODS[method].stochastic


@settings
def test_an_interrupted_trial_that_is_run_again_ends_as_if_nothing_had_happened(
    bench: Bench, method: str, setting: str
) -> None:
    store, (sees, at) = bench.new_store(), bench.moment(method)
    with pytest.raises(KeyboardInterrupt):
        bench.run(
            method,
            setting,
            store,
            checkpoint_interval_s=0,
            fault=strike(sees, signal.SIGINT, at=at),
        )
    ends_as_if_straight(bench, method, setting, store)


@methods
def test_a_trial_interrupted_while_it_reads_images_can_be_run_again(
    bench: Bench, method: str
) -> None:
    setting, store = next(iter(METHODS[method].small)), bench.new_store()
    items = bench.loaded(METHODS[method].data).train
    fault = strike(opening(items[len(items) // 2].path), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        bench.run(method, setting, store, checkpoint_interval_s=0, fault=fault)
    same(bench.run(method, setting, store), bench.straight(method, setting))


@pytest.mark.slow
@methods
def test_a_killed_trial_that_is_run_again_ends_as_if_nothing_had_happened(
    bench: Bench, method: str
) -> None:
    setting, store = next(iter(METHODS[method].small)), bench.new_store()
    bench.job(method, setting, 1)  # generates the data
    code = "import sys; from tests.test_conformance import be_killed; be_killed(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(bench.home), method, setting, str(store)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    ends_as_if_straight(bench, method, setting, store)


def be_killed(home: str, method: str, setting: str, store: str) -> None:
    """Run a trial, in a process of its own, up to ``bench.moment``."""
    bench = Bench(Path(home))
    sees, at = bench.moment(method)
    fault = strike(sees, signal.SIGKILL, at=at)
    bench.run(method, setting, Path(store), checkpoint_interval_s=0, fault=fault)


def ends_as_if_straight(bench: Bench, method: str, setting: str, store: Path) -> None:
    """Run a trial to its end that was struck at ``bench.moment``."""
    job = bench.job(method, setting, 1)
    folder = Store(store).trial_dir(job.trial.id)
    assert Store(store).record(job.trial.id) is None
    left = sorted(p.name for p in folder.glob("checkpoint/[0-9]*"))
    resumed = bench.run(method, setting, store, checkpoint_interval_s=0)
    if METHODS[method].trained:
        assert left, "there was no checkpoint when the fault struck"
        assert f"continues from step {int(left[-1])}" in (folder / "log.txt").read_text()
    same(resumed, bench.straight(method, setting))
    assert not (folder / "checkpoint").exists()


@settings
def test_what_a_trial_leaves_is_well_formed(bench: Bench, method: str, setting: str) -> None:
    found, data = bench.straight(method, setting), bench.loaded(METHODS[method].data)
    well_formed(found, data, method, setting)
    if METHODS[method].trained:
        steps = [point["step"] for point in found.curve]
        assert steps == sorted(set(steps))
        assert steps[0] == 1
        for point in found.curve:
            assert point.keys() >= {"loss", "grad/total_norm", "grad/nan_count"}
            assert point["grad/nan_count"] == 0
            assert np.isfinite([float(value) for value in point.values()]).all()


@methods
def test_a_method_declares_the_metrics_of_its_curve(bench: Bench, method: str) -> None:
    cheap = METHODS[method].small.keys() - METHODS[method].dear
    points = [point for name in cheap for point in bench.straight(method, name).curve]
    reported = {name for point in points for name in point} - {"step"}
    assert sorted(reported) == sorted(load_method(method).curve)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_does_not_report_what_it_says_it_will_not(bench: Bench, method: str) -> None:
    declared = load_method(method)
    for name in METHODS[method].small.keys() - METHODS[method].dear:
        params = declared.params.model_validate(METHODS[method].small[name])
        silent = set(declared.unreported(params))
        assert silent <= set(declared.curve)
        reported = {key for point in bench.straight(method, name).curve for key in point}
        assert not silent & reported


def well_formed(found: Result, data: Data, method: str, setting: str) -> None:
    params = load_method(method).params.model_validate(METHODS[method].small[setting])
    tested = load_method(method).tested(params, data)
    groups = load_method(method).groups(params, data)
    record, predictions = found.record, found.predictions
    assert (record.status, record.error) == ("ok", None)
    assert predictions is not None
    assert predictions.score.shape == (len(tested),)
    assert np.isfinite(predictions.score).all()
    rows = zip(predictions.item, predictions.group, strict=True)
    labels = dict(zip(rows, predictions.is_anomaly.tolist(), strict=True))
    assert labels == {(item.name, item.group): item.is_anomaly for item in tested}
    assert {item.group for item in tested} == set(groups)
    expected = set(metrics.STORED)
    if METHODS[method].localises and any(item.mask for item in data.test):
        expected |= set(metrics.STORED_PIXEL)
    assert record.metrics.keys() == expected
    assert record.definitions.keys() == expected
    for name, values in record.metrics.items():
        assert values.keys() == set(groups), name
        for group, value in values.items():
            # Undefined is said, never left blank; a larger set has both classes in each group.
            assert (value is None) == (group in record.missing.get(name, {}))
            assert value is None or np.isfinite(value)
    classes = {(item.group, item.is_anomaly) for item in tested}
    if len(classes) == 2 * len(groups):
        assert not record.missing.keys() & {"auroc", "ap"}
    assert record.scalars.keys() <= set(load_method(method).scalars)
    assert np.isfinite(list(record.scalars.values())).all()
    for name in record.artifacts:
        assert (found.folder / "artifacts" / name).exists()


@datasets
@methods
def test_every_method_runs_on_every_data_set(bench: Bench, method: str, dataset: str) -> None:
    setting, data = next(iter(METHODS[method].small)), bench.loaded(dataset)
    params = load_method(method).params.model_validate(METHODS[method].small[setting])
    reason = load_method(method).infeasible(params, data)
    assert (reason is not None) == (dataset in METHODS[method].refuses)
    found = bench.straight(method, setting, dataset=dataset)
    if reason is None:
        well_formed(found, data, method, setting)
    else:
        assert found.record.error is not None
        assert (found.record.status, found.record.error["kind"]) == ("failed", "infeasible")
        assert found.record.error["message"] == reason


@settings
def test_images_that_are_nan_end_a_trial_with_an_item_or_a_step(
    bench: Bench, method: str, setting: str
) -> None:
    found = bench.run(method, setting, bench.new_store(), dataset=NANS)
    assert found.record.status in ("diverged", "failed")
    assert found.record.metrics == {}
    assert found.record.error is not None
    message = found.record.error["message"]
    named = [item.name for item in bench.loaded(NANS).train if item.name in message]
    assert named or re.search(r"\bstep \d+", message), message


@settings
def test_a_trial_reaches_for_no_network(bench: Bench, method: str, setting: str) -> None:
    assert bench.straight(method, setting).attempts == []


NOBODY = ("127.0.0.1", 9)


def by_socket(kind: int, call: str, *arguments: object) -> None:
    with socket.socket(socket.AF_INET, kind) as opened:
        getattr(opened, call)(*arguments)


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection(NOBODY, timeout=1),
        lambda: by_socket(socket.SOCK_STREAM, "connect_ex", NOBODY),
        lambda: by_socket(socket.SOCK_DGRAM, "sendto", b"", NOBODY),
        lambda: socket.getaddrinfo("localhost", 80),
        lambda: socket.gethostbyname("localhost"),
    ],
    ids=["connect", "connect_ex", "sendto", "getaddrinfo", "gethostbyname"],
)
def test_the_suite_would_see_an_attempt(reach: Callable[[], object]) -> None:
    attempts: list[str] = []
    with watched(no_network(attempts)), pytest.raises(OSError, match="allows no network"):
        reach()
    assert len(attempts) == 1


@settings
def test_the_stages_that_are_declared_are_those_that_are_built(
    bench: Bench, method: str, setting: str
) -> None:
    found = bench.straight(method, setting)
    trial = bench.job(method, setting, 1).trial
    params = load_method(method).params.model_validate(dict(trial.params))

    def folders(stages: Iterable[Stage]) -> Iterator[str]:
        for stage in stages:
            yield f"stages/{stage.name}/{key_of(stage, trial)}"
            yield from folders(stage.needs)

    declared = set(
        folders(load_method(method).stages(params, bench.loaded(METHODS[method].data), trial.seed))
    )
    assert declared == stages_in(found.folder.parents[2])


@methods
def test_trials_of_one_method_build_each_stage_once(bench: Bench, method: str) -> None:
    sharing = METHODS[method].shares_stages
    if not sharing:
        pytest.skip("no two of its settings and seeds share all their stages; its own tests count")
    alone = bench.new_store()
    bench.run(method, sharing[0], alone)
    for setting, seed in itertools.product(sharing, (1, 2)):
        assert bench.straight(method, setting, seed=seed).record.status == "ok"
    assert stages_in(bench.shared(method)) == stages_in(alone) != set()


# --- Parameters -----------------------------------------------------------------------------------

NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
OF_TYPE: dict[str, object] = {
    "null": None,
    "boolean": True,
    "number": 12.5,
    "string": "a word",
    "array": [[]],
    "object": {"a": 1},
}


def models() -> list[Any]:
    """Each model of parameters, with values from which a valid one is made."""
    found: list[Any] = []
    for name in names(METHODS, "trainables", "METHOD"):
        valid = next(iter(METHODS[name].small.values()))
        found.append(pytest.param(load_method(name).params, valid, id=name))
    for name in names(DATASETS, "trainables.data", "DATASET"):
        dataset, layout = load_dataset(name), DATASETS[name]
        valid = {"root": "somewhere", **layout.params}
        found.append(pytest.param(dataset.params, valid, id=name))
        if dataset.generator is not None:
            found.append(pytest.param(dataset.generator.params, layout.make, id=f"{name}-make"))
    return found


Schema = Mapping[str, Any]
parameters = pytest.mark.parametrize(("model", "valid"), models())


def branches(schema: Schema, whole: Schema) -> Iterator[Schema]:
    """The alternatives of a field."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    for key in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(key, ()):
            yield from branches(one, whole)
    if not schema.keys() & {"anyOf", "oneOf", "allOf"}:
        yield schema


def wrong_types(found: list[Schema]) -> Iterator[object]:
    """A value of each JSON type that no alternative takes."""
    is_open = [one for one in found if not one.keys() & {"enum", "const"}]
    if any("type" not in one for one in is_open):  # it takes anything
        return
    taken = {one["type"] for one in is_open}
    for kind, value in OF_TYPE.items():
        closed = [v for one in found for v in (*one.get("enum", ()), one.get("const"))]
        if kind not in taken and value not in closed:
            yield value


def numbers_outside(found: list[Schema], whole: Schema) -> Iterator[object]:
    """Numbers beyond each stated bound, and those that are not finite; in lists too."""
    for one in found:
        if one.get("type") in ("integer", "number"):
            yield from NOT_FINITE
            if "minimum" in one:
                yield one["minimum"] - 1
            if "maximum" in one:
                yield one["maximum"] + 1
            yield from (one[key] for key in ("exclusiveMinimum", "exclusiveMaximum") if key in one)
            if one.get("multipleOf", 1) != 1:
                yield one.get("minimum", 0) + one["multipleOf"] / 2
        elif one.get("type") == "array":
            for n, inner in enumerate(one.get("prefixItems", [one.get("items", {})])):
                length = max(len(one.get("prefixItems", ())), 1)
                for bad in numbers_outside(list(branches(inner, whole)), whole):
                    yield [bad if k == n else 1 for k in range(length)]


def refused(model: type[BaseModel], values: Mapping[str, object], knob: str) -> bool:
    """Whether the model finds fault with this very knob."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return any(detail["loc"][:1] == (knob,) for detail in error.errors())
    return False


def not_refused(
    model: type[BaseModel],
    valid: Mapping[str, object],
    bad: Callable[[list[Schema], Schema], Iterator[object]],
) -> list[str]:
    """Each bad value that passes."""
    whole = model.model_json_schema()
    return [
        f"{knob}={value!r}"
        for knob, schema in whole["properties"].items()
        for value in bad(list(branches(schema, whole)), whole)
        if not refused(model, {**valid, knob: value}, knob)
    ]


@parameters
def test_the_settings_of_this_suite_are_valid(
    model: type[BaseModel], valid: Mapping[str, object]
) -> None:
    made = model.model_validate(valid)
    assert model.model_validate(made.model_dump(mode="json")) == made


@parameters
def test_an_unknown_knob_is_refused(model: type[BaseModel], valid: Mapping[str, object]) -> None:
    assert refused(model, {**valid, "no_such_knob": 1}, "no_such_knob")


@parameters
def test_a_value_of_another_type_is_refused(
    model: type[BaseModel], valid: Mapping[str, object]
) -> None:
    assert not_refused(model, valid, lambda found, _: wrong_types(found)) == []


@parameters
def test_numbers_out_of_bounds_or_not_finite_are_refused(
    model: type[BaseModel], valid: Mapping[str, object]
) -> None:
    assert not_refused(model, valid, numbers_outside) == []


@parameters
def test_parameters_are_frozen(model: type[BaseModel], valid: Mapping[str, object]) -> None:
    made = model.model_validate(valid)
    for knob in model.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, knob, getattr(made, knob))


def test_the_suite_would_see_what_a_careless_model_lets_through() -> None:
    class Careless(BaseModel):
        share: float = Field(0.5, json_schema_extra={"minimum": 0, "exclusiveMaximum": 1})
        even: int = Field(2, json_schema_extra={"multipleOf": 2})
        pair: tuple[float, int] = (0.5, 1)
        kind: Literal["a", "b"] = "a"
        anything: Any = None

    types = not_refused(Careless, {}, lambda found, _: wrong_types(found))
    assert types == ["share=True", "even=True"]
    numbers = not_refused(Careless, {}, numbers_outside)
    assert numbers == [
        *(f"share={value}" for value in ("nan", "inf", "-inf", -1, 1)),
        "even=1.0",
        *(f"pair=[{value}, 1]" for value in ("nan", "inf", "-inf")),
    ]


def test_importing_any_of_them_is_cheap_and_reaches_for_no_network() -> None:
    """Planning and reporting import them all; the libraries they name take seconds each."""
    code = """
import sys
sys.addaudithook(lambda event, _: event.startswith(("socket.connect", "socket.get")) and 1 / 0)
from hdsweep.method import load_dataset, load_method, names_in
for name in names_in("trainables", "METHOD"):
    load_method(name)
for name in names_in("trainables.data", "DATASET"):
    load_dataset(name)
dear = {"torch", "torchvision", "timm", "anomalib", "ray", "optuna", "sklearn", "pandas"}
print(sorted(dear & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# --- Data sets ------------------------------------------------------------------------------------


@pytest.fixture
def copy(bench: Bench, dataset: str, tmp_path: Path) -> Any:
    """Parameters of a copy that may be damaged."""
    params = bench.data(dataset)
    shutil.copytree(params.root, tmp_path / "copy")
    return params.model_copy(update={"root": tmp_path / "copy"})


def items_of(data: Data) -> tuple[Item, ...]:
    return (*data.train, *data.validation, *data.test)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@datasets
def test_a_generator_writes_the_same_bytes_for_the_same_parameters_only(
    bench: Bench, dataset: str, tmp_path: Path
) -> None:
    params, generator = bench.data(dataset), load_dataset(dataset).generator
    assert generator is not None
    made = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        root = tmp_path / name
        root.mkdir()
        make = generator.params.model_validate({**DATASETS[dataset].make, "seed": seed})
        generator.write(make, root)
        made[name] = contents(root)
    assert made["again"] == made["one"]
    for item in items_of(load_dataset(dataset).load(params)):
        name = item.path.relative_to(params.root).as_posix()
        assert made["other"][name] != made["one"][name]


@datasets
def test_items_have_unique_names_that_know_no_folder_of_this_machine(
    bench: Bench, dataset: str, copy: Any
) -> None:
    here, there = bench.loaded(dataset), load_dataset(dataset).load(copy)
    found = [item.name for item in items_of(here)]
    assert len(set(found)) == len(found)
    for name in found:
        assert not PurePosixPath(name).is_absolute()
        assert not {"..", "", "."} & set(name.split("/"))
        assert "\\" not in name
    assert found == [item.name for item in items_of(there)]


@datasets
def test_training_items_are_normal_and_each_group_is_tested_on_both_classes(
    bench: Bench, dataset: str
) -> None:
    data = bench.loaded(dataset)
    assert not any(item.is_anomaly for item in data.train)
    assert {item.group for item in data.train} == set(data.groups)
    labels = (False, True) if DATASETS[dataset].has_anomalies else (False,)
    both = {(group, label) for group in data.groups for label in labels}
    assert {(item.group, item.is_anomaly) for item in data.test} == both
    splits = [{item.path for item in one} for one in (data.train, data.validation, data.test)]
    assert sum(map(len, splits)) == len(set.union(*splits))


@datasets
def test_groups_have_a_fixed_order_which_items_follow(bench: Bench, dataset: str) -> None:
    data, params = bench.loaded(dataset), bench.data(dataset)
    for items in (data.train, data.test):
        order = [data.groups.index(item.group) for item in items]
        assert order == sorted(order)
    given = {"root": params.root, **DATASETS[dataset].reordered}
    other = load_dataset(dataset).params.model_validate(given)
    assert load_dataset(dataset).load(other).groups == data.groups
    assert other.identity() == params.identity()


@datasets
def test_files_are_sorted_and_cover_every_image_and_mask(bench: Bench, dataset: str) -> None:
    params, data = bench.data(dataset), bench.loaded(dataset)
    found = list(load_dataset(dataset).files(params))
    assert found == sorted(set(found))
    assert all(path.is_relative_to(params.root) for path in found)
    used = {item.path for item in items_of(data)} | {i.mask for i in items_of(data) if i.mask}
    assert used <= set(found)


@datasets
def test_images_are_finite_float32_and_masks_have_their_size(bench: Bench, dataset: str) -> None:
    data = bench.loaded(dataset)
    for item in items_of(data):
        image = data.read(item)
        assert image.dtype == np.float32
        assert image.ndim == 3
        assert np.isfinite(image).all()
        if item.mask is not None:
            assert item.is_anomaly
            assert data.read_mask is not None
            mask = data.read_mask(item)
            assert mask.dtype == np.bool_
            assert mask.shape == image.shape[1:]
            assert mask.any()


def half(whole: bytes) -> bytes:
    """About half of a file, and of a table of text not whole lines: those are another table."""
    middle = len(whole) // 2
    if whole.isascii() and b"," in whole:
        middle = whole.index(b",", whole.rindex(b"\n", 0, middle)) + 1
    return whole[:middle]


@datasets
@pytest.mark.parametrize("cut", [lambda whole: b"", half], ids=["empty", "half"])
def test_every_file_verifies_and_a_truncated_copy_of_it_is_named(
    copy: Any, dataset: str, cut: Callable[[bytes], bytes]
) -> None:
    verify = load_dataset(dataset).verify
    for path in load_dataset(dataset).files(copy):
        verify(path)
        whole = path.read_bytes()
        path.write_bytes(cut(whole))
        with pytest.raises(DataError) as raised:
            verify(path)
        assert str(path) in str(raised.value)
        path.write_bytes(whole)


@datasets
def test_data_that_were_moved_are_the_same_data(bench: Bench, dataset: str, copy: Any) -> None:
    here = bench.data(dataset)
    assert copy.identity() == here.identity()
    known = fingerprint(load_dataset(dataset), here)
    assert fingerprint(load_dataset(dataset), copy) == known
    assert str(here.root) not in json.dumps(here.identity())


@datasets
def test_a_changed_byte_makes_other_data(dataset: str, copy: Any) -> None:
    known = fingerprint(load_dataset(dataset), copy)
    one, other = sorted({item.path for item in load_dataset(dataset).load(copy).train})[:2]
    one.write_bytes(other.read_bytes())
    assert fingerprint(load_dataset(dataset), copy) != known


@datasets
def test_a_missing_folder_is_one_error_that_names_it(dataset: str, copy: Any) -> None:
    found = load_dataset(dataset)
    folders = sorted(p for p in copy.root.iterdir() if p.is_dir())
    assert folders
    for folder in (*folders, copy.root):
        aside = copy.root.parent / "aside"
        folder.rename(aside)
        for look in (found.files, found.load, lambda params: fingerprint(found, params)):
            with pytest.raises(DataError, match=re.escape(str(folder))) as raised:
                look(copy)
            assert "\n" not in str(raised.value)
        aside.rename(folder)
    shutil.rmtree(copy.root)
    with pytest.raises(DataError, match=re.escape(str(copy.root))):
        found.check(copy)


@datasets
def test_a_check_finds_no_problem_in_generated_data(bench: Bench, dataset: str) -> None:
    found = load_dataset(dataset).check(bench.data(dataset))
    assert found.problems == ()
    assert found.rows
    assert all(row.keys() == found.rows[0].keys() for row in found.rows)
