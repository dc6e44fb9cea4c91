import pytest

from delt_hpc.config.class_range import ClassRange
from delt_hpc.errors import UserError


@pytest.mark.parametrize(("text", "expected"), [("3", (3, 3)), ("0-9", (0, 9)), ("00020-00029", (20, 29))])
def test_parse(text: str, expected: tuple[int, int]) -> None:
    assert ClassRange.parse(text) == ClassRange(*expected)


@pytest.mark.parametrize("text", ["", " ", "a", "5-", "5-2", "-5", "1-2-3", "1,2", "1:2", "0x1", "1.0", "1 - 2", "²"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a class range") as caught:
        ClassRange.parse(text)
    assert caught.value.where == f"--classes {text}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", [(3, 3)]), ("7-9, 0-1", [(0, 1), (7, 9)]), ("2-3,0-1,3-5", [(0, 5)]), ("0-9,2", [(0, 9)])],
)
def test_several_ranges_are_sorted_and_joined(text: str, expected: list[tuple[int, int]]) -> None:
    assert ClassRange.parse_many(text, 10) == tuple(ClassRange(*pair) for pair in expected)


@pytest.mark.parametrize(
    ("text", "message"), [("0-1,", "not a class range"), ("0,10", r"class 10 is beyond the last class\n.*0 to 9")]
)
def test_every_part_is_checked(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassRange.parse_many(text, 10)


@pytest.mark.parametrize("pair", [(2, 1), (-1, 3)])
def test_impossible_ranges_cannot_be_made(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not a class range"):
        ClassRange(*pair)


def test_text_is_that_of_file_names_and_can_be_read_again() -> None:
    assert str(ClassRange(0, 3)) == "00000-00003"
    assert ClassRange.parse(str(ClassRange(7, 123456))) == ClassRange(7, 123456)


def test_indices_and_length() -> None:
    assert (list(ClassRange(2, 4).indices), len(ClassRange(2, 4))) == ([2, 3, 4], 3)


def test_overlap_and_containment() -> None:
    middle = ClassRange(2, 5)
    assert [middle.overlaps(ClassRange(*pair)) for pair in ((0, 1), (0, 2), (3, 4), (5, 9), (6, 9))] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert [middle.contains(ClassRange(*pair)) for pair in ((2, 5), (3, 4), (1, 5), (2, 6))] == [
        True,
        True,
        False,
        False,
    ]
