"""Networks by name: torchvision's classifiers, their variants for small images, ConvNet-3 to ConvNet-6, and others."""

import difflib
import re
from functools import cache

import torch
import torchvision
from torch import nn

from delt_hpc.config.network_name import TORCHVISION
from delt_hpc.errors import UserError, some
from delt_hpc.models import external, networks
from delt_hpc.models.networks import SMALL_STEM

_RESNETS = ("resnet", "resnext", "wide_resnet")


@cache
def names() -> tuple[str, ...]:
    """The names of this package's networks and torchvision's classifiers. `build` also accepts those of others."""
    plain = torchvision_names()
    small = tuple(name + SMALL_STEM for name in plain if _has_small_stem(name))
    return (*(f"convnet{depth}" for depth in range(3, 7)), *plain, *small)


@cache
def torchvision_names() -> tuple[str, ...]:
    """The names of torchvision's classifiers."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


@cache
def teacher_names() -> tuple[str, ...]:
    """Those of `names` with BatchNorm2d, which a teacher needs."""
    similar = {name: _similar(name) for name in names()}
    built = {name: has_batch_norm(_without_weights(name, classes=2, size=64)) for name in set(similar.values())}
    return tuple(name for name in names() if built[similar[name]])


def build(name: str, classes: int, size: int) -> nn.Module:
    """A randomly initialised network (torch's global generator): [B, 3, size, size] -> [B, classes].

    `-small-stem` is the usual variant for 32 and 64 pixels: the first convolution is 3x3 with stride 1, without max
    pooling (MobileNetV2: stride 1).

    Args:
        name: one of `names`, torchvision/NAME, timm/NAME, or package.module:function; the function is called with
            num_classes.

    Raises:
        UserError: there is no such network, it cannot be built, or images are too small for it.
    """
    if external.is_external(name):
        return external.build(name, classes)
    if name.startswith(TORCHVISION):
        given, name = name, name.removeprefix(TORCHVISION)
        if name not in torchvision_names():
            close = difflib.get_close_matches(name, torchvision_names(), n=3)
            example = some(close or ["resnet18"])
            raise UserError(f"`{given}` is not a classifier of torchvision", expected=f"e.g. {example}")
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=3)
        raise UserError(
            f"`{name}` is not a known network",
            expected=f"e.g. {', '.join(close or names()[:4])}; `delt-hpc models` lists all",
        )
    if name.startswith("convnet") and name[7:].isdigit():
        depth = int(name[7:])
        if size < 2**depth:
            raise UserError(
                f"`{name}` halves images {depth} times; {size} pixels are too few", expected=f">= {2**depth}"
            )
    return networks.build(name, classes, size)


def check(name: str, classes: int, size: int, *, where: str, needs_batch_norm: bool = False) -> None:
    """Check that a network suits the images, by shapes alone.

    Args:
        where: the configuration key, for the message.
        needs_batch_norm: whether it is the teacher; recovery matches its BatchNorm statistics.

    Raises:
        UserError: there is no such network, it does not accept the images, or it lacks BatchNorm.
    """
    try:
        network = _without_weights(name, classes, size).eval()
    except UserError as error:
        raise UserError(error.what, where=where, expected=error.expected, remedy=error.remedy) from None
    if needs_batch_norm:
        require_batch_norm(network, name, where)
    if external.is_external(name):
        external.check_output(network, name, classes, size, where)
        return
    try:
        with torch.no_grad():
            network(torch.empty(2, 3, size, size, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"`{name}` does not accept images of {size} x {size}: {error}", where=where) from None


def check_other_size(name: str, classes: int, size: int, other: int, *, where: str) -> None:
    """Check that a network for images of `size` pixels also accepts images of `other` pixels, by shapes alone.

    Raises:
        UserError: it does not, as networks without pooling over the whole image.
    """
    network = _without_weights(name, classes, size).eval()
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            network(torch.zeros(2, 3, other, other, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"`{name}` for images of {size} x {size} does not accept images of {other} x {other}: {error}",
            where=where,
            expected="sizes that the teacher accepts, or a teacher that pools over the whole image, e.g. a ResNet",
        ) from None


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the network has BatchNorm2d layers with running statistics."""
    return any(isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats for layer in network.modules())


def require_batch_norm(network: nn.Module, name: str, where: str) -> None:
    if not has_batch_norm(network):
        raise UserError(
            f"`{name}` has no BatchNorm2d with running statistics, which recovery needs",
            where=where,
            expected="a network with BatchNorm, e.g. resnet18, mobilenet_v2, convnet3",
        )


def _without_weights(name: str, classes: int, size: int) -> nn.Module:
    """The network on the meta device, where tensors have shapes but no values; one of others on the CPU."""
    if external.is_external(name):  # its code may need values
        with torch.random.fork_rng(devices=[]):
            return external.build(name, classes)
    # A RegNet's constructor computes widths with tensors, which need values.
    if name.removeprefix(TORCHVISION).startswith("regnet"):
        with torch.random.fork_rng(devices=[]):
            return build(name, classes, size).to("meta")
    with torch.device("meta"):
        return build(name, classes, size)


def _similar(name: str) -> str:
    """A network of the same layers that is quicker to build: RegNets cannot be built on the meta device."""
    return re.sub(r"^(regnet_[xy])_.*", r"\1_400mf", name.removesuffix(SMALL_STEM))


def _has_small_stem(name: str) -> bool:
    return name.startswith(_RESNETS) or name == "mobilenet_v2"
