"""The test bags as they are reported: names, groups and labels.

Planning asks for them, so this knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hdsweep.method import Data, Item
from trainables.mil.bags import BagParams, Bags, Task, bags_of, documents_of, tasks_of
from trainables.mil.documents import Asked, Documents, Integers


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a trial's predictions: every task's group has all genuine bags, then its own.

    Args:
        bag: Shape (rows,), places in the test bags.
        items: One for each row.
        names: One for each test bag.
    """

    bag: Integers
    items: tuple[Item, ...]
    names: tuple[str, ...]


def rows_of(params: BagParams, data: Data) -> Rows:
    """The bags of the test writers, as they are reported."""
    knobs = params.model_dump(include=set(BagParams.model_fields))
    return _rows_of(Asked.of(data), BagParams.model_validate(knobs))


@lru_cache(maxsize=4)
def _rows_of(asked: Asked, params: BagParams) -> Rows:
    bags, documents = bags_of(params, asked.data, "test"), documents_of(params, asked.data, "test")
    tasks = tasks_of(params)
    names = _names(bags, documents, tasks)
    rows, items = [], []
    for place, task in enumerate(tasks):
        for bag in np.flatnonzero((bags.task == -1) | (bags.task == place)).tolist():
            writer = documents.writer[bags.document[bag]]
            rows.append(bag)
            items.append(
                Item(names[bag], task.label, bool(bags.task[bag] >= 0), documents.homes[writer])
            )
    return Rows(np.array(rows, dtype=np.int64), tuple(items), tuple(names))


def _names(bags: Bags, documents: Documents, tasks: Sequence[Task]) -> list[str]:
    """A name for each bag; a genuine one that a task used before gets a number."""
    names = []
    seen: dict[str, int] = {}
    for task, document, block, other in zip(
        bags.task.tolist(), bags.document.tolist(), bags.block.tolist(), bags.other.tolist(),
        strict=True,
    ):  # fmt: skip
        writer = documents.writers[documents.writer[document]]
        name = f"{writer}/s{documents.session[document]}/b{block:03d}"
        if task < 0:
            names.append(f"genuine/{name}")
            continue
        name = f"mixed/{tasks[task].label}/{name}+{documents.writers[other]}"
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}/{seen[name]}")
    return names
