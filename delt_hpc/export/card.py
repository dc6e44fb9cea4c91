"""The card (README.md) of an export: YAML front matter for the Hugging Face Hub, and what users need to know."""

from pathlib import PurePosixPath
from typing import Any

import yaml

from delt_hpc.config import methods
from delt_hpc.distilled import card
from delt_hpc.distilled.dataset import TRAIN
from delt_hpc.export.images import DATA, Format, label_names
from delt_hpc.export.run import FinishedRun
from delt_hpc.report.content import ArmResult, Spread

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_PATHS = {"imagefolder": f"{TRAIN}/**", "huggingface": f"{DATA}/*.parquet", "webdataset": "*.tar"}
_IMAGES = {
    "imagefolder": "`train/<class>/<number>`: the images, an ImageFolder.",
    "huggingface": "`data/*.parquet`: the images and their labels, in the order of `manifest.csv`.",
    "webdataset": "`train-*.tar`: image and label (`cls`) of each row of `manifest.csv`, in shuffled order.",
}
_LOADING = {
    "imagefolder": """    from torchvision.datasets import ImageFolder
    train = ImageFolder("FOLDER/train")

    from datasets import load_dataset
    train = load_dataset("FOLDER", split="train")""",
    "huggingface": """    from datasets import load_dataset
    train = load_dataset("FOLDER", split="train")""",
    "webdataset": """    import webdataset
    train = webdataset.WebDataset("FOLDER/SHARDS").decode("pil").to_tuple("SUFFIX", "cls")

    from datasets import load_dataset
    train = load_dataset("FOLDER", split="train")""",
}


def render(source: FinishedRun, to: Format, protocol: dict[str, Any], shards: list[str], modules: list[str]) -> str:
    """The card as Markdown.

    Args:
        protocol: the content of protocol.json.
        shards: names of the tar files, if there are any.
        modules: names of the Python files.
    """
    spec, ipc = source.dataset.spec, source.config.select.ipc
    title = f"{spec.name}, distilled: {ipc} image{'' if ipc == 1 else 's'} per class"
    front = yaml.safe_dump(_front_matter(source, to, title), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---\n",
        f"# {title}\n",
        card.how_it_was_made(source.config, source.dataset, source.teacher) + "\n",
        f"## Accuracy\n\n{_accuracy(source)}\n",
        f"## Use\n\n{_loading(source, to, shards)}\n",
        f"{_labels(source, to)}\n",
        _training(protocol),
        f"## Files\n\n{_files(to, protocol, modules)}\n",
        f"## Licence\n\nThe images are derived from `{spec.name}` and the teacher was trained on it: the terms"
        f" of use of\n`{spec.name}` apply to all of it. The Python files are licensed under Apache-2.0.\n",
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(source: FinishedRun, to: Format, title: str) -> dict[str, Any]:
    count = len(source.table)
    files = [{"split": "train", "path": _PATHS[to]}]
    method, kind = methods.load(source.config.method).title.lower(), source.config.kind_of_images
    front: dict[str, Any] = {
        "pretty_name": title,
        "license": "other",
        "license_name": f"terms-of-use-of-{source.dataset.spec.name}".lower(),
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["extended|other"],
        "task_categories": ["image-classification"],
        "size_categories": [next((name for limit, name in _SIZES if count < limit), "1M<n<10M")],
        "tags": ["dataset-distillation", *(["synthetic"] if kind == "synthetic" else []), method, "delt-hpc"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    if to == "huggingface":
        names = dict(enumerate(label_names(source.dataset.classes)))
        label = {"class_label": {"names": {str(index): name for index, name in names.items()}}}
        features = [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": label}]
        front["dataset_info"] = {"features": features}
    return front


def _accuracy(source: FinishedRun) -> str:
    lines = [
        "Top-1 in per cent on the real validation images, mean ± standard deviation over the seeds of the students.",
        "",
        "| student | images | labels | seeds | last epoch | best epoch | averaged weights |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
        *(_row(result) for result in source.results),
    ]
    return "\n".join(lines)


def _row(result: ArmResult) -> str:
    scores = (_score(value) for value in (result.final, result.best, result.ema))
    cells = (result.student, result.images, result.labels, str(result.final.n), *scores)
    return f"| {' | '.join(cells)} |"


def _score(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.2f}" + ("" if value.std is None else f" ± {value.std:.2f}")


def _loading(source: FinishedRun, to: Format, shards: list[str]) -> str:
    suffix = PurePosixPath(source.table["file"].iloc[0]).suffix[1:]
    last = len(shards) - 1
    names = shards[0] if last <= 0 and shards else f"train-{{00000..{last:05d}}}-of-{len(shards):05d}.tar"
    return _LOADING[to].replace("SHARDS", names).replace("SUFFIX", suffix)


def _labels(source: FinishedRun, to: Format) -> str:
    folders = list(source.dataset.classes.folders)
    if to != "imagefolder" or folders == sorted(folders):
        return "The labels are the indices in `classes.csv`."
    return "**The labels of ImageFolder differ from the indices in `classes.csv`: map them by the class folders.**"


def _training(protocol: dict[str, Any]) -> str:
    lines = [
        "Train with random crops and the teacher's soft labels: hard labels give a much lower accuracy. `train.py` does"
        " it in plain\nPyTorch, with the settings in `protocol.json`:\n",
        "    python train.py --val FOLDER_OF_REAL_IMAGES       # an ImageFolder with the same class folders\n",
    ]
    if not protocol["teacher"] and not protocol["labels"]:
        lines = [
            "The teacher and its soft labels are not part of this export: with hard labels the accuracy is lower.\n"
        ]
    if protocol["labels"]:
        lines.append(
            f"`--labels stored` trains with the {protocol['labels']['views']} stored views of each image instead of the"
            " teacher. They contain the crops\nand the mixing of training, but no RandAugment.\n"
        )
    return "\n".join(lines)


def _files(to: Format, protocol: dict[str, Any], modules: list[str]) -> str:
    lines = [
        _IMAGES[to],
        "`classes.csv`: label (index), folder and readable name of each class.",
        "`manifest.csv`: SHA-256, class, source image, entry round, iterations and final losses of each image.",
        "`protocol.json`: size, mean and standard deviation, all settings of the training, and the accuracies.",
    ]
    teacher, labels = protocol["teacher"], protocol["labels"]
    if teacher:
        lines.append(
            f"`{teacher['file']}`: the teacher, a `{teacher['model']}` (`model.py` builds it); SHA-256"
            f" `{teacher['sha256']}`."
        )
    if labels:
        lines.append(
            "`labels/<view>.safetensors`: for each image a crop, a mirroring, a partner with a box or a share, and the"
            " teacher's logits."
        )
    lines.append(f"{', '.join(f'`{name}`' for name in modules)}: the training.")
    lines.append("`SHA256SUMS`: checksums of all files (`sha256sum -c SHA256SUMS`).")
    return "\n".join(f"- {line}" for line in lines)
