"""What the self-test computes: one line per case in the table at the end, one small function for what each does.

A case gets a :class:`Bench` (a device, a dtype, inputs that have the same bits on every machine) and returns the tensors
that are compared: outputs and gradients. Shapes are large enough to take the paths that run on several threads, and are
no powers of two, so that the last block of a kernel is a short one.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F  # noqa: N812  (its name in the field)
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["CASES", "SEED", "Bench", "Case"]

SEED = 20200220
"""The cases' own seed: a certificate does not depend on the run's."""

Tensors = list[torch.Tensor]


class Bench:
    """What a case works with: a device, a dtype, and inputs made from :data:`SEED` alone.

    Inputs are drawn on the CPU as whole numbers and scaled exactly, so that they are the same on every device and CPU.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = SEED) -> None:
        self.device = device
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)

    def values(self, *shape: int, grad: bool = False) -> torch.Tensor:
        """Return numbers in [-1, 1) of ``shape``, in the case's dtype."""
        drawn = torch.randint(-(1 << 20), 1 << 20, shape, generator=self._generator)
        tensor = (drawn.to(torch.float32) / (1 << 20)).to(self.device, self.dtype)
        return tensor.requires_grad_(grad)

    def integers(self, below: int, *shape: int) -> torch.Tensor:
        """Return whole numbers in [0, ``below``) of ``shape``, as int64."""
        return torch.randint(0, below, shape, generator=self._generator).to(self.device)

    def module(self, module: nn.Module) -> nn.Module:
        """Return ``module`` on the device, its parameters replaced by values of this bench."""
        module = module.to(self.device, self.dtype)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(self.values(*parameter.shape) / max(1.0, math.sqrt(parameter[0].numel())))
        return module

    def backward(self, output: torch.Tensor, *leaves: torch.Tensor) -> Tensors:
        """Return ``output`` and the gradients of ``leaves``, for an uneven gradient of ``output``."""
        weights = self.values(*output.shape).to(output.dtype)
        return [output, *torch.autograd.grad(output, leaves, weights)]


# --- linear algebra ---------------------------------------------------------------------------------------------------


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


# --- layers -----------------------------------------------------------------------------------------------------------


def conv1d(bench: Bench) -> Tensors:
    x, w = bench.values(9, 16, 500, grad=True), bench.values(24, 16, 5, grad=True)
    return bench.backward(F.conv1d(x, w, padding=2), x, w)


def conv2d(bench: Bench) -> Tensors:
    x, w = bench.values(7, 16, 33, 31, grad=True), bench.values(24, 16, 3, 3, grad=True)
    return bench.backward(F.conv2d(x, w, padding=1), x, w)


def conv3d(bench: Bench) -> Tensors:
    x, w = bench.values(3, 8, 9, 17, 15, grad=True), bench.values(12, 8, 3, 3, 3, grad=True)
    return bench.backward(F.conv3d(x, w, padding=1), x, w)


def conv_transposed(bench: Bench) -> Tensors:
    x, w = bench.values(5, 16, 17, 19, grad=True), bench.values(16, 12, 4, 4, grad=True)
    return bench.backward(F.conv_transpose2d(x, w, stride=2, padding=1), x, w)


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


def lstm(bench: Bench) -> Tensors:
    return _recurrent(bench, nn.LSTM(33, 40, num_layers=2))


def gru(bench: Bench) -> Tensors:
    return _recurrent(bench, nn.GRU(33, 40, num_layers=2))


def _recurrent(bench: Bench, layer: nn.Module) -> Tensors:
    layer, x = bench.module(layer), bench.values(21, 9, 33, grad=True)
    return bench.backward(layer(x)[0], x, *layer.parameters())


def attention(backend: str) -> Callable[[Bench], Tensors]:
    """Return the case of scaled-dot-product attention by one of PyTorch's backends."""

    def run(bench: Bench) -> Tensors:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q, k, v = (bench.values(3, 4, 129, 32, grad=True) for _ in range(3))
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return bench.backward(F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)

    return run


# --- gathering and scattering -----------------------------------------------------------------------------------------


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


# --- order and counting -----------------------------------------------------------------------------------------------


def cumsum(bench: Bench) -> Tensors:
    x = bench.values(129, 1025, grad=True)
    return bench.backward(x.cumsum(1), x)


