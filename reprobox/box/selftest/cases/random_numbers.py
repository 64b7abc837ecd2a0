"""Draws from the generators, dropout among them."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (its name in the field)

from reprobox.box.selftest.case import Bench, Tensors


def dropout(bench: Bench) -> Tensors:
    x = bench.values(300, 257, grad=True)
    return bench.backward(F.dropout(x, 0.3, training=True), x)


def randn(bench: Bench) -> Tensors:
    return [torch.randn(70_001, device=bench.device, dtype=bench.dtype)]


def randperm(bench: Bench) -> Tensors:
    return [torch.randperm(70_001, device=bench.device)]


def multinomial(bench: Bench) -> Tensors:
    weights = bench.values(33, 500).abs() + 0.01
    return [torch.multinomial(weights, 700, replacement=True), torch.multinomial(weights, 50)]
