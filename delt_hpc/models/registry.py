"""Networks by name: torchvision's classifiers, their small-stem variants, ConvNet-3..6."""

import difflib
from functools import cache

import torch
import torchvision
from torch import nn

from delt_hpc.errors import UserError
from delt_hpc.models.convnet import ConvNet

SMALL_STEM = "-small-stem"
_RESNETS = ("resnet", "resnext", "wide_resnet")
# Their second classifier would answer in training mode only.
AUXILIARY = ("googlenet", "inception_v3")


@cache
def names() -> tuple[str, ...]:
    """Every name that `build` takes."""
    plain = tuple(torchvision.models.list_models(module=torchvision.models))
    small = tuple(name + SMALL_STEM for name in plain if _has_small_stem(name))
    return (*(f"convnet{depth}" for depth in range(3, 7)), *plain, *small)


def build(name: str, classes: int, size: int) -> nn.Module:
    """A network with fresh weights from torch's generator: [B, 3, size, size] -> [B, classes].

    `-small-stem` is the usual form for 32 and 64 pixels: a first 3x3 convolution of stride 1 and no max pooling
    (MobileNetV2: stride 1).

    Raises:
        UserError: no such network, or images too small for it.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=3)
        raise UserError(
            f"`{name}` is no known network",
            expected=f"e.g. {', '.join(close or names()[:4])}; `delt-hpc models` lists all",
        )
    if name.startswith("convnet") and name[7:].isdigit():
        depth = int(name[7:])
        if size < 2**depth:
            raise UserError(
                f"`{name}` halves an image {depth} times, {size} pixels are too few", expected=f">= {2**depth}"
            )
        return ConvNet(depth, classes, size)
    plain = name.removesuffix(SMALL_STEM)
    options = {"aux_logits": False, "init_weights": True} if plain in AUXILIARY else {}
    network: nn.Module = torchvision.models.get_model(plain, weights=None, num_classes=classes, **options)
    if name.endswith(SMALL_STEM):
        _shrink_stem(network)
    return network


def check(name: str, classes: int, size: int, *, where: str, needs_batch_norm: bool = False) -> None:
    """Refuse a network that cannot do its part, without computing anything.

    Args:
        where: the configuration key, for the message.
        needs_batch_norm: it is a teacher, whose BatchNorm statistics recovery matches.
    """
    try:
        network = _without_weights(name, classes, size).eval()
    except UserError as error:
        raise UserError(error.what, where=where, expected=error.expected) from None
    if needs_batch_norm:
        require_batch_norm(network, name, where)
    try:
        with torch.no_grad():
            network(torch.empty(2, 3, size, size, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"`{name}` does not take images of {size} x {size}: {error}", where=where) from None


def require_batch_norm(network: nn.Module, name: str, where: str) -> None:
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    if not layers:
        raise UserError(
            f"`{name}` has no BatchNorm2d with running statistics, and recovery matches the images to just those",
            where=where,
            expected="a network with BatchNorm, e.g. resnet18, mobilenet_v2, convnet3",
        )


def _without_weights(name: str, classes: int, size: int) -> nn.Module:
    """The network as shapes alone."""
    if name.startswith("regnet"):  # computes its widths with tensors, which must hold numbers
        with torch.random.fork_rng(devices=[]):
            return build(name, classes, size).to("meta")
    with torch.device("meta"):
        return build(name, classes, size)


def _has_small_stem(name: str) -> bool:
    return name.startswith(_RESNETS) or name == "mobilenet_v2"


def _shrink_stem(network: nn.Module) -> None:
    if isinstance(network, torchvision.models.MobileNetV2):
        network.features[0][0].stride = (1, 1)
        return
    conv: nn.Conv2d = network.conv1  # type: ignore[assignment]
    network.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
