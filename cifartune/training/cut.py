"""Cuts a network behind its frozen part, at the last value that is the same in each epoch.

That is the last one that no trained weight and no random number has touched and through which
everything passes; torch.fx finds it in the graph of the network's operations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Tracer

from cifartune.models.freezing import set_training

TOLERANCE = 1e-3
"""How far the parts' logits may be from the network's, as a share of the largest one."""


class Tail:
    """The trained end of a network: maps features to logits, in the mode that the network is in.

    It has no weights of its own: those of the network are used, trained, and, by its norms,
    their statistics moved.
    """

    def __init__(self, network: nn.Module, training: Graph, evaluating: Graph) -> None:
        self._network = network
        self._training = GraphModule(network, training)
        self._evaluating = GraphModule(network, evaluating)

    def __call__(self, features: Tensor) -> Tensor:
        tail = self._training if self._network.training else self._evaluating
        logits: Tensor = tail(features)
        return logits


@dataclass(frozen=True)
class Cut:
    """A network in two parts, each as a graph of operations on the network's modules.

    Attributes:
        frozen: From images to features.
        training: From features to logits, in training mode.
        evaluating: Likewise, in evaluation mode.
    """

    frozen: Graph
    training: Graph
    evaluating: Graph

    def tail(self, network: nn.Module) -> Tail:
        """The end of `network`: of the one that was cut, or of a copy of it."""
        return Tail(network, self.training, self.evaluating)


def find_cut(network: nn.Module, example: Tensor) -> Cut | None:
    """Cuts `network` behind its frozen part, and makes sure that the parts compute what it does.

    The network is run on `example`, its input for a few images, two at least. It is left as it
    was, and so are torch's random numbers.

    Returns:
        None if no weights are frozen in front of the trained ones, if no single value connects
        both parts, or if the network cannot be traced.
    """
    if all(weight.requires_grad for weight in network.parameters()):
        return None
    # In bfloat16 the comparison would be too coarse.
    exact = torch.autocast(example.device.type, enabled=False)
    with left_as_it_was(network, example.device), torch.no_grad(), exact:
        try:
            cut = _try_to_cut(network, example)
            return cut if cut and _is_right(cut, network, example) else None
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception:
            # What a network does with a stand-in for a tensor may fail in any way.
            return None


def _try_to_cut(network: nn.Module, example: Tensor) -> Cut | None:
    """The cut with the shortest tail; whether it is right is still to be seen."""
    network.eval()
    evaluating = _Tracer().trace(network)
    set_training(network)
    training = _Tracer().trace(network)
    watch = _Watch(network, training, example)
    watch.run(example)
    names = {node.name: node for node in evaluating.nodes}
    start, end = _ends(training)
    start_evaluating, end_evaluating = _ends(evaluating)
    for place in reversed(watch.places):
        tail = _between(place, end)
        if start not in tail and place.name in names:
            # Up to here nothing differs between the modes, the names of the nodes included.
            same = names[place.name]
            frozen = _between(start_evaluating, same)
            if not any(_weights(network, node) for node in frozen):
                return None
            return Cut(
                _part(evaluating, start_evaluating, same),
                _part(training, place, end),
                _part(evaluating, same, end_evaluating),
            )
    return None


def _is_right(cut: Cut, network: nn.Module, example: Tensor) -> bool:
    """Whether the parts compute what `network` does, dropping the same units in training."""
    frozen = GraphModule(network, cut.frozen)
    tail = cut.tail(network)
    # In evaluation, by halves: an image's features must not depend on the others. In training
    # the batch is the network's own, since a norm can make a large difference of a small one.
    for mode, parts in ((set_training, 1), (nn.Module.eval, 2)):
        mode(network)
        features = torch.cat([frozen(part) for part in example.chunk(parts)])
        torch.manual_seed(0)
        logits = tail(features)
        torch.manual_seed(0)
        expected = network(example)
        if not torch.allclose(
            logits, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())
        ):
            return False
    return True


class _Tracer(Tracer):
    """Records what a network does, but for what timm says that it cannot be looked into."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))  # type: ignore[no-untyped-call]
        self._closed = tuple(get_notrace_modules())  # type: ignore[no-untyped-call]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._closed) or super().is_leaf_module(m, module_qualified_name)


class _Watch(Interpreter):
    """Runs a network, and sees which of its values are the same in each epoch.

    Attributes:
        places: The nodes with such values that are float tensors with one row for each image, in
            the order in which they are computed.
    """

    def __init__(self, network: nn.Module, graph: Graph, example: Tensor) -> None:
        super().__init__(network, graph=graph)
        self._network = network
        self._images = len(example)
        self._device = example.device
        self._fixed: set[Node] = set()
        self.places: list[Node] = []

    def run_node(self, n: Node) -> Any:
        before = _random_states(self._device)
        value = super().run_node(n)
        is_fixed = (
            all(node in self._fixed for node in n.all_input_nodes)
            and not any(weight.requires_grad for weight in _weights(self._network, n))
            and not self._keeps_statistics(n)
            and all(map(torch.equal, before, _random_states(self._device)))
        )
        if is_fixed:
            self._fixed.add(n)
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and value.shape[:1] == (self._images,)
            ):
                self.places.append(n)
        return value

    def _keeps_statistics(self, node: Node) -> bool:
        """Whether `node` calls a module that, for all one knows, normalises by the batch."""
        if node.op != "call_module":
            return False
        module = self._network.get_submodule(str(node.target))
        return module.training and any(True for _ in module.buffers())


def _weights(network: nn.Module, node: Node) -> list[nn.Parameter]:
    """The weights that `node` itself reads."""
    if node.op == "call_module":
        return list(network.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        value = attrgetter(str(node.target))(network)
        return [value] if isinstance(value, nn.Parameter) else []
    return []


def _ends(graph: Graph) -> tuple[Node, Node]:
    """The nodes of the images and of the logits."""
    start = next(node for node in graph.nodes if node.op == "placeholder")
    (end,) = graph.output_node().all_input_nodes
    return start, end


def _between(start: Node, end: Node) -> set[Node]:
    """The nodes that `end` needs, itself included, if the value of `start` is given."""
    found = {end}
    waiting = [*end.all_input_nodes, *_changes(start)]
    while waiting:
        node = waiting.pop()
        if node is not start and node not in found:
            found.add(node)
            waiting += [*node.all_input_nodes, *_changes(node)]
    return found


def _changes(node: Node) -> list[Node]:
    """The methods that change the value of `node` in place, whether or not their result is used."""
    return [
        user
        for user in node.users
        if user.op == "call_method" and str(user.target).endswith("_") and user.args[0] is node
    ]


def _part(graph: Graph, start: Node, end: Node) -> Graph:
    """From the value of `start` to that of `end`."""
    needed = _between(start, end)
    part = Graph()
    copies = {start: part.placeholder(start.name)}
    for node in graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    return part


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def left_as_it_was(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts back the modes and statistics of `network` and torch's random numbers."""
    modes = {module: module.training for module in network.modules()}
    buffers = {buffer: buffer.clone() for buffer in network.buffers()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for buffer, before in buffers.items():
                    buffer.copy_(before)
