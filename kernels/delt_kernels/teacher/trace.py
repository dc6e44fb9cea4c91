"""The graph of a teacher in evaluation mode, with every call of a BatchNorm layer as one node."""

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from delt_kernels.teacher.frozen import Layer

# Modules that hand on their input in evaluation mode; by name, for neither torchvision nor timm is needed here.
PASSING = {
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.dropout.Dropout2d",
    "torchvision.ops.stochastic_depth.StochasticDepth",
    "timm.layers.drop.DropPath",
}
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class PackedTeacher(nn.Module):
    """The teacher as its graph has it: images and offsets come in, and the layers' numbers stand beside it."""

    def __init__(self, teacher: nn.Module, layers: list[Layer]) -> None:
        super().__init__()
        self.teacher = teacher
        self.numbers = nn.ModuleList(layer.numbers for layer in layers)
        self.eval()

    def forward(self, images: Tensor, offsets: Tensor) -> Any:
        """The teacher's further arguments keep their defaults; `offsets` is there for the operators to come."""
        return self.teacher(images)


def trace(teacher: PackedTeacher) -> fx.Graph:
    """The graph; its errors are the teacher's or torch.fx's own, where a decision hangs on numbers or shapes."""
    return _Tracer().trace(teacher)


class _Proxy(fx.Proxy):
    """Knows `x += y`, which torch.fx takes for `x = x + y`: another name of x would keep the old value."""


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
        if f"{type(m).__module__}.{type(m).__qualname__}" in PASSING and args:
            return args[0]
        return super().call_module(m, forward, args, kwargs)
