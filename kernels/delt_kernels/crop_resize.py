"""Crop, bilinear resize, mirror and roll of packed images: one view per segment, with its parameters on the device.

Along one axis, output pixel o is pixel u = (o - roll) mod S, mirrored S - 1 - u, of a crop of `length` pixels that was
resized to S. The centre of u is at max((u + 1/2) length / S - 1/2, 0) in the crop (half-pixel centres,
align_corners=False). With the integer t = max((2u + 1) length - S, 0), u interpolates between two pixels of the crop,

    near = floor(t / 2S) with weight 1 - w    and    far = min(near + 1, length - 1) with weight w = (t mod 2S) / 2S,

so the choice of pixels is exact in every type. Since a crop is never larger than the image, an antialiased resize would
read the same two pixels. The gradient is the transposed map, computed as a gather: pixel i is read by those u whose
centres lie in (i - 1, i + 1), at most ceil(2S / length) of them. Without atomics and in a fixed order, it is bitwise
reproducible.

Shapes: images [R, C, S, S] with any strides; the result [N, C, S, S] is channels_last; the gradient of the packed
images [N, C, S, S] is contiguous. Arithmetic is float32, float64 for float64.
"""

from typing import Any

import torch
from torch import Tensor

from delt_kernels import crop_resize_kernels as kernels
from delt_kernels.dispatch import Backend, runs_kernels, statistics_dtype, uses_triton
from delt_kernels.segments import segment_of


def crop_resize_torch(images: Tensor, views: Tensor, rows: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """The torch backend: two products with banded matrices."""
    (_, c, s, _), n = images.shape, rows.shape[0]
    with torch.autocast(images.device.type, enabled=False):
        vertical, horizontal = _matrices(images, views, offsets, n)
        packed = images.index_select(0, rows).to(horizontal.dtype).reshape(n, c * s, s)
        resized = torch.bmm(packed, horizontal.transpose(1, 2)).view(n, c, s, s)
        augmented = torch.bmm(vertical, resized.permute(0, 2, 3, 1).reshape(n, s, s * c)).view(n, s, s, c)
    return augmented.permute(0, 3, 1, 2).to(dtype)


def crop_resize_backward_torch(gradient: Tensor, views: Tensor, offsets: Tensor) -> Tensor:
    """The torch backend: two products with the transposed matrices."""
    n, c, s, _ = gradient.shape
    with torch.autocast(gradient.device.type, enabled=False):
        vertical, horizontal = _matrices(gradient, views, offsets, n)
        augmented = gradient.permute(0, 2, 3, 1).to(vertical.dtype).reshape(n, s, s * c)
        resized = torch.bmm(vertical.transpose(1, 2), augmented).view(n, s, s, c)
        packed = torch.bmm(resized.permute(0, 3, 1, 2).reshape(n, c * s, s), horizontal).view(n, c, s, s)
    return packed.to(statistics_dtype(gradient.dtype))


def _matrices(images: Tensor, views: Tensor, offsets: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Each image's interpolation matrices, vertical and horizontal: [N, S (output pixels), S (source pixels)].

    On a GPU they are float64, since float32 products might run in TF32.
    """
    dtype = torch.float64 if images.is_cuda else statistics_dtype(images.dtype)
    top, left, height, width, mirrored, down, right, _ = views.long().unsqueeze(-1).unbind(1)  # [G, 1] each
    segment, size = segment_of(offsets, n), images.shape[-1]
    vertical = _matrix(top, height, torch.zeros_like(mirrored), down, size, dtype)
    return vertical[segment], _matrix(left, width, mirrored, right, size, dtype)[segment]


def _matrix(start: Tensor, length: Tensor, mirrored: Tensor, roll: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    pixel = torch.arange(size, device=start.device)
    u = (pixel - roll) % size
    u = torch.where(mirrored != 0, size - 1 - u, u)
    t = ((2 * u + 1) * length - size).clamp(min=0)
    near, weight = t // (2 * size), ((t % (2 * size)).to(dtype) / (2 * size))[..., None]
    far = torch.minimum(near + 1, length - 1)
    is_near, is_far = (pixel == (start + tap)[..., None] for tap in (near, far))  # equal at the crop's last pixel
    return is_near * (1 - weight) + is_far * weight


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
    """For the images; one that was packed twice gets the sum of both gradients."""
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
    """The packed batch: image n is images[rows[n]] under the view of its segment. Differentiable in `images`.

    Equals torchvision's resized_crop to S x S, then horizontal flip, then torch.roll by (down, right).

    Args:
        images: float [R, C, S, S].
        views: int32 [G, 8], in pixels: top, left, height, width, mirrored (0 or 1), down, right, unused. Each crop has
            at least one pixel and lies inside the image. The values stay on the device and are not checked.
        rows: int32 or int64 [N]; not checked either.
        offsets: int32 [G + 1]; the images of segment g are offsets[g] .. offsets[g + 1] - 1.
        dtype: of the result; the images' type if None.

    Returns:
        [N, C, S, S], channels_last.

    Raises:
        ValueError: a shape is not as above.
    """
    _check(images, "images", "[R, C, S, S]", views, offsets)
    if rows.dim() != 1:
        raise ValueError(f"rows has shape {list(rows.shape)}; expected [N]")
    compute = _crop_resize if uses_triton(backend, images) else crop_resize_torch
    return compute(images, views, rows, offsets, dtype or images.dtype)


def crop_resize_backward(gradient: Tensor, views: Tensor, offsets: Tensor, *, backend: Backend = "auto") -> Tensor:
    """The gradient of the packed images, given that of the result of `crop_resize`; pixels outside the crop get 0.

    Args:
        gradient: float [N, C, S, S].
        views, offsets: as given to `crop_resize`.

    Returns:
        [N, C, S, S] contiguous, float32 (float64 for float64); image n belongs to images[rows[n]].

    Raises:
        ValueError: a shape is not as above.
    """
    _check(gradient, "gradient", "[N, C, S, S]", views, offsets)
    compute = _crop_resize_backward if uses_triton(backend, gradient) else crop_resize_backward_torch
    return compute(gradient, views, offsets)


def _check(tensor: Tensor, name: str, expected: str, views: Tensor, offsets: Tensor) -> None:
    if tensor.dim() != 4 or tensor.shape[2] != tensor.shape[3] or not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; expected float {expected}")
    if views.dim() != 2 or views.shape[1] != 8 or offsets.shape != (views.shape[0] + 1,):
        raise ValueError(
            f"views has shape {list(views.shape)}, offsets {list(offsets.shape)}; expected [G, 8] and [G + 1]"
        )
