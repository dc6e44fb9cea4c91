"""The class map and the index: ImageFolder's images, the class map's labels, exact CSV round trips."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from delt_hpc.data.index import EXTENSIONS, ClassMap, Index, class_folders, from_pairs, scan
from delt_hpc.errors import UserError

ODD_NAMES = (
    *("10", "00010", "1e5", "007", "True", "NA", "nan", "null", "None", ""),
    *("two words", " before", "after ", "été", "e\u0301te\u0301", "日本", "Ω", "\u2028"),
    *("a,b", 'quo"te', '"', "it's", "a;b", "tab\there", "#1", "=1+1", "-x", "back\\slash"),
)
FOLDERS = tuple(name for name in ODD_NAMES if name)


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def assert_as_image_folder(root: Path) -> None:
    folders = class_folders(root)
    found, expected = scan(root, folders), ImageFolder(str(root))
    assert folders == expected.classes
    assert [(str(root / path), label) for path, label in zip(found.paths, found.labels.tolist(), strict=True)] == (
        expected.samples
    )


def test_the_same_images_in_the_same_order_as_imagefolder(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"every/x{extension}" for extension in EXTENSIONS),
        *(f"upper/x{extension.upper()}" for extension in EXTENSIONS),
        *("other/1.jpg", "other/notes.txt", "other/x.gif", "other/x.npy", "other/jpg", "other/x.jpg.part"),
        *("deep/b/2.png", "deep/b c/1.png", "deep/b/a/1.png", "deep/a.png", "deep/B/1.png", "deep/z/empty/no.txt"),
        *("10/10.png", "10/9.png", "00010/1.png", "9/1.png", "été/1.png", ".hidden/.png", "at_the_top.png"),
    )
    assert_as_image_folder(tmp_path)


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    root, elsewhere = touch(tmp_path / "root", "real/1.png"), touch(tmp_path / "elsewhere", "1.png", "sub/2.png", "3")
    (root / "linked").symlink_to(elsewhere)
    (root / "real" / "inner").symlink_to(elsewhere / "sub")
    (root / "real" / "0.png").symlink_to(elsewhere / "3")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    assert class_folders(root) == ["linked", "real"]
    assert scan(root, ["linked", "real"]).paths == (
        *("linked/1.png", "linked/sub/2.png"),
        *("real/0.png", "real/1.png", "real/inner/2.png"),
    )
    assert_as_image_folder(root)


def test_labels_follow_the_order_of_the_class_map(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.png", "b/1.png", "c/1.png", "10/1.png")
    index = scan(tmp_path, ["c", "10", "a"])
    assert index.paths == ("c/1.png", "10/1.png", "a/1.png", "a/2.png")
    assert index.labels.tolist() == [0, 1, 2, 2]
    assert index.labels.dtype == np.int64


def test_odd_names_are_read_back_unchanged(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", *(f"{folder}/{folder}.{i}.png" for folder in FOLDERS for i in range(2)))
    folders = class_folders(root)
    assert folders == sorted(FOLDERS)
    classes, index = ClassMap(tuple(folders), ODD_NAMES[: len(folders)]), scan(root, folders)
    classes.write(tmp_path / "classes.csv")
    index.write(tmp_path / "index.csv")
    assert ClassMap.read(tmp_path / "classes.csv") == classes
    assert all(type(name) is str for name in ClassMap.read(tmp_path / "classes.csv").folders)
    read = Index.read(tmp_path / "index.csv", root)
    assert read.paths == index.paths
    assert read.labels.tolist() == index.labels.tolist()
    assert read.labels.dtype == np.int64
    assert read.fingerprint() == index.fingerprint()
    assert all((root / path).is_file() for path in read.paths)


def test_paths_that_look_like_missing_values_are_read_back(tmp_path: Path) -> None:
    paths = ("", "NA", "nan", "null", "None", "1", "01", "1.0", "True")
    Index(tmp_path, paths, np.zeros(len(paths), dtype=np.int64)).write(tmp_path / "index.csv")
    assert Index.read(tmp_path / "index.csv", tmp_path).paths == paths


def test_1200_classes_keep_their_order(tmp_path: Path) -> None:
    folders = [str(number) for number in range(1200)]  # as text "1000" sorts before "2"
    root = touch(tmp_path / "root", *(f"{folder}/{i}.png" for folder in folders for i in "ab"))
    index = scan(root, folders)
    assert index.labels.tolist() == [number for number in range(1200) for _ in range(2)]
    assert all(path.split("/")[0] == folders[label] for path, label in zip(index.paths, index.labels, strict=True))
    index.write(tmp_path / "index.csv")
    assert Index.read(tmp_path / "index.csv", root).paths == index.paths
    classes = ClassMap(tuple(folders), tuple(folders))
    classes.write(tmp_path / "classes.csv")
    assert ClassMap.read(tmp_path / "classes.csv") == classes
    assert classes.folders.index("1199") == 1199
    assert_as_image_folder(root)


def test_every_class_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "full/1.png", "text/1.txt", "10/1.png")
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match="no images for 3 of 5 classes: text, empty, 00010") as caught:
        scan(tmp_path, ["full", "text", "empty", "10", "00010"])
    assert caught.value.where == str(tmp_path)
    assert ".webp" in caught.value.expected


@pytest.mark.parametrize("name", [b"line\nbreak", b"return\r", b"latin\xe9"])
def test_names_that_a_csv_cannot_hold_are_refused(name: bytes, tmp_path: Path) -> None:
    for file in (os.fsencode(tmp_path) + b"/a/" + name + b".png", os.fsencode(tmp_path) + b"/" + name + b"/1.png"):
        os.makedirs(os.path.dirname(file), exist_ok=True)  # noqa: PTH103, PTH120 - names as bytes
        Path(os.fsdecode(file)).touch()
    with pytest.raises(UserError, match="not UTF-8 or contain line breaks") as caught:
        scan(tmp_path, class_folders(tmp_path))
    assert str(caught.value).count(repr(os.fsdecode(name))[1:-1]) == 2


@pytest.mark.parametrize(
    ("inside", "message"), [(None, "cannot be read: No such file"), ("x.png", "contains no folders")]
)
def test_a_folder_without_classes_is_named(inside: str | None, message: str, tmp_path: Path) -> None:
    if inside:
        touch(tmp_path / "train", inside)
    with pytest.raises(UserError, match=message) as caught:
        class_folders(tmp_path / "train")
    assert caught.value.where == str(tmp_path / "train")


def index_of(*pairs: tuple[str, int]) -> Index:
    return from_pairs(Path("root"), pairs)


def test_listed_pairs_come_in_class_order() -> None:
    index = index_of(("x/9.png", 2), ("x/10.png", 0), ("x/1.png", 2), ("x/2.png", 0))
    assert index.paths == ("x/10.png", "x/2.png", "x/1.png", "x/9.png")
    assert index.labels.tolist() == [0, 0, 2, 2]
    assert len(index) == 4


def test_positions_and_counts() -> None:
    index = index_of(("a", 0), ("b", 0), ("c", 2), ("d", 3), ("e", 3), ("f", 3))
    assert index.positions(0, 0).tolist() == [0, 1]
    assert index.positions(1, 1).tolist() == []
    assert index.positions(1, 2).tolist() == [2]
    assert index.positions(2, 3).tolist() == [2, 3, 4, 5]
    assert index.positions(0, 9).tolist() == list(range(6))
    assert index.counts(6).tolist() == [2, 0, 1, 3, 0, 0]


def test_batches_by_class() -> None:
    index = Index(Path(), tuple("abcdefg"), np.array([0, 0, 0, 1, 2, 2, 2]))
    assert [part.tolist() for part in index.batches(np.arange(7), 2)] == [[0, 1], [2, 3], [4, 5], [6]]
    by_class = index.batches(np.array([0, 1, 2, 4, 5, 6]), 2, by_class=True)
    assert [part.tolist() for part in by_class] == [[0, 1], [2], [4, 5], [6]]
    assert not list(index.batches(np.array([], dtype=np.int64), 2, by_class=True))


def test_the_fingerprint_changes_with_every_change_of_the_images() -> None:
    images = (("a/1", 0), ("a/2", 0), ("b/1", 1))
    changed = [
        images[:2],
        (*images, ("b/2", 1)),
        (("a/1", 0), ("a/3", 0), ("b/1", 1)),
        (("a/1", 0), ("a/2", 1), ("b/1", 1)),
        (("a/1", 0), ("a/2", 0), ("b/1", 2)),
        (("a/10", 0), ("a/2", 0), ("b/1", 1)),
    ]
    fingerprints = {index_of(*pairs).fingerprint() for pairs in (images, *changed)}
    assert len(fingerprints) == 1 + len(changed)
    assert index_of(*reversed(images)).fingerprint() == index_of(*images).fingerprint()


def swap_rows(text: str) -> str:
    header, first, second, *rest = text.splitlines()
    return "\n".join((header, second, first, *rest))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "index,folder,name\n",
        lambda text: text.replace("folder", "class"),
        lambda text: text.replace("1,b,bee\n", ""),
        lambda text: text.replace("1,b,bee", "1,b"),
        lambda text: text.replace("1,b,bee", '1,b,"bee'),
        lambda text: text.replace("1,b,bee", "b,1,bee"),
        swap_rows,
    ],
)
def test_a_damaged_class_map_is_refused(damage: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    ClassMap(("a", "b", "c"), ("ant", "bee", "cat")).write(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match="is damaged") as caught:
        ClassMap.read(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", ["", "class_index\n0\n", "class_index,img_path\nzero,a\n", "\x00\x01"])
def test_a_damaged_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(UserError, match="is damaged") as caught:
        Index.read(tmp_path / "train.csv", tmp_path)
    assert caught.value.where == str(tmp_path / "train.csv")


@pytest.mark.parametrize("read", [ClassMap.read, lambda path: Index.read(path, path.parent)])
def test_a_missing_table_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file") as caught:
        read(tmp_path / "gone.csv")
    assert caught.value.where == str(tmp_path / "gone.csv")


def test_a_pipe_among_the_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a" / "2.png")
    with pytest.raises(UserError, match=r"2\.png: is a pipe, a socket or a device"):
        scan(tmp_path, ["a"])


def test_links_to_a_folder_above_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/inner/1.png")
    (tmp_path / "a" / "inner" / "again").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="again: is a link to a folder above it"):
        scan(tmp_path, ["a"])


def test_an_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.png", "a/inner/2.png")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if path.name == "inner":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="inner: cannot be read: Permission denied"):
        scan(tmp_path, ["a"])


def test_a_broken_link_stays_an_unreadable_image(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.png").symlink_to("nowhere.png")
    assert scan(tmp_path, ["a"]).paths == ("a/1.png", "a/2.png")
