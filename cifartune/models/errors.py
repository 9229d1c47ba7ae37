"""What a recipe may ask of a network that cannot be had."""


class UnfitNetwork(ValueError):
    """A network that cannot be built as the recipe asks, or cannot take images of its size."""


class MissingWeights(UnfitNetwork):
    """Weights are asked for that this machine does not have, and cannot get or read."""
