"""The names of the files that a training run, of a trial or of a fold, leaves in its folder."""

from pathlib import PurePath

WEIGHTS = "weights.safetensors"

LOGITS = "logits.npy"
"""Of the images that judge the run: a trial's validation images, those that a fold held out."""

PLAIN_LOGITS = "logits_plain.npy"
"""Those without test-time augmentation, where the recipe has some."""

SNAPSHOTS = "snapshots"
"""The folder for weights and logits of the epochs before each restart of the rate."""


def as_written(name: str) -> tuple[bool, int, str]:
    """The key by which files are sorted as a run writes them, for those who carry them elsewhere.

    Snapshots come before the checkpoint that does not make them again, and of what is written
    together the logits last: where they are, all is.
    """
    path, order = PurePath(name), (WEIGHTS, PLAIN_LOGITS, LOGITS)
    place = order.index(path.name) + 1 if path.name in order else 0
    return SNAPSHOTS not in path.parts, place, name
