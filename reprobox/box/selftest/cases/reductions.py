"""Sums along a dimension, and into bins."""

from __future__ import annotations

import torch

from reprobox.box.selftest.case import Bench, Tensors


def cumsum(bench: Bench) -> Tensors:
    x = bench.values(129, 1025, grad=True)
    return bench.backward(x.cumsum(1), x)


def histc(bench: Bench) -> Tensors:
    return [torch.histc(bench.values(50_001), bins=37, min=-1, max=1)]


def bincount(bench: Bench) -> Tensors:
    return [torch.bincount(bench.integers(97, 50_001)), _weighted_bincount(bench)]


def _weighted_bincount(bench: Bench) -> torch.Tensor:
    return torch.bincount(bench.integers(97, 50_001), weights=bench.values(50_001))
