"""The sbatch script of a job: a pure function of the job and the profile. Slurm gets exactly this text.

`python -m delt_hpc.launch.script >slurm/stage.sbatch` writes the script for use without the launcher.
"""

import shlex
import sys
from dataclasses import dataclass

from delt_hpc.config.schema import Stage
from delt_hpc.launch import containers
from delt_hpc.launch import profile as profiles
from delt_hpc.launch.containers import ARRAY_ID
from delt_hpc.launch.profile import Profile, Resources
from delt_hpc.run import late, network
from delt_hpc.run.stop import EXIT_CODE

# Variable with the path of a file that names the signals that came before Python could handle them.
EARLY_SIGNALS = "DELT_EARLY_SIGNALS"
# Folder in the run folder with compiled kernels, from which tasks start, and the variable that names another one.
COMPILED, CACHE_VARIABLE = "compile-cache", "DELT_COMPILE_CACHE"


@dataclass(frozen=True)
class Script:
    """The parts of a script that do not come from the profile.

    Attributes:
        title: comment at the top, one line each.
        name: of the job.
        comment: of the job.
        command: shell text that srun starts.
        signal: the signal that Slurm sends to the command before the time limit.
        output: file name pattern for the output of the script itself.
        workdir: working folder; empty for the folder in which sbatch is called.
        array: number of elements of the job array; None for a single job.
        parallel: elements that run at the same time, at most.
        after: Slurm's dependency, e.g. afterok:17:18,afterany:12; empty for none.
        exclude: nodes on which the job must not run.
        folders: folders that the task reads and writes, to be mounted in a container.
        before: first shell lines.
        notes_signals: until Python handles signals, they are noted in the file EARLY_SIGNALS; they do not end the task.
        fallback: shell text: an existing folder for caches where the local disk is full.
        compiled: shell text: the folder of kernels compiled earlier, which need not exist.
        after_command: shell lines after the command; its exit code is in `rc`.
    """

    stage: Stage
    title: tuple[str, ...]
    name: str
    command: str
    signal: str
    output: str
    workdir: str = ""
    comment: str | None = None
    array: int | None = None
    parallel: int = 1
    after: str = ""
    exclude: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    notes_signals: bool = False
    fallback: str = "."
    compiled: str = ""
    after_command: tuple[str, ...] = ()


