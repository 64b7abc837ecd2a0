"""A case of the self-test, and the bench that it works with: a device, a dtype, the same inputs on every machine."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SEED", "Bench", "Case", "Description", "Tensors"]

SEED = 20200220
"""The cases' own seed: a certificate does not depend on the run's."""

Tensors = list[torch.Tensor]
Where = Literal["cpu", "cuda"]


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


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a result is called, and how it is to be read.

    ``ill_conditioned`` marks results that rounding alone decides: two machines that are close elsewhere may differ here.
    """

    name: str
    dtype: torch.dtype = torch.float32
    ill_conditioned: bool = False

    @property
    def dtype_name(self) -> str:
        """The dtype without its module: ``float32``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def id(self) -> str:
        """Name and dtype: what ``--cases`` and a certificate call it."""
        return f"{self.name}[{self.dtype_name}]"


@dataclass(frozen=True, kw_only=True)
class Case(Description):
    """One line of the self-test: what one process computes on one device.

    ``start`` puts it into the tier that runs before a command. ``only`` names the one kind of device it is for.
    """

    run: Callable[[Bench], Sequence[torch.Tensor]]
    start: bool = False
    only: Where | None = None

    def compute(self, device: torch.device) -> Sequence[torch.Tensor]:
        """Run the case once, every generator at :data:`SEED`."""
        torch.manual_seed(SEED)
        with contextlib.ExitStack() as stack:
            if device.type == "cuda":
                stack.enter_context(torch.cuda.device(device))
            return self.run(Bench(device, self.dtype))
