"""Readable class names, for tables and reports only; labels come from the class map."""

from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets import FashionMNIST
from torchvision.models import ResNet18_Weights


def readable(name: str, root: Path, folders: Sequence[str]) -> list[str]:
    """A name for each class folder, in the same order.

    Fashion-MNIST's labels by number; Tiny-ImageNet's from its words.txt; ILSVRC-2012's from torchvision's weights, if
    every folder is one of its wnids; otherwise the folder names.
    """
    known: dict[str, str] = {}
    if name == "fashion-mnist":
        known = {str(number): label for number, label in enumerate(FashionMNIST.classes)}
    elif name == "tiny-imagenet":
        known = _words(root)
    if not known and set(folders) <= (imagenet := _imagenet()).keys():
        known = imagenet
    return [known.get(folder, folder) for folder in folders]


def wnids() -> list[str]:
    """The 1000 WordNet ids of ILSVRC-2012, in the order of its labels."""
    return Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="utf-8").split()


def _imagenet() -> dict[str, str]:
    return dict(zip(wnids(), ResNet18_Weights.IMAGENET1K_V1.meta["categories"], strict=True))


def _words(root: Path) -> dict[str, str]:
    """wnid -> first synonym, from words.txt (lines of wnid, tab, comma-separated synonyms)."""
    for path in (root / "words.txt", root / "tiny-imagenet-200" / "words.txt"):
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            return {
                wnid: words.split(",")[0].strip()
                for wnid, tab, words in (line.partition("\t") for line in lines)
                if tab
            }
    return {}
