import subprocess
import sys

import pytest

from cifartune.training.memory import release_memory, run_keeping_memory

FAULTS = """
import resource, sys, torch
from cifartune.training.memory import release_memory, run_keeping_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(2**25) for _ in range(2)]  # too large for other heaps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

def steps():
    # Once blocks have found their places: a small one may lie where a large one would fit.
    least = min(faults() for _ in range(8))
    kept = resident()
    release_memory()
    print(least, kept - resident())

steps() if sys.argv[1] == "plain" else run_keeping_memory(steps)
"""


@pytest.mark.slow  # tests/tuning/test_slots.py looks at a worker of Ray's
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told what to keep")
def test_freed_memory_is_kept_until_it_is_released() -> None:
    def run(how: str) -> list[int]:
        command = [sys.executable, "-c", FAULTS, how]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [int(word) for word in output.split()]

    (plain, _), (faults, released) = run("plain"), run("keeping")
    assert plain > 10_000  # 256 MiB in pages of 4 KiB, or some larger ones
    assert faults < 100
    assert released >= 256


LOSSES = """
import torch
from cifartune.config import Recipe
from cifartune.training import SplitImages, train
from cifartune.training.memory import run_keeping_memory

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, generator=generator)
labels = torch.randint(0, 10, (200,), generator=generator)
split = SplitImages(images, labels, torch.arange(180), torch.arange(180, 200))
recipe = Recipe().with_values({
    "model.name": "speednet_small", "model.dropout": 0.2, "epochs": 2, "batch_size": 64,
    "precision": "bf16", "optimizer.name": "muon", "optimizer.lr": 0.01, "augment.rotation": 20.0,
})

def run():
    print([(result.train_loss, result.val_loss) for result in train(recipe, split)])

run()
run_keeping_memory(run)
"""


def test_losses_are_the_same_where_memory_is_kept() -> None:
    command = [sys.executable, "-c", LOSSES]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    plain, keeping = output.splitlines()
    assert plain == keeping and plain.count("(") == 2


def test_the_work_is_done_and_its_error_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifartune.training.memory._of_glibc", lambda name: None)
    done: list[int] = []
    run_keeping_memory(lambda: done.append(1))
    release_memory()
    assert done == [1]

    def fail() -> None:
        raise KeyError("defect")

    with pytest.raises(KeyError, match="defect"):
        run_keeping_memory(fail)
