"""A pass over a teacher's graph that puts one operator with statistics in the place of every BatchNorm call.

    BatchNorm (+ add) (+ ReLU)    -> bn_stats; bn_stats_fork where exactly two others read the output
    BatchNorm + ReLU + max pool   -> stem_stats, for windows of 3x3, stride 2, padding 1
    a subclass of BatchNorm2d     -> stays; the sums of its input are taken beside it

It works on calls, not on modules: a ReLU or BatchNorm module may be called in several places. Where it does not know
what follows, it takes the BatchNorm alone.
"""

import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from delt_kernels.bn_relu_maxpool import stem_stats
from delt_kernels.bn_stats import bn_stats, bn_stats_fork
from delt_kernels.dispatch import Backend
from delt_kernels.teacher.frozen import Layer
from delt_kernels.teacher.hooks import channel_sums, pixels_of
from delt_kernels.teacher.patterns import GraphMatcher, Match
from delt_kernels.teacher.sites import Site
from delt_kernels.teacher.trace import PackedTeacher


def fuse(
    teacher: PackedTeacher, graph: fx.Graph, layers: list[Layer], backend: Backend
) -> tuple[fx.GraphModule, tuple[Site, ...]]:
    """Rewrite the graph of a teacher (`tracing.trace`).

    Returns:
        a module: images [N, 3, H, W], offsets int32 [G+1] -> logits, a reading for each site (`watched.Reading`); and
        the sites in the order of their calls.
    """
    surroundings = GraphMatcher(teacher, graph)
    numbers = {f"teacher.{layer.name}": i for i, layer in enumerate(layers)}
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target in numbers]
    matches = [surroundings.match(node) for node in calls]  # all of them before the graph changes
    rewriting = _Rewriting(graph, backend)
    sites = []
    for bn, match in zip(calls, matches, strict=True):
        number = numbers[bn.target]
        layer, path = layers[number], f"numbers.{number}"
        channels = layer.numbers.mean.numel()
        if type(teacher.get_submodule(bn.target)) is nn.BatchNorm2d:
            forked = surroundings.forks(match)
            rewriting.replace(match, forked, layer.weight, path)
            sites.append(Site(layer.name, match.operators, channels, forked))
        else:
            rewriting.watch(bn, layer.weight, path)
            sites.append(Site(layer.name, "statistics alone", channels))
    rewriting.finish()
    return fx.GraphModule(teacher, graph, "FusedGraph"), tuple(sites)


class _Rewriting:
    """Changes a graph, call by call in their order, and gathers the readings for its output."""

    def __init__(self, graph: fx.Graph, backend: Backend) -> None:
        self._graph, self._form = graph, backend
        self._offsets = graph.find_nodes(op="placeholder", target="offsets")[0]
        self._readings: list[tuple[float, fx.Node, fx.Node, fx.Node]] = []

    def replace(self, match: Match, forked: bool, weight: float, path: str) -> None:
        bn, last = match.chain[0], match.chain[-1]
        x, users = bn.all_input_nodes[0], list(last.users)
        residual = next((node for node in match.add.all_input_nodes if node is not bn), None) if match.add else None
        with self._graph.inserting_before(bn):
            arguments = (x, *(self._graph.get_attr(f"{path}.{name}") for name in ("scale", "shift", "mean")))
            if match.pool:
                call = self._graph.call_function(stem_stats, (*arguments, self._offsets), {"backend": self._form})
            else:
                how: dict[str, Any] = {
                    "residual": residual,
                    "relu": match.relu,
                    "forked": forked,
                    "backend": self._form,
                }
                call = self._graph.call_function(bn_site, (*arguments, self._offsets), how)
            y = self._graph.call_function(operator.getitem, (call, 0))
            sums = self._graph.call_function(operator.getitem, (call, -1))
            self._read(x, weight, path, sums)
            last.replace_all_uses_with(y)
            if forked:
                users[1].replace_input_with(y, self._graph.call_function(operator.getitem, (call, 1)))
        for node in reversed(match.chain):
            self._graph.erase_node(node)

    def watch(self, bn: fx.Node, weight: float, path: str) -> None:
        """Leave the layer and take the sums of its input."""
        x = bn.all_input_nodes[0]
        with self._graph.inserting_before(bn):
            mean = self._graph.get_attr(f"{path}.mean")
            self._read(x, weight, path, self._graph.call_function(channel_sums, (x, mean, self._offsets)))

    def finish(self) -> None:
        output = self._graph.output_node()
        output.args = ((output.args[0], self._readings),)
        self._graph.lint()

    def _read(self, x: fx.Node, weight: float, path: str, sums: fx.Node) -> None:
        variance = self._graph.get_attr(f"{path}.variance")
        self._readings.append((weight, variance, sums, self._graph.call_function(pixels_of, (x,))))


def bn_site(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    offsets: Tensor,
    *,
    residual: Tensor | None,
    relu: bool,
    forked: bool,
    backend: Backend,
) -> tuple[Tensor, ...]:
    """`bn_stats` or `bn_stats_fork`, or where the residual is broadcast, the sum outside the operator."""
    run = bn_stats_fork if forked else bn_stats
    if residual is None or residual.shape == x.shape:
        return run(x, scale, shift, mean, offsets, residual, relu, backend=backend)
    y, sums = bn_stats(x, scale, shift, mean, offsets, backend=backend)
    y = y + residual
    y = F.relu(y) if relu else y
    return (y, y, sums) if forked else (y, sums)