def text(script: Script, profile: Profile) -> str:
    """The script."""
    resources = profile.resources(script.stage)
    options = [*_job_options(script, profile, resources), *_resources(resources), *_limits(script, profile)]
    blocks = [
        ["#!/bin/bash", *(f"# {line}".rstrip() for line in script.title)],
        [f"#SBATCH {option}" for option in (*options, *_further_options(script, resources))],
        list(script.before),
        list(profile.setup),
        _caches(script, profile),
        [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()],
        containers.apptainer_variables(profile),
        [*_run_command(script, profile, resources), *script.after_command, "exit $rc"],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def place_task(folder: str, token: str) -> tuple[str, ...]:
    """Shell lines that put the pickle of the task under the name that submitit expects.

    The job does it, because the submitting process may be killed before it knows the job's id. A pickle that exists
    already is that of an earlier start.
    """
    return (
        "# submitit expects the task under the job's id.",
        ARRAY_ID,
        f"task={shlex.quote(folder)}/${{id:-$SLURM_JOB_ID}}_submitted.pkl",
        f"source={shlex.quote(folder)}/{token}-${{SLURM_ARRAY_TASK_ID:-0}}.pkl",
        '[ -e "$task" ] || { cp "$source" "$task.new" && mv "$task.new" "$task"; } || exit 1',
    )


def requeue_if_killed(folder: str, retries: int) -> tuple[str, ...]:
    """Shell lines that requeue a job whose task was killed, as the kernel kills it when memory runs out.

    The exit code of srun is then 137 (SIGKILL), or 253 where Slurm saw that memory ran out. A task is also killed at
    the end of a cancelled, preempted or timed-out job, which is no longer in the state RUNNING.

    Args:
        folder: the file in it that counts how often the job's task was killed.
        retries: how often it is requeued.
    """
    return (
        f"# Killed, e.g. because memory ran out: started again, at most {retries} times.",
        ARRAY_ID,
        f"killed={shlex.quote(folder)}/${{id:-$SLURM_JOB_ID}}.killed",
        "if [[ $rc == 137 || $rc == 253 ]]; then",
        '    until state=$(squeue -h -j "${id:-$SLURM_JOB_ID}" -o %T); do sleep 5; done  # the controller may be away',
        '    [ "$state" != RUNNING ] || hostname >>"$killed"',
        f'    if [ "$state" = RUNNING ] && [ "$(wc -l <"$killed")" -le {retries} ]; then',
        '        scontrol requeue "${id:-$SLURM_JOB_ID}"',
        "    fi",
        "fi",
    )


def stage_script() -> str:
    """The content of slurm/stage.sbatch: any stage, without the launcher."""
    return text(
        Script(
            stage="recover",
            title=_STAGE_TITLE,
            name="delt-hpc",
            command='delt-hpc "$stage" "$config" --run "$run" "${part[@]}" --quiet',
            signal="TERM",
            output="%x-%j.out",
            before=_STAGE_ARGUMENTS,
            fallback='"$run"',
            compiled=f'"$run/{COMPILED}"',
            after_command=(
                "# This exit code means: stopped with the state saved. Requeued, the job resumes.",
                ARRAY_ID,
                f'if [ $rc -eq {EXIT_CODE} ]; then scontrol requeue "${{id:-$SLURM_JOB_ID}}"; fi',
            ),
        ),
        profiles.load("generic-gpu"),
    )


_STAGE_TITLE = (
    "One stage of a run, without the launcher:",
    "",
    "    sbatch [OPTIONS] slurm/stage.sbatch STAGE CONFIG RUN",
    "    sbatch --array=0-24%16 slurm/stage.sbatch recover CONFIG RUN CLASSES EACH",
    "    sbatch --array=0-5 slurm/stage.sbatch evaluate CONFIG RUN TRIAL...",
    "",
    "CONFIG is a recipe's name or a YAML file, RUN the run folder on a file system that nodes share.",
    "rank and recover: CLASSES is the number of classes of the data set, EACH the number of classes of one task. For",
    "recover EACH is a multiple of recover.batch_size // select.ipc. evaluate: one trial for each task, e.g.",
    "resnet18-{3407,4663,2897}-{distilled,random}-soft. Options of sbatch override the lines below, e.g. --time=1440",
    "for squeeze, --gpus-per-node=0 for select and aggregate. --dependency=afterok:JOB runs one stage after another.",
    "Before the time limit a task saves its state, is requeued and resumes. `delt-hpc fetch` downloads, jobs do not.",
)
_STAGE_ARGUMENTS = (
    "stage=$1 config=$2 run=$3 part=() task=${SLURM_ARRAY_TASK_ID:-0}",
    "case $stage in",
    "    rank | recover)",
    "        classes=$4 each=$5",
    "        first=$((task * each)) last=$((task * each + each - 1))",
    '        part=(--classes "$first-$((last < classes ? last : classes - 1))")',
    "        ;;",
    "    evaluate)",
    '        trials=("${@:4}")',
    '        part=(--trial "${trials[task]}")',
    "        ;;",
    "esac",
)


# A signal that comes while Python starts would end it. A trap interrupts `wait`, which is therefore repeated.
_NOTE_SIGNALS = (
    "# Python starts with these signals ignored. A shell beside it notes those that come before Python handles them.",
    """note_signals='trap "" USR2 TERM""",
    '"$@" &',
    f"""trap "echo USR2 >>\\"\\${EARLY_SIGNALS}\\"" USR2""",
    f"""trap "echo TERM >>\\"\\${EARLY_SIGNALS}\\"" TERM""",
    """while :; do wait $!; rc=$?; kill -0 $! 2>/dev/null || exit $rc; done'""",
)


def _option(name: str, value: object) -> str:
    return f"--{name}={shlex.quote(str(value))}"


def _quoted(argument: str) -> str:
    """The argument, with its value quoted if it contains blanks: --comment='two words'."""
    name, equals, value = argument.partition("=")
    return f"{name}={shlex.quote(value)}" if equals and " " in value else argument


def _job_options(script: Script, profile: Profile, resources: Resources) -> list[str]:
    given = {
        "job-name": script.name,
        "comment": script.comment,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "wckey": profile.wckey,
    }
    return [_option(name, value) for name, value in given.items() if value is not None]


def _resources(resources: Resources) -> list[str]:
    options = ["--nodes=1", "--ntasks=1", f"--cpus-per-task={resources.cpus}"]
    if resources.memory_gib:
        options.append(f"--mem={resources.memory_gib}G")
    if resources.gpus:
        gpu_type = [resources.gpu_type] if resources.gpu_type else []
        parts = ["gpu", *gpu_type] if resources.gpu_flag == "gres" else gpu_type
        options.append(_option(resources.gpu_flag, ":".join([*parts, str(resources.gpus)])))
    return [*options, f"--time={resources.minutes}"]


def _limits(script: Script, profile: Profile) -> list[str]:
    to_script = "B:" if profile.apptainer else ""
    options = [f"--signal={to_script}{script.signal}@{profile.signal_seconds}", "--requeue"]
    if script.array is not None:
        options.append(f"--array=0-{script.array - 1}%{script.parallel}")
    if script.after:
        # A job whose dependency can never be satisfied would wait for ever.
        options += [f"--dependency={script.after}", "--kill-on-invalid-dep=yes"]
    if script.workdir:
        options.append(_option("chdir", script.workdir))
    return [*options, _option("output", script.output), "--open-mode=append"]


def _further_options(script: Script, resources: Resources) -> list[str]:
    """The profile's own arguments; the nodes to exclude are added to those of the profile."""
    prefix = "--exclude="
    excluded = [*(a.removeprefix(prefix) for a in resources.sbatch if a.startswith(prefix)), *script.exclude]
    others = [_quoted(argument) for argument in resources.sbatch if not argument.startswith(prefix)]
    return [f"{prefix}{','.join(excluded)}", *others] if excluded else others


def _caches(script: Script, profile: Profile) -> list[str]:
    """Each task has caches of its own on a local disk: compilers fail on caches shared over a network."""
    lines = [
        "# Caches of compiled kernels: on a local disk of the node or, if that is full, in the run folder. Not kept.",
        "make_scratch() {",
        '    scratch=$(mktemp -d "$1/delt-hpc-$SLURM_JOB_ID.XXXXXX") || return',
        '    { head -c 1M /dev/zero >"$scratch/probe" && rm "$scratch/probe"; } || { rm -rf "$scratch"; return 1; }',
        "}",
        f'make_scratch "{profile.scratch}" ||',
        f"    {{ mkdir -p {script.fallback} && make_scratch {script.fallback}; }} || exit 1",
        """trap 'rm -rf "$scratch"' EXIT""",
        'export TRITON_CACHE_DIR="$scratch/triton" TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"',
    ]
    if script.notes_signals:
        lines.append(f'export {EARLY_SIGNALS}="$scratch/signals"')
    if script.compiled:
        lines.append(f"export {CACHE_VARIABLE}={script.compiled}")
    lines.append(f"export {late.VARIABLE}={late.SECONDS}  # results of other nodes may appear late")
    lines.append(f"export {network.VARIABLE}=0  # nodes may have no network: `submit` or `delt-hpc fetch` downloads")
    if profile.apptainer:
        lines.append(containers.bind_scratch(profile.apptainer))
    return lines


def _run_command(script: Script, profile: Profile, resources: Resources) -> list[str]:
    """Run the command and keep its exit code in `rc`. srun does not inherit --cpus-per-task by itself."""
    container: list[str] = []
    if profile.pyxis:
        variables = containers.passed_variables(profile)
        container = containers.pyxis_arguments(profile.pyxis, script.folders, script.workdir, variables)
    arguments = [*container, *map(shlex.quote, resources.srun)]
    srun = ["srun", "--unbuffered", '--cpus-per-task="$SLURM_CPUS_PER_TASK"', *arguments]
    if not profile.apptainer and script.notes_signals:
        return [*_NOTE_SIGNALS, f'{" ".join(srun)} sh -c "$note_signals" sh {script.command}', "rc=$?"]
    if not profile.apptainer:
        return [" ".join([*srun, script.command]), "rc=$?"]
    note = f'echo {script.signal} >>"${EARLY_SIGNALS}"; ' if script.notes_signals else ""
    return [
        "# Pass the signal to Python only: it would end the Apptainer process that serves the image's files.",
        f"""trap '{note}[ ! -s "$scratch/pid" ] || kill -{script.signal} "$(cat "$scratch/pid")"' {script.signal}""",
        f"{' '.join([*srun, script.command])} &",
        "while kill -0 $! 2>/dev/null; do wait $!; done",
        "wait $!",
        "rc=$?",
    ]


if __name__ == "__main__":
    sys.stdout.write(stage_script())