def sort_with_ties(bench: Bench) -> Tensors:
    x = (bench.values(65, 1025) * 8).round().requires_grad_()
    ordered, index = x.sort(dim=1, descending=True)
    return [*bench.backward(ordered, x), index]


def topk(bench: Bench) -> Tensors:
    x = bench.values(65, 1025, grad=True)
    top, index = x.topk(33, dim=1)
    return [*bench.backward(top, x), index]


def histc(bench: Bench) -> Tensors:
    return [torch.histc(bench.values(50_001), bins=37, min=-1, max=1)]


def bincount(bench: Bench) -> Tensors:
    return [torch.bincount(bench.integers(97, 50_001)), _weighted_bincount(bench)]


def _weighted_bincount(bench: Bench) -> torch.Tensor:
    return torch.bincount(bench.integers(97, 50_001), weights=bench.values(50_001))


def kthvalue(bench: Bench) -> Tensors:
    x = (bench.values(65, 513) * 32).round().requires_grad_()
    value, index = x.kthvalue(100, dim=1)
    return [*bench.backward(value, x), index]


def median(bench: Bench) -> Tensors:
    x = (bench.values(65, 513) * 32).round().requires_grad_()
    value, index = x.median(dim=1)
    return [*bench.backward(value, x), index]


# --- images -----------------------------------------------------------------------------------------------------------


def interpolate(mode: str) -> Callable[[Bench], Tensors]:
    """Return the case of resizing an image by ``mode``."""

    def run(bench: Bench) -> Tensors:
        x = bench.values(3, 8, 23, 21, grad=True)
        corners = None if mode == "nearest" else False
        return bench.backward(F.interpolate(x, size=(51, 47), mode=mode, align_corners=corners), x)

    return run


def grid_sample(bench: Bench) -> Tensors:
    x, grid = bench.values(3, 8, 33, 31, grad=True), bench.values(3, 40, 41, 2, grad=True)
    return bench.backward(F.grid_sample(x, grid, align_corners=False), x, grid)


def max_pool(bench: Bench) -> Tensors:
    x = bench.values(5, 12, 33, 31, grad=True)
    return bench.backward(F.max_pool2d(x, 3, stride=2), x)


def adaptive_pool(bench: Bench) -> Tensors:
    x = bench.values(5, 12, 33, 31, grad=True)
    return bench.backward(F.adaptive_avg_pool2d(x, (7, 5)), x)


def fractional_pool(bench: Bench) -> Tensors:
    x = bench.values(5, 12, 33, 31, grad=True)
    return bench.backward(F.fractional_max_pool2d(x, 3, output_size=(13, 12)), x)


# --- losses -----------------------------------------------------------------------------------------------------------


def ctc_loss(bench: Bench) -> Tensors:
    logits = bench.values(60, 8, 20, grad=True)
    targets = bench.integers(19, 8, 12) + 1
    inputs, outputs = torch.full((8,), 60).to(bench.device), torch.full((8,), 12).to(bench.device)
    loss = F.ctc_loss(logits.log_softmax(2), targets, inputs, outputs, reduction="none")
    return bench.backward(loss, logits)


def nll_loss_2d(bench: Bench) -> Tensors:
    logits, targets = bench.values(5, 12, 33, 31, grad=True), bench.integers(12, 5, 33, 31)
    return bench.backward(F.nll_loss(logits.log_softmax(1), targets).reshape(1), logits)


# --- random numbers ---------------------------------------------------------------------------------------------------


def dropout(bench: Bench) -> Tensors:
    x = bench.values(300, 257, grad=True)
    return bench.backward(F.dropout(x, 0.3, training=True), x)


def randn(bench: Bench) -> Tensors:
    return [torch.randn(70_001, device=bench.device, dtype=bench.dtype)]


def randperm(bench: Bench) -> Tensors:
    return [torch.randperm(70_001, device=bench.device)]


def multinomial(bench: Bench) -> Tensors:
    weights = bench.values(33, 500).abs() + 0.01
    return [torch.multinomial(weights, 700, replacement=True), torch.multinomial(weights, 50)]


# --- training ---------------------------------------------------------------------------------------------------------


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


# --- the table --------------------------------------------------------------------------------------------------------

