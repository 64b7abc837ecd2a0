"""A CNN and a transformer, small enough for one GPU and made of what such models are made of."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its name in the field)
from gpu_variants import SEED
from torch import nn


def cnn(device: Any, cpu: bool) -> Any:
    """A residual network; float32, as PyTorch computes that by default."""
    torch.manual_seed(SEED)
    width, depth, batch, side = (8, 2, 4, 16) if cpu else (64, 8, 64, 224)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.norms[0](self.first(x)))
            return F.relu(x + self.norms[1](self.second(y)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2)
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.head = nn.Linear(width, 100)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.max_pool2d(F.relu(self.stem(x)), 3, stride=2, padding=1)
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((2, 3)))

    net = Net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(0, 100, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return list(net.parameters()), step


def transformer(device: Any, cpu: bool) -> Any:
    """A causal language model; autocast to bfloat16."""
    torch.manual_seed(SEED)
    width, heads, depth, batch, length, vocabulary = (32, 2, 2, 4, 32, 64) if cpu else (768, 12, 6, 16, 512, 8192)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
            self.projections, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.projections(self.before(x)).view(batch, length, 3, heads, -1).unbind(2)
            q, k, v = (part.transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
            return x + F.dropout(self.down(F.gelu(self.up(self.between(x)))), 0.1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
            self.layers = nn.ModuleList(Layer() for _ in range(depth))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.tokens(tokens) + self.places.weight
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x))

    model = Model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    tokens = torch.randint(0, vocabulary, (batch, length), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()

    return list(model.parameters()), step


STEP_MAKERS = {"cnn": cnn, "transformer": transformer}
"""By the names of `gpu_variants.MODELS`."""
