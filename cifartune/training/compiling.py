"""torch.compile, for a process that trains many networks."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit  # two seconds to import


class CompiledNetwork:
    """Calls a network through `torch.compile`, always.

    torch keeps compiled code by class, and reuses it for networks that are alike. After eight that
    are not, of one class, it stops compiling and says nothing. Here it forgets them and goes on.

    Args:
        network: In training mode, or the end of one; its parameters stay its own.
        graphs: Whether a GPU replays what was compiled as CUDA graphs, which spares the time of
            launching each kernel. What comes out then, and the gradients, are good until the next
            call, before which they must be given up.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], *, graphs: bool = False) -> None:
        self._network = network
        self._graphs = graphs
        self._compile()

    def __call__(self, x: Tensor) -> Tensor:
        """The network's logits. The first call with a size of `x` compiles for it."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            try:
                return self._call(x)
            except FailOnRecompileLimitHit:
                torch._dynamo.reset()
                self._compile()
                return self._call(x)

    def _compile(self) -> None:
        self._call: Callable[[Tensor], Tensor] = torch.compile(
            self._network, dynamic=False, mode="reduce-overhead" if self._graphs else None
        )
