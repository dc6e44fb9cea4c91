"""RandAugment of the published evaluation: `rand-m6-n2-mstd1.0` in timm's notation.

Source: Cubuk et al. 2020 (arXiv:1909.13719), with timm's operations, ranges and normally distributed magnitudes. Steps
are drawn separately from being applied, so that every loader applies the same steps to an image.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageOps
from PIL.Image import Resampling, Transform

LAYERS = 2
MAGNITUDE, DEVIATION, MAX_MAGNITUDE = 6.0, 1.0, 10.0
PROBABILITY = 0.5
FILL = (128, 128, 128)
SOLARIZE_ADD_BELOW = 128
MAX_TRANSLATION = 0.45  # as a fraction of the image's width or height


@dataclass(frozen=True)
class Step:
    """One operation with its random values.

    Attributes:
        name: which of OPERATIONS.
        argument: in the operation's own unit (degrees, bits, a factor, ...).
        resampling: used by the geometric operations only.
    """

    name: str
    argument: float
    resampling: Resampling


Apply = Callable[[Image.Image, Step], Image.Image]
Argument = Callable[[float], float]


@dataclass(frozen=True)
class Operation:
    """An operation on an image.

    Attributes:
        argument: the step's argument as a function of the level, magnitude / MAX_MAGNITUDE, in 0..1.
        signed: the argument is negated with probability 1/2.
    """

    apply: Apply
    argument: Argument
    signed: bool = False


def _affine(image: Image.Image, step: Step, matrix: tuple[float, ...]) -> Image.Image:
    """`matrix` maps output to input coordinates."""
    return image.transform(image.size, Transform.AFFINE, matrix, resample=step.resampling, fillcolor=FILL)


def _shear_x(image: Image.Image, step: Step) -> Image.Image:
    return _affine(image, step, (1, step.argument, 0, 0, 1, 0))


def _shear_y(image: Image.Image, step: Step) -> Image.Image:
    return _affine(image, step, (1, 0, 0, step.argument, 1, 0))


def _translate_x(image: Image.Image, step: Step) -> Image.Image:
    return _affine(image, step, (1, 0, step.argument * image.width, 0, 1, 0))


def _translate_y(image: Image.Image, step: Step) -> Image.Image:
    return _affine(image, step, (1, 0, 0, 0, 1, step.argument * image.height))


def _rotate(image: Image.Image, step: Step) -> Image.Image:
    return image.rotate(step.argument, resample=step.resampling, fillcolor=FILL)


def _posterize(image: Image.Image, step: Step) -> Image.Image:
    """Keeps the highest bits. Pillow's own function does not accept 0 bits, which give a black image."""
    mask = 256 - (256 >> int(step.argument))
    return image.point([i & mask for i in range(256)] * 3)


def _solarize_add(image: Image.Image, step: Step) -> Image.Image:
    table = [min(255, i + int(step.argument)) if i < SOLARIZE_ADD_BELOW else i for i in range(256)]
    return image.point(table * 3)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return Operation(lambda image, step: kind(image).enhance(step.argument), lambda level: level * 1.8 + 0.1)


def _without_argument(function: Callable[[Image.Image], Image.Image]) -> Operation:
    return Operation(lambda image, _: function(image), lambda _: 0.0)


# As in timm's policy without "inc", Posterize and Solarize become weaker with growing magnitude, and the enhancements
# are strongest at both ends.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": _without_argument(ImageOps.autocontrast),
    "Equalize": _without_argument(ImageOps.equalize),
    "Invert": _without_argument(ImageOps.invert),
    "Rotate": Operation(_rotate, lambda level: level * 30, signed=True),
    "Posterize": Operation(_posterize, lambda level: int(level * 4)),
    "Solarize": Operation(
        lambda image, step: ImageOps.solarize(image, int(step.argument)), lambda level: int(level * 256)
    ),
    "SolarizeAdd": Operation(_solarize_add, lambda level: int(level * 110)),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": Operation(_shear_x, lambda level: level * 0.3, signed=True),
    "ShearY": Operation(_shear_y, lambda level: level * 0.3, signed=True),
    "TranslateXRel": Operation(_translate_x, lambda level: level * MAX_TRANSLATION, signed=True),
    "TranslateYRel": Operation(_translate_y, lambda level: level * MAX_TRANSLATION, signed=True),
}
NAMES = tuple(OPERATIONS)


def normal(uniforms: Iterator[float]) -> float:
    """A standard normal number from two uniform ones (Box and Muller 1958)."""
    radius = math.sqrt(-2 * math.log(1 - next(uniforms)))
    return radius * math.cos(2 * math.pi * next(uniforms))


def draw_step(uniforms: Iterator[float]) -> Step | None:
    """The next step, or None if it is skipped. Always consumes six numbers of the stream."""
    name = NAMES[int(next(uniforms) * len(NAMES))]
    applied = next(uniforms) < PROBABILITY
    magnitude = min(max(MAGNITUDE + DEVIATION * normal(uniforms), 0.0), MAX_MAGNITUDE)
    negated = next(uniforms) < 0.5
    resampling = Resampling.BILINEAR if next(uniforms) < 0.5 else Resampling.BICUBIC
    operation = OPERATIONS[name]
    argument = operation.argument(magnitude / MAX_MAGNITUDE)
    return Step(name, -argument if operation.signed and negated else argument, resampling) if applied else None


class RandAugment:
    """The policy on PIL images."""

    def draw(self, uniforms: Iterator[float]) -> list[Step]:
        """The steps for one image, at most LAYERS; operations are drawn with replacement."""
        return [step for step in (draw_step(uniforms) for _ in range(LAYERS)) if step]

    def __call__(self, image: Image.Image, uniforms: Iterator[float]) -> Image.Image:
        """Augment an RGB image. `uniforms`, numbers in [0, 1), are the only source of randomness."""
        for step in self.draw(uniforms):
            image = OPERATIONS[step.name].apply(image, step)
        return image
