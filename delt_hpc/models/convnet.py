"""ConvNet-D, the small network of the data set distillation literature (Gidaris & Komodakis 2018; Zhao et al. 2021)."""

from torch import Tensor, nn

WIDTH = 128


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
