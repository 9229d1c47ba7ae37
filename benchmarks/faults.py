"""Kills a simulated search at many of its durable writes, resumes it, and looks at its end.

    python benchmarks/faults.py [--moments N] [--storage URL]

All but the slots is real (`tests/tuning/simulated.py`). The moments, before, in and after writes to
the study, to MLflow's store and to files, are spread over the whole search. Each killed search is
resumed once. Its study, MLflow's runs and its files have to fit together, and the study is held
against that of a search that nothing happened to.
"""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from measured import RESULTS, ROOT, keep

sys.path.insert(0, str(ROOT / "tests" / "tuning"))


def main(options: argparse.Namespace) -> None:
    """Tries all moments, one after the other."""
    import ray
    import simulated
    from test_twin import ended, findings, search

    from cifartune.tuning.cluster import load_ray

    load_ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    address = ray.get_runtime_context().gcs_address
    differing, count = [], options.moments
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = search(folder / "unbroken", address)
        moments = json.loads(whole.stdout.splitlines()[-1])["moments"]
        expected = ended(folder / "unbroken")
        for number in range(1, count + 1):
            kill_at, killed = moments * number // (count + 1), folder / f"killed-{number}"
            first = search(killed, address, kill_at=kill_at, storage=options.storage)
            second = search(killed, address, storage=options.storage)
            is_equal = second.returncode == 0 and ended(killed) == expected
            is_equal = is_equal and not findings(killed)
            if first.returncode != -signal.SIGKILL or not is_equal:
                differing.append(kill_at)
            print(f"{number}/{count}: killed at {kill_at} of {moments}, {is_equal=}", flush=True)
    ray.shutdown()
    keep(
        RESULTS / "faults.json",
        f"python benchmarks/faults.py --moments {count}"
        + (f" --storage {options.storage.partition(':')[0]}:..." if options.storage else ""),
        trials=simulated.TRIALS,
        slots=simulated.SLOTS,
        durable_moments=moments,
        killed=count,
        differing=differing,
    )


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--storage", default="", help="an Optuna storage URL; default: SQLite")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
