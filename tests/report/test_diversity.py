import math

import pytest
import torch
from torch import Tensor, nn

from delt_hpc.errors import UserError
from delt_hpc.report.diversity import mean_cosine_to_centroid, penultimate

CPU = torch.device("cpu")


def test_two_orthogonal_features_lie_45_degrees_from_their_centroid() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert mean_cosine_to_centroid(features, [0, 0]) == pytest.approx(math.cos(math.pi / 4))


def test_classes_count_alike_whatever_their_size_and_order() -> None:
    # class 7: 1/sqrt 2 for both; class 3: three equal features, 1
    features = torch.tensor([[2.0, 2.0], [1.0, 0.0], [2.0, 2.0], [0.0, 1.0], [2.0, 2.0]])
    labels = torch.tensor([3, 7, 3, 7, 3])
    assert mean_cosine_to_centroid(features, labels) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_long_features_draw_the_centroid_to_themselves() -> None:
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0]])  # centroid along (3, 1)
    assert mean_cosine_to_centroid(features, [0, 0]) == pytest.approx((3 / math.sqrt(10) + 1 / math.sqrt(10)) / 2)


def test_a_class_of_one_image_counts_one() -> None:
    assert mean_cosine_to_centroid(torch.tensor([[0.3, -2.0]]), [5]) == pytest.approx(1.0)


@pytest.mark.parametrize(("features", "labels"), [(torch.empty(0, 4), []), (torch.ones(2, 4), [0])])
def test_features_and_labels_must_match(features: Tensor, labels: list[int]) -> None:
    with pytest.raises(ValueError, match="labels"):
        mean_cosine_to_centroid(features, labels)


class Network(nn.Module):
    """Two linear layers, and features of two dimensions before the last."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Unflatten(1, (3, 2)))
        self.head = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def test_penultimate_features_are_what_the_last_linear_layer_receives() -> None:
    network = Network().eval()
    images = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    features = penultimate(network, images.split([3, 2]), CPU)
    torch.testing.assert_close(features, network.body(images).flatten(1).detach())
    assert not features.requires_grad


def test_the_network_is_left_as_it_was() -> None:
    network = Network()

    class BrokenError(Exception):
        pass

    def batches() -> object:
        yield torch.zeros(1, 3, 2, 2)
        raise BrokenError

    with pytest.raises(BrokenError):
        penultimate(network, batches(), CPU)  # type: ignore[arg-type]
    assert not network.head._forward_pre_hooks


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(UserError, match="no linear layer"):
        penultimate(nn.Sequential(nn.Conv2d(3, 2, 1)), [torch.zeros(1, 3, 2, 2)], CPU)


def test_a_network_that_does_not_use_its_last_linear_layer_is_refused() -> None:
    network = Network()
    network.spare = nn.Linear(2, 2)
    with pytest.raises(UserError, match="does not use"):
        penultimate(network, [torch.zeros(1, 3, 2, 2)], CPU)
