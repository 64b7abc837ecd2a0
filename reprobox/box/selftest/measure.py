"""What is kept of a case's tensors: a digest of every bit, and a few numbers by which two machines are told apart or close."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["POSITIONS", "Measured", "measure"]

POSITIONS = 16
"""How many elements are kept as they are, at positions that depend on the sizes alone."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A case's result.

    ``digest`` is 128 bits in hex over dtypes, shapes and bytes of every tensor. ``norm`` (Euclidean, summed in float64),
    ``max_abs`` and ``sample`` (:data:`POSITIONS` elements, evenly spread over all tensors laid end to end) are floats in
    hex, so that nothing is lost in writing them.
    """

    digest: str
    norm: str
    max_abs: str
    sample: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as a certificate holds it."""
        return {"digest": self.digest, "norm": self.norm, "max_abs": self.max_abs, "sample": list(self.sample)}


def measure(tensors: Sequence[torch.Tensor]) -> Measured:
    """Measure ``tensors`` (any dtype and device, at least one element in all); they are copied to the CPU."""
    host = [tensor.detach().contiguous().cpu() for tensor in tensors]
    digest = hashlib.blake2b(digest_size=16)
    for tensor in host:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    values = torch.cat([_as_float64(tensor) for tensor in host])
    magnitudes = values.abs()
    at = [index * (values.numel() - 1) // (POSITIONS - 1) for index in range(POSITIONS)]
    return Measured(
        digest=digest.hexdigest(),
        norm=float(_norm(magnitudes)).hex(),
        max_abs=float(magnitudes.max()).hex(),
        sample=tuple(float(values[index]).hex() for index in at),
    )


def _norm(magnitudes: torch.Tensor) -> float:
    largest = float(magnitudes.max())
    if not 0 < largest < float("inf"):
        return largest
    return largest * float((magnitudes / largest).square().sum()) ** 0.5


def _as_float64(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.reshape(-1).to(torch.float64)


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else b""
