"""Scattering and gathering by an index, embeddings among them."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812  (its name in the field)

from reprobox.box.selftest.case import Bench, Tensors


def embedding(bench: Bench) -> Tensors:
    w, index = bench.values(97, 48, grad=True), bench.integers(97, 64, 65)
    return bench.backward(F.embedding(index, w), w)


def embedding_bag(bench: Bench) -> Tensors:
    w, index = bench.values(97, 48, grad=True), bench.integers(97, 300, 12)
    return bench.backward(F.embedding_bag(index, w, mode="sum"), w)


def scatter_add(bench: Bench) -> Tensors:
    x, source = bench.values(50, 64, grad=True), bench.values(3000, 64, grad=True)
    index = bench.integers(50, 3000, 64)
    return bench.backward(x.scatter_add(0, index, source), x, source)


def index_add(bench: Bench) -> Tensors:
    x, source = bench.values(50, 64, grad=True), bench.values(3000, 64, grad=True)
    return bench.backward(x.index_add(0, bench.integers(50, 3000), source), x, source)


def index_put(bench: Bench) -> Tensors:
    x, source = bench.values(50, 64, grad=True), bench.values(3000, 64, grad=True)
    return bench.backward(x.index_put((bench.integers(50, 3000),), source, accumulate=True), x, source)


def gather(bench: Bench) -> Tensors:
    x, index = bench.values(300, 70, grad=True), bench.integers(300, 2000, 70)
    return bench.backward(x.gather(0, index), x)