Where = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the self-test.

    ``start`` puts it into the tier that runs before a command. ``only`` names the one kind of device it is for.
    ``ill_conditioned`` marks results that rounding alone decides: two machines that are close elsewhere may differ here.
    """

    name: str
    run: Callable[[Bench], Sequence[torch.Tensor]]
    dtype: torch.dtype = torch.float32
    start: bool = False
    only: Where | None = None
    ill_conditioned: bool = False

    @property
    def dtype_name(self) -> str:
        """The dtype without its module: ``float32``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def id(self) -> str:
        """Name and dtype: what ``--cases`` and a certificate call it."""
        return f"{self.name}[{self.dtype_name}]"

    def compute(self, device: torch.device) -> Sequence[torch.Tensor]:
        """Run the case once, every generator at :data:`SEED`."""
        torch.manual_seed(SEED)
        with contextlib.ExitStack() as stack:
            if device.type == "cuda":
                stack.enter_context(torch.cuda.device(device))
            return self.run(Bench(device, self.dtype))


def _in(run: Callable[[Bench], Tensors], name: str, *dtypes: torch.dtype, start: bool = False) -> Iterable[Case]:
    return (Case(name=name, run=run, dtype=dtype, start=start) for dtype in dtypes)


_ALL = (torch.float32, torch.bfloat16, torch.float16)
_TWO = (torch.float32, torch.bfloat16)

CASES: tuple[Case, ...] = (
    Case(name="matmul", run=matmul, start=True),
    Case(name="matmul", run=matmul, dtype=torch.bfloat16, start=True),
    Case(name="matmul", run=matmul, dtype=torch.float16),
    Case(name="matmul tf32", run=matmul_tf32, only="cuda"),
    *_in(matmul_batched, "matmul batched", *_ALL),
    *_in(matmul_skinny, "matmul skinny", *_TWO),
    Case(name="fft", run=fft),
    Case(name="conv1d", run=conv1d),
    Case(name="conv2d", run=conv2d, start=True),
    Case(name="conv2d", run=conv2d, dtype=torch.bfloat16),
    Case(name="conv3d", run=conv3d),
    Case(name="conv transposed", run=conv_transposed),
    Case(name="batch norm", run=batch_norm, start=True),
    Case(name="layer norm", run=layer_norm, start=True),
    Case(name="linear before batch norm", run=linear_before_batch_norm, ill_conditioned=True),
    Case(name="conv before batch norm", run=conv_before_batch_norm, ill_conditioned=True),
    Case(name="lstm", run=lstm, start=True),
    Case(name="gru", run=gru),
    Case(name="attention math", run=attention("MATH"), start=True),
    Case(name="attention flash", run=attention("FLASH_ATTENTION"), dtype=torch.bfloat16),
    Case(name="attention memory-efficient", run=attention("EFFICIENT_ATTENTION"), only="cuda"),
    Case(name="attention cudnn", run=attention("CUDNN_ATTENTION"), dtype=torch.bfloat16, only="cuda"),
    Case(name="embedding", run=embedding, start=True),
    Case(name="embedding bag", run=embedding_bag),
    Case(name="scatter_add", run=scatter_add, start=True),
    Case(name="index_add", run=index_add, start=True),
    Case(name="index_put accumulate", run=index_put),
    Case(name="gather", run=gather),
    *_in(cumsum, "cumsum", *_TWO),
    Case(name="sort with ties", run=sort_with_ties, start=True),
    Case(name="topk", run=topk),
    Case(name="histc", run=histc),
    Case(name="bincount", run=bincount),
    Case(name="kthvalue", run=kthvalue),
    Case(name="median", run=median),
    *(Case(name=f"interpolate {mode}", run=interpolate(mode)) for mode in ("nearest", "bilinear", "bicubic")),
    Case(name="grid_sample", run=grid_sample),
    Case(name="max pool", run=max_pool),
    Case(name="adaptive pool", run=adaptive_pool),
    Case(name="fractional pool", run=fractional_pool),
    Case(name="ctc loss", run=ctc_loss),
    Case(name="nll loss 2d", run=nll_loss_2d),
    Case(name="dropout", run=dropout, start=True),
    Case(name="randn", run=randn, start=True),
    Case(name="randperm", run=randperm),
    Case(name="multinomial", run=multinomial),
    Case(name="adamw foreach", run=adamw("foreach")),
    Case(name="adamw fused", run=adamw("fused")),
    Case(name="training step", run=training_step, start=True),
    Case(name="compiled block", run=compiled_block),
    Case(name="data loader", run=data_loader),
)
"""Every case but the all-reduce, which takes processes of its own (``collective``). At most 15 are of the start tier."""
