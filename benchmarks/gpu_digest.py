"""When two tensors have the same bits."""

import hashlib
from typing import Any

import torch


def digest(tensors: Any) -> str:
    """128 bits over the bytes of ``tensors``."""
    state = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        state.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
