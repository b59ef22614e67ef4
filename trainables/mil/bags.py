"""Bags of one writer's words, and bags into which words of a second writer were put.

A *document* is what a writer wrote in one session: the words whose repetition, divided by
``session`` without remainder, is the same. An *instance* is a window of consecutive words of a
document. A *genuine* bag is a block of consecutive instances of one document; those left over at
its end are in none. A *mixed* bag is a genuine one in which k instances, at random places, are
replaced by k of one other writer of the same split. k is what a ratio means: max(1, round(block *
ratio)), where Python's ``round`` takes a half to the even number; ratios of one k are one *task*.

Bags are numbers of rows of a split's embeddings, drawn with a seed of their own: replicates and
settings are compared on the same bags. The first bags of a task are the same whatever other tasks
there are. Planning asks for them, so this knows no torch.

Where ``stride`` is below ``window``, as published, neighbouring instances of a genuine bag share
words, and those put into a mixed one do not: bags can be told apart by that alone, without a trace
of who wrote them. ``replaced_by: same_writer`` is the control that shows how far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from hdsweep.method import Data, MethodError, Stage, Strict
from trainables.mil.documents import (
    Asked,
    Documents,
    Integers,
    documents_in,
    starts_of,
    words_digest,
)
from trainables.mil.words import SPLITS, Split

_CODE = "trainables.mil.bags"  # not the method's whole folder: bags do not depend on the network
_VERSION = 1

Bools = NDArray[np.bool_]

_Ratio = Annotated[float, Field(gt=0, le=1)]
_Count = Annotated[int, Field(ge=1, le=1_000_000)]  # numpy's integers end somewhere


class BagParams(Strict):
    """Knobs of the bags.

    Args:
        session: Repetitions of the text that are one document.
        window: Consecutive words that are an instance.
        stride: Words from the start of an instance to that of the next.
        block: Instances in a bag.
        ratios: Shares of a mixed bag's instances that are another writer's.
        replaced_by: Whose words are put into a mixed bag. ``same_writer`` is a control: such bags
            differ from genuine ones in anything but their writers.
        mixed_per_genuine: Mixed bags for each genuine one, all ratios together, in every split.
        bag_seed: Of the bags, not of a replicate.
    """

    session: _Count = 9
    window: _Count = 5
    stride: _Count = 1
    block: _Count = 10
    ratios: tuple[_Ratio, ...] = Field((0.05, 0.1, 0.2, 0.3), min_length=1)
    replaced_by: Literal["another_writer", "same_writer"] = "another_writer"
    mixed_per_genuine: float = Field(2.0, gt=0, le=100)
    bag_seed: int = Field(0, ge=0)

    @field_validator("ratios")
    @classmethod
    def _in_order(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        twice = next((ratio for ratio in ratios if ratios.count(ratio) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice:g} stands in it twice; remove one")
        return tuple(sorted(ratios))


@dataclass(frozen=True, slots=True)
class Task:
    """Bags that are mixed in one way.

    Args:
        replaced: Instances of a bag that are another writer's.
        ratios: That amount to this.
    """

    replaced: int
    ratios: tuple[float, ...]

    @property
    def label(self) -> str:
        """The group that its bags are reported as."""
        return "/".join(f"{ratio:.12g}" for ratio in self.ratios)


def tasks_of(params: BagParams) -> tuple[Task, ...]:
    """The tasks that the ratios amount to, the smallest ratio first."""
    ratios: dict[int, list[float]] = {}
    for ratio in params.ratios:
        ratios.setdefault(max(1, round(params.block * ratio)), []).append(ratio)
    return tuple(Task(replaced, tuple(same)) for replaced, same in ratios.items())


def warnings_of(params: BagParams) -> list[str]:
    """What a person should know of these bags before they are made, one sentence each."""
    found = []
    if params.stride < params.window and params.replaced_by == "another_writer":
        found.append(
            f"stride {params.stride} is below window {params.window}: neighbouring instances share "
            "words, those put into a mixed bag share none with theirs, so bags can be told apart "
            f"whoever wrote them; use stride {params.window}, or see how far it goes with "
            "replaced_by 'same_writer'"
        )
    for task in tasks_of(params):
        if len(task.ratios) > 1:
            ratios = [f"{ratio:.12g}" for ratio in task.ratios]
            apart = _block_that_tells_apart(params)
            found.append(
                f"ratios {', '.join(ratios[:-1])} and {ratios[-1]} "
                f"{'both' if len(ratios) == 2 else 'all'} replace {task.replaced} of "
                f"{params.block} instances: one task, reported as group '{task.label}'"
                + (f"; use block {apart} to tell them apart" if apart else "")
            )
        if task.replaced == params.block:
            found.append(
                f"ratio {task.label} replaces all {params.block} instances: such a bag is another "
                "writer's and mixes nothing"
            )
    return found


def _block_that_tells_apart(params: BagParams) -> int | None:
    """The next round number of instances at which every ratio is a task of its own."""
    for block in range(10 * (params.block // 10 + 1), 10 * params.block + 101, 10):
        if len(tasks_of(params.model_copy(update={"block": block}))) == len(params.ratios):
            return block
    return None


# --- Bags -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bags:
    """The bags of a split: the genuine ones, document after document, then those of each task.

    Args:
        words: Shape (bags, block, window), int32, rows of the split's embeddings.
        foreign: Shape (bags, block), which instances were put in.
        task: Shape (bags,), place in ``tasks_of``; -1 of a genuine bag.
        document: Shape (bags,), of the bag or of the genuine one that it was made of.
        block: Shape (bags,), that one's place in its document, from 0.
        other: Shape (bags,), place in ``Documents.writers`` of who wrote what was put in; -1 of a
            genuine bag.
    """

    words: NDArray[np.int32]
    foreign: Bools
    task: NDArray[np.int32]
    document: NDArray[np.int32]
    block: NDArray[np.int32]
    other: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.task)

    @property
    def is_mixed(self) -> Bools:
        """Shape (bags,), the label."""
        return np.asarray(self.task >= 0)

    @property
    def genuine(self) -> int:
        """How many are genuine."""
        return int(np.count_nonzero(~self.is_mixed))


def documents_of(params: BagParams, data: Data, split: Split) -> Documents:
    """The documents of a split."""
    return documents_in(Asked.of(data), split, params.session, params.window, params.stride)


def bags_of(params: BagParams, data: Data, split: Split) -> Bags:
    """Draw the bags of a split, in which ``why_no_bags`` found no fault."""
    documents = documents_of(params, data, split)
    blocks = documents.instances // params.block
    document = np.repeat(np.arange(len(blocks)), blocks)
    block = np.arange(len(document)) - np.repeat(starts_of(blocks)[:-1], blocks)
    first = documents.first_instance[document] + block * params.block
    genuine = first[:, None] + np.arange(params.block)

    counts = mixed_counts(params, len(genuine))
    plain = np.zeros(genuine.shape, dtype=np.bool_), np.arange(len(genuine))
    made = [(genuine, *plain, np.full(len(genuine), -1))]
    for task, count in zip(tasks_of(params), counts, strict=True):
        key = (SPLITS.index(split), task.replaced)
        seeds = np.random.SeedSequence(params.bag_seed, spawn_key=key).spawn(4)
        draw = _Draw(*(np.random.default_rng(seed) for seed in seeds))
        own = params.replaced_by == "same_writer"
        made.append(_mix(genuine, documents, document, task.replaced, count, draw, own=own))
    instance, foreign, of, other = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
    start = documents.starts(params.stride)[instance]
    return Bags(
        words=documents.rows[start[:, :, None] + np.arange(params.window)].astype(np.int32),
        foreign=foreign,
        task=np.repeat(np.arange(-1, len(counts)), [len(genuine), *counts]).astype(np.int32),
        document=document[of].astype(np.int32),
        block=block[of].astype(np.int32),
        other=other.astype(np.int32),
    )


def mixed_counts(params: BagParams, genuine: int) -> list[int]:
    """How many mixed bags each task gets: as evenly as can be, the first ones one more."""
    tasks = len(tasks_of(params))
    each, more = divmod(round(params.mixed_per_genuine * genuine), tasks)
    return [each + (place < more) for place in range(tasks)]


@dataclass(frozen=True, slots=True)
class _Draw:
    """A stream for each choice, so that the first bags are the same however many there are."""

    base: np.random.Generator
    place: np.random.Generator
    other: np.random.Generator
    instance: np.random.Generator


def _mix(
    genuine: Integers,
    documents: Documents,
    document: Integers,
    k: int,
    count: int,
    draw: _Draw,
    *,
    own: bool,
) -> tuple[Integers, Bools, Integers, Integers]:
    """Instances of ``count`` mixed bags, which are foreign, the genuine bags' places, the others'.

    Each genuine bag is used once before one is used again.
    """
    rounds = -(-count // len(genuine))
    base = np.concatenate([draw.base.permutation(len(genuine)) for _ in range(rounds)])[:count]
    mixed, foreign = genuine[base], np.zeros((count, genuine.shape[1]), dtype=np.bool_)
    writer = documents.writer[document[base]]
    other = writer if own else _others(writer, documents.supply >= k, draw.other.random(count))

    first = documents.first_instance[np.searchsorted(documents.writer, other)]
    supply = documents.supply[other] - (genuine.shape[1] if own else 0)  # but for the block
    given = first[:, None] + _without_repetition(supply, draw.instance.random((count, k)))
    if own:
        given += (given >= mixed[:, :1]) * genuine.shape[1]
    replaced = np.argsort(draw.place.random(mixed.shape), axis=1, kind="stable")[:, :k]
    np.put_along_axis(mixed, replaced, given, axis=1)
    np.put_along_axis(foreign, replaced, True, axis=1)  # noqa: FBT003 - a value
    return mixed, foreign, base, other


def _others(writer: Integers, able: Bools, uniform: NDArray[np.float64]) -> Integers:
    """Another writer for each, of those that are ``able``: who has instances enough to give."""
    able_ones = np.flatnonzero(able)
    place = np.full(len(able), len(able_ones))
    place[able_ones] = np.arange(len(able_ones))
    chosen = _below(len(able_ones) - able[writer], uniform)
    return able_ones[chosen + (chosen >= place[writer])]


def _below(limit: Integers, uniform: NDArray[np.float64]) -> Integers:
    """Whole numbers from 0 to below ``limit``, of numbers from 0 to below 1."""
    found: Integers = (uniform * limit).astype(np.int64)
    return found


def _without_repetition(limit: Integers, uniform: NDArray[np.float64]) -> Integers:
    """In each row different whole numbers below its ``limit``, as many as ``uniform`` has."""
    found = np.empty(uniform.shape, dtype=np.int64)
    for column in range(uniform.shape[1]):
        new = _below(limit - column, uniform[:, column])
        for taken in np.sort(found[:, :column], axis=1).T:  # count on over those that are taken
            new += new >= taken
        found[:, column] = new
    return found


# --- What cannot work -----------------------------------------------------------------------------


def why_no_bags(params: BagParams, data: Data) -> str | None:
    """Why such bags cannot be made of these words, in a sentence; None where they can."""
    each = (_why_none(params, documents_of(params, data, split), split) for split in SPLITS)
    return next((reason for reason in each if reason is not None), None)


def _why_none(params: BagParams, documents: Documents, split: Split) -> str | None:
    if len(documents.writers) < 2:
        return f"all {split} words are of writer {documents.writers[0]}, and a mixed bag needs two"
    blocks = documents.instances // params.block
    if not blocks.any():
        largest = int(np.argmax(documents.instances))
        return (
            f"no document of the {split} writers has {params.block} instances: the largest, "
            f"{documents.writers[documents.writer[largest]]} session "
            f"{documents.session[largest]}, has {documents.instances[largest]} "
            f"({documents.words[largest]} words, window {params.window}, stride {params.stride}); "
            "lower block or window"
        )
    counts = mixed_counts(params, int(blocks.sum()))
    if 0 in counts:
        return (
            f"the {split} writers give {blocks.sum()} genuine bags, so {sum(counts)} mixed ones "
            f"are asked for, and the {len(counts)} tasks need one each; raise mixed_per_genuine, "
            "or lower block"
        )
    most = tasks_of(params)[-1]
    able = documents.supply >= most.replaced
    for writer in np.unique(documents.writer[blocks > 0]):
        if params.replaced_by == "same_writer":
            left = int(documents.supply[writer]) - params.block
            if left < most.replaced:
                return (
                    f"{split} writer {documents.writers[writer]} has {left} instances beside a "
                    f"bag's, and ratio {most.label} replaces {most.replaced}; lower ratios, "
                    "block or window"
                )
        elif not np.delete(able, writer).any():
            return (
                f"no {split} writer but {documents.writers[writer]} has the {most.replaced} "
                f"instances that ratio {most.label} replaces; lower ratios or window"
            )
    return None


# --- The stage ------------------------------------------------------------------------------------


def bags_stage(params: BagParams, data: Data, split: Split) -> Stage:
    """The bags of a split."""
    inputs: dict[str, object] = {
        "session": params.session,
        "window": params.window,
        "stride": params.stride,
        "block": params.block,
        "replaced": [task.replaced for task in tasks_of(params)],
        "replaced_by": params.replaced_by,
        "mixed_per_genuine": params.mixed_per_genuine,
        "seed": params.bag_seed,
        "split": split,
        "items": words_digest(data, split),
    }
    return Stage("bags", _VERSION, inputs, _CODE)


def kept(params: BagParams, data: Data, split: Split) -> tuple[Stage, Callable[[Path], None]]:
    """The stage and what builds it."""

    def draw_and_write(folder: Path) -> None:
        bags = bags_of(params, data, split)
        for one in fields(Bags):
            np.save(folder / f"{one.name}.npy", getattr(bags, one.name), allow_pickle=False)

    return bags_stage(params, data, split), draw_and_write


def read(folder: Path) -> Bags:
    """The bags that a stage kept, mapped and read-only.

    Raises:
        MethodError: The files are damaged.
    """
    try:
        arrays: dict[str, Any] = {
            one.name: np.load(folder / f"{one.name}.npy", mmap_mode="r", allow_pickle=False)
            for one in fields(Bags)
        }
    except (OSError, ValueError, EOFError) as error:
        raise MethodError(
            f"{folder}: the bags kept there are damaged ({error}); remove the folder, and they are "
            "made anew"
        ) from error
    return Bags(**arrays)
