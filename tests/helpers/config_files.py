"""Configurations from YAML text, and the messages that refuse them."""

from pathlib import Path

import pytest

from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config
from delt_hpc.errors import UserError


def given(folder: Path, text: str, *overrides: str) -> Config:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(str(file), overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    """The error message; each of its lines must begin with the file or the override that it is about."""
    with pytest.raises(UserError) as caught:
        given(folder, text, *overrides)
    message = str(caught.value)
    assert all(line.startswith((str(folder / "mine.yaml"), "--set ", " ")) for line in message.splitlines()), message
    return message.replace(str(folder / "mine.yaml"), "FILE")
