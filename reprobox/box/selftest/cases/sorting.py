"""Sorting, and selecting by rank."""

from __future__ import annotations

from reprobox.box.selftest.case import Bench, Tensors


def sort_with_ties(bench: Bench) -> Tensors:
    x = (bench.values(65, 1025) * 8).round().requires_grad_()
    ordered, index = x.sort(dim=1, descending=True)
    return [*bench.backward(ordered, x), index]


def topk(bench: Bench) -> Tensors:
    x = bench.values(65, 1025, grad=True)
    top, index = x.topk(33, dim=1)
    return [*bench.backward(top, x), index]


def kthvalue(bench: Bench) -> Tensors:
    x = (bench.values(65, 513) * 32).round().requires_grad_()
    value, index = x.kthvalue(100, dim=1)
    return [*bench.backward(value, x), index]


def median(bench: Bench) -> Tensors:
    x = (bench.values(65, 513) * 32).round().requires_grad_()
    value, index = x.median(dim=1)
    return [*bench.backward(value, x), index]
