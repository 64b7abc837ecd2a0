"""Faults planted on purpose, each in every self-test: a comparison that misses one of them proves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reprobox.box.selftest.measure import measure

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CANARIES", "missed_canaries"]


def one_ulp(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` with its last element moved to the next number up."""
    changed = tensor.clone()
    last = changed.view(-1)[-1:]
    last.copy_(torch.nextafter(last, torch.full_like(last, float("inf"))))
    return changed


def permutation(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` with two different elements exchanged: sum, norm and maximum stay as they were."""
    changed = tensor.clone()
    flat = changed.view(-1)
    other = int((flat != flat[0]).nonzero()[0])
    flat[[0, other]] = flat[[other, 0]]
    return changed


def unseeded_draw(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` with one element drawn from a generator that took its seed from the operating system."""
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(_entropy(), "little"))
    changed = tensor.clone()
    changed.view(-1)[-1] = torch.rand((), generator=generator, dtype=torch.float64).item() + 2.0
    return changed


def _entropy() -> bytes:
    with open("/dev/urandom", "rb") as source:  # not os.urandom: the hook notes that in the receipt
        return source.read(6)


CANARIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one ulp": one_ulp,
    "permutation": permutation,
    "unseeded draw": unseeded_draw,
}
"""Name of each planted fault, and what it does to a float tensor of at least two different elements."""


def missed_canaries(tensor: torch.Tensor, digest_of: Callable[[list[torch.Tensor]], str] | None = None) -> list[str]:
    """Return the names of the faults that the comparison of digests does not see when planted in ``tensor``.

    :param digest_of: the comparison under test; the self-test's own by default.
    """
    digest = digest_of or (lambda tensors: measure(tensors).digest)
    clean = digest([tensor])
    return [name for name, plant in CANARIES.items() if digest([plant(tensor)]) == clean]
