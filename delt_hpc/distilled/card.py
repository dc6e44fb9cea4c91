"""The data-set card: what a stranger needs to know to use a distilled set."""

from typing import Any

from delt_hpc.config.schema import Config
from delt_hpc.data.dataset import Dataset
from delt_hpc.version import VERSION

_METHODS = {
    "delt": "DELT (arXiv 2411.19946)",
    "cda": "CDA (arXiv 2311.18838)",
    "sre2l": "SRe2L (arXiv 2306.13092)",
}


def render(config: Config, dataset: Dataset, teacher: dict[str, Any]) -> str:
    """Markdown."""
    spec, ipc, recover = dataset.spec, config.select.ipc, config.recover
    classes = len(dataset.classes)
    rounds = f"{recover.rounds} round{'' if recover.rounds == 1 else 's'}"
    order = (
        "ImageFolder's labels are the class map's."
        if list(dataset.classes.folders) == sorted(dataset.classes.folders)
        else "**The classes are not in ImageFolder's order: map its labels through `classes.csv`.**"
    )
    return f"""# {spec.name}, distilled: {ipc} image{"" if ipc == 1 else "s"} per class

{classes * ipc} synthetic images that stand for the {len(dataset.train)} training images of `{spec.name}`
({classes} classes, {spec.size} x {spec.size} pixels).

| | |
| --- | --- |
| method | {_METHODS[config.method]}, delt-hpc {VERSION} |
| teacher | {_teacher(teacher)} |
| start | {_start(config)} |
| optimisation | {recover.iterations} iterations, {rounds}, Adam, lr {recover.lr:g} |
| loss | cross-entropy + {recover.r_bn:g} x distance to the teacher's BatchNorm statistics |
| seed | {config.seed} |
| image format | {recover.image_format} |
| mean, std | {_numbers(spec.mean)}, {_numbers(spec.std)} |

## Use

    from torchvision.datasets import ImageFolder
    train = ImageFolder("this folder")

{order} Train with the teacher's soft labels and random crops; hard labels lose much of the worth.

## Files

- `<class>/<number>`: the images; the number is the place in the class's selection.
- `classes.csv`: index, folder and readable name of each class; the only truth about labels.
- `manifest.csv`: of each image its SHA-256, class, source image, entry round, iterations and last losses.
- `dataset.json`: the data set's size, mean and standard deviation, and the configuration in full.

`delt-hpc verify` checks all of it. The images are derived from `{spec.name}` and stand under its terms.
"""


def _teacher(teacher: dict[str, Any]) -> str:
    top1 = teacher["val_accuracy"]
    return f"{teacher['model']}, {teacher['weights']}" + ("" if top1 is None else f", {top1:.2f} % top-1")


def _start(config: Config) -> str:
    if config.recover.init == "noise":
        return "Gaussian noise"
    if config.select.strategy == "random":
        return "training images drawn at random"
    ranking = "a given ranking" if config.rank.csv else "a ranking by the teacher"
    return f"the {config.select.strategy} images of {ranking}"


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
