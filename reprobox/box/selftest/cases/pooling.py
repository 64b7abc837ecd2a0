"""Pooling."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812  (its name in the field)

from reprobox.box.selftest.case import Bench, Tensors


def max_pool(bench: Bench) -> Tensors:
    x = bench.values(5, 12, 33, 31, grad=True)
    return bench.backward(F.max_pool2d(x, 3, stride=2), x)


def adaptive_pool(bench: Bench) -> Tensors:
    x = bench.values(5, 12, 33, 31, grad=True)
    return bench.backward(F.adaptive_avg_pool2d(x, (7, 5)), x)


def fractional_pool(bench: Bench) -> Tensors:
    x = bench.values(5, 12, 33, 31, grad=True)
    return bench.backward(F.fractional_max_pool2d(x, 3, output_size=(13, 12)), x)
