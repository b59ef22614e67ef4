"""The same picture or map twice: within a split, or in two splits that must not share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trainables.data.folders import first

Names = Mapping[str, Sequence[str]]  # by digest of the pixels


def leaks(
    splits: Sequence[tuple[str, Iterable[Names]]], noun: str, anomaly: str = "an anomaly"
) -> list[str]:
    """One sentence for each picture that is in two splits that must not share it.

    Args:
        splits: Name and content of the training, the normal and the anomalous test split, each in
            any number of parts.
        noun: What is compared, as in ``map``.
        anomaly: What an anomalous one is called.
    """
    train, good, bad = (
        (split, {digest: names[0] for part in parts for digest, names in part.items()})
        for split, parts in splits
    )
    pairs = (
        (train, good, "a method is tested on what it was trained on"),
        (train, bad, f"{anomaly} is trained on as normal"),
        (good, bad, f"one {noun} has both labels"),
    )
    lines = []
    for (one, a), (other, b), harm in pairs:
        shared = sorted(a.keys() & b.keys(), key=lambda digest: a[digest])
        lines += first(
            [f"{a[d]} and {b[d]} are the same {noun}: {harm}; remove one" for d in shared],
            f"more {noun}s are both in {one} and in {other}: {harm}",
        )
    return lines


def repeats(split: str, parts: Iterable[Names], noun: str) -> list[str]:
    """A sentence when some of a split repeat others, over all its parts."""
    names: dict[str, list[str]] = {}
    for part in parts:
        for digest, found in part.items():
            names.setdefault(digest, []).extend(found)
    repeated = [found for found in names.values() if len(found) > 1]
    if not repeated:
        return []
    extra = sum(len(found) - 1 for found in repeated)
    one, other = repeated[0][:2]
    return [f"{extra} of the {noun}s in {split} repeat another: {other} is the same as {one}"]
