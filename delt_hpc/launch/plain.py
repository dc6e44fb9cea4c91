"""The scripts of slurm/*.sbatch, for those who want no launcher: made by the same function as the launcher's.

`python -m delt_hpc.launch.plain FOLDER` writes them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from delt_hpc.config.schema import STAGES, Stage
from delt_hpc.launch import profile
from delt_hpc.launch.plan import RANGED
from delt_hpc.launch.script import COMPILED, Script, text
from delt_hpc.run.folder import write_text
from delt_hpc.run.stop import EXIT_CODE

PROFILE = "generic-gpu"

# The stage has saved its state and says so by this code; SIGTERM of scancel ends the script as well.
_AGAIN = (
    "id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
    f'if [ $rc -eq {EXIT_CODE} ]; then scontrol requeue "${{id:-$SLURM_JOB_ID}}"; fi',
)


@dataclass(frozen=True)
class _Usage:
    """How a stage's script is called, and what it makes of that: lines that read arguments, an option of delt-hpc."""

    what: str = "All of the stage in one job."
    array: str = ""
    more: str = ""
    arguments: tuple[str, ...] = ("config=$1 run=$2",)
    option: str = ""


_BY_CLASSES = _Usage(
    "Every task takes EACH classes of CLASSES; for recover a multiple of recover.batch_size // select.ipc.",
    "--array=0-99%16 ",
    " CLASSES EACH",
    (
        "config=$1 run=$2 classes=$3 each=$4",
        "first=$((${SLURM_ARRAY_TASK_ID:-0} * each))",
        "last=$((first + each < classes ? first + each - 1 : classes - 1))",
    ),
    ' --classes "$first-$last"',
)
_BY_TRIALS = _Usage(
    "Every task takes one TRIAL; six of them: resnet18-{3407,4663,2897}-{distilled,random}-soft.",
    "--array=0-5%16 ",
    " TRIAL...",
    ('config=$1 run=$2 trials=("${@:3}")', "trial=${trials[${SLURM_ARRAY_TASK_ID:-0}]}"),
    ' --trial "$trial"',
)
_USAGE = dict.fromkeys(STAGES, _Usage()) | dict.fromkeys(RANGED, _BY_CLASSES) | {"evaluate": _BY_TRIALS}


def scripts() -> dict[str, str]:
    """File name -> content, one script a stage."""
    site = profile.load(PROFILE)
    return {f"{stage}.sbatch": text(_script(stage), site) for stage in STAGES}


def _script(stage: Stage) -> Script:
    usage = _USAGE[stage]
    return Script(
        stage=stage,
        title=(
            f"Stage {stage}: sbatch {usage.array}slurm/{stage}.sbatch CONFIG RUN{usage.more}",
            usage.what,
            "CONFIG: a recipe's name or a YAML file; RUN: the run folder, on a disk that nodes see.",
            "Chain stages with --dependency=afterok:JOB. Before its time runs out it saves, and goes on in a new turn.",
            f"Made by delt_hpc.launch.plain from slurm/{PROFILE}.yaml.",
        ),
        name=f"delt-{stage}",
        command=f'delt-hpc {stage} "$config" --run "$run"{usage.option} --quiet',
        signal="TERM",
        output="%x-%A_%a.out" if usage.array else "%x-%j.out",
        before=usage.arguments,
        compiled=f'"$run/{COMPILED}"',
        after_command=_AGAIN,
    )


if __name__ == "__main__":
    for name, content in scripts().items():
        write_text(Path(sys.argv[1]) / name, content)
