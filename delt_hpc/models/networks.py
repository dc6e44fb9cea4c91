"""Networks by name, in plain PyTorch: `delt-hpc export` ships this file as `model.py`.

ConvNet-D is the small network of the data set distillation literature (Gidaris & Komodakis 2018; Zhao et al. 2021).
"""

from importlib import import_module

import torchvision
from torch import Tensor, nn

WIDTH = 128
SMALL_STEM = "-small-stem"
# Networks whose constructor takes options for an auxiliary classifier, which is left out.
AUXILIARY = ("googlenet", "inception_v3")


class ConvNet(nn.Module):
    """D blocks of 3x3 convolution (128 channels), BatchNorm, ReLU, 2x2 average pooling; one linear layer.

    Input [B, 3, S, S] with S >= 2**D; output [B, classes].
    """

    def __init__(self, depth: int, classes: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for _ in range(depth):
            layers += [
                nn.Conv2d(channels, WIDTH, 3, padding=1),
                nn.BatchNorm2d(WIDTH),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
            channels, size = WIDTH, size // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(WIDTH * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def build(name: str, classes: int, size: int) -> nn.Module:
    """A randomly initialised network (torch's global generator): [B, 3, size, size] -> [B, classes].

    Args:
        name: convnet3 to convnet6; a classifier of torchvision, also with `-small-stem`; timm/NAME; or
            package.module:function, which is called with num_classes.
    """
    network: nn.Module
    if name.startswith("convnet") and name[7:].isdigit():
        return ConvNet(int(name[7:]), classes, size)
    if ":" in name:
        module, _, function = name.partition(":")
        network = getattr(import_module(module), function)(num_classes=classes)
        return network
    if name.startswith("timm/"):
        network = import_module("timm").create_model(name.removeprefix("timm/"), pretrained=False, num_classes=classes)
        return network
    plain = name.removeprefix("torchvision/").removesuffix(SMALL_STEM)
    options = {"aux_logits": False, "init_weights": True} if plain in AUXILIARY else {}
    network = torchvision.models.get_model(plain, weights=None, num_classes=classes, **options)
    if name.endswith(SMALL_STEM):
        _shrink_stem(network)
    return network


def _shrink_stem(network: nn.Module) -> None:
    """The usual variant for 32 and 64 pixels: the first convolution is 3x3 with stride 1, without max pooling."""
    if isinstance(network, torchvision.models.MobileNetV2):
        network.features[0][0].stride = (1, 1)
        return
    conv: nn.Conv2d = network.conv1  # type: ignore[assignment]
    network.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
