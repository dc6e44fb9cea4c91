"""Learning rates, losses and mixing of squeeze and evaluate, compared with their formulas."""

import math

import pytest
import torch
from torch import nn

from delt_hpc.config.schema import Evaluate, Squeeze
from delt_hpc.stages.evaluate import Trial, hard_loss, learning_rate, mixing, soft_loss, use_batch_statistics
from delt_hpc.stages.squeeze import warm_cosine


def test_squeeze_warms_up_and_falls_to_zero() -> None:
    lr = warm_cosine(Squeeze(epochs=25, warmup_epochs=5, lr=0.1))
    assert [lr(0), lr(2.5), lr(5), lr(15)] == pytest.approx([0, 0.05, 0.1, 0.05])
    assert lr(24.99) < 1e-6


def test_the_published_student_rate_ends_at_half() -> None:
    lr = learning_rate(Evaluate(epochs=300, lr=1e-3))
    assert lr(0) == 1e-3
    assert lr(299) / 1e-3 == pytest.approx(0.503, abs=5e-4)
    whole = learning_rate(Evaluate(epochs=300, lr=1e-3, lr_schedule="cosine"))
    assert whole(150) == pytest.approx(5e-4)
    assert whole(299) < 1e-7


@pytest.mark.parametrize(("mix", "given", "used"), [("cutmix", None, 20), ("mixup", None, 4), ("none", 7.0, 7)])
def test_soft_loss_is_the_divergence_to_the_teacher_s_softened_answer(
    mix: str, given: float | None, used: float
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    images, output = torch.randn(4, 3, 2, 2), torch.randn(4, 5)
    loss = soft_loss(network, Evaluate(mix=mix, temperature=given, precision="float32"))(output, images, torch.zeros(4))
    p, q = (network(images) / used).softmax(1), (output / used).softmax(1)
    torch.testing.assert_close(loss, (p * (p.log() - q.log())).sum() / 4)


def test_the_squared_error_of_the_logits_plus_cross_entropy() -> None:
    """Two images: the errors (1, 0) and (0, 3) give 10 / 4; the cross-entropies are log(1 + e) and log(1 + e^-2)."""
    target = torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    output, labels = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 0])
    config = Evaluate(soft_loss="mse_ce", ce_weight=0.5, precision="float32")
    loss = soft_loss(nn.Identity(), config)(output, target, labels)
    assert loss.item() == pytest.approx(2.5 + 0.5 * (math.log(1 + math.e) + math.log(1 + math.exp(-2))) / 2)


def test_a_teacher_that_normalises_by_the_batch_keeps_its_statistics() -> None:
    layer = nn.BatchNorm2d(1).eval()
    assert layer.running_mean is not None
    layer.running_mean.fill_(5.0)
    images = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)  # mean 2, variance 1
    torch.testing.assert_close(layer(images), images - 5, rtol=0, atol=1e-4)
    use_batch_statistics(layer)
    torch.testing.assert_close(layer(images), images - 2, rtol=0, atol=1e-4)
    assert layer.running_mean.item() == 5.0


def test_hard_loss_takes_indices_and_mixtures() -> None:
    output = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 3, 0])
    torch.testing.assert_close(hard_loss(output, output, labels), hard_loss(output, output, torch.eye(4)[labels]))


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixing_is_a_function_of_epoch_and_step(kind: str) -> None:
    mix = mixing(kind, 4, 0, "evaluate", "mix", 1)
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 4
    first = mix(images, labels, 3, 1)
    torch.manual_seed(99)
    again, other = mix(images, labels, 3, 1), mix(images, labels, 3, 2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[1].shape == (6, 4)
    torch.testing.assert_close(first[1].sum(1), torch.ones(6))
    if kind == "cutmix":  # every pixel comes from one of two images, in the label's proportion
        own = (first[0] == images).all(1).float().mean((1, 2))
        share = first[1].gather(1, labels[:, None]).squeeze(1)
        partner = labels.roll(1)
        torch.testing.assert_close(own[labels != partner], share[labels != partner])


def test_no_mixing() -> None:
    assert mixing("none", 4, 0) is None


def test_a_trial_s_name_says_what_it_is() -> None:
    trial = Trial("resnet18", 3407, "random-hard")
    assert (trial.id, trial.images, trial.soft) == ("resnet18-3407-random-hard", "random", False)
