"""The card (README.md) of a distilled data set: what its users need to know."""

from typing import Any

from delt_hpc.config import methods
from delt_hpc.config.schema import Config, Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.dataset import Dataset
from delt_hpc.version import VERSION

_STRATEGIES = {"medium": "middle", "top": "easiest images", "min": "hardest images"}
_KINDS = {
    "synthetic": "synthetic images distilled from",
    "real": "real images (nothing was optimised) chosen from",
    "mosaics": "images composed of crops (nothing was optimised) of",
}


def render(config: Config, dataset: Dataset, teacher: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        teacher: the content of teacher.json.
    """
    spec, ipc = dataset.spec, config.select.ipc
    order = (
        "The labels of ImageFolder are those of `classes.csv`."
        if list(dataset.classes.folders) == sorted(dataset.classes.folders)
        else "**The labels of ImageFolder differ from those of `classes.csv`: map them by the class folders.**"
    )
    return f"""# {spec.name}, distilled: {ipc} image{"" if ipc == 1 else "s"} per class

{how_it_was_made(config, dataset, teacher)}

## Use

    from torchvision.datasets import ImageFolder
    train = ImageFolder("this folder")

{order} Train with random crops and the teacher's soft labels: hard labels give a much lower accuracy.

## Files

- `<class>/<number>`: the images, numbered in their order of entry to the optimisation.
- `classes.csv`: label (index), folder and readable name of each class.
- `manifest.csv`: SHA-256, class, source image, entry round, iterations and final losses of each image.
- `dataset.json`: image size, mean and standard deviation, and the complete configuration.

`delt-hpc verify` checks all of it. The images are derived from `{spec.name}`, so its terms of use apply.
"""


def how_it_was_made(config: Config, dataset: Dataset, teacher: dict[str, Any]) -> str:
    """A sentence and a table of method, teacher, settings and normalisation, in Markdown.

    Args:
        teacher: the content of teacher.json.
    """
    spec, recover, classes = dataset.spec, config.recover, len(dataset.classes)
    count = f"{classes * config.select.ipc} {_KINDS[config.kind_of_images]} the {len(dataset.train)}"
    return f"""{count} training images of `{spec.name}`
({classes} classes, {spec.size} x {spec.size} pixels).

| | |
| --- | --- |
| method | {methods.load(config.method).citation}, delt-hpc {VERSION} |
| teacher | {_teacher(teacher)} |
| initial images | {_start(config, spec)} |
{_optimisation(recover, spec)}
| seed | {config.seed} |
| image format | {recover.image_format} |
| mean, std | {_numbers(spec.mean)}, {_numbers(spec.std)} |"""


def _teacher(teacher: dict[str, Any]) -> str:
    top1 = teacher["val_accuracy"]
    return f"{teacher['model']}, {teacher['weights']}" + ("" if top1 is None else f", {top1:.2f} % top-1")


def _optimisation(recover: Recover, spec: DatasetSpec) -> str:
    """Rows of the table."""
    if not recover.iterations:
        return "| optimisation | none |"
    rounds = f"{recover.rounds} round{'' if recover.rounds == 1 else 's'}"
    if recover.blocks > 1:
        rounds = f"blocks at {', '.join(map(str, recover.sizes_at(spec.size)))} pixels, merge {recover.merge:g}"
    return f"""\
| optimisation | {recover.iterations} iterations, {rounds}, Adam, lr {recover.lr:g} |
| loss | cross-entropy + {recover.r_bn:g} x distance to the teacher's BatchNorm statistics |"""


def _start(config: Config, spec: DatasetSpec) -> str:
    rank = config.rank
    if config.recover.init == "noise":
        return "Gaussian noise"
    if rank.candidates == "crops":
        tiles = rank.tiles_at(spec.size)
        order = {"random": "drawn at random", "medium": "of medium score"} | {"top": "easiest", "min": "hardest"}
        return (
            f"mosaics of {tiles} x {tiles} crops ({order[config.select.strategy]}) of the best of {rank.crops} crops"
            f" of each of {rank.pool} images of a class"
        )
    if config.select.strategy == "random":
        return "training images drawn at random"
    ranking = "an existing ranking" if config.rank.csv else "the teacher's ranking"
    return f"the {_STRATEGIES[config.select.strategy]} of {ranking}"


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
