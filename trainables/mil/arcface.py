"""Additive angular margin: Deng, Guo, Xue, Zafeiriou, CVPR 2019 (arXiv:1801.07698)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class ArcFace(nn.Module):
    """Logits of a softmax over classes, in which the true class has to win by an angle.

    The logit of a class is ``scale`` times the cosine of the angle between an embedding and the
    class's centre; to the angle of the true class ``margin`` is added first.

    Args:
        dimension: Of an embedding.
        classes: How many.
        scale: What cosines are multiplied by.
        margin: In radians, from 0 and below pi.
        easy_margin: As ``with_margin``.
    """

    def __init__(
        self, dimension: int, classes: int, *, scale: float, margin: float, easy_margin: bool
    ) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.empty(classes, dimension))
        nn.init.xavier_uniform_(self.centre)
        self._scale, self._margin, self._easy_margin = scale, margin, easy_margin

    def forward(self, embedding: Tensor, label: Tensor) -> Tensor:
        """Logits, shape (batch, classes).

        Args:
            embedding: Shape (batch, dimension), of any length.
            label: Shape (batch,), the true classes.
        """
        cosine = F.linear(F.normalize(embedding), F.normalize(self.centre))
        own = cosine.gather(1, label[:, None])
        moved = with_margin(own, self._margin, easy_margin=self._easy_margin)
        return self._scale * cosine.scatter(1, label[:, None], moved)


def with_margin(cosine: Tensor, margin: float, *, easy_margin: bool) -> Tensor:
    """cos(theta + margin), continued where theta + margin is past pi and the cosine would rise.

    Args:
        cosine: Of angles theta, any shape.
        margin: In radians, from 0 and below pi.
        easy_margin: What is continued, and how: angles from 90 degrees on stay as they are. Else,
            angles above pi - margin get cos(theta) - margin * sin(margin).
    """
    # Rounded cosines may exceed 1; and at 1 the root has no finite slope.
    square = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps)
    moved = cosine * math.cos(margin) - square.sqrt() * math.sin(margin)
    if easy_margin:
        return torch.where(cosine > 0, moved, cosine)
    border = -math.cos(margin)  # of pi - margin
    return torch.where(cosine > border, moved, cosine - margin * math.sin(margin))
