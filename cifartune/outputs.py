"""The names of the files that a training run, of a trial or of a fold, leaves in its folder."""

WEIGHTS = "weights.safetensors"

LOGITS = "logits.npy"
"""Of the images that judge the run: a trial's validation images, those that a fold held out."""

PLAIN_LOGITS = "logits_plain.npy"
"""Those without test-time augmentation, where the recipe has some."""

SNAPSHOTS = "snapshots"
"""The folder for weights and logits of the epochs before each restart of the rate."""
