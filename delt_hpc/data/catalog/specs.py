"""How the images of each data set become network input: one spec a data set, used by every stage."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from delt_hpc.config.schema import Data
from delt_hpc.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class DatasetSpec:
    """How images become network input.

    An image is converted to RGB, its shorter side is resized to `resize` pixels (bilinear, antialias), its centre is
    cropped to `size` x `size`, and its channels are normalised by `mean` and `std` (of values in 0..1).
    """

    name: str
    classes: int
    size: int
    resize: int
    mean: Colour
    std: Colour
    mirror: bool  # a mirrored image keeps its class
    teacher: str  # network of the recipe

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "DatasetSpec":
        return DatasetSpec(**content | {"mean": tuple(content["mean"]), "std": tuple(content["std"])})


def margin(size: int) -> int:
    """The published shorter side before the centre crop, e.g. 224 -> 256; at least the size itself."""
    return max(size, size // 7 * 8)


def _imagenet_like(name: str, classes: int) -> DatasetSpec:
    return DatasetSpec(name, classes, 224, margin(224), IMAGENET_MEAN, IMAGENET_STD, True, "resnet18")


# The 8 x 8 digits are enlarged to 16 and the 28 x 28 Fashion-MNIST to 32 pixels, so that networks can halve them three
# or four times. Tiny-ImageNet is used at its own size: the published resize to 72 would enlarge and then crop every
# image (`--set data.resize=72`).
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


def root_of(data: Data) -> Path:
    """The folder of the data set."""
    return data.root or Path("data") / data.name


def image_size(data: Data) -> int:
    """Height and width of network input: the configured one, or the registered data set's.

    Raises:
        UserError: there is neither.
    """
    if data.size:
        return data.size
    if data.name not in SPECS:
        raise UserError(
            f"`{data.name}` is not a registered data set, so its image size must be given",
            where="data.size",
            expected=f"pixels, e.g. 224; or data.name one of {', '.join(SPECS)}",
        )
    return SPECS[data.name].size


def resolve(data: Data, found_classes: int, measured: tuple[Colour, Colour] | None) -> DatasetSpec:
    """The spec of the configured data set: the registered spec, overridden by the configured values.

    Args:
        data: the configuration's section.
        found_classes: number of class folders found.
        measured: mean and standard deviation, if the configuration asks to measure them.

    Raises:
        UserError: a value is missing, or the number of classes differs from the expected one.
    """
    base, size = SPECS.get(data.name), image_size(data)
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
    for key, configured, registered in (
        ("mean", data.mean, base.mean if base else None),
        ("std", data.std, base.std if base else None),
    ):
        if isinstance(configured, list):
            chosen.append((configured[0], configured[1], configured[2]))
        elif registered:
            chosen.append(registered)
        else:
            raise UserError(
                f"`{data.name}` is not a registered data set, so its colours must be given or measured",
                where=f"data.{key}",
                expected="three numbers in 0..1, or `measure` for data.mean and data.std",
            )
    return chosen[0], chosen[1]
