"""What each data set looks like to a network: one spec each, used by every stage."""

from dataclasses import asdict, dataclass
from typing import Any

from delt_hpc.config.schema import Data
from delt_hpc.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class DatasetSpec:
    """How images become network input.

    An image is turned to RGB, its shorter side resized to `resize` (bilinear, antialias), its centre cut out at
    `size` x `size`, its channels normalised by `mean` and `std` (of values in 0..1).
    """

    name: str
    classes: int
    size: int
    resize: int
    mean: Colour
    std: Colour
    mirror: bool  # a mirrored image keeps its class
    teacher: str  # the usual network

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "DatasetSpec":
        return DatasetSpec(**content | {"mean": tuple(content["mean"]), "std": tuple(content["std"])})


def margin(size: int) -> int:
    """The published shorter side before the centre crop, 224 -> 256; never below the size itself."""
    return max(size, size // 7 * 8)


def _imagenet_like(name: str, classes: int) -> DatasetSpec:
    return DatasetSpec(name, classes, 224, margin(224), IMAGENET_MEAN, IMAGENET_STD, True, "resnet18")


# The 8 x 8 digits are shown at 16 and the 28 x 28 Fashion-MNIST at 32 pixels, so that three or four halvings are left.
# Tiny-ImageNet's natural size is its input size: the published margin (72) would enlarge and then cut every image, and
# is `--set data.resize=72`.
SPECS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec("digits", 10, 16, 16, (0.305, 0.305, 0.305), (0.319, 0.319, 0.319), False, "convnet3"),
        DatasetSpec("fashion-mnist", 10, 32, 32, (0.286, 0.286, 0.286), (0.339, 0.339, 0.339), True, "convnet3"),
        DatasetSpec(
            "cifar10", 10, 32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), True, "resnet18-small-stem"
        ),
        DatasetSpec(
            "cifar100", 100, 32, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), True, "resnet18-small-stem"
        ),
        DatasetSpec(
            "tiny-imagenet",
            200,
            64,
            64,
            (0.4802, 0.4481, 0.3975),
            (0.2770, 0.2691, 0.2821),
            True,
            "resnet18-small-stem",
        ),
        _imagenet_like("imagenette", 10),
        _imagenet_like("imagewoof", 10),
        _imagenet_like("imagenet-100", 100),
        _imagenet_like("imagenet-1k", 1000),
    )
}


def resolve(data: Data, found_classes: int, measured: tuple[Colour, Colour] | None) -> DatasetSpec:
    """The spec of the configured data set: the registered one, each given value over it.

    Args:
        data: the configuration's section.
        found_classes: class folders that were found.
        measured: mean and standard deviation, where the configuration asks to measure them.

    Raises:
        UserError: a value is missing, or the class count is another.
    """
    base = SPECS.get(data.name)
    size = data.size or (base.size if base else None)
    if size is None:
        raise UserError(
            f"`{data.name}` is no registered data set, so its image size must be given",
            where="data.size",
            expected=f"pixels, e.g. 224; or data.name one of {', '.join(SPECS)}",
        )
    resize = data.resize or (base.resize if base and data.size in (None, base.size) else margin(size))
    if resize < size:
        raise UserError(f"{resize} is below the image size {size}", where="data.resize")
    mean, std = _colours(data, base, measured)
    expected = data.num_classes or (len(data.classes) if data.classes else base.classes if base else found_classes)
    if found_classes != expected:
        raise UserError(
            f"{found_classes} classes found, {expected} expected",
            where="data.num_classes",
            remedy="check data.root and data.train, choose folders with data.classes, or set data.num_classes",
        )
    mirror = data.mirror if data.mirror is not None else (base.mirror if base else True)
    return DatasetSpec(data.name, found_classes, size, resize, mean, std, mirror, base.teacher if base else "resnet18")


def _colours(data: Data, base: DatasetSpec | None, measured: tuple[Colour, Colour] | None) -> tuple[Colour, Colour]:
    if measured:
        return measured
    chosen: list[Colour] = []
    for key, given, usual in (
        ("mean", data.mean, base.mean if base else None),
        ("std", data.std, base.std if base else None),
    ):
        if isinstance(given, list):
            chosen.append((given[0], given[1], given[2]))
        elif usual:
            chosen.append(usual)
        else:
            raise UserError(
                f"`{data.name}` is no registered data set, so its colours must be given or measured",
                where=f"data.{key}",
                expected="three numbers in 0..1, or `measure` for data.mean and data.std",
            )
    return chosen[0], chosen[1]
