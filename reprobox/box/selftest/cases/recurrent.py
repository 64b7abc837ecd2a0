"""Recurrent layers."""

from __future__ import annotations

from torch import nn

from reprobox.box.selftest.case import Bench, Tensors


def lstm(bench: Bench) -> Tensors:
    return _recurrent(bench, nn.LSTM(33, 40, num_layers=2))


def gru(bench: Bench) -> Tensors:
    return _recurrent(bench, nn.GRU(33, 40, num_layers=2))


def _recurrent(bench: Bench, layer: nn.Module) -> Tensors:
    layer, x = bench.module(layer), bench.values(21, 9, 33, grad=True)
    return bench.backward(layer(x)[0], x, *layer.parameters())
