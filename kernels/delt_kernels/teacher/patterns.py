"""Finds the nodes around a BatchNorm call in a teacher's graph that can be fused with it."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from delt_kernels.teacher.trace import IN_PLACE

ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
RELUS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}
POOLS = {F.max_pool2d, torch.max_pool2d}
FUSED_POOL = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False, "return_indices": False}


class Match(NamedTuple):
    """A BatchNorm call and the nodes after it that become one operator with it, in their order."""

    chain: tuple[fx.Node, ...]
    add: fx.Node | None = None
    relu: bool = False
    pool: bool = False

    @property
    def operators(self) -> str:
        return " + ".join(["bn"] + ["add"] * (self.add is not None) + ["relu"] * self.relu + ["max pool"] * self.pool)


class GraphMatcher:
    """Matches patterns in a traced graph; used before the graph is changed."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self._root = root
        self._modules = dict(root.named_modules())
        self._index = {node: i for i, node in enumerate(graph.nodes)}

    def match(self, bn: fx.Node) -> Match:
        """The longest chain that starts with a BatchNorm call, where each node is the only user of the one before."""
        match = Match((bn,))
        user = _only_user(bn)
        if user is not None and self._adds_earlier(user, bn):
            match = Match((bn, user), add=user)
            user = _only_user(user)
        if user is None or not self._is_relu(user):
            return match
        match = match._replace(chain=(*match.chain, user), relu=True)
        user = _only_user(user)
        if user is not None and match.add is None and self._is_fused_pool(user):
            match = match._replace(chain=(*match.chain, user), pool=True)
        return match

    def forks(self, match: Match) -> bool:
        """Whether exactly two nodes read the output and neither writes to it: then `bn_stats_fork` saves a pass."""
        last = match.chain[-1]
        return len(last.users) == 2 and not match.pool and not any(self.writes(user, last) for user in last.users)

    def writes(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether `user` may modify the tensor of `node` in place; true if in doubt."""
        if not user.args or user.args[0] is not node:
            return "out" in user.kwargs
        if user.op == "call_module":
            return bool(getattr(self._modules[str(user.target)], "inplace", False))
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        flagged = bool(user.kwargs.get("inplace")) or any(argument is True for argument in user.args)
        return flagged or "out" in user.kwargs or user.target in IN_PLACE or name.endswith("_")

    def _adds_earlier(self, node: fx.Node, bn: fx.Node) -> bool:
        """Whether `node` adds to the output of `bn` a tensor that has its final value before `bn` runs."""
        if node.op not in ("call_function", "call_method") or node.target not in ADDS or node.kwargs:
            return False
        others = [argument for argument in node.args if argument is not bn]
        if len(node.args) != 2 or len(others) != 1 or not isinstance(others[0], fx.Node):
            return False
        other = others[0]
        readers = [user for user in other.users if user is not node]
        if self._index[other] > self._index[bn] or any(self.writes(user, other) for user in readers):
            return False
        # `other += bn` equals a sum if `other` is a module's output that nothing else reads.
        return not self.writes(node, other) or (not readers and other.op == "call_module")

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self._modules[str(node.target)]) is nn.ReLU
        return node.op in ("call_function", "call_method") and node.target in RELUS

    def _is_fused_pool(self, node: fx.Node) -> bool:
        options: dict[str, Any] = {}
        if node.op == "call_module":
            pool = self._modules[str(node.target)]
            options = vars(pool) if type(pool) is nn.MaxPool2d else {}
        elif node.op == "call_function" and node.target in POOLS:
            normalised = node.normalized_arguments(self._root, normalize_to_only_use_kwargs=True)
            options = {"return_indices": False, **(normalised.kwargs if normalised else {})}
        return all(name in options and _pair(options[name]) == _pair(value) for name, value in FUSED_POOL.items())


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _pair(value: Any) -> tuple[Any, ...]:
    """An option of pooling for both dimensions; it may be given as one number."""
    return tuple(value) if isinstance(value, Sequence) else (value, value)
