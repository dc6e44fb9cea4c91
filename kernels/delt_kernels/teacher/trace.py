"""Traces a teacher in evaluation mode to a graph in which each call of a BatchNorm layer is one node."""

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from delt_kernels.teacher.frozen import Layer

# Modules that return their input in evaluation mode; by name, so that neither torchvision nor timm is imported.
IDENTITIES = {
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.dropout.Dropout2d",
    "torchvision.ops.stochastic_depth.StochasticDepth",
    "timm.layers.drop.DropPath",
}
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class PackedTeacher(nn.Module):
    """The module that is traced: the teacher with a second input, `offsets`, and its BatchNorm layers' vectors."""

    def __init__(self, teacher: nn.Module, layers: list[Layer]) -> None:
        super().__init__()
        self.teacher = teacher
        self.batch_norms = nn.ModuleList(layer.vectors for layer in layers)
        self.eval()

    def forward(self, images: Tensor, offsets: Tensor) -> Any:
        """`offsets` is not used yet: `rewrite` passes it to the operators."""
        return self.teacher(images)


def trace(teacher: PackedTeacher) -> fx.Graph:
    """The graph. Fails with errors of torch.fx or of the teacher if its control flow depends on values or shapes."""
    return _Tracer().trace(teacher)


class _Proxy(fx.Proxy):
    """Traces `x += y` as it is. torch.fx makes `x = x + y` of it, after which an alias of x has the old value."""


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in IN_PLACE:
    setattr(_Proxy, f"__{_function.__name__}__", _in_place(_function))


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if f"{type(m).__module__}.{type(m).__qualname__}" in IDENTITIES and args:
            return args[0]
        return super().call_module(m, forward, args, kwargs)
