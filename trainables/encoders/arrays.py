"""What an encoder says of many images, kept as one array that trials map into memory."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hdsweep.method import Item, MethodError
from trainables.encoders.stages import Stored

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_AS_STORED = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}  # numpy knows no bfloat16
_SHAPE = "shape.json"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Content:
    """What an array holds.

    Args:
        name: Of the file and of the knob that says in which type it is kept.
        keep: That type.
        wider: What to set the knob to where values do not fit.
        smaller: What to do where the disk has no room.
    """

    name: str
    keep: Stored
    wider: str
    smaller: str


def size_bytes(content: Content, items: int, shape: tuple[int, ...]) -> int:
    """Of the array of so many items of this shape."""
    return items * int(np.prod(shape)) * TYPES[content.keep].itemsize


def write(
    folder: Path,
    content: Content,
    items: Sequence[Item],
    encoded: Iterable[Tensor],
    shape: tuple[int, ...],
    told: DataclassInstance,
) -> None:
    """Write the array, a chunk at a time: pages of a mapped file would count as the trial's memory.

    Args:
        folder: Empty.
        content: What it is.
        items: Whose.
        encoded: The array in chunks, float32; nothing is asked for before there is room.
        shape: Of one item's part.
        told: Of integers, for ``read``.

    Raises:
        OSError: It does not fit on the disk.
        MethodError: A value is not finite, or not in the type in which it is kept.
    """
    kind, stored = TYPES[content.keep], _AS_STORED[content.keep]
    needed, free = size_bytes(content, len(items), shape), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 1e6:,.0f} MB of {content.name} do not fit into the {free / 1e6:,.0f} MB "
            f"that are free; {content.smaller}",
            str(folder.parent),
        )
    header: dict[str, Any] = {
        "descr": stored,
        "fortran_order": False,
        "shape": (len(items), *shape),
    }
    with (folder / f"{content.name}.npy").open("wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        done = 0
        for exact in encoded:
            values = exact.to(kind)
            if not torch.isfinite(values).all():
                raise _not_finite(items[done : done + len(exact)], exact, values, content)
            done += len(values)
            bits = values.cpu().contiguous()
            if kind == torch.bfloat16:
                bits = bits.view(torch.uint16)
            file.write(bits.numpy().astype(stored, copy=False).tobytes())
    (folder / _SHAPE).write_text(json.dumps(asdict(told)))


def read(
    folder: Path, content: Content, mode: Literal["r", "c"], kind: Callable[..., T]
) -> tuple[NDArray[Any], T]:
    """The array, memory-mapped, and what was told of it as a ``kind``.

    Args:
        folder: As ``write`` left it.
        content: What it is; bfloat16 comes as uint16 of the same bits.
        mode: Of the mapping: read-only, or copy-on-write for torch, which refuses the former.
        kind: Makes, from the fields that were told, what is returned.

    Raises:
        MethodError: The files are damaged.
    """
    try:
        told = kind(**json.loads((folder / _SHAPE).read_text()))
        stored = np.load(folder / f"{content.name}.npy", mmap_mode=mode)
    except (OSError, ValueError, TypeError, EOFError) as error:  # the last of an empty file
        raise MethodError(
            f"{folder}: the {content.name} kept there are damaged ({error}); remove the folder, "
            "and they are made anew"
        ) from error
    return stored, told


def _not_finite(
    items: Sequence[Item], exact: Tensor, values: Tensor, content: Content
) -> MethodError:
    first = torch.isfinite(values).flatten(1).all(dim=1).tolist().index(False)
    if torch.isfinite(exact[first]).all():
        largest = float(exact[first].abs().max())
        return MethodError(
            f"{items[first].name}: the encoder's output, up to {largest:.3g}, does not fit into "
            f"{content.keep}; set the knob {content.name} to {content.wider}"
        )
    return MethodError(
        f"{items[first].name}: the encoder's output is NaN or infinite; check this image and the "
        "encoder's weights"
    )
