"""Resizing an image, and sampling it on a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F  # noqa: N812  (its name in the field)

from reprobox.box.selftest.case import Bench, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable


def interpolate(mode: str) -> Callable[[Bench], Tensors]:
    """Return the case of resizing an image by ``mode``."""

    def run(bench: Bench) -> Tensors:
        x = bench.values(3, 8, 23, 21, grad=True)
        corners = None if mode == "nearest" else False
        return bench.backward(F.interpolate(x, size=(51, 47), mode=mode, align_corners=corners), x)

    return run


def grid_sample(bench: Bench) -> Tensors:
    x, grid = bench.values(3, 8, 33, 31, grad=True), bench.values(3, 40, 41, 2, grad=True)
    return bench.backward(F.grid_sample(x, grid, align_corners=False), x, grid)
