"""Cluster profiles: the resources that jobs request and how they start. Typed YAML; unknown keys are errors."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from delt_hpc.config.load import parse_yaml
from delt_hpc.config.schema import STAGES, Positive, Section, Stage
from delt_hpc.errors import UserError

# In the source tree a symbolic link to slurm/, in a wheel a folder.
SHIPPED = Path(__file__).parent / "profiles"

Word = Annotated[str, StringConstraints(pattern=r"^\S+$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Argument = Annotated[str, StringConstraints(pattern=r"^-\S.*$")]

Scratch = Annotated[str, StringConstraints(pattern=r'^[^\s"`][^"`\n]*$')]

# Time that a task needs to start Python and load its state, before its stop signal may come.
START_SECONDS = 120


def field(default: Any, description: str) -> Any:
    return Field(default, description=description)


class Resources(Section):
    """The resources that a task requests."""

    partition: Word | None = field(None, "Slurm partition; default: the site's default")
    account: Word | None = field(None, "account to charge")
    qos: Word | None = field(None, "quality of service")
    constraint: Word | None = field(None, "node features, e.g. h100|h200")
    gpus: Annotated[int, Field(ge=0)] = field(0, "GPUs of a task; a task uses at most one")
    gpu_flag: Literal["gpus-per-node", "gpus-per-task", "gpus", "gres"] = field(
        "gpus-per-node", "sbatch option that requests them"
    )
    gpu_type: Word | None = field(None, "the site's name of the GPU type, e.g. h200")
    cpus: Positive = field(4, "CPUs of a task")
    memory_gib: Positive | None = field(None, "memory of a task in GiB; default: the site's default")
    minutes: Positive = field(60, "time limit of a task; one that needs more is requeued and resumes")
    parallel: Positive = field(64, "the largest number of tasks of a stage that run at the same time")
    classes_per_task: Positive | None = field(
        None, "classes of a rank or recover task, in whole batches; default: see `plan.width`"
    )
    sbatch: list[Argument] = field([], "further arguments of sbatch, e.g. --exclude=n7")
    srun: list[Argument] = field([], "further arguments of srun")


class Apptainer(Section):
    program: Literal["apptainer", "singularity"] = field("apptainer", "the program that runs the image")
    image: Word = field(..., "the .sif file, on a file system that nodes share")
    binds: list[Word] = field([], "further folders to mount, in the syntax of Apptainer's --bind")
    options: list[Argument] = field(["--nv"], "further arguments of `apptainer exec`")


class Pyxis(Section):
    image: Word = field(..., "the image, in the syntax of --container-image")
    mounts: list[Word] = field([], "further folders to mount, in the syntax of --container-mounts")


class Profile(Resources):
    """A cluster. `stages` overrides resources for single stages."""

    setup: list[str] = field([], "shell lines to run first, e.g. module load cuda")
    environment: dict[Variable, str] = field({}, "environment variables of the task")
    python: str | None = field(
        None, "shell text that starts Python; default: the Python that submits, or `python` in an image"
    )
    scratch: Scratch = field("${SLURM_TMPDIR:-${TMPDIR:-/tmp}}", "folder on a local disk of the node, shell text")
    apptainer: Apptainer | None = field(None, "run tasks in this image with Apptainer")
    pyxis: Pyxis | None = field(None, "run tasks in this image with srun's pyxis plugin")
    wckey: Word | None = field(None, "workload characterisation key; many sites do not accept one")
    max_array_size: Positive | None = field(None, "Slurm's MaxArraySize; default: as the cluster reports it")
    signal_seconds: Positive = field(
        120, "seconds before its time limit at which a task must save its state and is requeued"
    )
    timeouts: Annotated[int, Field(ge=0)] = field(20, "times that a task may reach its time limit before it fails")
    retries: Annotated[int, Field(ge=0)] = field(
        3, "times that a task is started again after its GPU was lost, and after it was killed, e.g. for its memory"
    )
    dependency: Literal["afterok", "afterany"] = field(
        "afterok", "afterok: a failed task cancels the stages that need its result; afterany: they start and say so"
    )
    stages: dict[Stage, Resources] = field({}, "resources of single stages")

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, given: Any) -> Any:
        """Fill in the profile's resources where a stage does not override them."""
        if not isinstance(given, dict) or not isinstance(given.get("stages"), dict):
            return given
        base = {key: given[key] for key in Resources.model_fields if key in given}
        stages = {
            stage: {**base, **(own or {})} if isinstance(own, dict | None) else own
            for stage, own in given["stages"].items()
        }
        return {**given, "stages": stages}

    def resources(self, stage: Stage) -> Resources:
        return self.stages.get(stage, self)

    @property
    def in_container(self) -> bool:
        return bool(self.apptainer or self.pyxis)


