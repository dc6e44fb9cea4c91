"""Loading a checked `Config` from a recipe, a YAML file or a run folder, plus overrides `--set section.key=value`."""

import difflib
import functools
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from delt_hpc.config import methods, protocols, recipes
from delt_hpc.config.contradictions import contradictions
from delt_hpc.config.schema import SECTIONS, Config
from delt_hpc.errors import UserError

Tree = dict[str, Any]
_MAX_CHARACTERS, _MAX_NODES = 2**20, 50_000  # of a YAML text


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration that `source` names, with `overrides` applied.

    Layers, later ones win: defaults, the presets of the method and of the evaluation protocol, the recipe or file, the
    overrides. If an override names the method or the protocol, that preset wins over the recipe or file.

    Args:
        source: a recipe's name, a YAML file, or a run folder (its stored configuration).
        overrides: strings `section.key=value`, the value in YAML.

    Raises:
        UserError: names the file, key, value and what is allowed, for all problems at once.
    """
    tree, where = _read(source)
    origin: dict[str, str] = {}
    given = _parse_overrides(overrides, origin)
    layers = [
        {} if "method" in given else _preset(tree),
        {} if _protocol(given) else _protocol_preset(tree),
        tree,
        _preset(given),
        _protocol_preset(given),
        given,
    ]
    return parse_config(functools.reduce(merge, layers), where, origin)


def _preset(tree: Tree) -> Tree:
    """The preset of the method that `tree` names; empty if it names none."""
    method = tree.get("method")
    return methods.load(method).values if method in methods.names() else {}


def _protocol(tree: Tree) -> Any:
    section = tree.get("evaluate")
    return section.get("protocol") if isinstance(section, dict) else None


def _protocol_preset(tree: Tree) -> Tree:
    """The preset of the evaluation protocol that `tree` names; empty if it names none."""
    protocol = _protocol(tree)
    return {"evaluate": protocols.values(protocol)} if protocol in protocols.names() else {}


def parse_config(tree: Tree, where: str, origin: dict[str, str] | None = None) -> Config:
    """Validate `tree`.

    Args:
        where: the source that error messages name.
        origin: for keys that come from elsewhere, their source.

    Raises:
        UserError: lists all problems.
    """
    try:
        config = Config.model_validate(_with_paths(tree))
    except ValidationError as error:
        problems = [_explain(dict(detail), where, origin or {}) for detail in error.errors()]
        raise UserError("\n".join(problems)) from None
    problems = [f"{_place(key, where, origin or {})}: {key}: {text}" for key, text in contradictions(config)]
    if problems:
        raise UserError("\n".join(problems))
    return config


def dump_config(config: Config) -> str:
    """The configuration as YAML, with every option written out."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def merge(below: Tree, above: Tree) -> Tree:
    """Merge two trees section by section; values of `above` win."""
    merged = dict(below)
    for key, body in above.items():
        under = merged.get(key)
        if isinstance(under, dict) and body is None:
            continue
        merged[key] = merge(under, body) if isinstance(under, dict) and isinstance(body, dict) else body
    return merged


