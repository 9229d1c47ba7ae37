"""What the frozen part of a network makes of each image: computed once, and kept.

Where a part of a network is frozen and its input is the same in each epoch, its output is so too.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from cifartune.training.cut import Cut, Tail, find_cut, left_as_it_was

MOST_BYTES = 2 * 2**30
"""The most memory that features may take."""

CHUNK = 64
"""Images go through the frozen part in batches of this size, the last filled up with repeats.

In a batch of another size an image's features may differ in their last bits, so that they would
depend on which images are asked for together.
"""


class FrozenFeatures:
    """The features of images, computed when they are first asked for.

    Args:
        network: The network that was cut.
        cut: Where.
        images: int64 (N,), the images that will be asked for, each once; on the network's device.
    """

    def __init__(self, network: nn.Module, cut: Cut, images: Tensor) -> None:
        self._cut = cut
        self._frozen = GraphModule(network, cut.frozen)
        self._count = len(images)
        # An image that was not announced is out of range wherever its row is used.
        size = int(images.max()) + 1
        self._rows = torch.full((size,), self._count, device=images.device)
        self._rows[images] = torch.arange(self._count, device=images.device)
        self._features: Tensor | None = None
        self.forget()

    @classmethod
    def make(cls, network: nn.Module, example: Tensor, images: Tensor) -> Self | None:
        """Features of `network`'s frozen part, if it has one and the features are not too large.

        Call it under the autocast of the training, so that their size is known.

        Args:
            network: Where and as it will be trained.
            example: Its input for a few images, two at least: (N, C, H, W).
            images: Those that will be asked for, each once.

        Returns:
            None if nothing can be kept, see `find_cut`, or if it would take more than `MOST_BYTES`.
        """
        cut = find_cut(network, example)
        if cut is None:
            return None
        with left_as_it_was(network, example.device), torch.no_grad():
            network.eval()
            features = GraphModule(network, cut.frozen)(example)
        size = features[0].numel() * features.element_size() * len(images)
        return cls(network, cut, images) if size <= MOST_BYTES else None

    def features(self, images: Tensor, inputs: Callable[[Tensor], Tensor]) -> Tensor:
        """The features of `images`, int64 (N,), in the type and form that the network gives them.

        The network must be in evaluation mode, or in training mode as `set_training` sets it.

        Args:
            images: Of those that were announced.
            inputs: Gives the network's input for the images at int64 (`CHUNK`,), on its device.
                It is called where some are not yet known.

        Raises:
            IndexError: On the CPU, an image was not announced.
        """
        rows = self._rows[images]
        if self._unknown:  # where all are known, a GPU need not be waited for
            missing = images[~self._known[rows]].unique()
            if len(missing):
                self._compute(missing, inputs)
        assert self._features is not None
        return self._features[rows]

    def tail(self, network: nn.Module) -> Tail:
        """What maps features to logits: the end of the network, or that of a copy of it."""
        return self._cut.tail(network)

    def forget(self) -> None:
        """Has all features computed anew: after a change of the frozen weights."""
        self._known = torch.zeros(self._count, dtype=torch.bool, device=self._rows.device)
        self._unknown = self._count

    # What is kept while evaluating is trained on later, which inference tensors do not allow.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _compute(self, images: Tensor, inputs: Callable[[Tensor], Tensor]) -> None:
        """Keeps the features of `images`, one at least, each given once and not yet known."""
        count = len(images)
        places = torch.arange(-(-count // CHUNK) * CHUNK, device=images.device) % count
        for chunk in images[places].split(CHUNK):
            features = self._frozen(inputs(chunk))
            if self._features is None:
                self._features = _room_for(features, self._count)
            self._features[self._rows[chunk]] = features
        self._known[self._rows[images]] = True
        self._unknown -= count


def _room_for(features: Tensor, count: int) -> Tensor:
    """Uninitialised memory for features like `features`, of `count` images."""
    form = torch.contiguous_format
    if features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last):
        form = torch.channels_last
    shape = (count, *features.shape[1:])
    return torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=form)
