"""Whole networks: loss and image gradient are those of the reference objective, with both backends and in all types."""

import copy

import pytest
import torch
from helpers.hooks_loss import FIRST_WEIGHT, OFFSETS, assert_equal_to_hooks, batch, by_hooks, packed, randomised
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from delt_hpc.models import registry
from delt_kernels.dispatch import Backend
from delt_kernels.teacher.fused import FusedTeacher

FUSED = {
    "convnet3": "3 x bn + relu",
    "convnet4": "4 x bn + relu",
    "convnet5": "5 x bn + relu",
    "convnet6": "6 x bn + relu",
    "densenet121": "120 x bn + relu, 1 x bn + relu + max pool",
    "efficientnet_b0": "40 x bn, 9 x bn + add",
    "googlenet": "57 x bn + relu",
    "mobilenet_v2": "42 x bn, 10 x bn + add",
    "regnet_y_400mf": "33 x bn + relu, 16 x bn + add + relu, 4 x bn",
    "resnet18": "8 x bn + relu, 8 x bn + add + relu, 3 x bn, 1 x bn + relu + max pool",
    "resnet18-small-stem": "9 x bn + relu, 8 x bn + add + relu, 3 x bn",
    "resnet50": "32 x bn + relu, 16 x bn + add + relu, 4 x bn, 1 x bn + relu + max pool",
    "shufflenet_v2_x0_5": "36 x bn + relu, 19 x bn, 1 x bn + relu + max pool",
    "vgg11_bn": "8 x bn + relu",
}
SIZE = {"convnet6": 64, "resnet18-small-stem": 16}


class SmallResNet(nn.Module):
    """Torchvision's stem and blocks with 8 and 16 channels: fast in the interpreter."""

    def __init__(self) -> None:
        super().__init__()
        downsample = nn.Sequential(nn.Conv2d(8, 16, 1, 2), nn.BatchNorm2d(16))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8), BasicBlock(8, 16, 2, downsample))
        self.fc = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


def teacher(name: str, size: int = 32) -> nn.Module:
    torch.manual_seed(0)
    if name == "small":
        return randomised(SmallResNet())
    if name != "vgg11_bn":
        return randomised(registry.build(name, 10, size))
    with torch.device("meta"):
        network = registry.build(name, 10, size)
    network.classifier = nn.Linear(512 * 7 * 7, 10)  # the original classifier has 0.8 GB
    for module in network.features.to_empty(device="cpu"):
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    return randomised(network)


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", FUSED)
def test_loss_and_image_gradient_equal_those_of_hooks(name: str) -> None:
    size = SIZE.get(name, 32)
    fused = assert_equal_to_hooks(teacher(name, size).double(), size)
    assert not fused.trace_error
    assert fused.table().splitlines()[-1].partition(": ")[2] == FUSED[name]


