"""RandAugment's operations in DALI, to the arithmetic of PIL's: the same steps give the same image within 1/255.

One thing differs: DALI warps bilinearly only, also where a step asks for bicubic.
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

_UNMOVED: Matrix = (1, 0, 0, 0, 1, 0)
_WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
# DALI rounds to the nearest integer and PIL down; what float32 loses must not make it the next lower one.
_DOWN = 0.5 - 2.0**-10


def step_arguments(steps: Sequence[Step], size: int) -> Arguments:
    """`randaugment`'s arguments for an image of size x size pixels.

    That is for each layer which operation, int32 [LAYERS]; its argument, float32 [LAYERS]; and its matrix from output
    to input coordinates, float32 [LAYERS, 2, 3].
    """
    missing = LAYERS - len(steps)
    names = ["Warp" if step.name in _WARPS else step.name for step in steps] + ["Identity"] * missing
    return (
        np.asarray([_NAMES.index(name) for name in names], dtype=np.int32),
        np.asarray([step.argument for step in steps] + [0.0] * missing, dtype=np.float32),
        np.asarray([_matrix(step, size) for step in steps] + [_UNMOVED] * missing, dtype=np.float32).reshape(-1, 2, 3),
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
            return _UNMOVED


def randaugment(image: Any, device: str, size: int, kinds: Any, values: Any, matrices: Any) -> Any:
    """The steps of `step_arguments` on images, uint8 [size, size, 3]. Only inside a pipeline with conditionals."""
    operations = list(_operations(size, device).values())
    for layer in range(LAYERS):
        value = values[layer].gpu() if device == "gpu" else values[layer]
        image = select(operations, kinds[layer], image, value, matrices[layer])
    return image


def _operations(size: int, device: str) -> dict[str, Operation]:
    """Functions of the image, its argument and its matrix."""
    everywhere = np.ones((size, size, 1), dtype=np.uint8)
    border = everywhere.copy()
    border[1:-1, 1:-1] = 0

    def constant(values: np.ndarray) -> Any:
        return types.Constant(values, device=device)

    def warp(image: Any, _: Any, matrix: Any) -> Any:
        # Towards the outside nothing is blended: a pixel's centre lies inside the image or it does not.
        known = fn.warp_affine(
            fn.reshape(constant(everywhere), layout="HWC"), matrix=matrix, interp_type=types.INTERP_NN, fill_value=0
        )
        moved = fn.warp_affine(image, matrix=matrix, interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
        return _whole(moved * known + (1 - known) * float(FILL[0]))

    def autocontrast(image: Any, *_: Any) -> Any:
        low = fn.reductions.min(image, axes=(0, 1), keep_dims=True)
        spread = fn.reductions.max(image, axes=(0, 1), keep_dims=True) - low
        flat = spread == 0
        return _whole((image - low * 1.0) * (255.0 / (spread + flat)) * (spread > 0) + image * flat)

    def equalize(image: Any, *_: Any) -> Any:
        # PIL counts the pixels below a value and OpenCV those up to it: the same on the inverted image. PIL divides by
        # a whole number of pixels, `step`.
        below = 255.0 - fn.equalize(_inverted(image))
        brightest = image == fn.reductions.max(image, axes=(0, 1), keep_dims=True)
        others = size * size - fn.reductions.sum(fn.cast(brightest, dtype=types.INT32), axes=(0, 1), keep_dims=True)
        step = others // 255
        scale = others / (255.0 * dmath.max(step, 1))
        return _whole((below * scale + 0.5) * (step > 0) + image * (step == 0))

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
        "Brightness": lambda image, factor, _: _whole(image * factor),
        "Sharpness": sharpness,
    }


_NAMES = tuple(_operations(1, "cpu"))


def _whole(values: Any) -> Any:
    """Cut off at 0 and 255, and rounded down as PIL does it."""
    return fn.cast(values - _DOWN, dtype=types.UINT8)


def _inverted(image: Any) -> Any:
    return types.Constant(255, dtype=types.UINT8) - image


def _gray(image: Any) -> Any:
    """PIL's luminance, uint8 [S, S, 1]."""
    return fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)


def _blend(base: Any, image: Any, factor: Any) -> Any:
    """PIL's enhancement: from the base (0) through the image (1) and beyond."""
    return _whole(image * factor + base * (1.0 - factor))
