"""Readable names, and the lists of WordNet ids that ship with the package."""

from pathlib import Path

import pytest
from timm.data.imagenet_info import ImageNetInfo

from delt_hpc.data.catalog import names


def test_the_wnids_are_those_of_ilsvrc_2012() -> None:
    wnids = names.wnids()
    assert len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    assert wnids[0] == "n01440764"
    assert wnids == ImageNetInfo().label_names()


@pytest.mark.parametrize("name", ["imagenet-1k", "imagewoof", "dogs-and-fish"])
def test_folders_that_are_wnids_get_imagenet_s_names(name: str, tmp_path: Path) -> None:
    folders = ["n02115641", "n01440764", "n02086240", "n15075141"]
    assert names.readable(name, tmp_path, folders) == ["dingo", "tench", "Shih-Tzu", "toilet tissue"]


def test_one_folder_that_is_no_wnid_makes_all_keep_their_names(tmp_path: Path) -> None:
    folders = ["n01440764", "00010", "été au lac"]
    assert names.readable("mine", tmp_path, folders) == folders


def test_fashion_mnist_names_follow_the_number_not_the_order(tmp_path: Path) -> None:
    assert names.readable("fashion-mnist", tmp_path, ["9", "0", "bags"]) == ["Ankle boot", "T-shirt/top", "bags"]
    assert names.readable("digits", tmp_path, ["9", "0"]) == ["9", "0"]


@pytest.mark.parametrize("folder", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_s_names_come_from_its_words(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    words = "n00001740\tentity\nn01443537\tgold fish, Carassius auratus\n\nn01629819 no tab\n"
    (tmp_path / folder / "words.txt").write_text(words)
    folders = ["n01629819", "n01443537", "n00001740"]
    assert names.readable("tiny-imagenet", tmp_path, folders) == ["n01629819", "gold fish", "entity"]
    assert names.readable("tiny-imagenet", tmp_path, folders[1:2]) == ["gold fish"]
    assert names.readable("other", tmp_path, folders) == folders


def test_tiny_imagenet_without_its_words_falls_back_to_imagenet_s(tmp_path: Path) -> None:
    assert names.readable("tiny-imagenet", tmp_path, ["n01443537"]) == ["goldfish"]
