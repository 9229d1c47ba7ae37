"""Several processes that train one network, each on its share of every batch."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cifartune.seeds import derive_seed

T = TypeVar("T")


class Workers:
    """The processes of a run, as one of them sees them; by itself it is all there is.

    Together they make the steps that one would make: batches are drawn and augmented by each alike,
    and then shared out; batch norms see the whole batch, or, where a step is made in parts, those
    of all workers together; gradients are averaged. What a network draws by itself, as dropout
    does, is drawn by each worker for its own images.

    Args:
        rank: This process's number, from 0.
        count: How many there are. With several, torch's default process group must be theirs.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count
        self._group: Any = None

    @classmethod
    def of_process_group(cls) -> "Workers":
        """Those of torch's default process group, which has several."""
        workers = cls(dist.get_rank(), dist.get_world_size())
        # They may wait for each other as long as a search takes.
        workers._group = dist.new_group(backend="gloo", timeout=timedelta(days=365))
        return workers

    @property
    def is_alone(self) -> bool:
        """Whether there is one worker."""
        return self.count == 1

    def share(self, images: int) -> tuple[slice, float]:
        """This worker's part of a batch, and the weight of each of its images in sums over all.

        Parts differ by one image at the most. Of a batch of fewer images than there are workers
        each takes all.
        """
        if images < self.count:
            return slice(0, images), 1 / self.count
        bounds = [images * rank // self.count for rank in (self.rank, self.rank + 1)]
        return slice(*bounds), 1.0

    def bounds(self, images: int) -> tuple[int, int]:
        """The fewest and the most images that a worker takes of a batch."""
        if images < self.count:
            return images, images
        return images // self.count, -(-images // self.count)

    def every(self, indices: Tensor) -> Tensor:
        """This worker's part of what is looked at image by image; it may be none."""
        return indices[self.rank :: self.count]

    def wrap(self, network: nn.Module) -> nn.Module:
        """`network` so that its gradients are averaged over the workers."""
        if self.is_alone:
            return network
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            # Statistics are the same everywhere, as the norms see whole batches. From torch 2.15
            # on the option has another name.
            return DistributedDataParallel(network, broadcast_buffers=False)

    def add_up(self, *sums: Tensor) -> None:
        """Adds to each of `sums` those of the other workers, in place."""
        if not self.is_alone:
            for value in sums:
                dist.all_reduce(value)

    def norms(self) -> AbstractContextManager[Any]:
        """Has batch norms see the images of all workers in training."""
        return nullcontext() if self.is_alone else _JointNorms()

    def averaging(self, network: Any, *, is_last: bool) -> AbstractContextManager[Any]:
        """Has the gradients of a step averaged in its last part, for which they add up."""
        return nullcontext() if self.is_alone or is_last else network.no_sync()

    def agree(self, ask: Callable[[], T]) -> T:
        """What `ask` returns to the first worker, for all of them, or raises; the others wait."""
        if self.is_alone:
            return ask()
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = ask()
            except Exception as error:
                said[1] = error
        dist.broadcast_object_list(said, src=0, group=self._group)
        if said[1] is not None:
            raise said[1]
        return cast(T, said[0])

    def reseed(self, seed: int, epoch: int) -> None:
        """Gives each worker but the first random numbers of its own for an epoch."""
        if self.rank:
            torch.manual_seed(derive_seed(seed, "worker", self.rank, epoch))


class _Sum(torch.autograd.Function):
    """The sum over the workers; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class _JointNorms(TorchFunctionMode):
    """Puts `_joint_batch_norm` in the place of torch's: torch's own for this is for GPUs alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.batch_norm:
            func = _joint_batch_norm
        return func(*args, **(kwargs or {}))


def _joint_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` over the images of all workers."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    inner = [0, *range(2, x.ndim)]
    shape = [1, -1, *(1 for _ in inner[1:])]
    values = x.float()
    channels = values.shape[1]
    size = values.new_full((1,), values.numel() / channels)
    sums: Tensor = _Sum.apply(torch.cat([values.sum(inner), size]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean.view(shape)
    variance: Tensor = _Sum.apply(centred.square().sum(inner)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    result = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        result = result * weight.view(shape)
    if bias is not None:
        result = result + bias.view(shape)
    return result.to(x.dtype)
