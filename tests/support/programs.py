"""Programs as users write them: none knows of reprobox."""

DRAWS = """\
import random, numpy, torch
print(random.random(), numpy.random.rand(), torch.rand(1).item(), [s for s in {"a", "b", "c", "d", "e", "f"}])
"""

RANKS = """\
import os, random, numpy, torch
line = f"{os.environ['RANK']} {random.random()} {numpy.random.rand()} {torch.rand(1).item()}\\n"
os.write(1, line.encode())
"""

TRAINING = """\
import hashlib, random
import numpy as np
import torch
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.LazyLinear(4))
x, y = torch.randn(32, 3, 12, 12), torch.randint(0, 4, (32,))
model(x)
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(5):
    x = x + float(np.random.randn()) * 0.1 + random.random() * 0.1
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
digest = hashlib.sha256()
for name, value in sorted(model.state_dict().items()):
    digest.update(name.encode() + value.numpy().tobytes())
print("weights sha256", digest.hexdigest())
"""

FLAGS = """\
import json, os, torch
print(json.dumps({
    "deterministic": torch.are_deterministic_algorithms_enabled(),
    "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    "cudnn_deterministic": torch.backends.cudnn.deterministic,
    "cudnn_benchmark": torch.backends.cudnn.benchmark,
    "fill": torch.utils.deterministic.fill_uninitialized_memory,
    "threads": torch.get_num_threads(),
    "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    "hash": hash("reprobox"),
    "initial_seed": torch.initial_seed(),
}))
"""