def own_folder() -> Path:
    """The folder of the user's own profiles: ~/.config/delt-hpc, or below XDG_CONFIG_HOME."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "delt-hpc"


def chosen(given: str | None, otherwise: str | None = None) -> str:
    """The profile that a command uses: the given one, else the user's own `default`, else `otherwise`.

    Raises:
        UserError: there is none of these.
    """
    own = own_folder() / "default.yaml"
    name = given or ("default" if own.exists() else otherwise)
    if not name:
        raise UserError(
            "no cluster is named",
            where="--cluster",
            expected=f"a profile: {', '.join(names())}; local; or a YAML file",
            remedy=f"give --cluster, set DELT_CLUSTER, or write {own}",
        )
    return name


def load(source: str) -> Profile:
    """Read the user's own profile of that name, the shipped one (slurm/<name>.yaml), or that YAML file.

    Raises:
        UserError: it does not exist or has errors; all wrong keys are named.
    """
    path, own = Path(source), own_folder() / f"{source}.yaml"
    if own.is_file():
        path = own
    elif path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{source}.yaml"
        if source not in names():
            close = difflib.get_close_matches(source, names(), n=1)
            raise UserError(
                f"there is no profile `{source}`",
                where="--cluster",
                expected=f"{close[0] if close else ', '.join(names())}; local; or a YAML file",
            )
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"not valid YAML: {error}", where=str(path)) from None
    return parse(tree if tree is not None else {}, str(path))


def parse(tree: object, where: str) -> Profile:
    """`tree` as a checked profile; `where` names it in messages."""
    try:
        profile = Profile.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(dict(detail), where) for detail in error.errors())) from None
    problems = [f"{where}: {problem}" for problem in dict.fromkeys(_contradictions(profile))]
    if problems:
        raise UserError("\n".join(problems))
    return profile


def _contradictions(profile: Profile) -> Iterator[str]:
    """Values that are valid by themselves but not together."""
    if profile.apptainer and profile.pyxis:
        yield "apptainer, pyxis: only one of them may be given"
    hidden = {"--cleanenv", "-e", "--contain-all", "--containall", "-C"}
    if profile.apptainer and hidden & set(profile.apptainer.options):
        yield "apptainer.options: --cleanenv and --containall hide the variables of the job from its task"
    least = -(-(profile.signal_seconds + START_SECONDS) // 60)
    for stage in STAGES:
        minutes = profile.resources(stage).minutes
        if minutes < least:
            key = "minutes" if minutes == profile.minutes else f"stages.{stage}.minutes"
            yield (
                f"{key}: {minutes}: too short to start a task before its stop signal comes; at least {least} with "
                f"signal_seconds = {profile.signal_seconds}"
            )


def names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _explain(detail: dict[str, Any], where: str) -> str:
    """The text of one validation error of pydantic."""
    path = [part for part in detail["loc"] if isinstance(part, str) and part != "[key]"]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = list(_section(path[:-1]).model_fields)
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        return f"{where}: {key}: unknown key; {hint}allowed here: {', '.join(known)}"
    if path[:1] == ["stages"] and len(path) == 2 and path[1] not in STAGES:
        return f"{where}: {key}: no such stage; allowed here: {', '.join(STAGES)}"
    message = str(detail["msg"])
    return f"{where}: {key or 'the file'}: {detail.get('input')!r}: {message[:1].lower()}{message[1:]}"


def _section(path: list[str]) -> type[BaseModel]:
    sections: dict[str, type[BaseModel]] = {"apptainer": Apptainer, "pyxis": Pyxis}
    return sections.get(path[0], Resources) if path else Profile
