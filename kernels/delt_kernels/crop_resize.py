"""Crop, bilinear resize, mirror and roll of packed images: one view for each segment, its parameters on the device.

Position o of an output axis shows u = (o - roll) mod S, mirrored S - 1 - u, of a crop of `length` pixels resized to S.
The centre of u lies at (u + 1/2) length / S - 1/2 of the crop, not below 0 (half-pixel centres, align_corners=False).
With the integer t = max((2u + 1) length - S, 0) it reads two pixels of the crop,

    near = floor(t / 2S) with weight 1 - share    and    far = min(near + 1, length - 1) with share = (t mod 2S) / 2S,

so the choice of pixels is exact in every type. A crop is not larger than the image, and an antialiased resize then has
the same two taps. The gradient is the transposed map as a gather: pixel i is read by the u whose centres lie within
(i - 1, i + 1), a run of at most ceil(2S / length). No atomics and a fixed order: bitwise repeatable.

Shapes: images [R, C, S, S] with any strides; the result [N, C, S, S] is channels_last, the gradient of the packed
images [N, C, S, S] is contiguous. Sums are float32, float64 for float64.
"""

from typing import Any

import torch
from torch import Tensor

from delt_kernels import crop_resize_kernels as kernels
from delt_kernels.dispatch import Backend, runs_kernels, statistics_dtype, uses_triton
from delt_kernels.segments import segment_of


