"""docs/config.md is what the types say."""

from pathlib import Path

import pytest

from delt_hpc.config.reference import markdown
from delt_hpc.config.schema import SECTIONS, Config

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run python -m delt_hpc.config.reference > docs/config.md"


def test_every_option_has_a_row_and_a_meaning() -> None:
    for section in (Config, *SECTIONS.values()):
        for name, field in section.model_fields.items():
            if name not in SECTIONS:
                assert field.description, name
                assert f"| `{name}`" in markdown()


@pytest.mark.parametrize(
    "row",
    [
        "| `seed` | integer >= 0 and \\< 2^63 | `0` |",
        "| `root`* | path or null | `null` | folder of the data set; default: data/\\<name> |",
        "| `mean` | list of number or `measure` or null | `null` |",
        "| `betas` | list of 2: number >= 0 and \\< 1 | `[0.5, 0.9]` |",
        "| `segments`* | integer >= 1 or `auto` | `auto` |",
        "| `compile`* | true or false or `auto` | `auto` |",
        "| `init` | `selected` or `noise` | `selected` |",
    ],
)
def test_a_row(row: str) -> None:
    assert row in markdown()
