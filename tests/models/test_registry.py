"""Networks by name: their outputs, the small stems, the ConvNets, and what is refused."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delt_hpc.errors import UserError
from delt_hpc.models.registry import SMALL_STEM, build, check, names, require_batch_norm

# Large members of families whose smaller ones are tested; RegNets cannot be built on the meta device, and vision
# transformers and MaxViT accept only one size.
HEAVY = re.compile(
    r"convnext_(base|large|small)|densenet1[67]|densenet201|efficientnet_(b[1-7]|v2)|maxvit|regnet|resnet(101|152)"
    r"|resnext(50|101)|shufflenet_v2_x[12]|swin|vgg(1[369]|11$)|vit_|wide_resnet"
)
CHEAP = [name for name in names() if not HEAVY.match(name)]
SMALL = [name for name in names() if name.endswith(SMALL_STEM)]
CHEAP_SMALL = [name for name in SMALL if "101" not in name and "152" not in name]


def meta(name: str, classes: int = 7, size: int = 64) -> nn.Module:
    with torch.device("meta"):
        return build(name, classes, size)


def output_shape(network: nn.Module, size: int = 64) -> list[int]:
    with torch.no_grad():
        output: Any = network(torch.empty(2, 3, size, size, device=next(network.parameters()).device))
    return list(output.shape)


def test_the_names_are_torchvision_s_classifiers_their_small_stems_and_the_convnets() -> None:
    assert names()[:4] == ("convnet3", "convnet4", "convnet5", "convnet6")
    assert len(set(names())) == len(names())
    assert {"resnet18", "mobilenet_v2", "vgg11_bn", "regnet_y_400mf", "vit_b_16"} <= set(names())
    assert not any("fcos" in name or "quantized" in name or "segment" in name for name in names())
    assert {"resnet18-small-stem", "resnet101-small-stem", "mobilenet_v2-small-stem"} <= set(SMALL)
    assert len(CHEAP) > 20


@pytest.mark.parametrize("name", CHEAP)
def test_a_network_has_an_output_for_every_class(name: str) -> None:
    size = 75 if name == "inception_v3" else 64
    network = meta(name, size=size)
    assert output_shape(network.eval(), size) == [2, 7]
    assert output_shape(network.train(), size) == [2, 7]


def test_a_regnet_can_be_a_teacher() -> None:
    network = build("regnet_y_400mf", 7, 32)
    assert output_shape(network, 32) == [2, 7]
    check("regnet_y_400mf", 7, 32, where="teacher.model", needs_batch_norm=True)


def test_a_check_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    for name in ("convnet3", "resnet18-small-stem", "regnet_x_400mf"):
        check(name, 10, 32, where="teacher.model", needs_batch_norm=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_fresh_weights_come_from_torch_s_generator() -> None:
    def weights(seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.cat([p.detach().flatten() for p in build("resnet18-small-stem", 3, 32).parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))
    assert first.isfinite().all()


# --- small stems


@pytest.mark.parametrize("name", CHEAP_SMALL)
def test_a_small_stem_keeps_the_resolution(name: str) -> None:
    network = meta(name, size=32).eval()
    shapes: list[torch.Size] = []
    after = network.features[1] if name.startswith("mobilenet") else network.layer1  # type: ignore[index]
    assert isinstance(after, nn.Module)
    after.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    assert output_shape(network, 32) == [2, 7]
    assert list(shapes[0][-2:]) == [32, 32]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_small_stem_changes_only_the_stem(name: str) -> None:
    plain, small = meta(name).state_dict(), meta(name + SMALL_STEM).state_dict()
    other = {key for key in plain if plain[key].shape != small[key].shape}
    assert plain.keys() == small.keys()
    assert other == ({"conv1.weight"} if name == "resnet18" else set())


def test_a_small_stem_is_initialised_as_the_other_convolutions_of_a_resnet() -> None:
    stem = build("resnet18-small-stem", 10, 32).conv1
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((3, 3), (1, 1), (1, 1), None)
    assert stem.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


# --- ConvNets


@pytest.mark.parametrize(
    ("depth", "size", "left"),
    [(3, 8, 1), (3, 16, 2), (3, 28, 3), (3, 32, 4), (4, 64, 4), (5, 128, 4), (5, 32, 1), (6, 128, 2), (6, 64, 1)],
)
def test_a_convnet_halves_the_image_at_each_of_its_blocks(depth: int, size: int, left: int) -> None:
    network = meta(f"convnet{depth}", classes=10, size=size)
    blocks = [type(layer).__name__ for layer in network.features]  # type: ignore[union-attr]
    assert blocks == ["Conv2d", "BatchNorm2d", "ReLU", "AvgPool2d"] * depth
    convolutions = 3 * 128 * 9 + 128 + (depth - 1) * (128 * 128 * 9 + 128)
    classifier = 128 * left * left * 10 + 10
    assert sum(p.numel() for p in network.parameters()) == convolutions + depth * 2 * 128 + classifier
    assert output_shape(network, size) == [2, 10]


@pytest.mark.parametrize(("name", "size", "least"), [("convnet3", 7, 8), ("convnet4", 15, 16), ("convnet6", 32, 64)])
def test_too_small_an_image_for_a_convnet(name: str, size: int, least: int) -> None:
    with pytest.raises(UserError, match=f"`{name}` halves images .* times; {size} pixels are too few") as caught:
        check(name, 10, size, where="teacher.model")
    assert (caught.value.where, caught.value.expected) == ("teacher.model", f">= {least}")


# --- refusals


@pytest.mark.parametrize("name", ["vgg11", "convnext_tiny", "vit_b_16", "alexnet"])
@pytest.mark.parametrize("size", [32, 224])
def test_a_teacher_without_batch_norm_is_refused_with_the_reason(name: str, size: int) -> None:
    with pytest.raises(UserError, match=f"`{name}` has no BatchNorm2d with running statistics") as caught:
        check(name, 10, size, where="teacher.model", needs_batch_norm=True)
    assert caught.value.where == "teacher.model"
    assert "resnet18" in caught.value.expected


def test_a_student_needs_no_batch_norm() -> None:
    check("vgg11", 10, 32, where="evaluate.students")
    check("vit_b_16", 10, 224, where="evaluate.students")


def test_batch_norm_must_keep_statistics() -> None:
    with pytest.raises(UserError, match="no BatchNorm2d"):
        require_batch_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "mine", "teacher.model")
    with pytest.raises(UserError, match="no BatchNorm2d"):
        require_batch_norm(nn.Sequential(nn.BatchNorm1d(3)), "mine", "teacher.model")


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_16", 32), ("maxvit_t", 32), ("inception_v3", 32), ("alexnet", 32), ("densenet121", 16)]
)
def test_a_size_that_the_network_does_not_accept(name: str, size: int) -> None:
    with pytest.raises(UserError, match=f"`{name}` does not accept images of {size} x {size}") as caught:
        check(name, 10, size, where="evaluate.students")
    assert caught.value.where == "evaluate.students"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet-18", "resnet18"),
        ("convnet7", "convnet"),
        ("resnet18_small_stem", "resnet18-small-stem"),
        ("vgg11-small-stem", "small-stem"),
        ("zzz", "convnet3"),
        ("", "convnet3"),
    ],
)
def test_an_unknown_name_gets_suggestions(name: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=f"`{name}` is not a known network") as caught:
        check(name, 10, 32, where="teacher.model")
    assert suggestion in caught.value.expected
    assert "`delt-hpc models` lists all" in caught.value.expected
    with pytest.raises(UserError, match="is not a known network"):
        build(name, 10, 32)
