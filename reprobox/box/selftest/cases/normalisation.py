"""Batch and layer normalisation, and layers whose output a batch normalisation follows."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812  (its name in the field)

from reprobox.box.selftest.case import Bench, Tensors


def batch_norm(bench: Bench) -> Tensors:
    x, w, b = bench.values(17, 24, 29, 31, grad=True), bench.values(24, grad=True), bench.values(24, grad=True)
    return bench.backward(F.batch_norm(x, None, None, w, b, training=True), x, w, b)


def layer_norm(bench: Bench) -> Tensors:
    x, w, b = bench.values(300, 257, grad=True), bench.values(257, grad=True), bench.values(257, grad=True)
    return bench.backward(F.layer_norm(x, (257,), w, b), x, w, b)


def linear_before_batch_norm(bench: Bench) -> Tensors:
    """A gradient that is zero but for rounding: what a layer's bias before BatchNorm would get, its weights nearly."""
    x, w = bench.values(129, 65, grad=True), bench.values(96, 65, grad=True)
    return bench.backward(F.batch_norm(F.linear(x, w), None, None, training=True), x, w)


def conv_before_batch_norm(bench: Bench) -> Tensors:
    x, w = bench.values(9, 8, 17, 15, grad=True), bench.values(12, 8, 3, 3, grad=True)
    return bench.backward(F.batch_norm(F.conv2d(x, w), None, None, training=True), x, w)
