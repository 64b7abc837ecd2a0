"""Convolutions."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812  (its name in the field)

from reprobox.box.selftest.case import Bench, Tensors


def conv1d(bench: Bench) -> Tensors:
    x, w = bench.values(9, 16, 500, grad=True), bench.values(24, 16, 5, grad=True)
    return bench.backward(F.conv1d(x, w, padding=2), x, w)


def conv2d(bench: Bench) -> Tensors:
    x, w = bench.values(7, 16, 33, 31, grad=True), bench.values(24, 16, 3, 3, grad=True)
    return bench.backward(F.conv2d(x, w, padding=1), x, w)


def conv3d(bench: Bench) -> Tensors:
    x, w = bench.values(3, 8, 9, 17, 15, grad=True), bench.values(12, 8, 3, 3, 3, grad=True)
    return bench.backward(F.conv3d(x, w, padding=1), x, w)


def conv_transposed(bench: Bench) -> Tensors:
    x, w = bench.values(5, 16, 17, 19, grad=True), bench.values(16, 12, 4, 4, grad=True)
    return bench.backward(F.conv_transpose2d(x, w, stride=2, padding=1), x, w)
