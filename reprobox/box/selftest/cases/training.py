"""What a training does: an optimiser's steps, a whole step, torch.compile, a data loader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  (its name in the field)
from torch import nn

from reprobox.box.selftest.case import Bench, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable


def adamw(implementation: str) -> Callable[[Bench], Tensors]:
    """Return the case of five AdamW steps by one of its implementations (``foreach``, ``fused``)."""

    def run(bench: Bench) -> Tensors:
        parameters = [bench.values(n, 33, grad=True) for n in (65, 129, 300)]
        optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, **{implementation: True})
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = bench.values(*parameter.shape)
            optimizer.step()
        return parameters

    return run


class _Net(nn.Module):
    """Convolution, normalisation, attention and dropout, each small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(F.dropout(x.mean(1), 0.1, self.training))


def training_step(bench: Bench) -> Tensors:
    """Three steps with autocast, gradient scaling and clipping, a learning-rate schedule and weight decay."""
    net = bench.module(_Net())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=3)
    kind = bench.device.type
    scaler = torch.amp.GradScaler(kind, enabled=kind == "cuda")
    losses = []
    for _ in range(3):
        x, y = bench.values(16, 3, 16, 16), bench.integers(10, 16)
        with torch.autocast(kind, torch.float16 if kind == "cuda" else torch.bfloat16):
            loss = F.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.detach())
    return [*losses, *net.parameters()]


def compiled_block(bench: Bench) -> Tensors:
    """A block by torch.compile, forward and backward."""
    torch._dynamo.reset()
    x, w = bench.values(129, 257, grad=True), bench.values(257, 257, grad=True)
    block = torch.compile(lambda x, w: F.gelu(F.layer_norm(x @ w, (257,))) + x)
    return bench.backward(block(x, w), x, w)


class _Augmented(torch.utils.data.Dataset):
    """Noise and flips from the workers' own generators."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> torch.Tensor:
        x = torch.arange(48.0) + index
        return (x.flip(0) if torch.rand(()) < 0.5 else x) + torch.randn(48)


def data_loader(bench: Bench) -> Tensors:
    """Shuffled batches from two workers that augment, on their way to the device."""
    loader = torch.utils.data.DataLoader(
        _Augmented(), batch_size=8, shuffle=True, num_workers=2, multiprocessing_context="fork"
    )
    return [batch.to(bench.device) for batch in loader]
