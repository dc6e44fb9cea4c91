# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803 (sizes and constants of a kernel are written in capitals)
"""Adam (Kingma & Ba 2015) on rows of a table of images, in place, and clamping to a box.

    first  = b1 first + (1 - b1) g,    second = b2 second + (1 - b2) g^2
    x      = clamp(x - a first / (sqrt(second) r + epsilon), low, high),    a = lr / (1 - b1^t),  r = 1 / sqrt(1 - b2^t)

Each row has its own pair (a, r), made by the host in float64: rows may be at different steps t. The other rows stay as
they are. One pass: four numbers read and three written a pixel.

Shapes: images, first, second [R, C, H, W], all float32 or all float64; gradient [N, C, H, W]. The kernel works on
contiguous tables; tables are updated in place and cannot be copied first, so other strides use the torch backend.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.dispatch import Backend, runs_kernels, uses_triton
from delt_kernels.layout import device_of

BLOCK, WARPS = 1024, 4  # elements of a program: two 16-byte reads a thread of each tensor


@triton.jit
def _step(
    images_ptr: tl.tensor,  # [R, C, H, W]
    first_ptr: tl.tensor,  # [R, C, H, W]
    second_ptr: tl.tensor,  # [R, C, H, W]
    gradient_ptr: tl.tensor,  # [N, C, H, W]
    rows_ptr: tl.tensor,  # [N]
    steps_ptr: tl.tensor,  # [N, 2]
    low_ptr: tl.tensor,  # [C]
    high_ptr: tl.tensor,  # [C]
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    ELEMENTS: tl.constexpr,  # C * H * W
    PIXELS: tl.constexpr,  # H * W
    BLOCK: tl.constexpr,
) -> None:
    """program_id: block of elements of an image."""
    blocks: tl.constexpr = tl.cdiv(ELEMENTS, BLOCK)
    n = tl.program_id(0) // blocks
    element = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = element < ELEMENTS
    step, correction = tl.load(steps_ptr + 2 * n).to(tl.float32), tl.load(steps_ptr + 2 * n + 1).to(tl.float32)
    low = tl.load(low_ptr + element // PIXELS, mask=mask, other=0)
    high = tl.load(high_ptr + element // PIXELS, mask=mask, other=0)
    place = tl.load(rows_ptr + n).to(tl.int64) * ELEMENTS + element
    g = tl.load(gradient_ptr + n.to(tl.int64) * ELEMENTS + element, mask=mask, other=0).to(tl.float32)
    first = tl.load(first_ptr + place, mask=mask, other=0)
    second = tl.load(second_ptr + place, mask=mask, other=0)
    image = tl.load(images_ptr + place, mask=mask, other=0)
    first = first + (1 - BETA1) * (g - first)
    second = BETA2 * second + (1 - BETA2) * g * g
    image = image - tl.div_rn(step * first, tl.sqrt_rn(second) * correction + EPSILON)
    # A gradient that is not a number shall show.
    image = tl.maximum(image, low, propagate_nan=tl.PropagateNan.ALL)
    image = tl.minimum(image, high, propagate_nan=tl.PropagateNan.ALL)
    tl.store(first_ptr + place, first, mask=mask)
    tl.store(second_ptr + place, second, mask=mask)
    tl.store(images_ptr + place, image, mask=mask)


def adam_torch_(
    images: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    rows: Tensor,
    steps: Tensor,
    low: Tensor,
    high: Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """`adam_` on copies of the rows, written back."""
    rows = rows.long()
    g, (step, correction) = gradient.to(images.dtype), steps.to(images.dtype).view(-1, 2, 1, 1, 1).unbind(1)
    ours = first.index_select(0, rows).lerp_(g, 1 - beta1)
    squares = second.index_select(0, rows).mul_(beta2).addcmul_(g, g, value=1 - beta2)
    first.index_copy_(0, rows, ours)
    second.index_copy_(0, rows, squares)
    direction = ours.div_(squares.sqrt_().mul_(correction).add_(epsilon))
    moved = images.index_select(0, rows).addcmul_(direction, step, value=-1)
    images.index_copy_(0, rows, moved.clamp_(low.view(-1, 1, 1), high.view(-1, 1, 1)))


@torch.library.custom_op("delt::adam_", mutates_args=("images", "first", "second"))
def _adam(
    images: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    rows: Tensor,
    steps: Tensor,
    low: Tensor,
    high: Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    tables = images, first, second
    if not (runs_kernels(images) and all(table.is_contiguous() for table in tables)):
        adam_torch_(*tables, gradient, rows, steps, low, high, beta1, beta2, epsilon)
        return
    n, c, h, w = gradient.shape
    given = (tensor.contiguous() for tensor in (gradient, rows, steps, low, high))
    with device_of(images):
        _step[(n * triton.cdiv(c * h * w, BLOCK),)](
            *tables,
            *given,
            BETA1=beta1,
            BETA2=beta2,
            EPSILON=epsilon,
            ELEMENTS=c * h * w,
            PIXELS=h * w,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


@_adam.register_fake
def _(*_: object) -> None:
    """Nothing is returned."""


@torch.no_grad()
def adam_(
    images: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    rows: Tensor,
    steps: Tensor,
    low: Tensor,
    high: Tensor,
    betas: Sequence[float],
    epsilon: float,
    *,
    backend: Backend = "auto",
) -> None:
    """One step on the rows `rows` of images and moments, in place; then the images' clamping.

    Args:
        images, first, second: float32 or float64 [R, C, H, W], one type; the moments begin as zeros.
        gradient: float [N, C, H, W]; gradient n is that of images[rows[n]].
        rows: int32 or int64 [N], distinct; not checked: the values stay on the device.
        steps: float [N, 2]: lr / (1 - b1^t) and 1 / sqrt(1 - b2^t) at the row's step t = 1, 2, ...
        low, high: [C], the images' type.
        betas: b1, b2.

    Raises:
        TypeError: a type is not as above.
        ValueError: a shape is not as above.
    """
    beta1, beta2 = betas
    _check(images, first, second, gradient, rows, steps, low, high)
    compute = _adam if uses_triton(backend, images) else adam_torch_
    compute(images, first, second, gradient, rows, steps, low, high, beta1, beta2, epsilon)


def _check(
    images: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    rows: Tensor,
    steps: Tensor,
    low: Tensor,
    high: Tensor,
) -> None:
    if images.dim() != 4 or rows.dim() != 1:
        raise ValueError(f"images {tuple(images.shape)}, rows {tuple(rows.shape)}; expected [R, C, H, W] and [N]")
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images are {images.dtype}; expected float32 or float64")
    n, (_, *image) = rows.shape[0], images.shape
    for name, given, shape in (
        ("first", first, images.shape),
        ("second", second, images.shape),
        ("low", low, image[:1]),
        ("high", high, image[:1]),
        ("gradient", gradient, (n, *image)),
        ("steps", steps, (n, 2)),
    ):
        if given.shape != torch.Size(shape):
            raise ValueError(f"{name} has the shape {tuple(given.shape)}; expected {tuple(shape)}")
        if given.dtype != images.dtype and name not in ("gradient", "steps"):
            raise TypeError(f"{name} is {given.dtype}; expected {images.dtype} as the images")
