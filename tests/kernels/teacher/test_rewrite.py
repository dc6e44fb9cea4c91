"""The graph pass, pattern by pattern: what is fused, and that loss and gradient equal those of hooks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.hooks_loss import FIRST_WEIGHT, OFFSETS, assert_equal_to_hooks, randomised
from torch import Tensor, nn

from delt_kernels.teacher.fused import FusedTeacher

SIZE = 7


class Renamed(nn.BatchNorm2d):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).sigmoid()


class Toy(nn.Module):
    """Images [N, 3, S, S] -> 3x3 convolution to four channels -> `body` -> mean over pixels -> ten logits."""

    def __init__(self, body: Callable[["Toy", Tensor], Tensor]) -> None:
        super().__init__()
        self.bn, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.without_affine = nn.BatchNorm2d(4, affine=False)
        self.without_statistics = nn.BatchNorm2d(4, track_running_stats=False)
        self.subclass = Renamed(4)
        self.conv, self.one = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.relu, self.relu_in_place = nn.ReLU(), nn.ReLU(inplace=True)
        self.pool, self.uneven_pool = nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, (2, 1), 1)
        self.tuple_pool, self.open_pool = nn.MaxPool2d((3, 3), (2, 2), (1, 1)), nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.dropout, self.identity = nn.Dropout(0.5), nn.Identity()
        self.bias = nn.Parameter(torch.randn(4, 1, 1))
        self.fc = nn.Linear(4, 10)
        self.body = body

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        features = self.body(self, self.conv(images))
        return features if return_features else self.fc(features.mean((2, 3)))


def added_in_place(toy: Toy, x: Tensor) -> Tensor:
    y = toy.bn(toy.one(x))
    y += x
    return y


def added_in_place_to_the_branch(toy: Toy, x: Tensor) -> Tensor:
    y = toy.one(x)
    y += toy.bn(x)
    return toy.relu(y)


def added_in_place_with_an_alias(toy: Toy, x: Tensor) -> Tensor:
    alias = y = toy.one(x)
    y += toy.bn(x)
    return alias * y


def multiplied_in_place_with_an_alias(toy: Toy, x: Tensor) -> Tensor:
    alias = y = toy.bn(x)
    y *= 2
    return alias + y


def downsampled(toy: Toy, x: Tensor) -> Tensor:
    y = toy.bn(x)
    y += toy.second(toy.one(x))
    return toy.relu(y)


def residual_changed_later(toy: Toy, x: Tensor) -> Tensor:
    branch = toy.one(x)
    y = toy.bn(x)
    branch.mul_(2)
    return toy.relu(y + branch)


def twice_itself(toy: Toy, x: Tensor) -> Tensor:
    y = toy.bn(x)
    return y + y


def read_by_two_alone(toy: Toy, x: Tensor) -> Tensor:
    y = toy.bn(x)
    return y.exp() * toy.one(y)


def read_by_two_broadcast(toy: Toy, x: Tensor) -> Tensor:
    y = toy.bias + toy.bn(x)
    return y.exp() * toy.one(y)


def read_by_two(toy: Toy, x: Tensor) -> Tensor:
    y = toy.relu(toy.bn(x))
    return toy.one(y) + y


def read_by_two_of_which_one_writes(toy: Toy, x: Tensor) -> Tensor:
    y = toy.bn(x)
    z = y * 2
    return F.hardtanh_(y) + z


def read_by_three(toy: Toy, x: Tensor) -> Tensor:
    y = toy.relu(toy.bn(x))
    return toy.one(y) + y * y.exp()


def blocks(toy: Toy, x: Tensor) -> Tensor:
    x = toy.relu_in_place(toy.bn(x))
    y = toy.relu_in_place(toy.second(toy.one(x)) + x)
    z = toy.relu_in_place(toy.second(toy.one(y)) + y)
    return toy.relu_in_place(toy.bn(toy.one(z)) + z)


ONE = ("bn",)
PATTERNS: dict[str, tuple[Callable[[Toy, Any], Tensor], tuple[str, ...]]] = {
    "alone": (lambda t, x: t.bn(x).sigmoid(), ONE),
    "without affine": (lambda t, x: t.without_affine(x), ONE),
    "subclass": (lambda t, x: t.bn(t.subclass(x)), ("statistics alone", "bn")),
    "relu module": (lambda t, x: t.relu(t.bn(x)), ("bn + relu",)),
    "relu in place": (lambda t, x: t.relu_in_place(t.bn(x)), ("bn + relu",)),
    "F.relu": (lambda t, x: F.relu(t.bn(x)), ("bn + relu",)),
    "F.relu in place": (lambda t, x: F.relu(t.bn(x), inplace=True), ("bn + relu",)),
    "F.relu_": (lambda t, x: F.relu_(t.bn(x)), ("bn + relu",)),
    "torch.relu": (lambda t, x: torch.relu(t.bn(x)), ("bn + relu",)),
    "relu method": (lambda t, x: t.bn(x).relu(), ("bn + relu",)),
    "relu_ method": (lambda t, x: t.bn(x).relu_(), ("bn + relu",)),
    "another activation": (lambda t, x: F.silu(t.bn(x), inplace=True), ONE),
    "identity between": (lambda t, x: t.relu(t.identity(t.dropout(t.bn(x)))), ("bn + relu",)),
    "shared relu": (lambda t, x: t.relu(t.second(t.relu(t.bn(x)))), ("bn + relu", "bn + relu")),
    "called twice": (lambda t, x: t.bn(t.relu(t.bn(x))), ("bn + relu", "bn")),
    "first runs last": (lambda t, x: t.bn(t.second(x)), ("bn", "bn")),
    "sum": (lambda t, x: t.bn(x) + x, ("bn + add",)),
    "sum, turned": (lambda t, x: x + t.bn(x), ("bn + add",)),
    "torch.add": (lambda t, x: torch.add(t.bn(x), x).relu(), ("bn + add + relu",)),
    "torch.add, weighted": (lambda t, x: torch.add(t.bn(x), x, alpha=2), ONE),
    "add method": (lambda t, x: t.bn(x).add(x).relu(), ("bn + add + relu",)),
    "add_ method": (lambda t, x: t.bn(x).add_(x).relu_(), ("bn + add + relu",)),
    "+=": (added_in_place, ("bn + add",)),
    "+= to the branch": (added_in_place_to_the_branch, ("bn + add + relu",)),
    "+= with an alias": (added_in_place_with_an_alias, ONE),
    "*= with an alias": (multiplied_in_place_with_an_alias, ONE),
    "number": (lambda t, x: t.bn(x) + 1, ONE),
    "twice itself": (twice_itself, ONE),
    "residual of a parameter": (lambda t, x: F.relu(t.bias + t.bn(x)), ("bn + add + relu",)),
    "residual, broadcast": (lambda t, x: F.relu(x.mean((2, 3), keepdim=True) + t.bn(x)), ("bn + add + relu",)),
    "output, broadcast": (lambda t, x: x + t.bn(x.mean((2, 3), keepdim=True)), ("bn + add",)),
    "residual comes later": (lambda t, x: t.bn(x) + t.one(x), ONE),
    "residual is changed": (residual_changed_later, ONE),
    "downsampled": (downsampled, ("bn", "bn + add + relu")),
    "relu before the sum": (lambda t, x: t.bn(x).relu() + x, ("bn + relu",)),
    "stem": (lambda t, x: t.pool(t.relu(t.bn(x))), ("bn + relu + max pool",)),
    "stem, pairs": (lambda t, x: t.tuple_pool(t.relu(t.bn(x))), ("bn + relu + max pool",)),
    "stem, F.max_pool2d": (lambda t, x: F.max_pool2d(t.bn(x).relu(), 3, 2, padding=1), ("bn + relu + max pool",)),
    "stem, torch.max_pool2d": (lambda t, x: torch.max_pool2d(t.bn(x).relu(), 3, 2, 1), ("bn + relu + max pool",)),
    "pool, rounded up": (lambda t, x: t.open_pool(t.relu(t.bn(x))), ("bn + relu",)),
    "pool, another stride": (lambda t, x: t.uneven_pool(t.relu(t.bn(x))), ("bn + relu",)),
    "pool, dilated": (lambda t, x: F.max_pool2d(t.bn(x).relu(), 3, 2, 1, dilation=2), ("bn + relu",)),
    "pool without relu": (lambda t, x: t.pool(t.bn(x)), ONE),
    "pool after a sum": (lambda t, x: t.pool(t.relu(t.bn(x) + x)), ("bn + add + relu",)),
    "read by two": (read_by_two, ("bn + relu, forked",)),
    "read by two, alone": (read_by_two_alone, ("bn, forked",)),
    "read by two, broadcast": (read_by_two_broadcast, ("bn + add, forked",)),
    "read by two, one writes": (read_by_two_of_which_one_writes, ONE),
    "read by three": (read_by_three, ("bn + relu",)),
    "blocks": (
        blocks,
        ("bn + relu, forked", "bn + add + relu, forked", "bn + add + relu, forked", "bn + add + relu"),
    ),
    "size": (lambda t, x: t.bn(x).view(x.size(0), 4, -1, 1), ONE),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str) -> None:
    torch.manual_seed(0)
    body, expected = PATTERNS[name]
    fused = assert_equal_to_hooks(randomised(Toy(body)).double(), SIZE)
    assert not fused.trace_error
    assert tuple(site.operators + ", forked" * site.forked for site in fused.sites) == expected


def test_a_layer_without_running_statistics_is_kept() -> None:
    torch.manual_seed(0)
    network = randomised(Toy(lambda toy, x: toy.bn(toy.without_statistics(x)))).double()
    fused = assert_equal_to_hooks(network, SIZE, offsets=[0, 4])
    assert [site.name for site in fused.sites] == ["bn"]


def depends_on_values(toy: Toy, x: Tensor) -> Tensor:
    return toy.relu(toy.bn(x)) if x.sum() > -1e9 else x


def depends_on_shape(toy: Toy, x: Tensor) -> Tensor:
    for _ in range(x.shape[-1] // 3):
        x = toy.bn(toy.one(x))
    return toy.second(x)


@pytest.mark.parametrize("body", [depends_on_values, depends_on_shape])
def test_hooks_serve_a_network_that_cannot_be_traced(body: Callable[[Toy, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    fused = assert_equal_to_hooks(randomised(Toy(body)).double(), SIZE)
    assert fused.table().startswith("torch.fx cannot trace this network (")
    assert {site.operators for site in fused.sites} == {"statistics by hooks"}
    assert not any(module._forward_pre_hooks for module in fused.modules())


def test_hooks_are_removed_if_the_teacher_fails() -> None:
    fused = FusedTeacher(randomised(Toy(depends_on_values)))
    with pytest.raises(RuntimeError, match="channels"):
        fused(torch.zeros(2, 5, SIZE, SIZE), torch.tensor([0, 2], dtype=torch.int32))
    assert not any(module._forward_pre_hooks for module in fused.modules())


def test_the_first_weight_belongs_to_the_first_layer_in_modules_order() -> None:
    torch.manual_seed(0)
    network = randomised(Toy(lambda toy, x: toy.bn(toy.second(x))))
    images, offsets = torch.randn(OFFSETS[-1], 3, SIZE, SIZE), torch.tensor(OFFSETS, dtype=torch.int32)
    weighted, unweighted = (FusedTeacher(network, weight)(images, offsets)[1] for weight in (FIRST_WEIGHT, 1.0))
    assert [site.name for site in FusedTeacher(network).sites] == ["second", "bn"]
    zero = FusedTeacher(network, 0.0)(images, offsets)[1]
    torch.testing.assert_close(weighted - zero, FIRST_WEIGHT * (unweighted - zero))


def test_table_lists_all_sites() -> None:
    fused = FusedTeacher(randomised(Toy(blocks)))
    assert fused.table().splitlines() == [
        "layer   as one operator  channels  forked",
        "bn      bn + relu               4  yes",
        "second  bn + add + relu         4  yes",
        "second  bn + add + relu         4  yes",
        "bn      bn + add + relu         4",
        "4 sites: 3 x bn + add + relu, 1 x bn + relu",
    ]
