# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803 (sizes and constants of a kernel are written in capitals)
"""Adam (Kingma and Ba 2015) on rows of a table of images, in place, followed by clamping to a box.

    exp_avg = b1 exp_avg + (1 - b1) g,    exp_avg_sq = b2 exp_avg_sq + (1 - b2) g^2
    x = clamp(x - a exp_avg / (sqrt(exp_avg_sq) r + epsilon), low, high)
    a = lr / (1 - b1^t),    r = 1 / sqrt(1 - b2^t)

Each row has its own pair (a, r), computed by the host in float64, so rows may be at different steps t. Other rows are
not changed. One pass reads four numbers per element and writes three.

Shapes: images, exp_avg, exp_avg_sq [R, C, H, W], all float32 or all float64; gradient [N, C, H, W]. The kernel needs
contiguous tables; since they are updated in place and cannot be copied first, other strides use the torch backend.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.dispatch import Backend, runs_kernels, uses_triton
from delt_kernels.layout import device_of

BLOCK, WARPS = 1024, 4  # elements of a program: each thread reads 2 x 16 bytes of each tensor


@triton.jit
def adam_step(
    images_ptr: tl.tensor,  # [R, C, H, W]
    exp_avg_ptr: tl.tensor,  # [R, C, H, W]
    exp_avg_sq_ptr: tl.tensor,  # [R, C, H, W]
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
    """program_id(0): a block of elements of one image."""
    blocks: tl.constexpr = tl.cdiv(ELEMENTS, BLOCK)
    n = tl.program_id(0) // blocks
    element = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = element < ELEMENTS
    step, correction = tl.load(steps_ptr + 2 * n).to(tl.float32), tl.load(steps_ptr + 2 * n + 1).to(tl.float32)
    low = tl.load(low_ptr + element // PIXELS, mask=mask, other=0)
    high = tl.load(high_ptr + element // PIXELS, mask=mask, other=0)
    offset = tl.load(rows_ptr + n).to(tl.int64) * ELEMENTS + element
    g = tl.load(gradient_ptr + n.to(tl.int64) * ELEMENTS + element, mask=mask, other=0).to(tl.float32)
    exp_avg = tl.load(exp_avg_ptr + offset, mask=mask, other=0)
    exp_avg_sq = tl.load(exp_avg_sq_ptr + offset, mask=mask, other=0)
    image = tl.load(images_ptr + offset, mask=mask, other=0)
    exp_avg = exp_avg + (1 - BETA1) * (g - exp_avg)
    exp_avg_sq = BETA2 * exp_avg_sq + (1 - BETA2) * g * g
    image = image - tl.div_rn(step * exp_avg, tl.sqrt_rn(exp_avg_sq) * correction + EPSILON)
    # A NaN in the gradient must not be hidden by the clamping.
    image = tl.maximum(image, low, propagate_nan=tl.PropagateNan.ALL)
    image = tl.minimum(image, high, propagate_nan=tl.PropagateNan.ALL)
    tl.store(exp_avg_ptr + offset, exp_avg, mask=mask)
    tl.store(exp_avg_sq_ptr + offset, exp_avg_sq, mask=mask)
    tl.store(images_ptr + offset, image, mask=mask)


def adam_torch_(
    images: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    rows: Tensor,
    steps: Tensor,
    low: Tensor,
    high: Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """The torch backend: on copies of the rows, which are written back."""
    rows = rows.long()
    g, (step, correction) = gradient.to(images.dtype), steps.to(images.dtype).view(-1, 2, 1, 1, 1).unbind(1)
    average = exp_avg.index_select(0, rows).lerp_(g, 1 - beta1)
    squares = exp_avg_sq.index_select(0, rows).mul_(beta2).addcmul_(g, g, value=1 - beta2)
    exp_avg.index_copy_(0, rows, average)
    exp_avg_sq.index_copy_(0, rows, squares)
    direction = average.div_(squares.sqrt_().mul_(correction).add_(epsilon))
    moved = images.index_select(0, rows).addcmul_(direction, step, value=-1)
    images.index_copy_(0, rows, moved.clamp_(low.view(-1, 1, 1), high.view(-1, 1, 1)))


@torch.library.custom_op("delt::adam_", mutates_args=("images", "exp_avg", "exp_avg_sq"))
def _adam(
    images: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    rows: Tensor,
    steps: Tensor,
    low: Tensor,
    high: Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    tables = images, exp_avg, exp_avg_sq
    if not (runs_kernels(images) and all(table.is_contiguous() for table in tables)):
        adam_torch_(*tables, gradient, rows, steps, low, high, beta1, beta2, epsilon)
        return
    n, c, h, w = gradient.shape
    others = (tensor.contiguous() for tensor in (gradient, rows, steps, low, high))
    with device_of(images):
        adam_step[(n * triton.cdiv(c * h * w, BLOCK),)](
            *tables,
            *others,
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
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
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
    """One step of Adam on the rows `rows` of images and moments, in place; then the images are clamped.

    Args:
        images, exp_avg, exp_avg_sq: float32 or float64 [R, C, H, W], one type; the moments start as zeros.
        gradient: float [N, C, H, W]; gradient[n] belongs to images[rows[n]].
        rows: int32 or int64 [N], distinct. The values stay on the device and are not checked.
        steps: float [N, 2]: lr / (1 - b1^t) and 1 / sqrt(1 - b2^t) at the row's step t = 1, 2, ...
        low, high: bounds of each channel [C], in the images' type.
        betas: b1, b2.

    Raises:
        TypeError: a type is not as above.
        ValueError: a shape is not as above.
    """
    beta1, beta2 = betas
    _check(images, exp_avg, exp_avg_sq, gradient, rows, steps, low, high)
    compute = _adam if uses_triton(backend, images) else adam_torch_
    compute(images, exp_avg, exp_avg_sq, gradient, rows, steps, low, high, beta1, beta2, epsilon)


def _check(
    images: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
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
        ("exp_avg", exp_avg, images.shape),
        ("exp_avg_sq", exp_avg_sq, images.shape),
        ("low", low, image[:1]),
        ("high", high, image[:1]),
        ("gradient", gradient, (n, *image)),
        ("steps", steps, (n, 2)),
    ):
        if given.shape != torch.Size(shape):
            raise ValueError(f"{name} has shape {tuple(given.shape)}; expected {tuple(shape)}")
        if given.dtype != images.dtype and name not in ("gradient", "steps"):
            raise TypeError(f"{name} is {given.dtype}; expected {images.dtype}, the images' type")
