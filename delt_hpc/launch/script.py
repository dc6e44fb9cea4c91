"""The sbatch script of a job. One pure function of the job and the profile; what Slurm gets is just this text."""

import shlex
from dataclasses import dataclass

from delt_hpc.config.schema import Stage
from delt_hpc.launch.profile import Profile, Resources, handed_in, pyxis_arguments

# A task in a container asks for its requeueing by this file; the script, which runs on the host, does it.
REQUEST = "requeue"
# What a run's tasks start from, so that not each of them compiles everything anew.
COMPILED = "compile-cache"


@dataclass(frozen=True)
class Script:
    """What a script says beside the profile.

    Attributes:
        title: first comment, one line each.
        name: the job's.
        command: shell text that srun starts.
        signal: what Slurm sends to the command before the time limit.
        output: pattern of the file that takes what the script writes.
        workdir: folder the job works in; empty: where sbatch is called.
        array: number of elements; None for a job without elements.
        parallel: elements that run at a time.
        after: ids of jobs that must have ended, however they did.
        folders: what the work reads and writes, to be shown inside a container.
        before: first lines of shell.
        compiled: shell text, the folder of kernels that were compiled before; it need not exist.
        after_command: lines of shell that find its exit code in `rc`.
    """

    stage: Stage
    title: tuple[str, ...]
    name: str
    command: str
    signal: str
    output: str
    workdir: str = ""
    array: int | None = None
    parallel: int = 1
    after: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    compiled: str = ""
    after_command: tuple[str, ...] = ()


def text(script: Script, profile: Profile) -> str:
    """The script as sbatch takes it."""
    wanted = profile.resources(script.stage)
    options = [*_identity(script, profile, wanted), *_resources(wanted), *_life(script, profile), *wanted.sbatch]
    blocks = [
        ["#!/bin/bash", *(f"# {line}".rstrip() for line in script.title)],
        [f"#SBATCH {option}" for option in options],
        list(script.before),
        list(profile.setup),
        _caches(script, profile),
        [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()],
        _into_image(profile),
        [
            *_work(f"{_srun(script, profile, wanted)} {script.command}", script, profile),
            *script.after_command,
            "exit $rc",
        ],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _option(name: str, value: object) -> str:
    """As sbatch reads it: a quoted value may hold blanks."""
    return f"--{name}={shlex.quote(str(value))}"


def _identity(script: Script, profile: Profile, wanted: Resources) -> list[str]:
    given = {
        "job-name": script.name,
        "partition": wanted.partition,
        "account": wanted.account,
        "qos": wanted.qos,
        "constraint": wanted.constraint,
        "wckey": profile.wckey,
    }
    return [_option(name, value) for name, value in given.items() if value is not None]


def _resources(wanted: Resources) -> list[str]:
    options = ["--nodes=1", "--ntasks=1", f"--cpus-per-task={wanted.cpus}"]
    if wanted.memory_gib:
        options.append(f"--mem={wanted.memory_gib}G")
    if wanted.gpus:
        kind = [wanted.gpu_type] if wanted.gpu_type else []
        parts = ["gpu", *kind] if wanted.gpu_flag == "gres" else kind
        options.append(_option(wanted.gpu_flag, ":".join([*parts, str(wanted.gpus)])))
    return [*options, f"--time={wanted.minutes}"]


def _life(script: Script, profile: Profile) -> list[str]:
    to_script = "B:" if profile.apptainer else ""
    options = [f"--signal={to_script}{script.signal}@{profile.signal_seconds}", "--requeue"]
    if script.array is not None:
        options.append(f"--array=0-{script.array - 1}%{script.parallel}")
    if script.after:
        # Whatever became of them: the task itself checks that what it needs is there.
        options.append(f"--dependency=afterany:{':'.join(script.after)}")
    if script.workdir:
        options.append(_option("chdir", script.workdir))
    return [*options, _option("output", script.output), "--open-mode=append"]


def _caches(script: Script, profile: Profile) -> list[str]:
    """Caches of compiled kernels, a task's own and on the node's own disk: shared over a network they break."""
    lines = [
        "# Kernels compiled here: on the node's own disk, gone with the task.",
        f'scratch=$(mktemp -d "{profile.scratch}/delt-hpc-$SLURM_JOB_ID.XXXXXX") || exit 1',
        """trap 'rm -rf "$scratch"' EXIT""",
        'export TRITON_CACHE_DIR="$scratch/triton" TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"',
    ]
    if script.compiled:
        lines.append(f"export DELT_COMPILE_CACHE={script.compiled}")
    if profile.apptainer:
        lines.append('export APPTAINER_BIND="$scratch${APPTAINER_BIND:+,$APPTAINER_BIND}"')
    return lines


def _into_image(profile: Profile) -> list[str]:
    """Apptainer lets an image's own variables win over the host's of the same name, but not over these."""
    if not profile.apptainer:
        return []
    return [f'export APPTAINERENV_{name}="${name}"' for name in handed_in(profile)]


def _work(command: str, script: Script, profile: Profile) -> list[str]:
    """Lines that do the work and find its exit code."""
    if not profile.apptainer:
        return [command, "rc=$?"]
    return [
        "# The work alone is told to stop: the signal would end Apptainer's process that serves the image's files.",
        f"""trap '[ ! -s "$scratch/pid" ] || kill -{script.signal} "$(cat "$scratch/pid")"' {script.signal}""",
        f"{command} &",
        "while kill -0 $! 2>/dev/null; do wait $!; done",
        "wait $!",
        "rc=$?",
    ]


def _srun(script: Script, profile: Profile, wanted: Resources) -> str:
    """srun does not inherit the CPUs of a task by itself."""
    container: list[str] = []
    if profile.pyxis:
        container = pyxis_arguments(profile.pyxis, script.folders, script.workdir, handed_in(profile))
    more = [shlex.quote(argument) for argument in wanted.srun]
    return " ".join(["srun", "--unbuffered", '--cpus-per-task="$SLURM_CPUS_PER_TASK"', *container, *more])


def requeue_on_request(folder: str) -> tuple[str, ...]:
    """Lines that requeue the job where its work has asked for it by a file in `folder`."""
    return (
        "id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        f"request={shlex.quote(folder)}/${{id:-$SLURM_JOB_ID}}.{REQUEST}",
        'if [ -e "$request" ]; then rm -f "$request"; scontrol requeue "${id:-$SLURM_JOB_ID}"; fi',
    )


def request_program(folder: str) -> str:
    """What stands in for scontrol inside a container: it leaves the request."""
    return "#!/bin/sh\n# scontrol requeue ID, for a container: asks the script outside to do it.\n" + (
        f': >{shlex.quote(folder)}/"$2".{REQUEST}\n'
    )
