"""torch.compile for trainings: when it is worth its time, and a fallback to the uncompiled function."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils.flop_counter import FlopCounterMode

P = ParamSpec("P")
R = TypeVar("R")

COMPILE_SECONDS_PER_LAYER = 5.0  # for each BatchNorm layer, with what surrounds it; measured on two CPU cores
WORTHWHILE = 4.0  # compile if the work takes at least this many times the compilation
GPU_FLOPS = 1e14  # per second of uncompiled training in bfloat16; assumed: a tenth of an H100's peak


@dataclass(frozen=True)
class CompileEstimate:
    """Estimated seconds of work without compilation, and of compilation."""

    work_seconds: float
    compile_seconds: float

    @property
    def worthwhile(self) -> bool:
        return self.work_seconds >= WORTHWHILE * self.compile_seconds

    def __str__(self) -> str:
        return (
            f"{self.work_seconds:.0f} s of work uncompiled, {self.compile_seconds:.0f} s to compile (estimated);"
            f" worthwhile from {WORTHWHILE:.0f} times on"
        )


def forward_flops(network: nn.Module, size: int, device: torch.device) -> int:
    """Of one image with height and width `size`."""
    training = network.training
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size, device=device))
    network.train(training)
    flops: int = counter.get_total_flops()
    return flops


def batch_norm_layers(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def resolve_compile(
    option: bool | Literal["auto"],
    trained: nn.Module,
    frozen: Sequence[nn.Module],
    image_passes: int,
    size: int,
    device: torch.device,
    say: Callable[[str], None],
) -> bool:
    """Whether to compile a training; `auto` is a pure function of the work and the kind of device.

    On a CPU `auto` never compiles: a step of ConvNet-3 takes as long compiled as not (docs/engine.md).

    Args:
        trained: the network that is trained.
        frozen: networks whose forward pass is part of a step.
        image_passes: images of the training, each as often as it is trained on.
        size: height and width of an image, pixels.
        say: writes a line of the log, with the estimate that `auto` follows.
    """
    if option != "auto":
        return option
    if device.type == "cpu":
        return False
    # The backward pass computes the gradients of both images and weights, so it costs twice the forward pass.
    flops = 3 * forward_flops(trained, size, device) + sum(forward_flops(network, size, device) for network in frozen)
    layers = sum(batch_norm_layers(network) for network in (trained, *frozen))
    estimate = CompileEstimate(image_passes * flops / GPU_FLOPS, layers * COMPILE_SECONDS_PER_LAYER)
    say(f"{'compiled' if estimate.worthwhile else 'not compiled'}; {estimate}")
    return estimate.worthwhile


def compile_network(network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network's forward function, compiled at its first call, in as many graphs as its code needs."""
    torch._inductor.config.fallback_random = True  # dropout draws the same numbers as without compilation
    return with_fallback(network, torch.compile(network))


def with_fallback(
    function: Callable[P, R], compiled: Callable[P, R], refuse: Callable[[str], Exception] | None = None
) -> Callable[P, R]:
    """The compiled function. If compilation fails, a warning names the reason, and `function` runs from then on.

    Args:
        refuse: makes an error of the reason, which is raised instead.
    """
    failed = False

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal failed
        if failed:
            return function(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as error:
            if refuse:
                raise refuse(_reason(error)) from error
            failed = True
            warnings.warn(
                f"torch.compile failed, and the network runs uncompiled: {_reason(error)}", RuntimeWarning, stacklevel=2
            )
        return function(*args, **kwargs)

    return call


def _reason(error: Exception) -> str:
    """The first paragraph of the message: what broke the graph, and why."""
    paragraph = str(error).strip().split("\n\n")[0]
    return "; ".join(line.strip() for line in paragraph.splitlines())
