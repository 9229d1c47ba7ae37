"""Measures how many images a second the trainer trains, beside what people would run otherwise.

    python benchmarks/throughput.py [MODEL ...] [--length short|full] [--device cpu|cuda]

For each network that is named, or for all that are not measured yet: the whole trainer, as a slot
runs it, with its random crop and flip; and a plain loop over the same network: torchvision's
transforms, a DataLoader with two workers, float32, as in https://github.com/kuangliu/pytorch-cifar.
That one runs in a process of its own, since a slot tells malloc to keep freed memory. They
alternate; medians are kept. Shares are of the fastest product of two matrices of 2048 or 4096 rows
in the same precision, the best of all rounds; a training step counts as three forward passes. What
is measured already is kept, if machine, versions and threads are the same.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from statistics import median
from typing import Any

import torch
from measured import add_length_and_device, keep, kept, real_images, result_path, stamp
from torch import Tensor, nn

from cifartune.config import Recipe
from cifartune.data import load_train
from cifartune.data.cifar10 import default_root
from cifartune.models import build_model
from cifartune.models.facts import network_facts
from cifartune.training import Trainer
from cifartune.training.device import HALF
from cifartune.training.memory import run_keeping_memory
from cifartune.tuning.modes import fastest

MODELS: dict[str, dict[str, Any]] = {
    "speednet_small": {},
    "speednet": {},
    "resnet18": {},
    "resnet34": {},
    "resnet50": {},
    "wideresnet": {"model.depth": 16, "model.width": 8},
    "resnet_channels": {},
    "efficientnet_b0": {},
    "mobilenetv2_100": {},
    "vgg16": {},
    "vgg10": {},
    "vit_tiny_patch16_224": {},
    "swin_tiny_patch4_window7_224": {},
    "mixture": {},
    "lenet": {},
    "tutorial_net": {},
    "mlp": {},
}
"""The networks of the sources, at 32 pixels, and what they have beside a name there."""

SECONDS = {"short": 3.0, "full": 8.0}
"""How long a round of each is, about."""

ROUNDS = {"short": 1, "full": 3}
LEAST_STEPS, LEAST_BATCHES = 2, 4
"""What the trainer and the plain loop are timed over in a round, however long that takes."""

WARM_UP = 2
"""Batches of the plain loop that start its workers, and allocate."""

SIZES = (2048, 4096)
PRODUCTS = {"cpu": 1, "cuda": 20}
"""Rows of the matrices, and how many products are timed together: a GPU is waited for once."""

RUN_IMAGES = 50_000 * 30
"""A run of thirty epochs decides whether compiling pays."""


def main(options: argparse.Namespace) -> None:
    """Measures the networks one after the other, and keeps each as it is done."""
    device = torch.device(options.device)
    path = result_path("throughput", options)
    known = kept(path, length=options.length, device=device.type, batch_size=options.batch)
    networks = {
        name: row
        for name, row in known.get("networks", {}).items()
        if is_of(row, name) and row["steps"] >= LEAST_STEPS
    }
    for name in options.models or [name for name in MODELS if name not in networks]:
        row = {"fields": MODELS[name], **stamp()}
        networks[name] = {**row, **measure(name, options, device)}
        print(name, networks[name], flush=True)
        keep(
            path,
            f"python benchmarks/throughput.py --length {options.length} --batch {options.batch} "
            f"--device {options.device}",
            length=options.length,
            device=device.type,
            threads=torch.get_num_threads(),
            batch_size=options.batch,
            networks={name: networks[name] for name in MODELS if name in networks},
        )


def is_of(row: dict[str, Any], name: str) -> bool:
    """Whether `row` was measured with the network that `name` stands for now."""
    return name in MODELS and row.get("fields", {}) == MODELS[name]


def measure(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The rates of the trainer and of the plain loop, turn and turn about."""
    recipe = Recipe().with_values({"model.name": name, "batch_size": options.batch, **MODELS[name]})
    recipe = fastest(recipe, RUN_IMAGES, device=device, folder=default_root())
    trainer = Trainer(recipe, real_images(40_000, 2), device=device)
    batches = trainer.batches()
    trainer.train_on(batches[:2])  # allocates, and compiles
    rounds = ROUNDS[options.length]
    wanted = SECONDS[options.length] / timed(partial(train, trainer, batches[:1]))
    steps = min(len(batches), max(LEAST_STEPS, round(wanted)))
    ours, plain, peaks = [], [], []
    for _ in range(rounds):
        used = timed(partial(train, trainer, batches[:steps]))
        ours.append(sum(map(len, batches[:steps])) / used)
        command = [sys.executable, __file__, "--plain", name, "--device", device.type]
        output = subprocess.run(
            [*command, "--length", options.length], capture_output=True, text=True, check=True
        ).stdout
        plain.append(float(json.loads(output)))
        peaks.append(matrix_peak(recipe.precision, device))
    flops, peak = 3 * network_facts(recipe.model).flops, max(peaks)
    return {
        "images_per_second": round(median(ours), 1),
        "plain_images_per_second": round(median(plain), 1),
        "ratio": round(median(ours) / median(plain), 2),
        "matrix_flops": peak,
        "share_of_peak": round(median(ours) * flops / peak, 3),
        "rounds": rounds,
        "steps": steps,
        "precision": recipe.precision,
        "memory_format": recipe.memory_format,
        "compile": recipe.compile,
    }


