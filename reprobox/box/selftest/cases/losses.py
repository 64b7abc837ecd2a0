"""Losses with a kernel of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (its name in the field)

from reprobox.box.selftest.case import Bench, Tensors


def ctc_loss(bench: Bench) -> Tensors:
    logits = bench.values(60, 8, 20, grad=True)
    targets = bench.integers(19, 8, 12) + 1
    inputs, outputs = torch.full((8,), 60).to(bench.device), torch.full((8,), 12).to(bench.device)
    loss = F.ctc_loss(logits.log_softmax(2), targets, inputs, outputs, reduction="none")
    return bench.backward(loss, logits)


def nll_loss_2d(bench: Bench) -> Tensors:
    logits, targets = bench.values(5, 12, 33, 31, grad=True), bench.integers(12, 5, 33, 31)
    return bench.backward(F.nll_loss(logits.log_softmax(1), targets).reshape(1), logits)
