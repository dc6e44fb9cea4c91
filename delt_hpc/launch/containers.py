"""Tasks in containers: with Apptainer or Singularity, or with srun's pyxis plugin. Shell text."""

import shlex

from delt_hpc.launch.profile import Apptainer, Profile, Pyxis

# Suffix of the file by which a task in a container requests its requeueing; the script, on the host, does it.
REQUEST = "requeue"
# Shell line: the id of an element of a job array, or an empty text.
ARRAY_ID = "id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"


def interpreter(profile: Profile, folders: tuple[str, ...], workdir: str, default: str) -> str:
    """Shell text that starts Python; `default` is used if neither the profile nor an image determines it."""
    python = profile.python or ("python" if profile.in_container else shlex.quote(default))
    if profile.apptainer:
        # The process in the image writes its id to a file: the script sends signals to it alone.
        write_pid = """sh -c 'trap "" USR2 TERM; echo $$ >"$0"; exec "$@"' "$scratch/pid\""""
        return f"{shlex.join(_apptainer(profile.apptainer, folders, workdir))} {write_pid} {python}"
    return python


def requeue_on_request(folder: str) -> tuple[str, ...]:
    """Shell lines that requeue the job if its task has left a request in `folder`."""
    return (
        ARRAY_ID,
        f"request={shlex.quote(folder)}/${{id:-$SLURM_JOB_ID}}.{REQUEST}",
        'if [ -e "$request" ]; then rm -f "$request"; scontrol requeue "${id:-$SLURM_JOB_ID}"; fi',
    )


def request_program(folder: str) -> str:
    """A program that takes the place of scontrol in a container: it leaves the request."""
    return "#!/bin/sh\n# scontrol requeue ID, in a container: asks the script outside to do it.\n" + (
        f'[ "$1" != requeue ] || : >{shlex.quote(folder)}/"$2".{REQUEST}\n'
    )


def passed_variables(profile: Profile) -> tuple[str, ...]:
    """Variables that must override those of the same name in an image."""
    return ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", *profile.environment)


def apptainer_variables(profile: Profile) -> list[str]:
    """An image's own variables override the host's, except those with this prefix."""
    if not profile.apptainer:
        return []
    prefix = profile.apptainer.program.upper()
    return [f'export {prefix}ENV_{name}="${name}"' for name in passed_variables(profile)]


def bind_scratch(container: Apptainer) -> str:
    """The local folder of the task is mounted under the same path."""
    name = f"{container.program.upper()}_BIND"
    return f'export {name}="$scratch${{{name}:+,${name}}}"'


def _apptainer(container: Apptainer, folders: tuple[str, ...], workdir: str) -> list[str]:
    """`apptainer exec ... IMAGE`, with `folders` mounted under the same paths."""
    binds = [part for bind in (*dict.fromkeys(folders), *container.binds) for part in ("--bind", bind)]
    return [container.program, "exec", *container.options, *binds, "--pwd", workdir, container.image]


def pyxis_arguments(container: Pyxis, folders: tuple[str, ...], workdir: str, variables: tuple[str, ...]) -> list[str]:
    """srun's arguments for the image, as shell text; `folders` and $scratch are mounted under the same paths."""
    mounts = [*(f"{folder}:{folder}" for folder in dict.fromkeys(folders)), *container.mounts]
    return [
        shlex.quote(f"--container-image={container.image}"),
        shlex.quote(f"--container-mounts={','.join(mounts)}") + ',"$scratch:$scratch"',
        shlex.quote(f"--container-workdir={workdir}"),
        f"--container-env={','.join(variables)}",
    ]
