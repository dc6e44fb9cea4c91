"""Whatever a file holds, reading it gives a valid object or an error for the user, and ends."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.schema import SECTIONS, Config
from delt_hpc.data.index import ClassMap, Index
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.ranking.table import read_given
from delt_hpc.run.folder import read_json

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

SECONDS = 60  # for reading a file of a few kilobytes: only a hang takes as long
hostile = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FOLDERS = ("00010", "10", "été")


@contextmanager
def bounded() -> Iterator[None]:
    """Ends a hang with an error."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused(read: Callable[[], Any]) -> Any:
    """What was read; None if it was refused with an error for the user. Any other error is a failure."""
    with bounded():
        try:
            return read()
        except UserError as error:
            assert str(error)
            return None


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content after a few edits: bytes removed, and others put in their place."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(changed)))
        pieces = st.one_of(st.binary(max_size=6), st.sampled_from([b"\n", b",", b'"', b"\r", b"\0", b"nan", b"\xff"]))
        changed[start : start + draw(st.integers(0, 12))] = draw(pieces)
    return bytes(changed)


def hostile_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged(content), st.binary(max_size=200), st.text(max_size=200).map(str.encode))


# --- the configuration

plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.dates(), st.binary(max_size=4)
)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3))


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Sections and options of the schema, some of them unknown, with any values."""
    tree: dict[str, Any] = {}
    for section, model in draw(st.lists(st.sampled_from(sorted(SECTIONS.items())), max_size=3)):
        names = st.sampled_from(sorted(model.model_fields)) | st.text(max_size=6)
        tree[section] = draw(st.dictionaries(names, values, max_size=3) | values)
    tops = st.sampled_from(sorted(set(Config.model_fields) - set(SECTIONS))) | st.text(max_size=6)
    return tree | draw(st.dictionaries(tops, values, max_size=2))


def load(path: Path, content: bytes, overrides: tuple[str, ...] = ()) -> None:
    path.write_bytes(content)
    config = refused(lambda: load_config(str(path), overrides))
    if config is not None:
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(str(path)) == config


@hostile
@given(tree=trees())
@example(tree={"recover": {"lr": float("nan")}})
@example(tree={"evaluate": {"seeds": [10**30]}})
def test_any_configuration(tree: dict[str, Any], tmp_path: Path) -> None:
    load(tmp_path / "config.yaml", yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass"))


@hostile
@given(content=hostile_bytes(dump_config(Config()).encode()))
@example(content=b"a: " + b"[" * 3000)
@example(content=b"? {a: 1}\n: 2")
@example(content=b"!!python/object/apply:os.system [true]")
def test_any_yaml(content: bytes, tmp_path: Path) -> None:
    load(tmp_path / "config.yaml", content)


@hostile
@given(
    override=st.text(max_size=40)
    | st.builds("{}={}".format, st.sampled_from(["recover.lr", "a.b.c", "data", ""]), st.text(max_size=20))
)
def test_any_override(override: str, tmp_path: Path) -> None:
    load(tmp_path / "config.yaml", b"", (override,))


# --- tables


PATHS = tuple(f"{folder}/{i}.png" for folder in FOLDERS for i in range(2))
RANKING = "score,img_path,class\n" + "".join(f"0.{i}5,{p},{p.partition('/')[0]}\n" for i, p in enumerate(PATHS))


@hostile
@given(content=hostile_bytes(RANKING.encode()))
def test_any_ranking(content: bytes, tmp_path: Path) -> None:
    path, index = tmp_path / "ranking.csv", Index(tmp_path, PATHS, np.repeat(np.arange(3), 2))
    path.write_bytes(content)
    table = refused(lambda: read_given(path, index, ClassMap(FOLDERS, FOLDERS)))
    if table is not None:
        assert sorted(table["img_path"]) == sorted(index.paths)
        assert np.isfinite(table["score"]).all()


CLASSES = "index,folder,name\n" + "".join(f"{i},{folder},a name\n" for i, folder in enumerate(FOLDERS))


@hostile
@given(content=hostile_bytes(CLASSES.encode()))
def test_any_class_map(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_bytes(content)
    classes = refused(lambda: ClassMap.read(path))
    if classes is not None:
        assert len(classes.folders) == len(classes.names) > 0


line = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)


@hostile
@given(names=st.lists(st.tuples(line, line), min_size=1, max_size=4))
def test_a_class_map_of_any_names_is_read_back(names: list[tuple[str, str]], tmp_path: Path) -> None:
    folders, readable = (tuple(part) for part in zip(*names, strict=True))
    classes = ClassMap(folders, readable)
    classes.write(tmp_path / "classes.csv")
    assert ClassMap.read(tmp_path / "classes.csv") == classes


INDEX = "class_index,img_path\n" + "".join(f"{i},{folder}/0.png\n" for i, folder in enumerate(FOLDERS))


@hostile
@given(content=hostile_bytes(INDEX.encode()))
@example(content=b"class_index,img_path\n1,10/0.png\n0,00010/0.png\n")
@example(content=b"class_index,img_path\n-1,10/0.png\n")
def test_any_index(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    index = refused(lambda: Index.read(path, tmp_path))
    if index is not None:
        assert len(index.paths) == len(index.labels)
        assert all(isinstance(name, str) for name in index.paths)
        assert (np.diff(index.labels) >= 0).all() and (index.labels >= 0).all()


# --- the distilled set

MANIFEST = ",".join(manifest.COLUMNS) + "".join(
    f"\n{folder}/00000.png,{'0' * 64},{i},{folder},0,{folder}/7.png,0,8,1.5,2.5" for i, folder in enumerate(FOLDERS)
)
FACTS = json.dumps(
    {
        "ipc": 1,
        "spec": {"name": "toy", "classes": 3, "size": 8, "resize": 8, "mean": [0.5] * 3, "std": [0.2] * 3,
                 "mirror": True, "teacher": "convnet3"},
    }
)  # fmt: skip


@hostile
@given(
    table=hostile_bytes(MANIFEST.encode()), facts=hostile_bytes(FACTS.encode()), classes=hostile_bytes(CLASSES.encode())
)
@example(table=MANIFEST.encode(), facts=b"[" * 100_000, classes=CLASSES.encode())
@example(table=MANIFEST.encode(), facts=FACTS.replace("8", "1e999").encode(), classes=CLASSES.encode())
@example(table=MANIFEST.replace("00010/00000.png", "a" * 300).encode(), facts=FACTS.encode(), classes=CLASSES.encode())
@example(table=MANIFEST.replace("00010/00000.png", "a\0b").encode(), facts=FACTS.encode(), classes=CLASSES.encode())
def test_any_distilled_set(table: bytes, facts: bytes, classes: bytes, tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "00000.png")
    for name, content in ((manifest.MANIFEST, table), (manifest.FACTS, facts), (manifest.CLASSES, classes)):
        (tmp_path / name).write_bytes(content)
    found = refused(lambda: manifest.problems(tmp_path))
    assert found is None or found  # the images' checksums are wrong in every case


@hostile
@given(content=hostile_bytes(FACTS.encode()))
@example(content=b"[" * 100_000)
@example(content=b"9" * 10_000)
def test_any_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    refused(lambda: read_json(tmp_path / "a.json"))
