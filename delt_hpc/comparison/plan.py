"""The runs of a comparison: every method at every point of a sweep, and the real images beside them."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from delt_hpc.config import methods
from delt_hpc.config.load import load_config, parse_yaml
from delt_hpc.config.schema import SECTIONS, Arm, Config, Recover, Stage, is_free
from delt_hpc.errors import UserError, some

REAL = "real"  # label of the run that evaluates real images
BASELINES = ("random", "selected")
# ARS of DD-Ranking needs the accuracies without any augmentation.
PLAIN = (
    *("evaluate.mix=none", "evaluate.randaugment=false", "evaluate.crop_scale=[1.0, 1.0]"),
    *("evaluate.shuffle_patches=1", "evaluate.mirror=false"),
)
# What all runs at a point have in common, whatever the preset of a method says; it may score other candidates.
_COMMON = ("seed", "data", "teacher", "squeeze", "evaluate", "machine")
_DISTILLED: list[Arm] = ["distilled-soft", "distilled-hard"]
_REAL: list[Arm] = ["random-soft", "selected-soft", "random-hard", "selected-hard"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Entry:
    """One run of a comparison.

    Attributes:
        name: its folder, e.g. delt-recover.lr=0.05.
        label: the method, `real` for random and selected real images, or the name of an external set.
        point: the swept values, e.g. ("recover.lr=0.05",).
        plain: evaluated without augmentation.
        external: folder of a distilled set that another tool made.
    """

    name: str
    label: str
    point: tuple[str, ...]
    plain: bool
    config: Config
    external: Path | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that this run needs; no report of real and foreign images, which would describe a recovery."""
        skipped: tuple[Stage, ...] = ()
        if self.label == REAL:
            skipped = ("recover", "aggregate", "report")
        elif self.external:
            skipped = ("rank", "select", "recover", "aggregate", "report")
        return tuple(stage for stage in self.config.stages if stage not in skipped)


def entries(
    source: str,
    overrides: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    sweep: Sequence[str] = (),
    external: Mapping[str, Path] | None = None,
    *,
    without_augmentation: bool = False,
) -> list[Entry]:
    """The runs, in the order in which they are made: the real images of a point before its methods.

    Args:
        source: a recipe's name, a YAML file, or a run folder.
        overrides: strings `section.key=value`.
        methods: names of methods; that of the configuration unless given. `random` and `selected` are always compared.
        seeds: number of seeds of the students; those of the configuration unless given.
        sweep: strings `section.key=value1,value2`; all their combinations are compared.
        external: folders of other tools' distilled sets, by name.
        without_augmentation: also evaluate without augmentation.

    Raises:
        UserError: a configuration, a method, a sweep or a name is wrong.
    """
    names = _methods(source, overrides, methods)
    sets = dict(external or {})
    _check_names(names, sets)
    found: dict[str, Entry] = {}
    variants = ((), PLAIN) if without_augmentation else ((),)
    for point, variant in itertools.product(itertools.product(*map(_values, sweep)), variants):
        # Real images and external sets do not depend on recovery, so its options are no part of their identity.
        shared = tuple(text for text in point if not text.startswith("recover."))
        base = _base(source, [*overrides, *shared, *variant], seeds)
        found.setdefault((one := _entry(REAL, shared, base, base, plain=bool(variant))).name, one)
        for name, folder in sets.items():
            one = _entry(name, shared, base, base, plain=bool(variant), external=folder)
            found.setdefault(one.name, one)
        for method in names:
            chosen = [] if method == base.method else [f"method={method}"]
            own = load_config(source, [*chosen, *overrides, *point, *variant])
            one = _entry(method, point, own, base, plain=bool(variant))
            if one.name in found:
                raise UserError("stands for two runs", where=one.name, remedy="give each method and value once")
            found[one.name] = one
    return list(found.values())


