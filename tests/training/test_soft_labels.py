"""Encodings of stored soft labels: sizes and values computed by hand, and the stated error of each."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from delt_hpc.config.schema import Evaluate
from delt_hpc.errors import UserError
from delt_hpc.training.soft_labels import Encoding, encoding, written


def of(format_: str, classes: int = 1000, **options: Any) -> Encoding:
    return encoding(Evaluate(labels="stored", label_format=format_, **options), classes)  # type: ignore[arg-type]


@pytest.fixture
def logits() -> Tensor:
    """Logits of 64 images and 1000 classes, some large, some of one value."""
    drawn = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)) * 5
    drawn[0], drawn[1] = 3.0, drawn[1] * 100
    return drawn


@pytest.mark.parametrize(
    ("format_", "options", "size"),
    [
        ("float32", {}, 4000),
        ("float16", {}, 2000),
        ("int8", {}, 1008),
        ("top_k", {"label_top_k": 10}, 42),
        ("top_k", {"label_top_k": 100}, 402),
    ],
)
def test_an_image_takes_this_many_bytes(format_: str, options: dict[str, int], size: int) -> None:
    assert of(format_, **options).row.itemsize == size


def test_many_classes_have_wider_indices() -> None:
    assert of("top_k", 2**16 + 1).row.itemsize == 10 * (2 + 4) + 2
    logits = torch.zeros(1, 2**16 + 1)
    logits[0, -1] = 1.0
    found = of("top_k", 2**16 + 1, label_top_k=1)
    assert found.decode(found.encode(logits)).argmax() == 2**16


def test_float32_is_exact_also_for_bfloat16(logits: Tensor) -> None:
    for given in (logits, logits.bfloat16()):
        assert torch.equal(of("float32").decode(of("float32").encode(given)), given.float())


def test_float16_is_exact_for_logits_computed_in_bfloat16(logits: Tensor) -> None:
    given = logits.bfloat16().float()
    given[given.abs() < 2**-17] = 0
    assert torch.equal(of("float16").decode(of("float16").encode(given)), given)


def test_float16_is_within_its_band(logits: Tensor) -> None:
    error = (of("float16").decode(of("float16").encode(logits)) - logits).abs()
    assert (error <= logits.abs() / 2048 + 2**-25).all()
    assert error.max() > 0


def test_int8_is_within_its_band(logits: Tensor) -> None:
    error = (of("int8").decode(of("int8").encode(logits)) - logits).abs().amax(1)
    span = logits.amax(1) - logits.amin(1)
    assert (error <= span / 510 * (1 + 1e-3)).all()
    assert error[0] == 0
    assert (error[1:] > span[1:] / 1020).all()


def test_int8_by_hand() -> None:
    rows = of("int8", 3).encode(torch.tensor([[-1.0, 0.0, 254.0]]))
    assert rows.tobytes() == np.float32(-1).tobytes() + np.float32(1).tobytes() + bytes([0, 1, 255])


def test_top_k_by_hand() -> None:
    """Temperature 2: the three lowest have exp(t / 2) = 1, 2, 3, so each gets 2."""
    given = torch.tensor([[0.0, 9.0, 2 * math.log(2), 2 * math.log(3), 8.0]])
    found = of("top_k", 5, label_top_k=2, temperature=2.0)
    expected = torch.full((1, 5), 2 * math.log(2))
    expected[0, 1], expected[0, 4] = 9.0, 8.0
    torch.testing.assert_close(found.decode(found.encode(given)), expected, rtol=2**-11, atol=0)
    squared = of("top_k", 5, label_top_k=2, soft_loss="mse_ce")
    mean = (2 * math.log(2) + 2 * math.log(3)) / 3
    expected[0, [0, 2, 3]] = mean
    torch.testing.assert_close(squared.decode(squared.encode(given)), expected, rtol=2**-11, atol=0)


@pytest.mark.parametrize(("mix", "temperature"), [("cutmix", 20.0), ("mixup", 4.0)])
def test_top_k_keeps_the_largest_probabilities(logits: Tensor, mix: str, temperature: float) -> None:
    """Stored logits and the rest have an error of 1/2048 of their size each, divided by T in the probabilities."""
    given = logits[2:]
    found = of("top_k", mix=mix)
    stored = found.decode(found.encode(given))
    before, after = ((t / temperature).softmax(1) for t in (given, stored))
    top = given.topk(10).indices
    bound = 2 * given.abs().amax(1, keepdim=True) / 2048 / temperature
    assert ((after.gather(1, top) / before.gather(1, top)).log().abs() <= bound * 1.01).all()
    rest = stored.scatter(1, top, torch.nan)
    assert (torch.nan_to_num(rest - stored.amin(1, keepdim=True)) == 0).all()


@pytest.mark.parametrize(("format_", "value"), [("float16", 70000.0), ("top_k", 70000.0), ("float32", math.nan)])
def test_logits_that_the_format_cannot_hold_are_an_error(format_: str, value: float) -> None:
    given = torch.zeros(2, 4)
    given[1, 2] = value
    with pytest.raises(UserError, match=f"label_format: {format_}: .* not finite, or too large"):
        of(format_, 4, label_top_k=2).encode(given)
    found = of("float32", 4)
    assert found.decode(found.encode(torch.full((1, 4), 70000.0))).max() == 70000


def test_as_many_logits_as_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluate\.label_top_k: 10: is not less than the number of classes, 10"):
        of("top_k", 10)
    assert of("top_k", 11).top_k == 10


def test_sizes_are_written_for_readers() -> None:
    assert [written(size) for size in (1152, 999_949, 5.7e9, 768e12)] == [
        "1.2 kB",
        "999.9 kB",
        "5.7 GB",
        "768,000.0 GB",
    ]
