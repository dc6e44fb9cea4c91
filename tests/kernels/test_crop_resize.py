"""crop_resize equals torchvision's crop, resize, flip and roll with both backends, in all types and layouts."""

from dataclasses import dataclass

import pytest
import torch
from helpers.tolerance import assert_no_worse
from torch import Tensor

from delt_hpc.data.random_crop import Window
from delt_hpc.recovery.augmentation import View, augment, draw_view
from delt_kernels.crop_resize import crop_resize, crop_resize_backward
from delt_kernels.dispatch import Backend

BACKENDS: tuple[Backend, ...] = ("torch", "triton")
TYPES = (torch.float32, torch.float16, torch.bfloat16)
ROWS = 6


@dataclass(frozen=True)
class Case:
    """Views and sizes of segments of images [ROWS, channels, size, size]."""

    channels: int
    size: int
    views: tuple[View, ...]
    sizes: tuple[int, ...]

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """views, rows (shuffled), offsets."""
        views = [[*view.window, int(view.mirrored), *view.roll, 0] for view in self.views]
        rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))[: sum(self.sizes)]
        offsets = torch.tensor((0, *self.sizes)).cumsum(0)
        return tuple(table.int().to(device) for table in (torch.tensor(views), rows, offsets))

    def images(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._noise(ROWS).to(device, dtype).requires_grad_()

    def gradient_out(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._noise(sum(self.sizes)).to(device, dtype)

    def _noise(self, images: int) -> Tensor:
        shape = (images, self.channels, self.size, self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(images), dtype=torch.float64)


def drawn(size: int, number: int) -> View:
    return draw_view(size, 0.08, True, 2 * size, "view", size, number)


CORNER = View(Window(6, 6, 1, 1), True, (0, 3))
COLUMN = View(Window(0, 4, 7, 1), False, (7, 1))
WHOLE = View(Window(0, 0, 7, 7), False, (0, 0))
CASES = {
    "one pixel": Case(3, 1, (View(Window(0, 0, 1, 1), True, (3, 1)),), (1,)),
    "7x7": Case(3, 7, (CORNER, WHOLE, COLUMN), (1, 2, 1)),
    "empty segments": Case(3, 9, tuple(drawn(9, i) for i in range(4)), (0, 1, 0, 3)),
    "65 channels": Case(65, 3, (View(Window(1, 0, 2, 3), True, (1, 0)),), (1,)),
    "one channel": Case(1, 12, (drawn(12, 0), drawn(12, 1)), (2, 1)),
    "several blocks": Case(3, 23, (drawn(23, 0), drawn(23, 1)), (1, 1)),
}
SMALL = Case(
    2,
    3,
    (
        View(Window(0, 1, 3, 2), True, (1, 2)),
        View(Window(0, 0, 1, 1), False, (0, 0)),
        View(Window(1, 0, 2, 3), False, (0, 0)),
    ),
    (1, 0, 2),
)


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "_"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def by_torchvision(case: Case, images: Tensor, gradient_out: Tensor) -> tuple[Tensor, Tensor]:
    """Result and gradient of the images."""
    images, rows = images.detach().requires_grad_(), case.tables(images.device)[1]
    parts = images.index_select(0, rows).split(case.sizes)
    augmented = torch.cat([augment(part, view) for part, view in zip(parts, case.views, strict=True)])
    return augmented.detach(), torch.autograd.grad(augmented, images, gradient_out)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.usefixtures("poisoned")
def test_no_worse_than_torchvision(case: Case, dtype: torch.dtype, backend: Backend, device: torch.device) -> None:
    views, rows, offsets = case.tables(device)
    images, gradient_out = case.images(dtype, device).detach(), case.gradient_out(dtype, device)
    augmented = crop_resize(images, views, rows, offsets, backend=backend)
    packed = crop_resize_backward(gradient_out, views, offsets, backend=backend)
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    assert packed.is_contiguous() and packed.dtype == torch.float32
    theirs, gradient = by_torchvision(case, images, gradient_out)
    exact, exact_gradient = by_torchvision(case, images.double(), gradient_out.double())
    assert_no_worse(augmented, theirs, exact)
    assert_no_worse(packed.to(dtype), gradient.index_select(0, rows), exact_gradient.index_select(0, rows))


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_torchvision_in_float64(case: Case, backend: Backend, device: torch.device) -> None:
    images, gradient_out = case.images(torch.float64, device), case.gradient_out(torch.float64, device)
    augmented = crop_resize(images, *case.tables(device), backend=backend)
    (gradient,) = torch.autograd.grad(augmented, images, gradient_out)
    theirs, their_gradient = by_torchvision(case, images, gradient_out)
    torch.testing.assert_close(augmented, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed"])
@pytest.mark.usefixtures("poisoned")
def test_any_strides(layout: str, backend: Backend, device: torch.device) -> None:
    def relaid(tensor: Tensor) -> Tensor:
        if layout == "channels_last":
            return tensor.contiguous(memory_format=torch.channels_last)
        if layout == "transposed":
            return tensor.transpose(2, 3).contiguous().transpose(2, 3)
        return tensor.repeat_interleave(2, 3).repeat_interleave(3, 0)[::3, :, :, ::2]

    case = SMALL
    views, rows, offsets = case.tables(device)
    images, gradient_out = case.images(torch.float32, device).detach(), case.gradient_out(torch.float32, device)
    augmented = crop_resize(images, views, rows, offsets, backend=backend)
    gradient = crop_resize_backward(gradient_out, views, offsets, backend=backend)
    strided = views.repeat_interleave(2, 1)[:, ::2], rows.repeat_interleave(2)[::2], offsets.repeat_interleave(2)[::2]
    torch.testing.assert_close(crop_resize(relaid(images), *strided, backend=backend), augmented)
    torch.testing.assert_close(
        crop_resize_backward(relaid(gradient_out), strided[0], strided[2], backend=backend), gradient
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtype_of_the_result(backend: Backend, device: torch.device) -> None:
    case = SMALL
    tables, images = case.tables(device), case.images(torch.float32, device)
    half = crop_resize(images, *tables, dtype=torch.float16, backend=backend)
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(half, crop_resize(images, *tables, backend=backend).half())
    (gradient,) = torch.autograd.grad(half, images, case.gradient_out(torch.float16, device))
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_are_independent(backend: Backend, device: torch.device) -> None:
    case = SMALL
    views, rows, offsets = case.tables(device)
    images, gradient_out = case.images(torch.float32, device).detach(), case.gradient_out(torch.float32, device)
    augmented = crop_resize(images, views, rows, offsets, backend=backend)
    packed = crop_resize_backward(gradient_out, views, offsets, backend=backend)
    assert torch.equal(augmented, crop_resize(images, views, rows, offsets, backend=backend))
    assert torch.equal(packed, crop_resize_backward(gradient_out, views, offsets, backend=backend))
    for segment, (first, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        alone = torch.tensor([0, end - first], dtype=torch.int32, device=device)
        view = views[segment : segment + 1]
        assert torch.equal(augmented[first:end], crop_resize(images, view, rows[first:end], alone, backend=backend))
        assert torch.equal(
            packed[first:end], crop_resize_backward(gradient_out[first:end], view, alone, backend=backend)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_an_image_packed_twice_add_up(backend: Backend, device: torch.device) -> None:
    case = SMALL
    views, rows, offsets = case.tables(device)
    rows[1] = rows[0]
    images, gradient_out = case.images(torch.float32, device), case.gradient_out(torch.float32, device)
    augmented = crop_resize(images, views, rows, offsets, backend=backend)
    (gradient,) = torch.autograd.grad(augmented, images, gradient_out)
    packed = crop_resize_backward(gradient_out, views, offsets, backend=backend)
    torch.testing.assert_close(gradient[rows[0]], packed[0] + packed[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_has_no_effect(backend: Backend, device: torch.device) -> None:
    case = SMALL
    views, rows, offsets = case.tables(device)
    images, gradient_out = case.images(torch.float32, device).detach(), case.gradient_out(torch.float32, device)
    augmented, packed = (
        crop_resize(images, views, rows, offsets, backend=backend),
        crop_resize_backward(gradient_out, views, offsets, backend=backend),
    )
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(augmented, crop_resize(images, views, rows, offsets, backend=backend))
        assert torch.equal(packed, crop_resize_backward(gradient_out, views, offsets, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_registration(dtype: torch.dtype, device: torch.device) -> None:
    case = SMALL
    views, rows, offsets = case.tables(device)
    images, gradient_out = case.images(dtype, device), case.gradient_out(dtype, device)
    torch.library.opcheck(torch.ops.delt.crop_resize.default, (images, views, rows, offsets, torch.float16))
    torch.library.opcheck(torch.ops.delt.crop_resize_backward.default, (gradient_out, views, offsets))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: Backend, device: torch.device) -> None:
    case = SMALL
    tables, images = case.tables(device), case.images(torch.float64, device)
    assert torch.autograd.gradcheck(lambda images: crop_resize(images, *tables, backend=backend), (images,))


@pytest.mark.parametrize(
    ("backend", "compiler"), [("torch", "aot_eager"), ("triton", "aot_eager"), ("triton", "inductor")]
)
def test_compiles_into_one_graph(compiler: str, backend: Backend, device: torch.device) -> None:
    case = SMALL
    tables, images = case.tables(device), case.images(torch.float32, device)
    gradient_out = case.gradient_out(torch.float32, device)

    def function(images: Tensor) -> Tensor:
        return crop_resize(images, *tables, backend=backend).square()

    expected = function(images)
    augmented = torch.compile(function, fullgraph=True, backend=compiler)(images)
    torch.testing.assert_close(augmented, expected)
    gradients = (torch.autograd.grad(result, images, gradient_out)[0] for result in (augmented, expected))
    torch.testing.assert_close(*gradients)


def test_bad_arguments_are_rejected(device: torch.device) -> None:
    case = SMALL
    views, rows, offsets = case.tables(device)
    images = case.images(torch.float32, device)
    with pytest.raises(ValueError, match=r"expected float \[R, C, S, S\]"):
        crop_resize(images[..., 1:], views, rows, offsets)
    with pytest.raises(ValueError, match=r"images is torch\.uint8 \[6, 2, 3, 3\]"):
        crop_resize(images.detach().byte(), views, rows, offsets)
    with pytest.raises(ValueError, match=r"expected \[G, 8\] and \[G \+ 1\]"):
        crop_resize(images, views[:2], rows, offsets)
    with pytest.raises(ValueError, match=r"expected \[G, 8\]"):
        crop_resize(images, views[:, :7], rows, offsets)
    with pytest.raises(ValueError, match=r"rows has shape \[1, 3\]; expected \[N\]"):
        crop_resize(images, views, rows[None], offsets)
    with pytest.raises(ValueError, match=r"gradient is .*expected float \[N"):
        crop_resize_backward(images[0], views, offsets)
