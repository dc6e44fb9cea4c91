"""RandAugment's operations in DALI, with PIL's arithmetic: pixels differ from PIL's by at most 1/255.

One exception: DALI's warps are always bilinear, even if the step asks for bicubic.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import nvidia.dali.math as dmath
from nvidia.dali import fn, types
from nvidia.dali.auto_aug.core import select

from delt_hpc.data.randaugment import FILL, LAYERS, SOLARIZE_ADD_BELOW, Step

Matrix = tuple[float, float, float, float, float, float]
Arguments = tuple[np.ndarray, ...]
Operation = Callable[[Any, Any, Any], Any]

_IDENTITY: Matrix = (1, 0, 0, 0, 1, 0)
_WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
# DALI rounds to the nearest integer, PIL rounds down; the small term absorbs float32 rounding errors below an integer.
_DOWN = 0.5 - 2.0**-10


def step_arguments(steps: Sequence[Step], size: int) -> Arguments:
    """`randaugment`'s arguments for an image of size x size pixels.

    For each layer: the number of the operation, int32 [LAYERS]; its argument, float32 [LAYERS]; and its matrix from
    output to input coordinates, float32 [LAYERS, 2, 3].
    """
    missing = LAYERS - len(steps)
    names = ["Warp" if step.name in _WARPS else step.name for step in steps] + ["Identity"] * missing
    return (
        np.asarray([_NAMES.index(name) for name in names], dtype=np.int32),
        np.asarray([step.argument for step in steps] + [0.0] * missing, dtype=np.float32),
        np.asarray([_matrix(step, size) for step in steps] + [_IDENTITY] * missing, dtype=np.float32).reshape(-1, 2, 3),
    )


def _matrix(step: Step, size: int) -> Matrix:
    match step.name:
        case "ShearX":
            return 1, step.argument, 0, 0, 1, 0
        case "ShearY":
            return 1, 0, 0, step.argument, 1, 0
        case "TranslateXRel":
            return 1, 0, step.argument * size, 0, 1, 0
        case "TranslateYRel":
            return 1, 0, 0, 0, 1, step.argument * size
        case "Rotate":
            angle = math.radians(step.argument)
            cos, sin, middle = math.cos(angle), math.sin(angle), size / 2
            return cos, -sin, middle * (1 - cos + sin), sin, cos, middle * (1 - cos - sin)
        case _:
            return _IDENTITY


def randaugment(image: Any, device: str, size: int, kinds: Any, values: Any, matrices: Any) -> Any:
    """Apply the steps of `step_arguments` to uint8 [size, size, 3]. Requires a pipeline with conditionals enabled."""
    operations = list(_operations(size, device).values())
    for layer in range(LAYERS):
        value = values[layer].gpu() if device == "gpu" else values[layer]
        image = select(operations, kinds[layer], image, value, matrices[layer])
    return image


def _operations(size: int, device: str) -> dict[str, Operation]:
    """Functions of an image, its argument and its matrix, by name."""
    ones = np.ones((size, size, 1), dtype=np.uint8)
    border = ones.copy()
    border[1:-1, 1:-1] = 0

    def constant(values: np.ndarray) -> Any:
        return types.Constant(values, device=device)

    def warp(image: Any, _: Any, matrix: Any) -> Any:
        # PIL does not blend with the fill colour at the border: a pixel's centre is inside the image or it is not.
        inside = fn.warp_affine(
            fn.reshape(constant(ones), layout="HWC"), matrix=matrix, interp_type=types.INTERP_NN, fill_value=0
        )
        moved = fn.warp_affine(image, matrix=matrix, interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
        return _to_uint8(moved * inside + (1 - inside) * float(FILL[0]))

    def autocontrast(image: Any, *_: Any) -> Any:
        low = fn.reductions.min(image, axes=(0, 1), keep_dims=True)
        spread = fn.reductions.max(image, axes=(0, 1), keep_dims=True) - low
        flat = spread == 0
        return _to_uint8((image - low * 1.0) * (255.0 / (spread + flat)) * (spread > 0) + image * flat)

    def equalize(image: Any, *_: Any) -> Any:
        # PIL counts the pixels below a value, OpenCV those up to it; inverting the image makes them equal. PIL divides
        # by an integer number of pixels, `step`.
        below = 255.0 - fn.equalize(_inverted(image))
        brightest = image == fn.reductions.max(image, axes=(0, 1), keep_dims=True)
        others = size * size - fn.reductions.sum(fn.cast(brightest, dtype=types.INT32), axes=(0, 1), keep_dims=True)
        step = others // 255
        scale = others / (255.0 * dmath.max(step, 1))
        return _to_uint8((below * scale + 0.5) * (step > 0) + image * (step == 0))

    def solarize(image: Any, threshold: Any, _: Any) -> Any:
        return image ^ (image >= threshold) * types.Constant(255, dtype=types.UINT8)

    def solarize_add(image: Any, add: Any, _: Any) -> Any:
        return image + (image < SOLARIZE_ADD_BELOW) * fn.cast(add, dtype=types.UINT8)

    def contrast(image: Any, factor: Any, _: Any) -> Any:
        mean = fn.reductions.mean(_gray(image), axes=(0, 1), keep_dims=True)
        return _blend(dmath.floor(mean + 0.5), image, factor)

    def sharpness(image: Any, factor: Any, _: Any) -> Any:
        kernel = np.ones((3, 3), dtype=np.float32)
        kernel[1, 1] = 5
        edge = constant(border)
        smooth = fn.filter(image, constant(kernel / 13))
        return _blend(smooth * (1 - edge) + image * edge, image, factor)

    return {
        "Identity": lambda image, *_: image,
        "Warp": warp,
        "AutoContrast": autocontrast,
        "Equalize": equalize,
        "Invert": lambda image, *_: _inverted(image),
        "Posterize": lambda image, bits, _: image & fn.cast(256.0 - dmath.pow(2.0, 8.0 - bits), dtype=types.UINT8),
        "Solarize": solarize,
        "SolarizeAdd": solarize_add,
        "Color": lambda image, factor, _: _blend(_gray(image), image, factor),
        "Contrast": contrast,
        "Brightness": lambda image, factor, _: _to_uint8(image * factor),
        "Sharpness": sharpness,
    }


_NAMES = tuple(_operations(1, "cpu"))


def _to_uint8(values: Any) -> Any:
    """Clamped to 0..255 and rounded down, as PIL does."""
    return fn.cast(values - _DOWN, dtype=types.UINT8)


def _inverted(image: Any) -> Any:
    return types.Constant(255, dtype=types.UINT8) - image


def _gray(image: Any) -> Any:
    """PIL's luminance, uint8 [S, S, 1]."""
    return fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)


def _blend(base: Any, image: Any, factor: Any) -> Any:
    """PIL's enhancement: factor 0 is the base, 1 the image, larger factors extrapolate."""
    return _to_uint8(image * factor + base * (1.0 - factor))