def crop_resize_torch(images: Tensor, views: Tensor, rows: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """`crop_resize` as two products with banded matrices."""
    (_, c, s, _), n = images.shape, rows.shape[0]
    with torch.autocast(images.device.type, enabled=False):
        down, across = _matrices(images, views, offsets, n)
        packed = images.index_select(0, rows).to(across.dtype).reshape(n, c * s, s)
        wide = torch.bmm(packed, across.transpose(1, 2)).view(n, c, s, s)
        seen = torch.bmm(down, wide.permute(0, 2, 3, 1).reshape(n, s, s * c)).view(n, s, s, c)
    return seen.permute(0, 3, 1, 2).to(dtype)


def crop_resize_backward_torch(gradient: Tensor, views: Tensor, offsets: Tensor) -> Tensor:
    """`crop_resize_backward` as two products with the transposed matrices."""
    n, c, s, _ = gradient.shape
    with torch.autocast(gradient.device.type, enabled=False):
        down, across = _matrices(gradient, views, offsets, n)
        seen = gradient.permute(0, 2, 3, 1).to(down.dtype).reshape(n, s, s * c)
        wide = torch.bmm(down.transpose(1, 2), seen).view(n, s, s, c)
        packed = torch.bmm(wide.permute(0, 3, 1, 2).reshape(n, c * s, s), across).view(n, c, s, s)
    return packed.to(statistics_dtype(gradient.dtype))


def _matrices(images: Tensor, views: Tensor, offsets: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The weights of the source's pixels (columns) in the output's (rows) of each image, down and across: [N, S, S].

    On a GPU they are float64: float32 products might run in TF32.
    """
    dtype = torch.float64 if images.is_cuda else statistics_dtype(images.dtype)
    top, left, height, width, mirrored, down, right, _ = views.long().unsqueeze(-1).unbind(1)  # [G, 1] each
    segment, size = segment_of(offsets, n), images.shape[-1]
    vertical = _matrix(top, height, torch.zeros_like(mirrored), down, size, dtype)
    return vertical[segment], _matrix(left, width, mirrored, right, size, dtype)[segment]


def _matrix(start: Tensor, length: Tensor, mirrored: Tensor, roll: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    pixel = torch.arange(size, device=start.device)
    shown = (pixel - roll) % size
    shown = torch.where(mirrored != 0, size - 1 - shown, shown)
    centre = ((2 * shown + 1) * length - size).clamp(min=0)
    near, share = centre // (2 * size), ((centre % (2 * size)).to(dtype) / (2 * size))[..., None]
    far = torch.minimum(near + 1, length - 1)
    is_near, is_far = (pixel == (start + tap)[..., None] for tap in (near, far))  # both at the crop's last pixel
    return is_near * (1 - share) + is_far * share


@torch.library.custom_op("delt::crop_resize", mutates_args=())
def _crop_resize(images: Tensor, views: Tensor, rows: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    compute = kernels.forward if runs_kernels(images) else crop_resize_torch
    return compute(images, views, rows, offsets, dtype)


@_crop_resize.register_fake
def _(images: Tensor, views: Tensor, rows: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    n, (_, c, s, _) = rows.shape[0], images.shape
    return torch.empty((n, c, s, s), dtype=dtype, device=images.device, memory_format=torch.channels_last)


@torch.library.custom_op("delt::crop_resize_backward", mutates_args=())
def _crop_resize_backward(gradient: Tensor, views: Tensor, offsets: Tensor) -> Tensor:
    compute = kernels.backward if runs_kernels(gradient) else crop_resize_backward_torch
    return compute(gradient, views, offsets)


@_crop_resize_backward.register_fake
def _(gradient: Tensor, views: Tensor, offsets: Tensor) -> Tensor:
    return torch.empty(gradient.shape, dtype=statistics_dtype(gradient.dtype), device=gradient.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, views, rows, offsets, _ = inputs
    ctx.save_for_backward(views, rows, offsets)
    ctx.shape, ctx.dtype = images.shape, images.dtype


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
    """An image that was packed twice gets the sum."""
    views, rows, offsets = ctx.saved_tensors
    packed = _crop_resize_backward(gradient, views, offsets)
    return packed.new_zeros(ctx.shape).index_add(0, rows, packed).to(ctx.dtype), None, None, None, None


_crop_resize.register_autograd(_gradient, setup_context=_save)


def crop_resize(
    images: Tensor,
    views: Tensor,
    rows: Tensor,
    offsets: Tensor,
    *,
    dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The packed batch: image n is images[rows[n]] seen through the view of its segment. Differentiable in `images`.

    Equals torchvision's resized_crop to S x S, then horizontal flip, then torch.roll by (down, right).

    Args:
        images: float [R, C, S, S].
        views: int32 [G, 8], pixels: top, left, height, width, mirrored (0 or 1), down, right, unused. Each crop holds a
            pixel or more and lies inside the image. The values stay on the device, unchecked, as do those of `rows`.
        rows: int32 or int64 [N].
        offsets: int32 [G + 1]; the images of segment g are offsets[g] .. offsets[g + 1] - 1.
        dtype: the result's, by default the images'.

    Returns:
        [N, C, S, S], channels_last.

    Raises:
        ValueError: a shape is not as above.
    """
    _check(images, "images [R, C, S, S]", views, offsets)
    if rows.dim() != 1:
        raise ValueError(f"rows have the shape {tuple(rows.shape)}; expected [N]")
    compute = _crop_resize if uses_triton(backend, images) else crop_resize_torch
    return compute(images, views, rows, offsets, dtype or images.dtype)


def crop_resize_backward(gradient: Tensor, views: Tensor, offsets: Tensor, *, backend: Backend = "auto") -> Tensor:
    """The gradient of the packed images, from that of `crop_resize`'s result; pixels outside the crop get 0.

    Args:
        gradient: float [N, C, S, S].
        views, offsets: as given to `crop_resize`.

    Returns:
        [N, C, S, S] contiguous, float32 (float64 for float64); image n belongs to row rows[n] of the images.

    Raises:
        ValueError: a shape is not as above.
    """
    _check(gradient, "gradient [N, C, S, S]", views, offsets)
    compute = _crop_resize_backward if uses_triton(backend, gradient) else crop_resize_backward_torch
    return compute(gradient, views, offsets)


def _check(tensor: Tensor, expected: str, views: Tensor, offsets: Tensor) -> None:
    if tensor.dim() != 4 or tensor.shape[2] != tensor.shape[3] or not tensor.is_floating_point():
        raise ValueError(f"given {tensor.dtype} {tuple(tensor.shape)}; expected float {expected}")
    if views.dim() != 2 or views.shape[1] != 8 or offsets.shape != (views.shape[0] + 1,):
        raise ValueError(
            f"views {tuple(views.shape)} and offsets {tuple(offsets.shape)}; expected [G, 8] and [G + 1], G segments"
        )