def _methods(source: str, overrides: Sequence[str], chosen: Sequence[str] | None) -> list[str]:
    """The methods to run: without those that are rows in any case."""
    if chosen is None:
        return [load_config(source, overrides).method]
    named = [text for text in overrides if text.partition("=")[0].strip() == "method"]
    if named:
        raise UserError("contradicts --methods", where=f"--set {named[0]}", remedy="leave it out")
    wanted = [method for method in chosen if method not in BASELINES]
    problems = [f"{method}: {problem}" for method in wanted if (problem := methods.unknown(method))]
    if problems:
        raise UserError("\n".join(problems), where=f"--methods {','.join(chosen)}")
    return wanted


def _check_names(names: Sequence[str], sets: Mapping[str, Path]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{some(twice)} more than once", where="--methods")
    taken = sorted(sets.keys() & {*names, *BASELINES, REAL})
    wrong = taken or [name for name in sets if not _NAME.fullmatch(name)]
    if wrong:
        raise UserError(
            "is taken by a method" if taken else "cannot name a folder",
            where=f"--external {wrong[0]}",
            expected="letters, digits, `.`, `_` and `-`; not the name of a compared method, random, selected or real",
        )
    absent = [f"{name}={folder}" for name, folder in sets.items() if not folder.exists()]
    if absent:
        raise UserError("there is no such folder or file", where=f"--external {absent[0]}", expected="NAME=FOLDER")


def _values(text: str) -> list[str]:
    """`key=v1,v2` as [`key=v1`, `key=v2`]; a comma inside brackets separates nothing.

    Raises:
        UserError: the text is not of this form, or the option changes no result.
    """
    where, (key, sign, listed) = f"--sweep {text}", text.partition("=")
    expected = "section.key=value1,value2, e.g. --sweep recover.lr=0.05,0.25"
    try:
        values = parse_yaml(f"[{listed}]") if sign else []
    except (yaml.YAMLError, ValueError):
        values = []
    if not isinstance(values, list) or not values:
        raise UserError("is not a sweep", where=where, expected=expected)
    section, _, option = key.partition(".")
    if key in ("method", "name") or (section in SECTIONS and not option):
        raise UserError("cannot be swept", where=where, expected=expected, remedy="--methods compares methods")
    field = SECTIONS[section].model_fields.get(option) if section in SECTIONS else None
    if field is not None and is_free(field) and key != "evaluate.protocol":
        raise UserError("changes no result, so there is nothing to compare", where=where, remedy="use --set")
    return [f"{key}={_text(value)}" for value in values]


def _text(value: Any) -> str:
    """The value in YAML, a string without quotes where it needs none."""
    return value if isinstance(value, str) and parse_yaml(value) == value else json.dumps(value)


def _base(source: str, overrides: Sequence[str], seeds: int | None) -> Config:
    """The configuration with the default recovery, and with so many seeds of students."""
    config = load_config(source, overrides).model_copy(update={"recover": Recover()})
    given = config.evaluate.seeds
    if seeds is not None:
        more = (seed for seed in itertools.count(1) if seed not in given)
        given = [*given[:seeds], *itertools.islice(more, max(0, seeds - len(given)))]
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"seeds": given})})


def _entry(
    label: str, point: Sequence[str], own: Config, base: Config, *, plain: bool, external: Path | None = None
) -> Entry:
    """The run of a method's own configuration under the teacher and the protocol of the base."""
    arms = [*_REAL, *(arm for arm in base.evaluate.arms if arm == "full-hard")] if label == REAL else _DISTILLED
    if plain:
        arms = [arm for arm in arms if arm.endswith("-soft")]
    name = "-".join([label, *(re.sub(r"[^A-Za-z0-9._=-]+", "_", text) for text in point), *(["plain"] * plain)])
    common: dict[str, Any] = {key: getattr(base, key) for key in _COMMON}
    common["evaluate"] = base.evaluate.model_copy(update={"arms": arms})
    common["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{base.name}-{name}")
    return Entry(name, label, tuple(point), plain, own.model_copy(update=common), external)
