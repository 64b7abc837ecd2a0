"""Every case, a line each: its name, the function that computes it, and where and how it is to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reprobox.box.selftest.case import Bench, Case, Tensors
from reprobox.box.selftest.cases import (
    attention,
    convolution,
    interpolation,
    linear_algebra,
    losses,
    normalisation,
    pooling,
    random_numbers,
    recurrent,
    reductions,
    scatter_gather,
    sorting,
    training,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["CASES"]


def _in(run: Callable[[Bench], Tensors], name: str, *dtypes: torch.dtype, start: bool = False) -> Iterable[Case]:
    return (Case(name=name, run=run, dtype=dtype, start=start) for dtype in dtypes)


_ALL = (torch.float32, torch.bfloat16, torch.float16)
_TWO = (torch.float32, torch.bfloat16)

CASES: tuple[Case, ...] = (
    Case(name="matmul", run=linear_algebra.matmul, start=True),
    Case(name="matmul", run=linear_algebra.matmul, dtype=torch.bfloat16, start=True),
    Case(name="matmul", run=linear_algebra.matmul, dtype=torch.float16),
    Case(name="matmul tf32", run=linear_algebra.matmul_tf32, only="cuda"),
    *_in(linear_algebra.matmul_batched, "matmul batched", *_ALL),
    *_in(linear_algebra.matmul_skinny, "matmul skinny", *_TWO),
    Case(name="fft", run=linear_algebra.fft),
    Case(name="conv1d", run=convolution.conv1d),
    Case(name="conv2d", run=convolution.conv2d, start=True),
    Case(name="conv2d", run=convolution.conv2d, dtype=torch.bfloat16),
    Case(name="conv3d", run=convolution.conv3d),
    Case(name="conv transposed", run=convolution.conv_transposed),
    Case(name="batch norm", run=normalisation.batch_norm, start=True),
    Case(name="layer norm", run=normalisation.layer_norm, start=True),
    Case(name="linear before batch norm", run=normalisation.linear_before_batch_norm, ill_conditioned=True),
    Case(name="conv before batch norm", run=normalisation.conv_before_batch_norm, ill_conditioned=True),
    Case(name="lstm", run=recurrent.lstm, start=True),
    Case(name="gru", run=recurrent.gru),
    Case(name="attention math", run=attention.scaled_dot_product("MATH"), start=True),
    Case(name="attention flash", run=attention.scaled_dot_product("FLASH_ATTENTION"), dtype=torch.bfloat16),
    Case(name="attention memory-efficient", run=attention.scaled_dot_product("EFFICIENT_ATTENTION"), only="cuda"),
    Case(
        name="attention cudnn", run=attention.scaled_dot_product("CUDNN_ATTENTION"), dtype=torch.bfloat16, only="cuda"
    ),
    Case(name="embedding", run=scatter_gather.embedding, start=True),
    Case(name="embedding bag", run=scatter_gather.embedding_bag),
    Case(name="scatter_add", run=scatter_gather.scatter_add, start=True),
    Case(name="index_add", run=scatter_gather.index_add, start=True),
    Case(name="index_put accumulate", run=scatter_gather.index_put),
    Case(name="gather", run=scatter_gather.gather),
    *_in(reductions.cumsum, "cumsum", *_TWO),
    Case(name="sort with ties", run=sorting.sort_with_ties, start=True),
    Case(name="topk", run=sorting.topk),
    Case(name="histc", run=reductions.histc),
    Case(name="bincount", run=reductions.bincount),
    Case(name="kthvalue", run=sorting.kthvalue),
    Case(name="median", run=sorting.median),
    *(
        Case(name=f"interpolate {mode}", run=interpolation.interpolate(mode))
        for mode in ("nearest", "bilinear", "bicubic")
    ),
    Case(name="grid_sample", run=interpolation.grid_sample),
    Case(name="max pool", run=pooling.max_pool),
    Case(name="adaptive pool", run=pooling.adaptive_pool),
    Case(name="fractional pool", run=pooling.fractional_pool),
    Case(name="ctc loss", run=losses.ctc_loss),
    Case(name="nll loss 2d", run=losses.nll_loss_2d),
    Case(name="dropout", run=random_numbers.dropout, start=True),
    Case(name="randn", run=random_numbers.randn, start=True),
    Case(name="randperm", run=random_numbers.randperm),
    Case(name="multinomial", run=random_numbers.multinomial),
    Case(name="adamw foreach", run=training.adamw("foreach")),
    Case(name="adamw fused", run=training.adamw("fused")),
    Case(name="training step", run=training.training_step, start=True),
    Case(name="compiled block", run=training.compiled_block),
    Case(name="data loader", run=training.data_loader),
)
"""Every case but the all-reduce, which takes processes of its own (``collective``). At most 15 are of the start tier."""
