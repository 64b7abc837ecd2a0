"""Operations that add with atomics, repeated: without deterministic algorithms they must give several results."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its name in the field)
from gpu_digest import digest
from gpu_variants import REPEATS


def controls(cpu: bool) -> dict[str, Any]:
    """How many results each operation has in :data:`REPEATS` repeats, without and with deterministic algorithms."""
    device = torch.device("cpu" if cpu else "cuda")
    rows = 2_000 if cpu else 200_000

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device)

    def places(below: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, below, shape, device=device)

    def gradient(output: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        weights = torch.randn(output.shape, device=device, generator=torch.Generator(device).manual_seed(1))
        return torch.autograd.grad(output, leaf, weights)[0]

    source, where = values(rows, 32), places(10, rows)
    wide = where[:, None].expand(-1, 32)
    weights = values(rows)
    image, volume = values(4, 8, 64, 64).requires_grad_(), values(2, 4, 16, 16, 16).requires_grad_()
    grid, table = values(4, 96, 96, 2).clamp(-1, 1), values(10, 32).requires_grad_()
    signal, long = values(2, rows // 100 * 4).requires_grad_(), values(rows * 5)
    logits = values(60, 8, 20).requires_grad_()
    targets, lengths = places(19, 8, 12) + 1, (torch.full((8,), 60), torch.full((8,), 12))
    operations = {
        "index_add": lambda: torch.zeros(10, 32, device=device).index_add(0, where, source),
        "scatter_add": lambda: torch.zeros(10, 32, device=device).scatter_add(0, wide, source),
        "scatter_reduce sum": lambda: torch.zeros(10, 32, device=device).scatter_reduce(0, wide, source, "sum"),
        "index_put accumulate": lambda: torch.zeros(10, 32, device=device).index_put((where,), source, accumulate=True),
        "put accumulate": lambda: torch.zeros(10, device=device).put(where, weights, accumulate=True),
        "bincount weights": lambda: torch.bincount(where, weights=weights, minlength=10),
        "cumsum": lambda: long.cumsum(0),
        "embedding backward": lambda: gradient(F.embedding(where, table), table),
        "embedding_bag max backward": lambda: gradient(
            F.embedding_bag(where[: rows // 10 * 10].view(-1, 10), table, mode="max"), table
        ),
        "interpolate linear backward": lambda: gradient(
            F.interpolate(signal[None], scale_factor=3.3, mode="linear"), signal
        ),
        "interpolate bilinear backward": lambda: gradient(
            F.interpolate(image, scale_factor=3.3, mode="bilinear"), image
        ),
        "interpolate bicubic backward": lambda: gradient(F.interpolate(image, scale_factor=3.3, mode="bicubic"), image),
        "grid_sample backward": lambda: gradient(F.grid_sample(image, grid, align_corners=False), image),
        "reflection_pad2d backward": lambda: gradient(F.pad(image, (7, 7, 7, 7), mode="reflect"), image),
        "adaptive_avg_pool2d backward": lambda: gradient(F.adaptive_avg_pool2d(image, (9, 7)), image),
        "adaptive_max_pool2d backward": lambda: gradient(F.adaptive_max_pool2d(image, (9, 7)), image),
        "max_pool3d backward": lambda: gradient(F.max_pool3d(volume, 3, stride=1), volume),
        "ctc_loss backward": lambda: gradient(
            F.ctc_loss(logits.log_softmax(2), targets, *lengths, reduction="none"), logits
        ),
    }
    result = {}
    for name, operation in operations.items():
        result[name] = {}
        for mode, on in (("off", False), ("on", True)):
            torch.use_deterministic_algorithms(on)
            try:
                digests = {digest([operation()]) for _ in range(REPEATS)}
                result[name][mode] = {"results": len(digests), "repeats": REPEATS}
            except Exception as error:  # noqa: BLE001  (what refuses, and how, is the result)
                result[name][mode] = {"refused": " ".join(str(error).split())[:200]}
    torch.use_deterministic_algorithms(False)
    return result
