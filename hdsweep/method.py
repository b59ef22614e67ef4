"""All that a trainable sees of the engine.

A method is a module ``trainables/<name>`` (a file, or a folder's ``__init__``) that exports
``METHOD``; a data set is a module ``trainables/data/<name>`` that exports ``DATASET``. Both are
loaded by name, and importing either must stay cheap: planning 100,000 trials or printing a report
imports the module for its parameters, so torch and the like are imported inside ``run``.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hdsweep.errors import DataError, Diverged, Infeasible, MethodError, SpecError, did_you_mean
from hdsweep.stages import Stage
from hdsweep.strict import ContentPath, Strict

__all__ = [
    "AnomalyMaps",
    "Check",
    "ContentPath",
    "Data",
    "DataError",
    "Dataset",
    "Diverged",
    "Generator",
    "Infeasible",
    "Item",
    "Method",
    "MethodError",
    "Outcome",
    "Predictions",
    "Stage",
    "Strict",
    "TrialContext",
    "load_dataset",
    "load_method",
]


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a data set.

    Args:
        name: Unique in the data set, free of machine paths: ``domain_A/test/fault/0007.tiff``.
        group: What results are reported per (a domain, a category).
        is_anomaly: The label; always False in training items.
        path: Where its bytes are: a file that it may share with others, or a folder.
        mask: The file that marks its anomalous pixels; None where there is none.
        facts: What else the data set tells of it, by names that its docstring explains: the
            ``writer`` of a word, the place of a tile.
        part_of: The name of the item in ``Data.wholes`` that it is a part of.
    """

    name: str
    group: str
    is_anomaly: bool
    path: Path
    mask: Path | None = None
    facts: Mapping[str, str | int] = field(default_factory=dict, hash=False)
    part_of: str | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """What a trial trains and is tested on.

    Args:
        train: Normal items only.
        test: Items of both classes.
        groups: Groups in their fixed order of report.
        read: Item -> float32 array of shape (channels, height, width), in the data's own unit,
            the same for training and for testing. Raises DataError that names the file.
        read_mask: Item with a mask -> array of shape (height, width) of the image, True where it
            is anomalous; raises as ``read`` does. None where the data have no masks.
        validation: Items that are neither trained nor tested on, to stop early by or to choose a
            threshold on; empty where the data set has none.
        wholes: What the test items are parts of, labelled as a whole, where such parts are read one
            by one because a whole is too large: slides, of tiles. They cannot be read.
    """

    train: tuple[Item, ...]
    test: tuple[Item, ...]
    groups: tuple[str, ...]
    read: Callable[[Item], NDArray[np.float32]]
    read_mask: Callable[[Item], NDArray[np.bool_]] | None = None
    validation: tuple[Item, ...] = ()
    wholes: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """What a look at every file of a data set found.

    Args:
        rows: One mapping per split and group, same keys in each, ready to print as a table.
        problems: What would spoil a sweep, one sentence each; empty when the data can be used.
        warnings: What a person should know.
    """

    rows: tuple[Mapping[str, str | int | float], ...]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generator:
    """Writes a synthetic data set in the published layout.

    Args:
        params: Knobs of the generator.
        write: (params, root) -> None; ``root`` is an empty folder. The same params write the
            same bytes.
    """

    params: type[Strict]
    write: Callable[[Any, Path], None]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set in its published layout. Each callable takes validated ``params``.

    Args:
        params: Knobs of the ``data:`` block, ``root`` among them.
        files: Every file whose content can change a result, as sorted paths below ``params.root``.
            Raises DataError when the layout is not there.
        verify: Raises DataError when this file cannot be read; it is called once for each new or
            changed file before a sweep starts.
        load: params -> Data.
        check: params -> Check, reading every file.
        generator: How to make a synthetic twin, where there is one.
    """

    params: type[Strict]
    files: Callable[[Any], Sequence[Path]]
    verify: Callable[[Path], None]
    load: Callable[[Any], Data]
    check: Callable[[Any], Check]
    generator: Generator | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Scores of the test items, in the order of ``Data.test`` or of ``Method.tested``.

    An item may stand in several groups, in one row each: what every group's anomalies are compared
    with.

    Args:
        item: n names.
        group: n group names.
        is_anomaly: Shape (n,).
        score: Shape (n,), larger means more anomalous; NaN where the method has no answer.
    """

    item: tuple[str, ...]
    group: tuple[str, ...]
    is_anomaly: NDArray[np.bool_]
    score: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.item)
        if not len(self.group) == len(self.is_anomaly) == len(self.score) == n:
            raise ValueError(
                f"predictions are ragged: {n} items, {len(self.group)} groups, "
                f"{len(self.is_anomaly)} labels, {len(self.score)} scores"
            )
        if len(set(zip(self.item, self.group, strict=True))) != n:
            raise ValueError("predictions name an item twice in one group")
        first = self.first()
        if len(first) != n:
            own = dict(zip((self.item[row] for row in first), first, strict=True))
            same = np.array([own[name] for name in self.item], dtype=np.intp)
            if (self.is_anomaly != self.is_anomaly[same]).any() or not np.array_equal(
                self.score, self.score[same], equal_nan=True
            ):
                raise ValueError("predictions give an item two labels or two scores")

    def first(self) -> list[int]:
        """The row in which each item first stands, in ascending order."""
        rows: dict[str, int] = {}
        for row, name in enumerate(self.item):
            rows.setdefault(name, row)
        return list(rows.values())

    @classmethod
    def of(cls, items: Sequence[Item], score: NDArray[Any]) -> Predictions:
        """Predictions for ``items``; ``score`` has shape (len(items),)."""
        return cls(
            item=tuple(item.name for item in items),
            group=tuple(item.group for item in items),
            is_anomaly=np.array([item.is_anomaly for item in items], dtype=np.bool_),
            score=np.asarray(score, dtype=np.float64),
        )


