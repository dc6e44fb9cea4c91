"""A cluster's profile: what its jobs ask for and how they start. YAML, typed; unknown keys fail."""

import difflib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from delt_hpc.config.load import parse_yaml
from delt_hpc.config.schema import STAGES, Positive, Section, Stage
from delt_hpc.errors import UserError

# A link to slurm/ of the source tree; a real folder in a wheel.
SHIPPED = Path(__file__).parent / "profiles"

Word = Annotated[str, StringConstraints(pattern=r"^\S+$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Argument = Annotated[str, StringConstraints(pattern=r"^-\S.*$")]

Scratch = Annotated[str, StringConstraints(pattern=r'^[^\s"`][^"`\n]*$')]

# A task's interpreter, torch and the run folder must be there well before it is told to stop again.
START_SECONDS = 120


def field(default: Any, description: str) -> Any:
    return Field(default, description=description)


class Resources(Section):
    """What a task asks for."""

    partition: Word | None = field(None, "Slurm partition; default: the site's")
    account: Word | None = field(None, "account that is charged")
    qos: Word | None = field(None, "quality of service")
    constraint: Word | None = field(None, "node features, e.g. h100|h200")
    gpus: Annotated[int, Field(ge=0)] = field(0, "GPUs of a task; one task uses one")
    gpu_flag: Literal["gpus-per-node", "gpus-per-task", "gpus", "gres"] = field(
        "gpus-per-node", "how they are asked for"
    )
    gpu_type: Word | None = field(None, "the site's name for the kind of GPU, e.g. h200")
    cpus: Positive = field(4, "CPUs of a task")
    memory_gib: Positive | None = field(None, "memory of a task, GiB; default: the site's")
    minutes: Positive = field(60, "time limit of a task; one that needs longer is stopped, saved and requeued")
    parallel: Positive = field(64, "tasks of a stage that run at a time, at most")
    classes_per_task: Positive | None = field(
        None, "classes of a task of rank and recover, rounded up to whole batches; default: about four tasks a slot"
    )
    sbatch: list[Argument] = field([], "more arguments of sbatch, e.g. --exclude=n7")
    srun: list[Argument] = field([], "more arguments of srun")


class Apptainer(Section):
    image: Word = field(..., "the .sif file, on a folder that nodes see")
    binds: list[Word] = field([], "more folders to show inside, as Apptainer's --bind takes them")
    options: list[Argument] = field(["--nv"], "more arguments of `apptainer exec`")


class Pyxis(Section):
    image: Word = field(..., "as --container-image takes it")
    mounts: list[Word] = field([], "more folders to show inside, as --container-mounts takes them")


class Profile(Resources):
    """A cluster. A key of `stages` overrides resources for that stage alone."""

    setup: list[str] = field([], "lines of shell before the work, e.g. module load cuda")
    environment: dict[Variable, str] = field({}, "variables of the work's environment")
    python: str | None = field(None, "the interpreter, shell text; default: the one that submits, `python` in an image")
    scratch: Scratch = field("${SLURM_TMPDIR:-${TMPDIR:-/tmp}}", "folder on the node's own disk, shell text")
    apptainer: Apptainer | None = field(None, "run inside this image by Apptainer")
    pyxis: Pyxis | None = field(None, "run inside this image by srun's pyxis plugin")
    wckey: Word | None = field(None, "workload characterisation key; many sites refuse any")
    max_array_size: Positive | None = field(None, "Slurm's MaxArraySize; default: what the cluster says")
    signal_seconds: Positive = field(120, "seconds before the time limit at which a task is told to save and requeue")
    timeouts: Annotated[int, Field(ge=0)] = field(20, "how often a task may reach its time limit before it fails")
    stages: dict[Stage, Resources] = field({}, "overrides, stage by stage")

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, given: Any) -> Any:
        """Each stage's own resources over the profile's."""
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
    def contained(self) -> bool:
        return bool(self.apptainer or self.pyxis)


def load(source: str) -> Profile:
    """The profile of that name (slurm/<name>.yaml), or of that file.

    Raises:
        UserError: there is none, or naming every key that is wrong.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{source}.yaml"
        if source not in names():
            close = difflib.get_close_matches(source, names(), n=1)
            raise UserError(
                f"there is no profile `{source}`",
                where="--cluster",
                expected=f"{close[0] if close else ', '.join(names())}; local or inline; or a YAML file",
            )
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"is no readable YAML: {error}", where=str(path)) from None
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
    """What is wrong with values that are fine alone but not together."""
    if profile.apptainer and profile.pyxis:
        yield "apptainer, pyxis: exclude each other"
    least = -(-(profile.signal_seconds + START_SECONDS) // 60)
    for stage in STAGES:
        minutes = profile.resources(stage).minutes
        if minutes < least:
            key = "minutes" if minutes == profile.minutes else f"stages.{stage}.minutes"
            yield (
                f"{key}: {minutes}: a task would be told to stop before it has begun: at least {least} with "
                f"signal_seconds = {profile.signal_seconds}"
            )


def names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def apptainer_command(container: Apptainer, folders: tuple[str, ...], workdir: str) -> list[str]:
    """`apptainer exec ... IMAGE`, with `folders` shown inside under their own names."""
    binds = [*dict.fromkeys(folders), *container.binds]
    shown = [part for bind in binds for part in ("--bind", bind)]
    return ["apptainer", "exec", *container.options, *shown, "--pwd", workdir, container.image]


def handed_in(profile: Profile) -> tuple[str, ...]:
    """Variables of the script that win over an image's own of the same name."""
    return ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", *profile.environment)


def pyxis_arguments(container: Pyxis, folders: tuple[str, ...], workdir: str, variables: tuple[str, ...]) -> list[str]:
    """srun's arguments for the image, shell text; `folders` and $scratch are shown inside under their own names."""
    mounts = [*(f"{folder}:{folder}" for folder in dict.fromkeys(folders)), *container.mounts]
    return [
        shlex.quote(f"--container-image={container.image}"),
        shlex.quote(f"--container-mounts={','.join(mounts)}") + ',"$scratch:$scratch"',
        shlex.quote(f"--container-workdir={workdir}"),
        f"--container-env={','.join(variables)}",
    ]


# Inside an image: its process leaves its number, by which the script outside reaches it alone.
_TELL_PID = """sh -c 'echo $$ >"$0"; exec "$@"' "$scratch/pid\""""


def interpreter(profile: Profile, folders: tuple[str, ...], workdir: str, own: str) -> str:
    """The interpreter as shell text; `own` is the one to use where neither profile nor image names another."""
    python = profile.python or ("python" if profile.contained else shlex.quote(own))
    if profile.apptainer:
        return f"{shlex.join(apptainer_command(profile.apptainer, folders, workdir))} {_TELL_PID} {python}"
    return python


def _explain(detail: dict[str, Any], where: str) -> str:
    """One problem of pydantic's: file: key: value ... what is allowed."""
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
    return f"{where}: {key or 'the whole'}: {detail.get('input')!r}: {message[:1].lower()}{message[1:]}"


def _section(path: list[str]) -> type[BaseModel]:
    sections: dict[str, type[BaseModel]] = {"apptainer": Apptainer, "pyxis": Pyxis}
    return sections.get(path[0], Resources) if path else Profile
