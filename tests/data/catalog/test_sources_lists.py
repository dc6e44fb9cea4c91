"""Lists that belong to data sets: subsets of ImageNet-1K's classes, Tiny-ImageNet's validation table."""

from pathlib import Path

import pytest
from PIL import Image
from torchvision import datasets

from delt_hpc.data.catalog import names, sources
from delt_hpc.data.index import from_pairs
from delt_hpc.errors import UserError


@pytest.mark.parametrize(("name", "size"), [("imagenette", 10), ("imagewoof", 10), ("imagenet-100", 100)])
def test_a_subset_is_selected_from_imagenet(name: str, size: int) -> None:
    selected = sources.subset(name, names.wnids())
    assert selected is not None
    assert len(set(selected)) == size
    assert selected == sorted(selected)
    assert set(selected) < set(names.wnids())
    assert sources.subset(name, selected) is None
    assert sources.subset(name, [f"class {number}" for number in range(size)]) is None
    with pytest.raises(UserError, match=f"1 of the {size} classes .*{selected[3]}"):
        sources.subset(name, sorted(set(names.wnids()) - {selected[3]}))


def test_only_subsets_of_imagenet_are_selected() -> None:
    assert sources.subset("imagenet-1k", names.wnids()) is None
    assert sources.subset("imagenette", [f"class {number}" for number in range(30)]) is None
    assert sources.subset("imagenette", names.wnids()) == sorted(datasets.Imagenette._WNID_TO_CLASS)


FOLDERS = ["n00000003", "n00000001", "n00000002"]
TABLE = [("a.JPEG", 1), ("b.JPEG", 0), ("c.JPEG", 2), ("d.JPEG", 0)]


def tiny_validation(val: Path) -> Path:
    (val / "images").mkdir(parents=True)
    for file, _ in TABLE:
        Image.new("RGB", (4, 4)).save(val / "images" / file)
    lines = [f"{file}\t{FOLDERS[label]}\t0\t0\t62\t62" for file, label in TABLE]
    (val / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return val


def test_listed_validation_images_get_the_class_map_s_index(tmp_path: Path) -> None:
    pairs = sources.listed_validation(tiny_validation(tmp_path / "val"), FOLDERS)
    assert pairs == [(f"images/{file}", label) for file, label in TABLE]
    assert from_pairs(tmp_path / "val", pairs).paths == tuple(f"images/{letter}.JPEG" for letter in "bdac")


def test_lines_of_unused_classes_are_ignored(tmp_path: Path) -> None:
    val = tiny_validation(tmp_path / "val")
    assert sources.listed_validation(val, FOLDERS[1:]) == [("images/a.JPEG", 0), ("images/c.JPEG", 1)]
    (tmp_path / "wnids.txt").write_text("\n".join(FOLDERS))
    assert sources.listed_validation(val, FOLDERS[2:]) == [("images/c.JPEG", 0)]


def test_class_folders_need_no_table(tmp_path: Path) -> None:
    (tmp_path / "n00000001").mkdir()
    assert sources.listed_validation(tmp_path, FOLDERS) is None
    (tmp_path / "val_annotations.txt").write_text("left over from sorting into folders\n")
    assert sources.listed_validation(tmp_path, FOLDERS) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.JPEG n00000001 0 0", "line 5 is not file, wnid, box"),
        ("\tn00000001", "line 5 is not file, wnid, box"),
        ("", "line 5 is not file, wnid, box"),
        ("e.JPEG\tn00000001\t0", "line 5 lists e.JPEG, which is not in images/"),
        ("a.JPEG\tn00000001\t0", "line 5 lists a.JPEG again"),
        ("a2.JPEG\tcat\t0", "line 5 has the unknown wnid cat"),
    ],
)
def test_bad_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    table = tiny_validation(tmp_path / "val") / "val_annotations.txt"
    table.write_text(f"{table.read_text()}{line}\n")
    with pytest.raises(UserError) as caught:
        sources.listed_validation(tmp_path / "val", FOLDERS)
    assert caught.value.where == str(table)
    assert message in caught.value.what


def test_a_wnid_outside_the_data_set_s_own_list_is_unknown(tmp_path: Path) -> None:
    val = tiny_validation(tmp_path / "tiny-imagenet-200" / "val")
    (val.parent / "wnids.txt").write_text("\n".join(FOLDERS[:2]))
    (tmp_path / "val").symlink_to(val)
    with pytest.raises(UserError, match="line 3 has the unknown wnid n00000002"):
        sources.listed_validation(tmp_path / "val", FOLDERS[:2])


def test_a_class_without_a_validation_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no line for n00000009"):
        sources.listed_validation(tiny_validation(tmp_path / "val"), [*FOLDERS, "n00000009"])