@dataclass(frozen=True, slots=True)
class AnomalyMaps:
    """A score for every pixel of the test items; pixel metrics are computed from it.

    Args:
        path: A ``.npy`` file of floats in the trial's scratch folder, shape (n, height, width), in
            the order of ``Data.test``, larger means more anomalous. It is not kept.
        to_grid: A mask of an image's own size -> the same mask as the method saw the image, resized
            and cropped, shape (height, width) of the maps.
    """

    path: Path
    to_grid: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished trial hands back. Metrics are computed from it, never by the method.

    Args:
        predictions: One row per test item.
        scalars: Other finite measurements by name, the unit in the name (``latency_ms``).
        artifacts: Files or folders to keep, by the name to keep them under.
        maps: Of methods that localise, where the data have masks.
        threshold: Scores of at least this much are called anomalous, where it was chosen without
            the test labels; F1, accuracy and the like are then those at this threshold.
    """

    predictions: Predictions
    scalars: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    maps: AnomalyMaps | None = None
    threshold: float | None = None


class TrialContext(Protocol):
    """What the engine lends to a running trial."""

    @property
    def seed(self) -> int:
        """The replicate. Python, numpy and torch are seeded with it before ``run`` is called."""

    @property
    def device(self) -> str:
        """A torch device name: ``cpu`` or ``cuda:0``."""

    @property
    def threads(self) -> int:
        """CPU threads this trial may use; torch is already bound to it."""

    @property
    def scratch(self) -> Path:
        """A folder of this trial's own, gone when it ends."""

    @property
    def log(self) -> logging.Logger:
        """Writes to the trial's ``log.txt``."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a point to the trial's curve.

        Args:
            step: Of the method's own progress, from 1, not decreasing.
            metrics: Name -> value; a value may be NaN or infinite. No name may be ``step`` or
                ``time_s``; those that are declared in ``Method.curve`` may have the trial stopped.

        Raises:
            Stopped: The sweep's stopping rule ends the trial here. It is no failure, and not to be
                caught; what is reported in the builder of a stage stops nothing.
        """

    def stage(self, stage: Stage, build: Callable[[Path], None]) -> Path:
        """Folder of work shared between trials, built by the first that asks for it.

        Args:
            stage: What names it; one of those that ``Method.stages`` tells, or that one of them
                needs.
            build: Writes the result into the empty folder it is given; a function of the module or
                folder that ``stage.code`` names. It may ask for the stages that ``stage`` needs.

        Returns:
            The finished folder, to be read only; it stays until the trial ends.
        """

    def prepare(self, wanted: Sequence[tuple[Stage, Callable[[Path], None]]]) -> None:
        """Build those of several stages that nobody has built or is building.

        Without it, trials that start together and ask for the same stages in the same order wait
        for one another at each; with it they share the work.

        Args:
            wanted: Stages that do not need each other, as for ``stage``.
        """

    def has(self, stage: Stage) -> bool:
        """Whether a stage is there already, so that what only it needs is not asked for."""

    def alone(self) -> AbstractContextManager[bool]:
        """Time in which no other trial of this user computes on this machine, to measure in.

        Others finish first, and none starts meanwhile, so what is inside should be short. Gives
        False instead of True when a neighbour has not finished within two minutes.
        """

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        """Offer a checkpoint after ``step``; cheap to call at every step.

        The engine decides whether one is due, and then calls ``save`` with an empty folder that
        replaces the previous checkpoint once it is whole. In the builder of a stage it is the
        stage's: whoever builds it next, after this process was killed, goes on from there.
        """

    def resume(self) -> Path | None:
        """Folder of the last whole checkpoint of this trial, or of the stage that is being built.

        None for a fresh start.
        """


