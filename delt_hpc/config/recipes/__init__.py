"""Ready configurations by name.

There is one YAML file per data set. `common` is the configuration; the entries under `ipc`, `networks` and `exceptions`
(keys such as resnet101-ipc10) override it in this order. A file without `networks` is a single recipe.
"""

import copy
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from delt_hpc.errors import UserError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """A row of `delt-hpc recipes`.

    Attributes:
        name: the argument of `load`.
        data: the data set's name.
        title: a description of the data set.
        network: short name of the teacher and student; empty if the data set has a single recipe.
        ipc: images per class.
    """

    name: str
    data: str
    title: str
    network: str
    ipc: int


def names() -> list[Recipe]:
    """Every recipe: data sets with a single recipe first, then the others by data set."""
    found: list[Recipe] = []
    for path in sorted(_FOLDER.glob("*.yaml")):
        content = _read(path)
        if "networks" not in content:
            found.append(Recipe(path.stem, path.stem, content["title"], "", content["common"]["select"]["ipc"]))
        for network in content.get("networks", ()):
            for ipc in content["ipc"]:
                found.append(Recipe(f"{path.stem}-{network}-ipc{ipc}", path.stem, content["title"], network, ipc))
    return sorted(found, key=lambda recipe: bool(recipe.network))


def load(name: str) -> dict[str, Any]:
    """The recipe as a tree of sections; a new copy at every call.

    Raises:
        UserError: there is no such recipe.
    """
    recipe = _find(name)
    content = _read(_FOLDER / f"{recipe.data}.yaml")
    tree: dict[str, Any] = {"name": name, "method": "delt", **copy.deepcopy(content["common"])}
    parts = [
        content.get("ipc", {}).get(recipe.ipc),
        content.get("networks", {}).get(recipe.network),
        content.get("exceptions", {}).get(f"{recipe.network}-ipc{recipe.ipc}"),
    ]
    for part in parts:
        for section, values in (part or {}).items():
            tree[section] = {**tree.get(section, {}), **copy.deepcopy(values)}
    return tree


def text(name: str) -> str:
    """The recipe as YAML text to save, edit and run.

    Raises:
        UserError: there is no such recipe.
    """
    recipe = _find(name)
    network = f"{recipe.network}, " if recipe.network else ""
    head = f"# {recipe.title}; {network}{recipe.ipc} images per class\n# All other options have their defaults.\n"
    return head + yaml.safe_dump(load(name), sort_keys=False, allow_unicode=True)


def _find(name: str) -> Recipe:
    known = {recipe.name: recipe for recipe in names()}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise UserError(
            f"there is no recipe `{name}`",
            expected=" or ".join(close) if close else "a recipe's name, a YAML file or a run folder",
            remedy="`delt-hpc recipes` lists them",
        )
    return known[name]


@cache
def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content