class _Loader(yaml.SafeLoader):
    """SafeLoader that rejects duplicate keys and reads 1e-3 as a number, as YAML 1.2 does.

    It also rejects documents that are far larger than a configuration, with all aliases written out.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > _MAX_NODES:
            raise yaml.constructor.ConstructorError(
                None, None, f"more than {_MAX_NODES} values, or an alias inside its own anchor", node.start_mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # SafeLoader itself raises the error
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` is given twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of nodes below and with `node`, aliases written out; too many if it contains itself."""
    if id(node) not in known:
        known[id(node)] = _MAX_NODES + 1  # found again below itself
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = chain.from_iterable(below) if isinstance(node, yaml.MappingNode) else below
        known[id(node)] = 1 + sum(_size(inner, known) for inner in flat)
    return known[id(node)]


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes strings that `_Loader` would read as numbers."""


_EXPONENT = re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        yaml.YAMLError: the text is not valid YAML, or has duplicate keys.
        ValueError: an invalid scalar, e.g. the date 2024-13-45; or the text is too long or nested too deeply.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"more than {_MAX_CHARACTERS} characters")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _read(source: str) -> tuple[Tree, str]:
    path = Path(source)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=f"{source[:80]}...") from None
    if is_folder:
        path = path / "config.yaml"
        if not path.exists():
            raise UserError(
                "is not a run folder: it contains no config.yaml",
                where=source,
                expected="a recipe's name, a YAML file or the folder of an earlier run",
            )
    looks_like_file = path.suffix in (".yaml", ".yml") or path.exists()
    if not looks_like_file:
        return recipes.load(source), f"recipe {source}"
    if path.exists() and not path.is_file():
        raise UserError("is not a regular file", where=source, expected="a YAML file")
    try:
        if path.stat().st_size > _MAX_CHARACTERS:
            raise ValueError(f"more than {_MAX_CHARACTERS} bytes")
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "there is no such file", where=source, remedy="give a YAML file or a name that `delt-hpc recipes` lists"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"is not valid YAML: {error}", where=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(
            f"contains a {type(tree).__name__}, not a configuration",
            where=str(path),
            expected="sections such as `recover:` with keys below them",
        )
    return tree, str(path)


def _parse_overrides(overrides: Sequence[str], origin: dict[str, str]) -> Tree:
    tree: Tree = {}
    for text in overrides:
        key, sign, raw = text.partition("=")
        key = key.strip()
        if not sign or not key:
            raise UserError(
                "is not an override", where=f"--set {text}", expected="section.key=value, e.g. --set recover.lr=0.1"
            )
        try:
            body = parse_yaml(raw)
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"the value is not valid YAML: {error}", where=f"--set {text}") from None
        parts = key.split(".")
        for part in reversed(parts):
            body = {part: body}
        tree = merge(tree, body)
        origin[key] = f"--set {text}"
    return tree


def _with_paths(tree: Tree) -> Tree:
    """Convert strings to paths where an option is a path: YAML has no paths, and validation is strict."""
    converted = {key: dict(body) if isinstance(body, dict) else body for key, body in tree.items()}
    for section, model in SECTIONS.items():
        body = converted.get(section)
        if not isinstance(body, dict):
            continue
        for name, field in model.model_fields.items():
            if Path in get_args(field.annotation) and isinstance(body.get(name), str):
                body[name] = Path(body[name]).expanduser()
    return converted


def _place(key: str, where: str, origin: dict[str, str]) -> str:
    """The last override that set the key, its section or a part of it; `where` if there is none."""
    related = (
        text
        for given, text in reversed(origin.items())
        if f"{given}.".startswith(f"{key}.") or f"{key}.".startswith(f"{given}.")
    )
    return next(related, where)


# Replacements for messages of pydantic that only a Python programmer understands.
_MESSAGES = {
    "string_pattern_mismatch": "expected letters, digits, `.`, `_` and `-`, starting with a letter or digit",
    "string_type": "should be a string (put it in quotes if it looks like a number)",
    "is_instance_of": "should be a path",
    "model_type": "should be a section (keys with values)",
}


def _explain(detail: dict[str, Any], where: str, origin: dict[str, str]) -> str:
    """One validation error of pydantic as `source: key: value: what is allowed`."""
    location = [part for part in detail["loc"] if isinstance(part, str)]
    model: type[BaseModel] = Config
    path: list[str] = []
    for part in location:
        if part not in model.model_fields:
            if detail["type"] == "extra_forbidden":
                path.append(part)
            break
        path.append(part)
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    key = ".".join(path)
    place = _place(key, where, origin)
    if detail["type"] == "extra_forbidden":
        known = list(model.model_fields)
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        return f"{place}: {key}: unknown key; {hint}allowed here: {', '.join(known)}"
    message = _MESSAGES.get(detail["type"], detail["msg"][0].lower() + detail["msg"][1:])
    shown = detail.get("input")
    return f"{place}: {key or 'the configuration'}: {shown!r}: {message.removeprefix('input ')}"
