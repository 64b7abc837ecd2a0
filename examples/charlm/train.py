"""Train a small character-level transformer on forty of Shakespeare's sonnets.

An ordinary training program: weights, the train/validation split, the shuffle and dropout all draw from torch's default
generator, and nothing here seeds it, so two plain runs end in different weights. The last line is a digest of them.

    python train.py
    torchrun --nproc-per-node 2 train.py
"""

import argparse
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

CORPUS = Path(__file__).resolve().with_name("corpus.txt")
CONTEXT = 64
HELD_OUT = 4
BATCH = 32


class SelfAttention(nn.Module):
    """Causal multi-head self-attention over (batch, time, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """One pre-norm transformer layer: attention, then a feed-forward net, each added to the residual stream."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class CharTransformer(nn.Module):
    """A decoder-only transformer: token ids (batch, time) in, logits (batch, time, vocabulary) out."""

    def __init__(self, vocabulary: int, width: int = 96, layers: int = 3, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(self._initialize)

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> Tensor:
        time = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.tokens(ids) + self.positions(time))
        return self.head(self.norm(self.blocks(x)))


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Stretches of CONTEXT characters, one every `stride`, each with the same stretch moved on by one as its target."""

    def __init__(self, ids: Tensor, stride: int = 1) -> None:
        self.ids = ids
        self.stride = stride

    def __len__(self) -> int:
        return (len(self.ids) - CONTEXT - 1) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.stride
        stretch = self.ids[start : start + CONTEXT + 1]
        return stretch[:-1], stretch[1:]


def split_corpus(text: str, device: torch.device) -> tuple[str, str]:
    """The training and the validation text: whole poems, HELD_OUT of them picked at random for validation."""
    poems = text.strip().split("\n\n")
    order = torch.randperm(len(poems)).to(device)
    if dist.is_initialized():
        # Each rank has drawn its own order; without one common split, a rank would train on another's held-out poems.
        dist.broadcast(order, src=0)
    shuffled = [poems[i] for i in order.tolist()]
    return "\n\n".join(shuffled[HELD_OUT:]), "\n\n".join(shuffled[:HELD_OUT])


def encode(text: str, alphabet: str) -> Tensor:
    index = {char: i for i, char in enumerate(alphabet)}
    return torch.tensor([index[char] for char in text])


def endless_batches(dataset: Dataset[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches on `device`, epoch after epoch; in a distributed run each rank sees its own share."""
    sampler: DistributedSampler[Any] | None = DistributedSampler(dataset) if dist.is_initialized() else None
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=2,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    epoch = 0
    while True:
        if sampler is not None:
            sampler.set_epoch(epoch)  # without it, every epoch has the order of the first
        for inputs, targets in loader:
            yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        epoch += 1


def warmup_cosine(step: int, total: int, warmup: int, floor: float = 0.1) -> float:
    """The share of the peak learning rate at `step`: a straight climb, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def validate(model: nn.Module, dataset: Windows, device: torch.device) -> float:
    """Mean loss per character over `dataset`, with dropout off."""
    model.eval()
    total, count = 0.0, 0
    for inputs, targets in DataLoader(dataset, batch_size=BATCH):
        total += cross_entropy(model(inputs.to(device)), targets.to(device)).item() * targets.numel()
        count += targets.numel()
    return total / count


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the entries in sorted name order, each as its name, dtype, shape and raw bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, since numpy has no bfloat16; flat first, since a scalar cannot be viewed at another width.
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small character-level transformer.")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--save", type=Path, metavar="PATH", help="write the final weights here")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    return args


def train(args: argparse.Namespace, device: torch.device) -> None:
    lead = not dist.is_initialized() or dist.get_rank() == 0

    def report(line: str) -> None:
        if lead:
            print(line, flush=True)

    text = CORPUS.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(text)))
    training_text, validation_text = split_corpus(text, device)

    model = CharTransformer(len(alphabet)).to(device)
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, args.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, args.steps, warmup))
    batches = endless_batches(Windows(encode(training_text, alphabet)), device)

    # `range` comes first, so that the last step does not fetch one more batch.
    for step, (inputs, targets) in zip(range(1, args.steps + 1), batches, strict=False):
        loss = cross_entropy(wrapped(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(f"step {step:3d}/{args.steps}  loss {loss.item():.4f}  lr {schedule.get_last_lr()[0]:.4f}")
        schedule.step()

    if lead:
        held_out = Windows(encode(validation_text, alphabet), stride=CONTEXT)
        report(f"validation loss {validate(model, held_out, device):.4f}")
        report(f"weights sha256 {weights_sha256(model.state_dict())}")
        if args.save is not None:
            torch.save(model.state_dict(), args.save)


def main() -> None:
    args = parse_args()
    device = torch.device(args.device)
    if "WORLD_SIZE" not in os.environ:
        train(args, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        train(args, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
