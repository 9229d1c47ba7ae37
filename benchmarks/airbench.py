"""Runs a script of a checkout of KellerJordan/cifar10-airbench, as it is, beside ours.

That needs a GPU, and it has not been seen to work on one yet: the form of the rows that the scripts
print is known from their source alone. Their seconds have the test's views in them, and neither
data nor compiling. They fetch the data themselves, into the checkout.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

SCRIPTS = {"fast94": "airbench94_muon.py", "fast96": "airbench96_faster.py"}
"""What each of our files is held against."""


def run(script: Path, runs: int) -> dict[str, Any]:
    """The first `runs` runs of `script` behind one that compiles; then it is ended.

    Raises:
        RuntimeError: It ended before it had made one.
    """
    found = list[tuple[float, float]]()
    with subprocess.Popen(
        [sys.executable, script.name],
        cwd=script.parent,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for accuracy, seconds in results(process.stdout or ()):
            found.append((accuracy, seconds))
            print(f"{script.name}: {accuracy:.2%} in {seconds:.2f} s", flush=True)
            if len(found) > runs:
                process.kill()
                break
    if len(found) < 2:
        raise RuntimeError(f"{script} made {len(found)} runs: two are needed, one to compile")
    accuracies, times = zip(*found[1:], strict=True)
    return {
        "script": script.name,
        "n": len(times),
        "mean_accuracy": round(fmean(accuracies), 5),
        "mean_seconds": round(fmean(times), 3),
        "seconds": times,
    }


def results(lines: Iterable[str]) -> Iterator[tuple[float, float]]:
    """Accuracy with the test's views, and seconds, of each run whose last row is among `lines`."""
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "eval" in cells:
            yield float(cells[-2]), float(cells[-1])
