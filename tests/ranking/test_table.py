"""A ranking is read back exactly; a ranking from elsewhere is accepted or refused with the reason."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from delt_hpc.data.index import ClassMap, Index
from delt_hpc.errors import UserError
from delt_hpc.ranking.table import COLUMNS, rank_class, read_given, read_ranking, write_ranking

FOLDERS = ("10", "00010", "2", "NA", "null", "été au lac", 'a "b", c', " edge ", "1e3", "nan", "True", "-", "#x", "ﬁ🐟")
NAMES = ("0.png", "a b.jpg", 'q"u,o.png', "naïve;.png", "'x'.png", "back\\slash.png")


def index_of(folders: tuple[str, ...]) -> tuple[Index, ClassMap]:
    files = [f"{folder}/{name}" for folder in folders for name in NAMES]
    labels = np.repeat(np.arange(len(folders)), len(NAMES))
    return Index(Path("train"), tuple(files), labels), ClassMap(folders, folders)


def ranked(index: Index, classes: ClassMap, scores: np.ndarray) -> pd.DataFrame:
    parts = []
    for i, folder in enumerate(classes.folders):
        positions = index.positions(i, i)
        parts.append(rank_class(index, positions, scores[positions], folder, i))
    return pd.concat(parts, ignore_index=True)


def extreme_scores(n: int) -> np.ndarray:
    """Numbers of every size, down to the smallest float64."""
    generator = np.random.default_rng(0)
    scores = 10.0 ** generator.uniform(-310, 0, n)
    scores[:6] = [1.0, 0.0, 5e-324, 1 - 2.0**-53, 1 / 3, 0.1 + 0.2]
    return scores


# --- one class


def test_the_best_score_is_first_and_equal_scores_go_by_path() -> None:
    index = Index(Path("train"), ("a/3", "a/1", "a/2", "a/0"), np.zeros(4, dtype=np.int64))
    table = rank_class(index, np.array([0, 1, 2, 3]), np.array([0.5, 0.9, 0.5, 0.1]), "a", 7)
    assert table["img_path"].tolist() == ["a/1", "a/2", "a/3", "a/0"]
    assert table["score"].tolist() == [0.9, 0.5, 0.5, 0.1]
    assert table["class_index"].tolist() == [7] * 4
    assert table["class"].tolist() == ["a"] * 4


# --- round trip


def test_what_is_written_is_read_back_without_loss(tmp_path: Path) -> None:
    index, classes = index_of(FOLDERS)
    table = ranked(index, classes, extreme_scores(len(index)))
    write_ranking(tmp_path / "ranking.csv", table)
    back = read_ranking(tmp_path / "ranking.csv")
    assert list(back.columns) == ["score", "img_path", "class", "class_index"]
    assert (back["score"].to_numpy() == table["score"].to_numpy()).all()
    assert back["img_path"].tolist() == table["img_path"].tolist()
    assert back["class"].tolist() == [folder for folder in FOLDERS for _ in NAMES]
    assert back["class_index"].tolist() == table["class_index"].tolist()
    assert [str(back[name].dtype) for name in ("score", "class_index")] == ["float64", "int64"]


def test_every_float_is_read_back_exactly(tmp_path: Path) -> None:
    scores = extreme_scores(20_000)
    write_ranking(
        tmp_path / "r.csv", pd.DataFrame({"score": scores, "img_path": "a/0", "class": "a", "class_index": 0})
    )
    assert (read_ranking(tmp_path / "r.csv")["score"].to_numpy() == scores).all()


def test_the_file_is_plain(tmp_path: Path) -> None:
    table = pd.DataFrame({"score": [0.25], "img_path": ["00010/a.png"], "class": ["00010"], "class_index": [1]})
    write_ranking(tmp_path / "r.csv", table)
    assert (tmp_path / "r.csv").read_bytes() == b"score,img_path,class,class_index\n0.25,00010/a.png,00010,1\n"


# --- from elsewhere

INDEX, CLASSES = index_of(("10", "00010", "été au lac"))


def given_table() -> pd.DataFrame:
    scores = extreme_scores(len(INDEX))
    return ranked(INDEX, CLASSES, scores)


def given(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    table.to_csv(folder / "given.csv", index=False)
    return read_given(folder / "given.csv", INDEX, CLASSES)


def refused(folder: Path, content: pd.DataFrame | bytes) -> str:
    path = folder / "given.csv"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.to_csv(path, index=False)
    with pytest.raises(UserError) as caught:
        read_given(path, INDEX, CLASSES)
    assert caught.value.where == f"rank.csv: {path}"
    return str(caught.value).removeprefix(f"{caught.value.where}: ")


def equal(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    return all(one[name].tolist() == other[name].tolist() for name in COLUMNS)


def test_a_ranking_of_this_package_is_read_unchanged(tmp_path: Path) -> None:
    assert equal(given(tmp_path, given_table()), given_table())


def test_its_order_and_further_columns_do_not_matter(tmp_path: Path) -> None:
    table = given_table().sample(frac=1, random_state=0).drop(columns="class_index").assign(wnid="x")
    assert equal(given(tmp_path, table[["wnid", "class", "score", "img_path"]]), given_table())


@pytest.mark.parametrize("prefix", ["/data/train/", "./", "C:\\train\\", "00010/"])
def test_longer_paths_that_end_in_the_relative_path(prefix: str, tmp_path: Path) -> None:
    table = given_table()
    table["img_path"] = prefix + table["img_path"].astype(str)
    table = table[~table["img_path"].str.contains("back")]
    keep = np.array(["back" not in path for path in INDEX.paths])
    index = Index(INDEX.root, tuple(np.array(INDEX.paths)[keep].tolist()), INDEX.labels[keep])
    table.to_csv(tmp_path / "given.csv", index=False)
    back = read_given(tmp_path / "given.csv", index, CLASSES)
    assert equal(back, given_table()[~given_table()["img_path"].str.contains("back")])


def test_paths_of_windows(tmp_path: Path) -> None:
    index = Index(Path("train"), ("a/x/0.png", "a/1.png"), np.zeros(2, dtype=np.int64))
    (tmp_path / "r.csv").write_text("score,img_path,class\n0.5,D:\\t\\a\\1.png,a\n0.25,D:\\t\\a\\x\\0.png,a\n")
    back = read_given(tmp_path / "r.csv", index, ClassMap(("a",), ("a",)))
    assert back["img_path"].tolist() == ["a/1.png", "a/x/0.png"]


@pytest.mark.parametrize("column", ["score", "img_path", "class"])
def test_a_missing_column(column: str, tmp_path: Path) -> None:
    message = refused(tmp_path, given_table().drop(columns=column))
    assert message.startswith(f"has no column {column}\n  expected: columns score, img_path, class")


@pytest.mark.parametrize("score", ["high", "nan", "inf", "-inf", "", "0,5"])
def test_a_score_that_is_not_a_number(score: str, tmp_path: Path) -> None:
    table = given_table().astype({"score": object})
    table.loc[3, "score"] = score
    assert refused(tmp_path, table) == f"line 5: score {score!r} is not a finite number"


def test_an_unknown_image(tmp_path: Path) -> None:
    table = given_table()
    table.loc[[1, 2], "img_path"] = ["10/new.png", "elsewhere"]
    assert refused(tmp_path, table) == "2 images are not in the training set: 10/new.png, elsewhere"


def test_a_missing_and_a_double_image(tmp_path: Path) -> None:
    table = given_table()
    one, other = table["img_path"][1], table["img_path"][2]
    table.loc[1, "img_path"] = other
    message = refused(tmp_path, table)
    assert message.startswith("2 training images do not appear exactly once: ")
    assert f"{one} (0 times)" in message
    assert f"{other} (2 times)" in message


def test_many_missing_images_are_counted(tmp_path: Path) -> None:
    assert refused(tmp_path, given_table()[:1]).endswith("... and 12 more")
    assert refused(tmp_path, given_table()[:0]).startswith("18 training images do not appear exactly once")


def test_a_class_read_as_a_number(tmp_path: Path) -> None:
    table = given_table()
    table["class"] = table["class"].replace("00010", "10")
    message = refused(tmp_path, table)
    assert message.startswith("6 images have a class that differs from their folder: 00010/")
    assert "`00010`, not 10" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cannot be read: No columns"),
        (b"score,img_path,class\n0.5,\xff,10\n", "cannot be read: 'utf-8'"),
        (b'score,img_path,class\n0.5,"10/0.png,10\n', "cannot be read: Error tokenizing"),
        (b"score;img_path;class\n0.5;10/0.png;10\n", "has no column score, img_path, class"),
        (b"score,img_path,class\nx,10/0.png,10\n", "line 2: score 'x' is not a finite number"),
        (b"score,img_path,class\n0.5,10/0.png,10,\n", "cannot be read: Length of header"),
    ],
)
def test_a_file_that_is_not_a_ranking(content: bytes, expected: str, tmp_path: Path) -> None:
    assert refused(tmp_path, content).startswith(expected)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_given(tmp_path / "none.csv", INDEX, CLASSES)
