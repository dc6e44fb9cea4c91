"""A graph pass that replaces each BatchNorm call of a teacher by one operator that also returns statistics.

    BatchNorm (+ add) (+ ReLU)    -> bn_stats; bn_stats_fork where exactly two nodes read the output
    BatchNorm + ReLU + max pool   -> bn_relu_maxpool, for windows of 3x3, stride 2, padding 1
    a subclass of BatchNorm2d     -> kept; the sums of its input are computed beside it

The pass works on calls, not on modules: a ReLU or BatchNorm module may be called in several places. Where it does not
recognise what follows a BatchNorm, it replaces the BatchNorm alone.
"""

import operator
from collections import Counter
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, fx, nn

from delt_kernels.bn_relu_maxpool import bn_relu_maxpool
from delt_kernels.bn_stats import bn_stats, bn_stats_fork
from delt_kernels.dispatch import Backend
from delt_kernels.teacher.frozen import Layer
from delt_kernels.teacher.hooks import input_sums, pixels_of
from delt_kernels.teacher.patterns import GraphMatcher, Match
from delt_kernels.teacher.trace import PackedTeacher


class Site(NamedTuple):
    """One call of one BatchNorm layer; a layer that is called twice has two.

    Args:
        name: of the layer in the teacher, e.g. `layer1.0.bn2`.
        operators: what was fused into one operator, e.g. `bn + add + relu`.
        channels: of the layer.
        forked: the output has two consumers, whose gradients are added inside the backward kernel.
    """

    name: str
    operators: str
    channels: int
    forked: bool = False


def table(sites: tuple[Site, ...]) -> str:
    """One row per site in the order of their calls, then the number of each combination."""
    rows = [("layer", "as one operator", "channels", "forked")]
    rows += [(site.name, site.operators, str(site.channels), "yes" if site.forked else "") for site in sites]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    name, operators, channels, _ = widths
    lines = [f"{a:{name}}  {b:{operators}}  {c:>{channels}}  {d}".rstrip() for a, b, c, d in rows]
    counts = Counter(site.operators for site in sites)
    lines.append(f"{len(sites)} sites: " + ", ".join(f"{count} x {what}" for what, count in counts.most_common()))
    return "\n".join(lines)


def rewrite(
    teacher: PackedTeacher, graph: fx.Graph, layers: list[Layer], backend: Backend
) -> tuple[fx.GraphModule, tuple[Site, ...]]:
    """Rewrite the graph of a teacher (`trace.trace`).

    Returns:
        a module (images [N, 3, H, W], offsets int32 [G + 1]) -> (logits, `hooks.LayerStats` of each site), and the
        sites in the order of their calls.
    """
    matcher = GraphMatcher(teacher, graph)
    index = {f"teacher.{layer.name}": i for i, layer in enumerate(layers)}
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target in index]
    matches = [matcher.match(node) for node in calls]  # before the graph changes
    writer = _GraphWriter(graph, backend)
    sites = []
    for bn, match in zip(calls, matches, strict=True):
        i = index[bn.target]
        layer, vectors = layers[i], f"batch_norms.{i}"
        channels = layer.vectors.mean.numel()
        if type(teacher.get_submodule(bn.target)) is nn.BatchNorm2d:
            forked = matcher.forks(match)
            writer.replace(match, forked, layer.weight, vectors)
            sites.append(Site(layer.name, match.operators, channels, forked))
        else:
            writer.add_statistics(bn, layer.weight, vectors)
            sites.append(Site(layer.name, "statistics alone", channels))
    writer.finish()
    return fx.GraphModule(teacher, graph, "FusedGraph"), tuple(sites)


class _GraphWriter:
    """Changes a graph call by call, in their order, and adds the LayerStats to its output.

    `vectors` is the path of a layer's FrozenBatchNorm in the graph's module.
    """

    def __init__(self, graph: fx.Graph, backend: Backend) -> None:
        self._graph, self._backend = graph, backend
        self._offsets = graph.find_nodes(op="placeholder", target="offsets")[0]
        self._bn_stats: list[tuple[float, fx.Node, fx.Node, fx.Node]] = []

    def replace(self, match: Match, forked: bool, weight: float, vectors: str) -> None:
        """Put one operator in the place of the matched nodes."""
        bn, last = match.chain[0], match.chain[-1]
        x, users = bn.all_input_nodes[0], list(last.users)
        residual = next((node for node in match.add.all_input_nodes if node is not bn), None) if match.add else None
        with self._graph.inserting_before(bn):
            frozen = (self._graph.get_attr(f"{vectors}.{name}") for name in ("scale", "shift", "mean"))
            arguments = (x, *frozen, self._offsets)
            if match.pool:
                call = self._graph.call_function(bn_relu_maxpool, arguments, {"backend": self._backend})
            else:
                options: dict[str, Any] = {
                    "residual": residual,
                    "relu": match.relu,
                    "forked": forked,
                    "backend": self._backend,
                }
                call = self._graph.call_function(bn_site, arguments, options)
            y = self._graph.call_function(operator.getitem, (call, 0))
            self._record(x, weight, vectors, self._graph.call_function(operator.getitem, (call, -1)))
            last.replace_all_uses_with(y)
            if forked:
                users[1].replace_input_with(y, self._graph.call_function(operator.getitem, (call, 1)))
        for node in reversed(match.chain):
            self._graph.erase_node(node)

    def add_statistics(self, bn: fx.Node, weight: float, vectors: str) -> None:
        """Keep the layer, and compute the sums of its input."""
        x = bn.all_input_nodes[0]
        with self._graph.inserting_before(bn):
            mean = self._graph.get_attr(f"{vectors}.mean")
            self._record(x, weight, vectors, self._graph.call_function(input_sums, (x, mean, self._offsets)))

    def finish(self) -> None:
        output = self._graph.output_node()
        output.args = ((output.args[0], self._bn_stats),)
        self._graph.lint()

    def _record(self, x: fx.Node, weight: float, vectors: str, sums: fx.Node) -> None:
        variance = self._graph.get_attr(f"{vectors}.variance")
        self._bn_stats.append((weight, variance, sums, self._graph.call_function(pixels_of, (x,))))


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
    """`bn_stats` or `bn_stats_fork`. A residual that must be broadcast is added outside the operator."""
    run = bn_stats_fork if forked else bn_stats
    if residual is None or residual.shape == x.shape:
        return run(x, scale, shift, mean, offsets, residual, relu, backend=backend)
    y, sums = bn_stats(x, scale, shift, mean, offsets, backend=backend)
    y = y + residual
    y = F.relu(y) if relu else y
    return (y, y, sums) if forked else (y, sums)