def train(trainer: Trainer, batches: Any) -> None:
    """Steps of the trainer, to their end."""
    trainer.train_on(batches)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Any) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matrix_peak(precision: str, device: torch.device) -> float:
    """Operations a second of the fastest matrix product: two for each multiplication."""
    dtype = HALF.get(precision, torch.float32)
    best = 0.0
    count = PRODUCTS[device.type]
    for size in SIZES:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

        def multiply(a: Tensor = a, b: Tensor = b) -> None:
            for _ in range(count):
                a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()

        multiply()
        best = max(best, 2 * size**3 * count / min(timed(multiply) for _ in range(10)))
    return best


def plain_loader() -> Iterable[Any]:
    """Batches of augmented images and their labels, as people make them."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    data = load_train()

    class Images(Dataset[tuple[Tensor, int]]):
        def __init__(self) -> None:
            self.images = data.images.transpose(0, 2, 3, 1)
            self.transform = transforms.Compose(
                [
                    transforms.RandomCrop(32, padding=4),
                    transforms.RandomHorizontalFlip(),
                    transforms.ToTensor(),
                    transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
                ]
            )

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image = Image.fromarray(self.images[index])
            return self.transform(image), int(data.labels[index])

    return DataLoader(Images(), batch_size=128, shuffle=True, num_workers=2)


def plain_rate(name: str, batches: Iterable[Any], seconds: float, device: torch.device) -> float:
    """Training images a second of the loop that people write, over `seconds` at least."""
    network = build_model(Recipe().with_values({"model.name": name, **MODELS[name]}).model)
    network = network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    loss_sum, correct, seen, start = 0.0, 0, 0, 0.0
    for step, (images, labels) in enumerate(batches):
        if step == WARM_UP:
            seen, start = 0, time.perf_counter()
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = network(images)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        correct += logits.argmax(1).eq(labels).sum().item()
        seen += len(images)
        if step + 1 >= WARM_UP + LEAST_BATCHES and time.perf_counter() - start > seconds:
            break
    return seen / (time.perf_counter() - start)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    add_length_and_device(parser)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--plain", metavar="MODEL", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments()
    if options.plain:
        device, length = torch.device(options.device), SECONDS[options.length]
        print(json.dumps(plain_rate(options.plain, plain_loader(), length, device)))
    else:
        run_keeping_memory(partial(main, options))
