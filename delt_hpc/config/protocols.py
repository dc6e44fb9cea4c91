"""The evaluation protocols: one YAML file each in recipes/protocols/, with a preset of the options of `evaluate`."""

import copy
from pathlib import Path
from typing import Any

from delt_hpc.config import methods

FOLDER = Path(__file__).parent / "recipes" / "protocols"


def names() -> tuple[str, ...]:
    """The names of all protocols, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def unknown(name: str) -> str:
    """Why `name` is not a protocol, with a suggestion; empty if it is one."""
    return methods.unknown_preset(name, names(), "protocol")


def values(name: str) -> dict[str, Any]:
    """The preset of the protocol of that name: options of `evaluate`; a new copy at every call.

    Raises:
        UserError: its file has not the keys of a method's (`methods.Method`).
    """
    return copy.deepcopy(methods.read_preset(FOLDER / f"{name}.yaml").values)
