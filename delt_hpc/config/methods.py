"""The methods: one YAML file each in recipes/methods/, with a preset of configuration values and the citation."""

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from delt_hpc.errors import UserError

FOLDER = Path(__file__).parent / "recipes" / "methods"
_KEYS = {"title", "paper", "sentence", "values"}


@dataclass(frozen=True)
class Method:
    """A method as its file describes it.

    Attributes:
        title: the name for readers, e.g. SRe2L.
        paper: its arXiv id; None if it was not published there.
        sentence: what it does, with the citation, for the report.
        values: the preset: sections with the options that differ from the defaults.
    """

    title: str
    paper: str | None
    sentence: str
    values: dict[str, Any]

    @property
    def citation(self) -> str:
        return f"{self.title} (arXiv {self.paper})" if self.paper else self.title


def names() -> tuple[str, ...]:
    """The names of all methods, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def unknown(name: str) -> str:
    """Why `name` is not a method, with a suggestion; empty if it is one."""
    return unknown_preset(name, names(), "method")


def load(name: str) -> Method:
    """The method of that name; a new copy at every call.

    Raises:
        UserError: there is no such method, or its file is not as described in `Method`.
    """
    problem = unknown(name)
    if problem:
        raise UserError(problem, where=f"method: {name}")
    return copy.deepcopy(read_preset(FOLDER / f"{name}.yaml"))


def unknown_preset(name: str, known: Sequence[str], noun: str) -> str:
    """Why `name` is not one of the known presets, with a suggestion; empty if it is one."""
    if name in known:
        return ""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"there is no such {noun}; {hint}allowed here: {', '.join(known)}"


@cache
def read_preset(path: Path) -> Method:
    """The preset in a file.

    Raises:
        UserError: the file is not as described in `Method`.
    """
    expected = "title and sentence (strings), values (sections of options), and optionally paper (a string)"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"is not valid YAML: {error}", where=str(path), expected=expected) from None
    if not isinstance(content, dict) or not _KEYS - {"paper"} <= content.keys() <= _KEYS:
        raise UserError("does not describe a method", where=str(path), expected=expected)
    method = Method(content["title"], content.get("paper"), content["sentence"], content["values"])
    texts = [method.title, method.sentence, method.paper or ""]
    if not all(isinstance(text, str) for text in texts) or not isinstance(method.values, dict):
        raise UserError("does not describe a method", where=str(path), expected=expected)
    return method
