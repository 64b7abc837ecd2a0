"""Train a small convolutional classifier on images it draws itself: striped discs and squares, by the stripes' angle.

An ordinary training program: the data loader's workers augment with the global generators of `random` and `numpy`, as
much user code does, the weights come from torch's, and nothing here seeds any of them, so two plain runs end in
different weights. The last line is a digest of them.

    python train.py
"""

import argparse
import hashlib
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

ANGLES = 8
SIZE = 32
TRAINING_IMAGES = 2048
VALIDATION_IMAGES = 256
BATCH = 64

Image = npt.NDArray[np.float32]


def draw(index: int) -> Image:
    """The image of number `index`, SIZE x SIZE: stripes at angle `index % ANGLES`, seen through a disc or a square.

    The other properties are multiples of irrational numbers, modulo one: they fill their ranges evenly, not at random.
    """
    angle = (index % ANGLES) * math.pi / ANGLES
    frequency = 1.5 + 2.5 * (index * math.sqrt(2) % 1)
    phase = 2 * math.pi * (index * math.sqrt(3) % 1)
    radius = 0.6 + 0.4 * (index * math.sqrt(5) % 1)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    stripes = np.sin(frequency * math.pi * (x * math.cos(angle) + y * math.sin(angle)) + phase)
    in_disc = x**2 + y**2 < radius**2
    in_square = np.maximum(abs(x), abs(y)) < radius
    return np.where(in_disc if index // ANGLES % 2 else in_square, stripes, 0).astype(np.float32)


def augment(image: Image) -> Image:
    """A copy moved, faded, partly covered and made noisy; never turned or mirrored, which would change its class."""
    shift = (random.randint(-4, 4), random.randint(-4, 4))
    image = np.roll(image, shift, axis=(0, 1)) * np.float32(random.uniform(0.4, 1.0))
    top, left = np.random.randint(0, SIZE - 8, size=2)
    image[top : top + 8, left : left + 8] = 0
    return image + np.random.normal(0, 0.3, image.shape).astype(np.float32)


class Stripes(Dataset[tuple[Tensor, int]]):
    """`count` images from number `first` on, as (1, SIZE, SIZE) tensors, each with its class."""

    def __init__(self, first: int, count: int, augmented: bool) -> None:
        self.first = first
        self.count = count
        self.augmented = augmented

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        index = self.first + item
        image = draw(index)
        if self.augmented:
            image = augment(image)
        return torch.from_numpy(image).unsqueeze(0), index % ANGLES


def conv_block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    # The convolution has no bias: batch norm would subtract it again.
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class ConvNet(nn.Module):
    """Images (batch, 1, SIZE, SIZE) in, logits (batch, ANGLES) out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_block(1, width, stride=1),
            conv_block(width, 2 * width, stride=2),
            conv_block(2 * width, 4 * width, stride=2),
            conv_block(4 * width, 4 * width, stride=2),
        )
        self.head = nn.Linear(4 * width, ANGLES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


def endless_batches(dataset: Dataset[tuple[Tensor, int]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches on `device`, epoch after epoch."""
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


@torch.no_grad()
def validate(model: nn.Module, dataset: Stripes, device: torch.device) -> tuple[float, float]:
    """Mean loss and accuracy over `dataset`, with batch norm's running statistics."""
    model.eval()
    loss, correct = 0.0, 0
    for images, labels in DataLoader(dataset, batch_size=BATCH):
        logits, labels = model(images.to(device)), labels.to(device)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(dim=1) == labels).sum())
    return loss / len(dataset), correct / len(dataset)


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
    parser = argparse.ArgumentParser(description="Train a small convolutional image classifier.")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--save", type=Path, metavar="PATH", help="write the final weights here")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    return args


def main() -> None:
    args = parse_args()
    device = torch.device(args.device)

    model = ConvNet().to(device)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.steps)
    batches = endless_batches(Stripes(0, TRAINING_IMAGES, augmented=True), device)

    # `range` comes first, so that the last step does not fetch one more batch.
    for step, (images, labels) in zip(range(1, args.steps + 1), batches, strict=False):
        loss = loss_function(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step:3d}/{args.steps}  loss {loss.item():.4f}  lr {schedule.get_last_lr()[0]:.4f}", flush=True)
        schedule.step()

    held_out = Stripes(TRAINING_IMAGES, VALIDATION_IMAGES, augmented=False)
    loss_value, accuracy = validate(model, held_out, device)
    print(f"validation loss {loss_value:.4f}  accuracy {accuracy:.3f}", flush=True)
    print(f"weights sha256 {weights_sha256(model.state_dict())}", flush=True)
    if args.save is not None:
        torch.save(model.state_dict(), args.save)


if __name__ == "__main__":
    main()