def _unknown_steps(_params: Strict) -> None:
    return None


def _nothing(_params: Strict) -> Sequence[str]:
    return ()


def _no_stages(_params: Strict, _data: Data, _seed: int) -> Sequence[Stage]:
    return ()


def _always_feasible(_params: Strict, _data: Data) -> None:
    return None


def _test_items(_params: Strict, data: Data) -> Sequence[Item]:
    return data.test


def _data_groups(_params: Strict, data: Data) -> Sequence[str]:
    return data.groups


@dataclass(frozen=True, slots=True)
class Method:
    """A trainable.

    Args:
        version: Raised by the author when the same parameters may give another result.
        params: Frozen model of the knobs: documentation, schema and check in one.
        run: (params, data, context) -> Outcome.
        source: Where the method was published.
        uses_torch: Whether torch is to be imported, seeded and bound to the trial's threads before
            ``run``; a method without torch starts seconds sooner.
        scalars: Names of the measurements its Outcome may carry, so that a report can ask for them.
        warn: params -> what a person should know before these parameters are run, one sentence
            each; empty when there is nothing.
        stages: (params, data, seed) -> the stages that ``run`` asks for, in its order, so that a
            plan can show them and trials that share one need not wait for it together.
        infeasible: (params, data) -> why ``run`` cannot work with so much or such data, in a
            sentence, as far as that can be told without running; None where it can. What shows
            only in ``run`` is raised there as Infeasible.
        tested: (params, data) -> the rows of its predictions, of a method that makes its own test
            items of those of the data (bags of words) or adds to them (slides to tiles); an item in
            several groups is given once for each.
        groups: (params, data) -> the groups of ``tested``, in their order of report.
        curve: Names of the metrics that it reports while it runs, with some parameters or with all;
            a sweep's stopping rule may watch one of them.
        unreported: params -> names in ``curve`` that it does not report with these, as far as a
            stopping rule might wait for them in vain.
        steps: params -> the last step of its curve, where that is known: nothing is saved by
            stopping a trial there.
    """

    version: int
    params: type[Strict]
    run: Callable[[Any, Data, TrialContext], Outcome]
    source: str
    uses_torch: bool = True
    scalars: tuple[str, ...] = ()
    warn: Callable[[Any], Sequence[str]] = _nothing
    stages: Callable[[Any, Data, int], Sequence[Stage]] = _no_stages
    infeasible: Callable[[Any, Data], str | None] = _always_feasible
    tested: Callable[[Any, Data], Sequence[Item]] = _test_items
    groups: Callable[[Any, Data], Sequence[str]] = _data_groups
    curve: tuple[str, ...] = ()
    unreported: Callable[[Any], Sequence[str]] = _nothing
    steps: Callable[[Any], int | None] = _unknown_steps


def method_module(name: str) -> str:
    """Module that a method's name stands for: below ``trainables``, or as it is when dotted."""
    return name if "." in name else f"trainables.{name}"


def load_method(name: str) -> Method:
    """The METHOD of a module. Raises SpecError for an unknown name."""
    method = _load(method_module(name), "METHOD", "method", name)
    if not isinstance(method, Method):
        raise SpecError(f"method '{name}': METHOD is not a hdsweep.method.Method")
    return method


def dataset_module(name: str) -> str:
    """Module that a data set's name stands for."""
    return name if "." in name else f"trainables.data.{name}"


def load_dataset(name: str) -> Dataset:
    """The DATASET of a module. Raises SpecError for an unknown name."""
    dataset = _load(dataset_module(name), "DATASET", "data set", name)
    if not isinstance(dataset, Dataset):
        raise SpecError(f"data set '{name}': DATASET is not a hdsweep.method.Dataset")
    return dataset


def names_in(package: str, constant: str) -> list[str]:
    """Modules of ``package`` that export ``constant``, sorted."""
    names = (m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__))
    return sorted(n for n in names if hasattr(importlib.import_module(f"{package}.{n}"), constant))


def _load(module: str, constant: str, what: str, name: str) -> object:
    known = all(part.isidentifier() for part in name.split("."))
    try:
        known = known and importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        known = False
    found = getattr(importlib.import_module(module), constant, None) if known else None
    if found is None:
        package = "trainables" if constant == "METHOD" else "trainables.data"
        raise SpecError(f"unknown {what} '{name}'{did_you_mean(name, names_in(package, constant))}")
    return found
