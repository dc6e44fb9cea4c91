"""One line of `doctor`."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["OK", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    level: Level
    text: str
    remedy: str = ""
