"""Bags: what they hold is counted again here by hand, word by word."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hdsweep.method import Data, Item, MethodError
from trainables.mil.bags import (
    BagParams,
    Bags,
    _without_repetition,
    bags_of,
    bags_stage,
    documents_of,
    kept,
    mixed_counts,
    read,
    tasks_of,
    warnings_of,
    why_no_bags,
)
from trainables.mil.reported import rows_of
from trainables.mil.words import SPLITS

HOME = Path("/words")


def word(writer: str, repetition: int, place: int) -> Item:
    name = f"{writer}/text{place:02d}_{repetition}.png"
    facts: dict[str, str | int] = {
        "writer": writer,
        "word": f"text{place:02d}",
        "repetition": repetition,
    }
    return Item(name, "words", is_anomaly=False, path=HOME / name, facts=facts)


def no_images(item: Item) -> Any:
    raise AssertionError(f"{item.name} is not to be read")


def writing(*lengths: dict[int, int], repetitions: int = 2) -> tuple[Item, ...]:
    """Words of writers, each told as number -> words in each repetition."""
    return tuple(
        word(f"w{number:03d}", repetition, place)
        for each in lengths
        for number, words in each.items()
        for repetition in range(repetitions)
        for place in range(words)
    )


def data_of(writers: tuple[int, int, int] = (6, 4, 5), words: int = 40, **how: int) -> Data:
    """Splits of so many writers, numbered through."""
    first = np.cumsum([0, *writers])
    train, validation, test = (
        writing(dict.fromkeys(range(start, start + count), words), **how)
        for start, count in zip(first, writers, strict=False)
    )
    return Data(train, test, ("words",), no_images, validation=validation)


DATA = data_of()


def params(**knobs: Any) -> BagParams:
    return BagParams.model_validate({"session": 1, **knobs})


def same(one: Bags, other: Bags) -> bool:
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in Bags.__slots__)


# --- Documents and instances ----------------------------------------------------------------------


@pytest.mark.parametrize(("session", "stride"), [(1, 1), (2, 1), (1, 3), (3, 7)])
def test_genuine_bags_are_blocks_of_windows_of_a_document_in_order(
    session: int, stride: int
) -> None:
    knobs = params(session=session, stride=stride, block=4, window=5)
    data = data_of(words=33, repetitions=3)
    expected = []
    documents: dict[tuple[str, int], list[int]] = {}
    for row, item in enumerate(data.test):
        key = str(item.facts["writer"]), int(item.facts["repetition"]) // session
        documents.setdefault(key, []).append(row)
    for rows in documents.values():
        windows = [rows[at : at + 5] for at in range(0, len(rows) - 4, stride)]
        expected += [windows[at : at + 4] for at in range(0, len(windows) - 3, 4)]
    bags = bags_of(knobs, data, "test")
    assert bags.words[: bags.genuine].tolist() == expected
    assert not bags.foreign[: bags.genuine].any()


def test_a_document_is_told_by_writer_and_session_wherever_its_words_stand() -> None:
    turned = replace(DATA, test=tuple(sorted(DATA.test, key=lambda i: -int(i.facts["repetition"]))))
    names = [
        [[[split[row].name for row in i] for i in bag] for bag in bags.words[: bags.genuine]]
        for split, bags in (
            (DATA.test, bags_of(params(), DATA, "test")),
            (turned.test, bags_of(params(), turned, "test")),
        )
    ]
    assert names[0] == names[1]


def test_documents_shorter_than_a_block_give_no_bag_and_may_be_drawn_from() -> None:
    short = replace(DATA, test=writing({11: 40, 12: 7}, repetitions=1))
    bags = bags_of(params(), short, "test")
    assert why_no_bags(params(), short) is None
    assert set(bags.document.tolist()) == {0}
    assert set(bags.other[bags.is_mixed].tolist()) == {1}


# --- What is put in -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "ratio", "replaced"),
    [
        (10, 0.05, 1), (10, 0.1, 1), (10, 0.2, 2), (10, 0.3, 3),
        (20, 0.05, 1), (20, 0.1, 2), (20, 0.2, 4), (20, 0.3, 6),
        (10, 0.25, 2), (10, 0.35, 4), (3, 0.01, 1), (4, 1.0, 4),
    ],
)  # fmt: skip
def test_a_ratio_replaces_the_nearest_number_of_instances_a_half_the_even_one_and_never_none(
    block: int, ratio: float, replaced: int
) -> None:
    assert [task.replaced for task in tasks_of(params(block=block, ratios=[ratio]))] == [replaced]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("block", [10, 20])
def test_a_mixed_bag_is_a_genuine_one_with_k_different_instances_of_one_other_writer(
    split: Any, block: int
) -> None:
    knobs = params(block=block)
    bags, documents = bags_of(knobs, DATA, split), documents_of(knobs, DATA, split)
    writer = np.array([str(item.facts["writer"]) for item in getattr(DATA, split)])
    genuine = {
        (int(bags.document[n]), int(bags.block[n])): bags.words[n] for n in range(bags.genuine)
    }
    assert bags.is_mixed.any()
    for bag in np.flatnonzero(bags.is_mixed):
        foreign, of = bags.foreign[bag], genuine[int(bags.document[bag]), int(bags.block[bag])]
        assert foreign.sum() == tasks_of(knobs)[bags.task[bag]].replaced
        assert (bags.words[bag][~foreign] == of[~foreign]).all()
        put_in = bags.words[bag][foreign]
        own, other = documents.writers[documents.writer[bags.document[bag]]], bags.other[bag]
        assert set(writer[of].ravel()) == {own}
        assert set(writer[put_in].ravel()) == {documents.writers[other]} != {own}
        assert len({tuple(instance) for instance in put_in}) == len(put_in)
        assert (np.diff(put_in, axis=1) == 1).all()


def test_places_and_other_writers_are_drawn_evenly() -> None:
    knobs = params(ratios=[0.3], mixed_per_genuine=60)
    bags = bags_of(knobs, DATA, "test")
    mixed = bags.is_mixed
    share = bags.foreign[mixed].mean(axis=0)
    assert share == pytest.approx(np.full(10, 0.3), abs=0.05)  # 4 standard errors of 1500 bags
    writer = documents_of(knobs, DATA, "test").writer[bags.document[mixed]]
    pairs = Counter(zip(writer.tolist(), bags.other[mixed].tolist(), strict=True))
    assert len(pairs) == 5 * 4
    assert max(pairs.values()) < 1.6 * mixed.sum() / 20  # 5 standard errors


def test_the_control_puts_in_what_the_same_writer_wrote_elsewhere() -> None:
    knobs = params(replaced_by="same_writer")
    bags, documents = bags_of(knobs, DATA, "test"), documents_of(knobs, DATA, "test")
    genuine = {
        (int(bags.document[n]), int(bags.block[n])): bags.words[n] for n in range(bags.genuine)
    }
    for bag in np.flatnonzero(bags.is_mixed):
        foreign, of = bags.foreign[bag], genuine[int(bags.document[bag]), int(bags.block[bag])]
        assert bags.other[bag] == documents.writer[bags.document[bag]]
        put_in = {tuple(instance) for instance in bags.words[bag][foreign].tolist()}
        assert len(put_in) == foreign.sum()
        assert put_in.isdisjoint(tuple(instance) for instance in of.tolist())
    assert set(bags.other[bags.is_mixed].tolist()) == set(range(5))


@given(st.data())
def test_numbers_without_repetition_are_below_their_limit_and_all_different(draw: Any) -> None:
    count = draw.draw(st.integers(1, 8))
    limit = np.array(draw.draw(st.lists(st.integers(count, 30), min_size=1, max_size=5)))
    below_one = st.floats(0, 1, exclude_max=True)
    rows = st.lists(below_one, min_size=count, max_size=count)
    uniform = np.array([draw.draw(rows) for _ in limit])
    for row, most in zip(_without_repetition(limit, uniform).tolist(), limit, strict=True):
        assert len(set(row)) == count
        assert 0 <= min(row) <= max(row) < most


# --- Seeds and counts -----------------------------------------------------------------------------


def test_bags_are_the_same_for_a_seed_and_others_for_another() -> None:
    one, again = bags_of(params(), DATA, "train"), bags_of(params(), DATA, "train")
    other = bags_of(params(bag_seed=1), DATA, "train")
    assert same(one, again)
    assert not np.array_equal(one.foreign, other.foreign)
    assert not np.array_equal(one.other, other.other)
    assert np.array_equal(one.words[: one.genuine], other.words[: other.genuine])


def test_the_first_bags_of_a_task_do_not_depend_on_the_other_tasks() -> None:
    alone = bags_of(params(ratios=[0.3]), DATA, "train")
    among = bags_of(params(ratios=[0.1, 0.2, 0.3]), DATA, "train")
    last = among.task == 2
    assert 0 < last.sum() < alone.is_mixed.sum()
    assert np.array_equal(alone.words[alone.is_mixed][: last.sum()], among.words[last])


@pytest.mark.parametrize("per", [0.5, 1.0, 2.0, 3.3])
@pytest.mark.parametrize("split", SPLITS)
def test_mixed_bags_are_as_many_as_asked_and_spread_evenly_over_the_tasks(
    per: float, split: Any
) -> None:
    knobs = params(mixed_per_genuine=per, block=20)
    bags = bags_of(knobs, DATA, split)
    counts = np.bincount(bags.task[bags.is_mixed])
    assert counts.sum() == round(per * bags.genuine)
    assert counts.max() - counts.min() <= 1
    assert counts.tolist() == mixed_counts(knobs, bags.genuine)


def test_genuine_bags_are_used_in_turn() -> None:
    bags = bags_of(params(ratios=[0.3], mixed_per_genuine=2.5), DATA, "test")
    mixed = bags.is_mixed
    used = Counter(zip(bags.document[mixed].tolist(), bags.block[mixed].tolist(), strict=True))
    assert len(used) == bags.genuine
    assert set(used.values()) == {2, 3}


# --- Ratios ---------------------------------------------------------------------------------------


def test_ratios_that_replace_as_many_are_one_task_and_a_warning_says_so() -> None:
    knobs = params(stride=5)
    assert [task.label for task in tasks_of(knobs)] == ["0.05/0.1", "0.2", "0.3"]
    (told,) = warnings_of(knobs)
    assert told == (
        "ratios 0.05 and 0.1 both replace 1 of 10 instances: one task, reported as group "
        "'0.05/0.1'; use block 20 to tell them apart"
    )
    assert [task.label for task in tasks_of(params(block=20))] == ["0.05", "0.1", "0.2", "0.3"]
    assert warnings_of(params(block=20, stride=5)) == []


def test_no_block_is_proposed_where_none_of_a_usable_length_tells_ratios_apart() -> None:
    (told,) = warnings_of(params(ratios=[0.1, 0.1001], stride=5))
    assert told.endswith("one task, reported as group '0.1/0.1001'")


def test_a_warning_tells_that_overlapping_windows_give_mixed_bags_away() -> None:
    overlapping, apart = params(ratios=[0.3]), params(ratios=[0.3], stride=5)
    (told,) = warnings_of(overlapping)
    assert "stride 1 is below window 5" in told
    assert "use stride 5" in told
    assert warnings_of(apart) == []
    assert warnings_of(params(ratios=[0.3], replaced_by="same_writer")) == []


def test_a_warning_tells_that_nothing_is_mixed_where_all_is_replaced() -> None:
    (told,) = warnings_of(params(ratios=[0.3, 1], stride=5))
    assert "replaces all 10 instances" in told


@pytest.mark.parametrize("ratios", [[0], [1.01], [-0.1], [], [0.1, 0.1], [float("nan")], 0.1])
def test_ratios_that_mean_nothing_are_refused(ratios: Any) -> None:
    with pytest.raises(ValidationError, match="ratios"):
        params(ratios=ratios)


@pytest.mark.parametrize("knob", ["session", "window", "stride", "block"])
def test_counts_that_no_data_have_are_refused_before_anything_is_counted(knob: str) -> None:
    with pytest.raises(ValidationError, match=knob):
        params(**{knob: 10**19})
    why_no_bags(params(**{knob: 10**6}), DATA)  # and these are counted


def test_the_order_in_which_ratios_are_written_makes_no_other_trial() -> None:
    assert params(ratios=[0.3, 0.1]).identity() == params(ratios=[0.1, 0.3]).identity()


# --- What cannot work -----------------------------------------------------------------------------


def test_a_block_larger_than_every_document_is_refused_with_the_largest_named() -> None:
    small = replace(DATA, test=writing({11: 9, 12: 10}, repetitions=1))
    assert why_no_bags(params(), small) == (
        "no document of the test writers has 10 instances: the largest, w012 session 0, has 6 "
        "(10 words, window 5, stride 1); lower block or window"
    )
    assert why_no_bags(params(block=6), small) is None
    assert why_no_bags(params(), DATA) is None


def test_a_lonely_writer_is_named() -> None:
    lonely = replace(DATA, validation=writing({8: 40}))
    assert why_no_bags(params(), lonely) == (
        "all validation words are of writer w008, and a mixed bag needs two"
    )


def test_fewer_mixed_bags_than_tasks_are_refused() -> None:
    few = replace(DATA, test=writing({11: 15, 12: 4}, repetitions=1))
    found = why_no_bags(params(), few)
    assert found is not None
    assert "1 genuine bags, so 2 mixed ones" in found
    assert "3 tasks" in found
    assert why_no_bags(params(mixed_per_genuine=3), few) is not None  # w012 has nothing to give
    given = replace(DATA, test=writing({11: 15, 12: 7}, repetitions=1))
    assert why_no_bags(params(mixed_per_genuine=3), given) is None


def test_a_writer_without_another_who_can_give_enough_is_named() -> None:
    poor = replace(DATA, test=writing({11: 40, 12: 6}, repetitions=1))
    found = why_no_bags(params(), poor)
    assert found is not None
    assert "no test writer but w011 has the 3 instances that ratio 0.3 replaces" in found
    assert why_no_bags(params(ratios=[0.2]), poor) is None


def test_the_control_needs_instances_beside_the_bag() -> None:
    bare = replace(DATA, test=writing({11: 15, 12: 15}, repetitions=1))
    knobs = {"replaced_by": "same_writer", "ratios": [0.3]}
    found = why_no_bags(params(**knobs), bare)
    assert found is not None
    assert "test writer w011 has 1 instances beside a bag's" in found
    assert why_no_bags(params(block=5, **knobs), bare) is None


# --- What is tested -------------------------------------------------------------------------------


def test_every_genuine_bag_is_in_the_group_of_every_task_before_the_mixed_ones() -> None:
    knobs = params(mixed_per_genuine=10, ratios=[0.05, 0.1, 0.3])
    bags, rows = bags_of(knobs, DATA, "test"), rows_of(knobs, DATA)
    groups = [item.group for item in rows.items]
    assert list(dict.fromkeys(groups)) == ["0.05/0.1", "0.3"]
    assert groups == sorted(groups)
    genuine = [item.name for item in rows.items if not item.is_anomaly]
    assert genuine == [*genuine[: bags.genuine]] * 2
    for group in ("0.05/0.1", "0.3"):
        labels = [item.is_anomaly for item in rows.items if item.group == group]
        assert labels == sorted(labels)
        assert labels.count(False) == bags.genuine
    assert len(set(rows.names)) == len(bags)
    assert [rows.names[bag] for bag in rows.bag] == [item.name for item in rows.items]
    assert [bool(bags.is_mixed[bag]) for bag in rows.bag] == [i.is_anomaly for i in rows.items]


def test_a_bag_is_named_by_whose_words_it_holds() -> None:
    rows = rows_of(params(), DATA)
    assert rows.items[0].name == "genuine/w010/s0/b000"
    assert rows.items[0].path == HOME / "w010"
    mixed = [item.name.split("/") for item in rows.items if item.group == "0.2" and item.is_anomaly]
    assert {name[:2] == ["mixed", "0.2"] for name in map(list, mixed)} == {True}
    assert all(name[2] != name[4].split("+")[1] for name in mixed)


# --- The stage ------------------------------------------------------------------------------------


def test_what_is_kept_is_read_again_and_damage_is_told(tmp_path: Path) -> None:
    stage, build = kept(params(), DATA, "test")
    build(tmp_path)
    assert same(read(tmp_path), bags_of(params(), DATA, "test"))
    assert read(tmp_path).words.dtype == np.int32
    assert stage.name == "bags"
    (tmp_path / "task.npy").write_bytes(b"")
    with pytest.raises(MethodError, match="remove the folder"):
        read(tmp_path)


def test_a_stage_is_named_by_what_bags_depend_on() -> None:
    def named(data: Data = DATA, split: Any = "test", **knobs: Any) -> Any:
        return bags_stage(params(**knobs), data, split).inputs

    later = [replace(i, facts={**i.facts, "repetition": 3}) for i in DATA.test]
    assert named() == named(ratios=[0.1, 0.2, 0.3])  # the same instances are replaced
    assert named() == named(replace(DATA, train=()))
    others = [
        named(split="train"), named(bag_seed=1), named(block=9), named(window=4), named(stride=2),
        named(session=2), named(mixed_per_genuine=1), named(ratios=[0.3]),
        named(replaced_by="same_writer"), named(replace(DATA, test=tuple(later))),
    ]  # fmt: skip
    assert all(other != named() for other in others)
