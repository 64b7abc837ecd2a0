"""Products of matrices, and the Fourier transform."""

from __future__ import annotations

import torch

from reprobox.box.selftest.case import Bench, Tensors


def matmul(bench: Bench) -> Tensors:
    a, b = bench.values(255, 511, grad=True), bench.values(511, 383, grad=True)
    return bench.backward(a @ b, a, b)


def matmul_tf32(bench: Bench) -> Tensors:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return matmul(bench)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def matmul_batched(bench: Bench) -> Tensors:
    a, b = bench.values(33, 63, 95, grad=True), bench.values(33, 95, 65, grad=True)
    return bench.backward(torch.bmm(a, b), a, b)


def matmul_skinny(bench: Bench) -> Tensors:
    a, b = bench.values(1, 8191, grad=True), bench.values(8191, 33, grad=True)
    return bench.backward(a @ b, a, b)


def fft(bench: Bench) -> Tensors:
    x = bench.values(7, 96, 120, grad=True)
    return bench.backward(torch.fft.irfft2(torch.fft.rfft2(x) * 0.5), x)