@pytest.mark.parametrize(
    ("name", "size", "forks", "channels_last"),
    [
        ("convnet3", 8, 0, True),
        ("small", 9, 2, False),
        ("small", 9, 2, True),
        pytest.param("resnet18", 24, 7, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("poisoned")
def test_kernels_are_as_accurate_as_torch_in_float32(
    name: str, size: int, forks: int, channels_last: bool, device: torch.device
) -> None:
    network = teacher(name, size)
    images, labels = batch(size)
    loss, gradient = by_hooks(copy.deepcopy(network).double(), images, labels)
    fused = FusedTeacher(network, FIRST_WEIGHT, backend="triton", channels_last=channels_last).to(device)
    assert sum(site.forked for site in fused.sites) == forks
    ours = packed(fused, images.float().to(device), labels.to(device))
    by_torch = FusedTeacher(network, FIRST_WEIGHT, backend="torch", channels_last=channels_last).to(device)
    theirs = packed(by_torch, images.float().to(device), labels.to(device))
    assert relative(ours[0].cpu(), loss) <= 2 * relative(theirs[0].cpu(), loss) + 1e-6
    assert relative(ours[1].cpu(), gradient) <= 2 * relative(theirs[1].cpu(), gradient) + 1e-6


def test_segments_are_independent() -> None:
    fused = FusedTeacher(teacher("small", 9), backend="triton")
    images = batch(9)[0].float()
    offsets = torch.tensor(OFFSETS, dtype=torch.int32)
    first = images[: OFFSETS[1]].clone().requires_grad_()
    second = first.detach().clone().requires_grad_()
    logits, distance = fused(torch.cat([first, images[OFFSETS[1] :]]), offsets)
    others, distances = fused(torch.cat([second, images[OFFSETS[1] :] + 1]), offsets)
    assert distance[0] == distances[0] and distance[1] == 0 and distance[3] != distances[3]
    assert torch.equal(logits[: OFFSETS[1]], others[: OFFSETS[1]])
    (logits.square().sum() + distance.sum()).backward()
    (others.square().sum() + distances.sum()).backward()
    assert torch.equal(first.grad, second.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_statistics_in_float32(dtype: torch.dtype) -> None:
    network = teacher("resnet18")
    half, full = FusedTeacher(network, dtype=dtype), FusedTeacher(network)
    images = batch(32)[0].float()
    offsets = torch.tensor(OFFSETS, dtype=torch.int32)
    logits, distance = half(images.to(dtype), offsets)
    assert logits.dtype == distance.dtype == torch.float32
    expected_logits, expected_distance = full(images, offsets)
    assert relative(logits, expected_logits.double()) < 30 * torch.finfo(dtype).eps
    assert relative(distance, expected_distance.double()) < 30 * torch.finfo(dtype).eps
    state, exact = half.state_dict(), full.state_dict()
    assert state.keys() == exact.keys()
    for name, tensor in state.items():
        vector = "batch_norms" in name
        assert tensor.dtype == (torch.float32 if vector else dtype)
        assert torch.equal(tensor, exact[name] if vector else exact[name].to(dtype))


def test_channels_last_holds_through_the_network() -> None:
    fused = FusedTeacher(teacher("resnet18"), channels_last=True)
    layouts = []
    for module in fused.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    fused(batch(32)[0].float(), torch.tensor(OFFSETS, dtype=torch.int32))
    assert len(layouts) == 20 and all(layouts)


def test_the_given_teacher_is_not_changed() -> None:
    network = teacher("resnet18").requires_grad_(True)
    before = copy.deepcopy(network.state_dict())
    fused = FusedTeacher(network, dtype=torch.bfloat16, channels_last=True)
    fused(batch(32)[0].bfloat16(), torch.tensor(OFFSETS, dtype=torch.int32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None and p.is_contiguous() for p in network.parameters())
    assert not any(p.requires_grad for p in fused.parameters())
    pointers = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert not any(tensor.data_ptr() in pointers for tensor in fused.state_dict().values())


def test_a_teacher_stays_in_evaluation_mode() -> None:
    fused = FusedTeacher(teacher("mobilenet_v2")).train()
    assert not any(module.training for module in fused.modules())


def test_a_teacher_in_training_mode_or_without_batch_norm_is_rejected() -> None:
    network = teacher("convnet3", 8)
    network.features[1].train()
    with pytest.raises(ValueError, match="in training mode; expected evaluation mode"):
        FusedTeacher(network)
    with pytest.raises(ValueError, match="Sequential has no statistics to match"):
        FusedTeacher(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval())


@pytest.mark.parametrize(
    ("name", "size", "backend", "compiler"),
    [
        ("small", 9, "torch", "aot_eager"),
        ("small", 9, "triton", "aot_eager"),
        pytest.param("convnet3", 8, "torch", "inductor", marks=pytest.mark.slow),
        pytest.param("small", 9, "triton", "inductor", marks=pytest.mark.slow),
    ],
)
def test_whole_teacher_compiles_into_one_graph(name: str, size: int, backend: Backend, compiler: str) -> None:
    fused = FusedTeacher(teacher(name, size), FIRST_WEIGHT, backend=backend)
    images, labels = batch(size)
    torch.compiler.reset()
    compiled = torch.compile(fused, fullgraph=True, backend=compiler)
    loss, gradient = packed(compiled, images.float(), labels)
    expected_loss, expected_gradient = packed(fused, images.float(), labels)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert relative(gradient, expected_gradient.double()) < 1e-4
