"""Selected images against orders written by hand."""

import pytest

from delt_hpc.ranking.selection import choose

STRATEGIES = ("medium", "top", "min", "random")


def paths(n: int) -> list[str]:
    return [f"a/{i:03d}.png" for i in range(n)]


@pytest.mark.parametrize(
    ("n", "order"),
    [
        (1, [0]),
        (2, [1, 0]),
        (3, [2, 1, 0]),
        (4, [2, 3, 1, 0]),
        (5, [3, 4, 2, 1, 0]),
        (6, [3, 4, 2, 5, 1, 0]),
        (7, [4, 5, 3, 6, 2, 1, 0]),
        (10, [5, 6, 4, 7, 3, 8, 2, 9, 1, 0]),
    ],
)
def test_medium_goes_outwards_from_the_middle(n: int, order: list[int]) -> None:
    for ipc in range(1, n + 1):
        assert choose("medium", paths(n), ipc) == order[:ipc]


def test_medium_of_a_class_of_imagenet() -> None:
    assert choose("medium", paths(1300), 10) == [650, 651, 649, 652, 648, 653, 647, 654, 646, 655]
    assert choose("medium", paths(1299), 4) == [650, 651, 649, 652]


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_top_and_min_come_from_the_ends(n: int) -> None:
    best_first = list(range(n))
    for ipc in range(1, n + 1):
        assert choose("top", paths(n), ipc) == best_first[:ipc]
        assert choose("min", paths(n), ipc) == best_first[::-1][:ipc]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n", [1, 2, 5, 6, 51])
def test_all_images_are_each_chosen_once(strategy: str, n: int) -> None:
    assert sorted(choose(strategy, paths(n), n, 0, "select", 3)) == list(range(n))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fewer_images_are_the_first_of_more(strategy: str) -> None:
    whole = choose(strategy, paths(23), 23, 0, "select", 3)
    assert all(choose(strategy, paths(23), ipc, 0, "select", 3) == whole[:ipc] for ipc in range(1, 24))


def test_random_depends_on_the_key_alone() -> None:
    chosen = choose("random", paths(100), 10, 0, "select", 3)
    assert chosen == choose("random", paths(100), 10, 0, "select", 3)
    assert chosen != choose("random", paths(100), 10, 1, "select", 3)
    assert chosen != choose("random", paths(100), 10, 0, "select", 4)


def test_the_random_choice_does_not_depend_on_the_ranking() -> None:
    ranked = paths(50)
    reverse = ranked[::-1]
    chosen = [ranked[i] for i in choose("random", ranked, 7, 0)]
    assert chosen == [reverse[i] for i in choose("random", reverse, 7, 0)]


def test_the_random_order_does_not_depend_on_other_images() -> None:
    ranked = paths(60)
    order = [ranked[i] for i in choose("random", ranked, 60, 0)]
    for left_out in (ranked[:20], ranked[::3], [ranked[5]]):
        rest = [path for path in ranked if path not in left_out]
        kept = [rest[i] for i in choose("random", rest, len(rest), 0)]
        assert kept == [path for path in order if path not in left_out]


def test_every_image_is_equally_likely() -> None:
    ranked = paths(10)
    counts = [0] * 10
    for seed in range(2000):
        counts[choose("random", ranked, 1, seed)[0]] += 1
    assert min(counts) > 140
    assert max(counts) < 260
