"""Anomaly maps: values of patches enlarged to pixels, and the file that they are measured from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hdsweep.method import AnomalyMaps, Data, TrialContext
from trainables.bank import BankParams
from trainables.encoders.images import mask_on_grid

_SIGMA = 4.0  # pixels of the smoothing, as published

Keep = Callable[[Sequence[int], NDArray[np.float32]], None]


def anomaly_maps(
    value: NDArray[np.float32], grid: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Values of patches enlarged to pixels, bilinear, and smoothed, as PatchCore's authors do.

    Args:
        value: Shape (images, patches), larger means more anomalous.
        grid: Rows and columns of patches.
        size: Height and width of the maps.

    Returns:
        Shape (images, *size).
    """
    small = torch.from_numpy(value.reshape(len(value), 1, *grid))
    large = F.interpolate(small, size=size, mode="bilinear", align_corners=False)[:, 0].numpy()
    smooth: NDArray[np.float32] = gaussian_filter(large, sigma=(0, _SIGMA, _SIGMA))
    return smooth


@contextlib.contextmanager
def drawn(
    params: BankParams, data: Data, grid: tuple[int, int], context: TrialContext
) -> Iterator[tuple[AnomalyMaps | None, Keep]]:
    """A file of maps of the test items, where the data have masks to measure them with.

    Yields:
        What an Outcome holds, and what to call with rows of ``data.test`` and the values of their
        patches, in any order of rows; each must be given once.
    """
    if data.read_mask is None or not any(item.mask for item in data.test):
        yield None, lambda _rows, _value: None
        return
    path = context.scratch / "maps.npy"
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(data.test), *params.crop)}
    size_bytes = params.crop[0] * params.crop[1] * 4
    with path.open("wb") as file:  # not mapped: a full disk would end the process
        np.lib.format.write_array_header_2_0(file, header)
        start = file.tell()

        def keep(rows: Sequence[int], value: NDArray[np.float32]) -> None:
            try:
                for row, one in zip(rows, anomaly_maps(value, grid, params.crop), strict=True):
                    file.seek(start + row * size_bytes)
                    file.write(one.astype("<f4").tobytes())
                file.flush()
            except OSError as error:  # a write does not say to which file
                raise OSError(error.errno, error.strerror, str(path)) from error

        yield AnomalyMaps(path, partial(mask_on_grid, params=params, grid=params.crop)), keep
