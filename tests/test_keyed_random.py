"""Draws are pure functions of their key: uniform, without collisions, without side effects."""

import hashlib
import itertools
import random

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from delt_hpc.keyed_random import Key, digest, generator, permutation, seeded, torch_seed, uniforms

KEYS: list[tuple[Key, ...]] = [
    (), ("",), ("", ""), (0,), ("0",), (0, 0), (1,), (-1,), ("a",), ("a", 1), ("a", "1"), ("a1",), (1, "a"), ("a, 1",),
    ("a", 1, "b"), ("a", 11), ("a", 1, 1), ("a'", 1), ("a", "", 1), ("'a', 1",), (2**64,), (10**30,),
]  # fmt: skip


def first(n: int, *key: Key) -> list[float]:
    return list(itertools.islice(uniforms(*key), n))


def test_keys_do_not_collide() -> None:
    assert len({digest(*key) for key in KEYS}) == len(KEYS)
    assert len({torch_seed(*key) for key in KEYS}) == len(KEYS)
    assert len({first(1, *key)[0] for key in KEYS}) == len(KEYS)


def test_the_stream_never_changes_between_versions() -> None:
    """SHA-256 of the key's text, four little-endian words of 53 bits each a block."""
    content = hashlib.sha256(b"(7, 'recover', 'block', 0)").digest()
    words = [int.from_bytes(content[i : i + 8], "little") for i in range(0, 32, 8)]
    assert first(4, 7, "recover") == [(word // 2**11) / 2**53 for word in words]
    content = hashlib.sha256(b"(7, 'recover', 'block', 1)").digest()
    assert first(5, 7, "recover")[4] == (int.from_bytes(content[:8], "little") // 2**11) / 2**53


def test_a_numpy_integer_is_the_number_it_is() -> None:
    wide, narrow, text = np.int64(3), np.uint8(3), np.str_("x")
    assert digest(3, "x") == digest(wide, "x") == digest(narrow, text)  # type: ignore[arg-type]


def test_a_float_is_refused_as_a_key() -> None:
    with pytest.raises(TypeError):
        digest(1.5)  # type: ignore[arg-type]


def test_uniforms_are_uniform() -> None:
    drawn = np.array(first(20_000, 0, "uniform"))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    # The first numbers of many keys are uniform too, and neighbouring numbers are uncorrelated.
    heads = np.array([first(1, 0, "uniform", i)[0] for i in range(5_000)])
    assert stats.kstest(heads, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(heads[:-1], heads[1:])[0, 1]) < 0.04


def test_every_call_starts_a_new_stream() -> None:
    one, other = uniforms("a", 1), uniforms("a", 1)
    assert [next(one) for _ in range(9)] == [next(other) for _ in range(9)]


def test_a_permutation_contains_every_index_once() -> None:
    for n in (0, 1, 2, 1000):
        order = permutation(n, "p", n)
        assert sorted(order.tolist()) == list(range(n))
        assert (order == permutation(n, "p", n)).all()
    assert (permutation(1000, "p", 1) != permutation(1000, "p", 2)).any()
    assert permutation(5, "p").dtype == np.int64


def test_permutations_are_equally_likely() -> None:
    orders = [tuple(permutation(3, "p", i).tolist()) for i in range(3_000)]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert stats.chisquare(counts).pvalue > 0.01


def test_a_generator_starts_at_its_key() -> None:
    assert torch.equal(torch.randn(5, generator=generator("g", 1)), torch.randn(5, generator=generator("g", 1)))
    assert not torch.equal(torch.randn(5, generator=generator("g", 1)), torch.randn(5, generator=generator("g", 2)))
    assert all(0 <= torch_seed("s", i) < 2**63 for i in range(100))


def draw() -> tuple[float, float]:
    return torch.rand(()).item(), random.random()


def test_seeded_draws_depend_on_the_key_alone() -> None:
    with seeded("a", 1):
        one = draw()
    draw()
    with seeded("a", 1):
        assert draw() == one
    with seeded("a", 2):
        other = draw()
    assert other[0] != one[0]
    assert other[1] != one[1]


def test_seeded_restores_both_generators() -> None:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    with seeded("a", 1):
        draw()
        with seeded("a", 2):
            draw()
        inside = draw()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    with seeded("a", 1):
        draw()
        assert draw() == inside


def test_seeded_restores_them_after_an_error() -> None:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    with pytest.raises(KeyError), seeded("a", 1):
        draw()
        raise KeyError
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
