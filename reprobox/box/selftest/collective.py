"""The all-reduce over the chosen devices: NCCL where they are GPUs, gloo between two processes on a CPU."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reprobox.box.selftest.case import SEED, Bench, Description

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CASE", "all_reduce", "rank_main"]

TIMES = 3
SIZES = (1, 1001, 300_007)
PATIENCE_SECONDS = 120


CASE = Description(name="all-reduce")
"""What the all-reduce is called. It takes several processes (:func:`all_reduce`), so it is no line of the table."""


def all_reduce(devices: Sequence[torch.device], launcher: str) -> list[list[torch.Tensor]]:
    """Return what rank 0 holds after each of :data:`TIMES` all-reduces of the same tensors over ``devices``.

    One rank a GPU; two on a CPU. :raises RuntimeError: when a rank fails.
    """
    cuda = devices[0].type == "cuda"
    world = len(devices) if cuda else 2
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        options = ["--world", str(world), "--store", store, "--backend", "nccl" if cuda else "gloo"]
        ranks = [
            subprocess.Popen([sys.executable, launcher, "--rank", str(rank), *options], stderr=subprocess.PIPE)
            for rank in range(world)
        ]
        try:
            said = [rank.communicate(timeout=PATIENCE_SECONDS)[1] for rank in ranks]
        finally:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
                    rank.wait()
        failed = [text.decode(errors="replace") for rank, text in zip(ranks, said, strict=True) if rank.returncode]
        if failed:
            raise RuntimeError(
                f"a rank failed: {failed[0].strip().splitlines()[-1] if failed[0].strip() else 'silently'}"
            )
        return pickle.loads(Path(f"{store}.result").read_bytes())  # noqa: S301  # written by our own child a moment ago


def rank_main(rank: int, world: int, store: str, backend: str) -> int:
    """Take part as one rank; rank 0 leaves the results beside ``store``."""
    import torch.distributed as dist

    device = torch.device(f"cuda:{rank}" if backend == "nccl" else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world)
    results = []
    for _ in range(TIMES):
        bench = Bench(device, torch.float32, SEED + rank)
        tensors = [bench.values(size) for size in SIZES]
        for tensor in tensors:
            dist.all_reduce(tensor)
        results.append([tensor.cpu() for tensor in tensors])
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        Path(f"{store}.result").write_bytes(pickle.dumps(results))
    return 0
