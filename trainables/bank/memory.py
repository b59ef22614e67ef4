"""The banks of a trial: patches chosen and kept by the first trial that asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hdsweep.method import Data, MethodError, Stage, TrialContext
from trainables.bank import BankParams, bank_size, why_empty
from trainables.bank.coreset import (
    Projected,
    Rows,
    Selection,
    k_center,
    permuted,
    project,
    variance_k_center,
    variances,
)
from trainables.bank.stages import LADDER, bank_stage, rung_stages
from trainables.encoders.stages import Split
from trainables.encoders.threads import one_thread

if TYPE_CHECKING:
    from trainables.encoders.features import PatchFeatures

_ORDER, _DISTANCES, _COMPARED = "order.npy", "distances.npy", "compared.npy"
_VECTORS = "vectors.npy"
_ROWS = 4096  # written at once
_PROJECTED_BYTES = 10**9  # of projected patches that are kept for the next rung

Sources = tuple[str, ...]
Build = Callable[[Path], None]


class Bank:
    """Memory banks for the test images of a trial's groups.

    All but the constructor raise MethodError where a bank cannot be filled, or what is kept of it
    is damaged.

    Args:
        params: How patches are chosen.
        data: Whose training images they are of.
        features: Of the patches.
        seed: Of the choice.
        context: Lends the stages and the log.
    """

    def __init__(
        self,
        params: BankParams,
        data: Data,
        features: PatchFeatures,
        seed: int,
        context: TrialContext,
    ) -> None:
        self._params, self._data, self._features = params, data, features
        self._seed, self._context = seed, context
        self._projected: OrderedDict[Sources, Projected] = OrderedDict()
        self._kept_rows: dict[Sources, Rows] = {}
        self._kept_vectors: dict[Sources, NDArray[np.float32]] = {}

    def lacking(self, groups: Sequence[str]) -> list[tuple[Split, str]]:
        """Splits and groups whose features are needed to fill banks that are not there."""
        banks = self._missing(groups)
        return [("train", one) for one in dict.fromkeys(s for sources in banks for s in sources)]

    def prepare(self, groups: Sequence[str]) -> None:
        """Have the banks of these groups filled now, but for those that others are at.

        All of one kind of work before the next: who shares it finds something to do meanwhile.
        """
        banks = self._missing(groups)
        self._features.prepare(self.lacking(groups))
        if self._params.coreset != "random":
            ladders = [self._rungs(sources) for sources in banks]
            missing = [one for one in ladders if not self._context.has(one[-1][0])]
            for level in zip(*missing, strict=True):
                self._context.prepare(level)
        self._context.prepare([self._bank(sources) for sources in banks])
        self._projected.clear()

    def vectors(self, group: str) -> NDArray[np.float32]:
        """The bank for test images of ``group``, shape (n, dimension), mapped and read-only."""
        sources = self._sources(group)
        if sources not in self._kept_vectors:
            folder = self._context.stage(*self._bank(sources))
            self._kept_vectors[sources] = _load(folder / _VECTORS)
            self._projected.clear()
        return self._kept_vectors[sources]

    def rows(self, group: str) -> Rows:
        """The training patches that the bank for ``group`` is chosen from."""
        return self._rows(self._sources(group))

    def order(self, group: str) -> NDArray[np.int64]:
        """Where the bank's vectors stand among ``rows``, in the order in which they were chosen."""
        return self._order(self._sources(group))

    def _missing(self, groups: Sequence[str]) -> list[Sources]:
        """Of a bank that is there, what it was made of may have been trimmed from the cache."""
        each = dict.fromkeys(self._sources(group) for group in groups)
        return [sources for sources in each if not self._context.has(self._bank(sources)[0])]

    def _sources(self, group: str) -> Sources:
        reason = why_empty(self._params, self._data, group)
        if reason is not None:
            raise MethodError(reason)
        return self._params.sources(self._data, group)

    def _rows(self, sources: Sources) -> Rows:
        if sources not in self._kept_rows:
            arrays = [self._features.of("train", source) for source in sources]
            self._kept_rows[sources] = Rows(arrays)
        return self._kept_rows[sources]

    def _order(self, sources: Sources) -> NDArray[np.int64]:
        patches = len(self._rows(sources))
        size = bank_size(patches, self._params.coreset_percent)
        if self._params.coreset == "random":
            return permuted(patches, self._seed)[:size]
        return _read(self._context.stage(*self._rungs(sources)[-1])).order[:size]

    def _bank(self, sources: Sources) -> tuple[Stage, Build]:
        def build(folder: Path) -> None:
            rows, order = self._rows(sources), self._order(sources)
            shape = (len(order), rows.dimension)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            with (folder / _VECTORS).open("wb") as file:  # not mapped: a full disk would kill
                np.lib.format.write_array_header_2_0(file, header)
                for start in range(0, len(order), _ROWS):
                    some = rows.take(order[start : start + _ROWS])
                    file.write(some.astype("<f4", copy=False).tobytes())

        return bank_stage(self._params, self._data, sources, self._seed), build

    def _rungs(self, sources: Sources) -> list[tuple[Stage, Build]]:
        """The greedy order up to each rung of the ladder, going on from the rung below."""
        stages = rung_stages(self._params, self._data, sources, self._seed)
        wanted: list[tuple[Stage, Build]] = []
        for stage, percent in zip(stages, LADDER, strict=False):
            below = wanted[-1] if wanted else None
            wanted.append((stage, self._climb(sources, percent, below)))
        return wanted

    def _climb(self, sources: Sources, percent: float, below: tuple[Stage, Build] | None) -> Build:
        def build(folder: Path) -> None:
            start = _read(self._context.stage(*below)) if below else None
            rows = self._rows(sources)
            size = bank_size(len(rows), percent)
            done = 0 if start is None else len(start.order)
            self._context.log.info(
                "coreset of %s: choosing patches %d to %d of %d, once",
                ", ".join(sources), done + 1, size, len(rows),
            )  # fmt: skip
            _write(folder, self._choose(sources, rows, size, start))

        return build

    def _choose(
        self, sources: Sources, rows: Rows, size: int, start: Selection | None
    ) -> Selection:
        if start is not None and len(start.order) == size:
            return start
        with one_thread():
            projected = self._project(sources, rows)
            variance = variances(rows) if self._params.coreset == "variance_k_center" else None
        if variance is None:
            return k_center(projected, size, start)
        return variance_k_center(projected, variance, size, start)

    def _project(self, sources: Sources, rows: Rows) -> Projected:
        """Projected patches, kept for the next rung as far as there is room."""
        found = self._projected.pop(sources, None) or project(rows, self._seed)
        self._projected[sources] = found
        while sum(one.features.nbytes for one in self._projected.values()) > _PROJECTED_BYTES:
            self._projected.popitem(last=False)
        return found


def _write(folder: Path, found: Selection) -> None:
    compared = np.array(found.compared, dtype="<i8")
    order, distances = found.order.astype("<i8"), found.distances.astype("<f4")
    for name, array in ((_ORDER, order), (_DISTANCES, distances), (_COMPARED, compared)):
        header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
        with (folder / name).open("wb") as file:
            np.lib.format.write_array_header_2_0(file, header)
            file.write(array.tobytes())


def _read(folder: Path) -> Selection:
    order, distances = np.array(_load(folder / _ORDER)), np.array(_load(folder / _DISTANCES))
    return Selection(order, distances, int(_load(folder / _COMPARED)))


def _load(path: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:  # the last of an empty file
        raise MethodError(
            f"{path.parent}: the bank kept there is damaged ({error}); remove the folder, and it "
            "is made anew"
        ) from error
    return found
