"""The check of a distilled data set: it names every defect and nothing else."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.index import ClassMap
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.run import checksums

FOLDERS = ("00010", "10", "a, b", "été")
IPC, SIZE = 3, 16


@pytest.fixture
def whole(tmp_path: Path, image_folder: Callable[..., Path]) -> Path:
    root = image_folder(tmp_path / "distilled", dict.fromkeys(FOLDERS, IPC), size=SIZE)
    files = [f"{folder}/{number:05d}.png" for folder in FOLDERS for number in range(IPC)]
    table = pd.DataFrame(
        {
            "file": files,
            "sha256": [hashlib.sha256((root / file).read_bytes()).hexdigest() for file in files],
            "class_index": [index for index in range(len(FOLDERS)) for _ in range(IPC)],
            "class": [folder for folder in FOLDERS for _ in range(IPC)],
            "number": [*range(IPC)] * len(FOLDERS),
            "source": "",
            "entry_round": 0,
            "iterations": 100,
            "cross_entropy": 0.5,
            "bn_loss": 2.0,
        }
    )
    save(root, table)
    ClassMap(FOLDERS, FOLDERS).write(root / "classes.csv")
    spec = SPECS["digits"].to_json() | {"classes": len(FOLDERS), "size": SIZE}
    (root / "dataset.json").write_text(json.dumps({"spec": spec, "ipc": IPC}))
    (root / "README.md").write_text("# a card")
    (root / "done.json").write_text("{}")
    return root


def save(root: Path, table: pd.DataFrame) -> None:
    table.to_csv(root / "manifest.csv", index=False)


def rows(root: Path) -> pd.DataFrame:
    return manifest.read_manifest(root)


def update_checksums(root: Path, *files: str) -> None:
    """Update the checksums of the files in the manifest."""
    table = rows(root).set_index("file")
    for file in files:
        table.loc[file, "sha256"] = hashlib.sha256((root / file).read_bytes()).hexdigest()
    save(root, table.reset_index())


def test_a_whole_set_has_no_problems(whole: Path) -> None:
    assert manifest.problems(whole) == []


def test_the_index_is_imagefolders(whole: Path) -> None:
    index, expected = manifest.index(whole), ImageFolder(str(whole))
    assert [str(index.root / path) for path in index.paths] == [path for path, _ in expected.samples]
    assert index.labels.tolist() == expected.targets


def remove_an_image(root: Path) -> list[str]:
    (root / "10" / "00001.png").unlink()
    return ["10/00001.png: missing"]


def remove_a_class(root: Path) -> list[str]:
    shutil.rmtree(root / "a, b")
    return [f"a, b/0000{number}.png: missing" for number in range(IPC)]


def change_a_byte(root: Path) -> list[str]:
    path = root / "été" / "00002.png"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return ["été/00002.png: its content has changed (SHA-256)"]


def swap_two_images(root: Path) -> list[str]:
    one, other = (root / "10" / f"0000{number}.png" for number in range(2))
    one_content, other_content = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_content)
    other.write_bytes(one_content)
    return [f"10/0000{number}.png: its content has changed (SHA-256)" for number in range(2)]


def forget_a_checksum(root: Path) -> list[str]:
    table = rows(root)
    table.loc[0, "sha256"] = ""
    save(root, table)
    return ["00010/00000.png: its content has changed (SHA-256)"]


def truncate(root: Path) -> list[str]:
    path = root / "00010" / "00000.png"
    path.write_bytes(path.read_bytes()[:-40])
    update_checksums(root, "00010/00000.png")
    return [f"00010/00000.png: not a readable image: {path}: "]


def put_a_folder(root: Path) -> list[str]:
    (root / "10" / "00000.png").unlink()
    (root / "10" / "00000.png").mkdir()
    return ["10/00000.png: cannot be read: Is a directory"]


def enlarge(root: Path) -> list[str]:
    Image.new("RGB", (SIZE, SIZE + 1)).save(root / "10" / "00000.png")
    update_checksums(root, "10/00000.png")
    return ["10/00000.png: 16 x 17 pixels, 16 x 16 expected"]


def add_an_image(root: Path) -> list[str]:
    shutil.copy(root / "10" / "00000.png", root / "10" / "00003.png")
    (root / "10" / "Thumbs.db").touch()
    return ["10/00003.png: not in the manifest", "10/Thumbs.db: not in the manifest"]


def add_a_class(root: Path) -> list[str]:
    shutil.copytree(root / "10", root / "11")
    (root / ".cache").mkdir()
    return [".cache/: not in the manifest", "11/: not in the manifest"]


def drop_a_row(root: Path) -> list[str]:
    save(root, rows(root).drop(index=4))
    return ["class 10: 2 images in the manifest, 3 expected", "10/00001.png: not in the manifest"]


def drop_a_row_and_its_image(root: Path) -> list[str]:
    save(root, rows(root).drop(index=4))
    (root / "10" / "00001.png").unlink()
    return ["class 10: 2 images in the manifest, 3 expected"]


def one_row_for_another(root: Path) -> list[str]:
    table = rows(root)
    table.loc[4] = table.loc[3]
    save(root, table)
    (root / "10" / "00001.png").unlink()
    return ["10/00000.png: listed twice in the manifest"]


def label_an_image_otherwise(root: Path) -> list[str]:
    table = rows(root)
    table.loc[[0, 3], "class_index"] = [1, 0]
    save(root, table)
    return [
        "00010/00000.png: class 1 (00010) in the manifest does not match classes.csv",
        "10/00000.png: class 0 (10) in the manifest does not match classes.csv",
    ]


def move_an_image(root: Path) -> list[str]:
    (root / "10" / "00000.png").rename(root / "00010" / "00009.png")
    table = rows(root)
    table.loc[3, "file"] = "00010/00009.png"
    save(root, table)
    return ["00010/00009.png: class 1 (10) in the manifest does not match classes.csv"]


def label_beyond_the_classes(root: Path) -> list[str]:
    table = rows(root)
    table.loc[11, "class_index"] = 4
    save(root, table)
    return [
        "été/00002.png: class 4 (été) in the manifest does not match classes.csv",
        "class été: 2 images in the manifest, 3 expected",
    ]


def reorder_the_class_map(root: Path) -> list[str]:
    ClassMap(("10", "00010", *FOLDERS[2:]), FOLDERS).write(root / "classes.csv")
    return [
        f"{file}: class {index} ({file.split('/')[0]}) in the manifest does not match classes.csv"
        for index in (0, 1)
        for file in (f"{FOLDERS[index]}/0000{number}.png" for number in range(IPC))
    ]


def cut_the_class_map(root: Path) -> list[str]:
    ClassMap(FOLDERS[:3], FOLDERS[:3]).write(root / "classes.csv")
    return [
        "classes.csv: 3 classes, 4 expected",
        *(f"été/0000{number}.png: class 3 (été) in the manifest does not match classes.csv" for number in range(IPC)),
    ]


def lose_the_class_map(root: Path) -> list[str]:
    (root / "classes.csv").unlink()
    return ["classes.csv: missing", *remove_an_image(root)]


def lose_the_facts(root: Path) -> list[str]:
    (root / "dataset.json").unlink()
    return ["dataset.json: missing", *change_a_byte(root)]


def lose_both(root: Path) -> list[str]:
    (root / "dataset.json").unlink()
    (root / "classes.csv").unlink()
    return ["dataset.json: missing", "classes.csv: missing"]


def spoil_the_facts(root: Path) -> list[str]:
    (root / "dataset.json").write_text('{"ipc": 3}')
    return ["dataset.json: is damaged"]


def cut_the_facts(root: Path) -> list[str]:
    (root / "dataset.json").write_text('{"ipc": 3')
    return ["dataset.json: is damaged: "]


def spoil_the_class_map(root: Path) -> list[str]:
    (root / "classes.csv").write_text("index,folder,name\n0,10,10\n3,11,11\n")
    return ["classes.csv: is damaged"]


def lose_the_card(root: Path) -> list[str]:
    (root / "README.md").unlink()
    return ["README.md: missing"]


def add_files_beside(root: Path) -> list[str]:
    (root / "notes.txt").touch()
    os.mkfifo(root / "pipe")
    return ["notes.txt: not part of the data set", "pipe: not part of the data set"]


def link_outwards(root: Path) -> list[str]:
    path = root / "10" / "00000.png"
    path.rename(root.parent / "elsewhere.png")
    path.symlink_to(root.parent / "elsewhere.png")
    (root / "été" / "00000.png").rename(root / "été" / "first.png")
    (root / "été" / "00000.png").symlink_to("first.png")
    return ["10/00000.png: a link that leaves the data set", "été/first.png: not in the manifest"]


def put_a_pipe(root: Path) -> list[str]:
    for name in ("10/00000.png", "README.md"):
        (root / name).unlink()
        os.mkfifo(root / name)
    return ["10/00000.png: not a regular file", "README.md: not a regular file"]


def leave_the_folder(root: Path) -> list[str]:
    table = rows(root)
    files = [f"{root}/10/00000.png", "../distilled/10/00001.png"]
    table.loc[[3, 4], "file"] = files
    table.loc[[5, 6], "source"] = ["/data/train/1.png", "a/../../1.png"]
    save(root, table)
    return [
        *(f"{file}: not a path inside the data set" for file in files),
        *(f"{file}: class 1 (10) in the manifest does not match classes.csv" for file in files),
        *(f"10/0000{i}.png: not in the manifest" for i in (0, 1)),
        "10/00002.png: its source '/data/train/1.png' is not a path inside the training images",
        "a, b/00000.png: its source 'a/../../1.png' is not a path inside the training images",
    ]


def lose_the_losses(root: Path) -> list[str]:
    table = rows(root).astype({"bn_loss": object})
    table.loc[[1, 2], "bn_loss"] = ["nan", "much"]
    table.loc[3, "cross_entropy"] = float("inf")
    save(root, table)
    return [
        "00010/00001.png: bn_loss is 'nan', not a finite number",
        "00010/00002.png: bn_loss is 'much', not a finite number",
        "10/00000.png: cross_entropy is inf, not a finite number",
    ]


def seal(root: Path) -> None:
    """Add the checksums that `aggregate` adds."""
    facts = json.loads((root / "dataset.json").read_text())
    beside = [root / name for name in ("manifest.csv", "classes.csv", "README.md")]
    checksums.write_sealed(root / "dataset.json", facts | {"files": checksums.listing(root, beside)})


def change_what_is_beside(root: Path) -> list[str]:
    seal(root)
    (root / "README.md").write_text("# a cart")
    ClassMap(FOLDERS, ("x", *FOLDERS[1:])).write(root / "classes.csv")
    table = rows(root)
    table.loc[0, "cross_entropy"] = 0.6
    save(root, table)
    return [
        f"{name}: its content has changed" if name != "classes.csv" else "classes.csv: "
        for name in ("README.md", "classes.csv", "manifest.csv")
    ]


def change_the_sealed_facts(root: Path) -> list[str]:
    seal(root)
    path = root / "dataset.json"
    path.write_text(path.read_text().replace('"mirror": false', '"mirror": true'))
    return ["dataset.json: was changed or is damaged: its checksum does not match"]


def many_at_once(root: Path) -> list[str]:
    return [*change_a_byte(root), *add_an_image(root), *add_a_class(root)]


DAMAGES = [
    *(remove_an_image, remove_a_class, change_a_byte, swap_two_images, forget_a_checksum, truncate, put_a_folder),
    *(enlarge, add_an_image, add_a_class, drop_a_row, drop_a_row_and_its_image, one_row_for_another),
    *(label_an_image_otherwise, move_an_image, label_beyond_the_classes, reorder_the_class_map, cut_the_class_map),
    *(lose_the_class_map, lose_the_facts, lose_both, spoil_the_facts, cut_the_facts, spoil_the_class_map),
    *(lose_the_card, add_files_beside, link_outwards, put_a_pipe, leave_the_folder, lose_the_losses),
    *(change_what_is_beside, change_the_sealed_facts, many_at_once),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_defect_is_named_and_nothing_else(damage: Callable[[Path], list[str]], whole: Path) -> None:
    expected = damage(whole)
    found = manifest.problems(whole, deep=True)
    open_ended = [line for line in expected if line.endswith(": ")]
    for start in open_ended:
        (line,) = (line for line in found if line.startswith(start))
        assert len(line) > len(start)
        found[found.index(line)] = start
    assert sorted(found) == sorted(expected)


def test_a_folder_without_a_manifest_is_not_a_distilled_data_set(whole: Path) -> None:
    (whole / "manifest.csv").unlink()
    for folder in (whole, whole / "nowhere", whole / "classes.csv"):
        with pytest.raises(UserError, match=r"there is no manifest\.csv") as caught:
            manifest.problems(folder)
        assert caught.value.where == str(folder)
        assert "aggregate" in caught.value.expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "is damaged"),
        (lambda text: text.replace("sha256", "sha1"), "has no column sha256"),
        (lambda text: text.replace(",0,00010,", ",zero,00010,"), "is damaged"),
        (lambda text: text + '"', "is damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(damage: Callable[[str], str], message: str, whole: Path) -> None:
    path = whole / "manifest.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message) as caught:
        manifest.problems(whole)
    assert caught.value.where == str(path)


def test_one_file_alone_can_be_checked(whole: Path) -> None:
    path = whole / "10" / "00000.png"
    assert manifest.image_fault(path, SIZE) == ""
    assert manifest.image_fault(path, None) == ""
    assert manifest.image_fault(path, 8) == "16 x 16 pixels, 8 x 8 expected"
    assert manifest.image_fault(path, SIZE, "0" * 64) == "its content has changed (SHA-256)"
    assert manifest.image_fault(whole / "README.md", SIZE).startswith("not a readable image")
    assert manifest.image_fault(whole / "gone.png", SIZE) == "missing"


def test_only_the_deep_check_finds_a_truncated_image_that_the_manifest_lists(whole: Path) -> None:
    expected = truncate(whole)
    assert manifest.problems(whole) == []
    (found,) = manifest.problems(whole, deep=True)
    assert found.startswith(expected[0])
