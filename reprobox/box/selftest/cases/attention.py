"""Scaled-dot-product attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F  # noqa: N812  (its name in the field)

from reprobox.box.selftest.case import Bench, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable


def scaled_dot_product(backend: str) -> Callable[[Bench], Tensors]:
    """Return the case of scaled-dot-product attention by one of PyTorch's backends."""

    def run(bench: Bench) -> Tensors:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q, k, v = (bench.values(3, 4, 129, 32, grad=True) for _ in range(3))
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return bench.backward(F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)

    return run
