"""Batches: every image once and in order, the same whoever reads them, and no unreadable file without its name."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delt_hpc.config.schema import Loader, OnBad
from delt_hpc.data import bad_files, loader, pil_loader
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import SPECS, DatasetSpec
from delt_hpc.data.index import Index, scan
from delt_hpc.data.loader import LoaderConfig, TrainingSet, ValidationSet, evaluation_batches, images
from delt_hpc.data.transforms import Augmentation, decode, evaluation, normalise, training
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import uniforms
from delt_hpc.run.folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core

SPEC: DatasetSpec = replace(SPECS["fashion-mnist"], size=8, resize=9)
CPU = torch.device("cpu")
COUNT = 23
Batches = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, image_folder: Callable[..., Path]) -> Index:
    """23 images in 23 classes, so that a label says which image it is."""
    folders = [f"{number:02d}" for number in range(COUNT)]
    root = image_folder(tmp_path_factory.mktemp("images"), dict.fromkeys(folders, 1), size=(14, 11))
    return scan(root, folders)


@pytest.fixture
def many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pil_loader, "_MIN_IMAGES_FOR_WORKERS", 1)


def loader_config(
    workers: int = 0, cache_mib: int = 0, backend: Loader = "torchvision", on_bad: OnBad = "raise"
) -> LoaderConfig:
    return LoaderConfig(backend, CPU, workers, cache_mib, on_bad)


def evaluated(
    index: Index, positions: np.ndarray, batch_size: int, workers: int = 0, **options: Any
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    how = loader_config(workers, **options)
    return evaluation_batches(index, positions, SPEC, batch_size, how, BadFiles(how.on_bad))


def expected(index: Index, positions: list[int]) -> torch.Tensor:
    pixels = [evaluation(SPEC)(decode(index.root / index.paths[position])) for position in positions]
    return normalise(torch.from_numpy(np.stack(pixels)), SPEC)


@pytest.mark.parametrize("batch_size", [1, 3, 7, COUNT, 100])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("many_workers")
def test_every_image_is_read_once_and_in_order(batch_size: int, workers: int, index: Index) -> None:
    found = list(evaluated(index, np.arange(COUNT), batch_size, workers))
    whole, left = divmod(COUNT, batch_size)
    assert [len(batch) for batch, _ in found] == [batch_size] * whole + [left] * bool(left)
    assert np.concatenate([positions for _, positions in found]).tolist() == list(range(COUNT))
    assert torch.equal(torch.cat([batch for batch, _ in found]), expected(index, list(range(COUNT))))


def test_positions_may_come_in_any_order(index: Index) -> None:
    asked = [22, 0, 7, 7, 13, 1]
    found = list(evaluated(index, np.asarray(asked), 4))
    assert [positions.tolist() for _, positions in found] == [asked[:4], asked[4:]]
    assert torch.equal(torch.cat([batch for batch, _ in found]), expected(index, asked))


def test_no_positions_no_batches(index: Index) -> None:
    assert list(evaluated(index, np.arange(0), 4)) == []


def test_a_few_files_by_name(index: Index) -> None:
    found = list(images(index.root, [index.paths[5], index.paths[2], index.paths[9]], SPEC, 2))
    assert [len(batch) for batch in found] == [2, 1]
    assert torch.equal(torch.cat(found), expected(index, [5, 2, 9]))


def training_set(index: Index, batch_size: int = 5, count: int | None = None, **options: Any) -> TrainingSet:
    how = {name: options.pop(name) for name in ("workers", "cache_mib", "backend", "on_bad") if name in options}
    plain: dict[str, Any] = {"key": (0, "test"), "augmentation": Augmentation((0.5, 1.0))}
    positions = np.arange(count or len(index))
    return TrainingSet(
        index, positions, SPEC, batch_size=batch_size, loader_config=loader_config(**how), **plain | options
    )


def epochs(data: TrainingSet, first: int, last: int) -> Iterator[Batches]:
    for _, batches in groupby(data.batches(first, last), key=lambda batch: batch.epoch):
        yield [(batch.images, data.labels(batch)) for batch in batches]


def read(data: TrainingSet, first: int, last: int) -> list[Batches]:
    return list(epochs(data, first, last))


def orders(epochs: list[Batches]) -> list[list[int]]:
    return [torch.cat([labels for _, labels in batches]).tolist() for batches in epochs]


def assert_equal(found: list[Batches], due: list[Batches]) -> None:
    assert orders(found) == orders(due)
    for one, other in zip(found, due, strict=True):
        for (pixels, _), (others, _) in zip(one, other, strict=True):
            assert torch.equal(pixels, others)


@pytest.fixture(scope="module")
def undisturbed(index: Index) -> list[Batches]:
    return read(training_set(index), 0, 4)


def test_every_epoch_is_another_permutation(undisturbed: list[Batches]) -> None:
    found = orders(undisturbed)
    assert all(sorted(order) == list(range(COUNT)) for order in found)
    assert len({tuple(order) for order in found}) == 4


def test_labels_go_with_their_images(index: Index, undisturbed: list[Batches]) -> None:
    transform = training(SPEC, Augmentation((0.5, 1.0)))
    for epoch, batches in enumerate(undisturbed):
        for pixels, labels in batches:
            files = [decode(index.root / index.paths[i]) for i in labels]
            streams = [uniforms(0, "test", "augment", epoch, i) for i in labels.tolist()]
            due = np.stack([transform(file, stream) for file, stream in zip(files, streams, strict=True)])
            assert torch.equal(pixels, normalise(torch.from_numpy(due), SPEC))
            assert labels.dtype == torch.int64


def test_an_image_is_augmented_anew_in_every_epoch(undisturbed: list[Batches]) -> None:
    def of_first_image(batches: Batches) -> bytes:
        return next(pixels[labels == 0] for pixels, labels in batches if (labels == 0).any()).numpy().tobytes()

    assert len({of_first_image(batches) for batches in undisturbed}) == 4


@pytest.mark.usefixtures("many_workers")
@pytest.mark.parametrize("options", [{"workers": 2}, {"cache_mib": 1}, {"workers": 1, "cache_mib": 1}])
def test_workers_and_cache_change_nothing(options: dict[str, int], index: Index, undisturbed: list[Batches]) -> None:
    assert_equal(read(training_set(index, **options), 0, 4), undisturbed)


@pytest.mark.parametrize("first", [1, 3])
def test_a_later_start_goes_on_as_an_undisturbed_run(first: int, index: Index, undisturbed: list[Batches]) -> None:
    assert_equal(read(training_set(index), first, 4), undisturbed[first:])


def test_draws_belong_to_the_position_not_to_the_batch(index: Index, undisturbed: list[Batches]) -> None:
    found = read(training_set(index, batch_size=COUNT), 0, 1)
    together = [tuple(torch.cat(parts) for parts in zip(*undisturbed[0], strict=True))]
    assert_equal(found, [together])  # type: ignore[list-item]


def test_another_key_is_another_order(index: Index, undisturbed: list[Batches]) -> None:
    assert orders(read(training_set(index, key=(1, "test")), 0, 1)) != orders(undisturbed[:1])


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        *((9, 3, [3, 3, 3]), (10, 3, [3, 3, 4]), (11, 3, [3, 3, 3, 2]), (13, 4, [4, 4, 5])),
        *((3, 8, [3]), (8, 8, [8]), (9, 8, [9]), (10, 8, [8, 2]), (1, 8, [1]), (2, 1, [2]), (3, 1, [1, 2])),
    ],
)
def test_a_single_left_over_image_joins_the_last_batch(
    count: int, batch_size: int, sizes: list[int], index: Index
) -> None:
    data = training_set(index, batch_size, count)
    (batches,) = read(data, 0, 1)
    assert [len(labels) for _, labels in batches] == sizes
    assert data.steps() == len(sizes)
    assert sorted(orders([batches])[0]) == list(range(count))


def by_label(batches: Batches) -> dict[int, bytes]:
    pixels, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return {int(label): image.numpy().tobytes() for image, label in zip(pixels, labels, strict=True)}


def test_some_positions_of_an_index(index: Index, undisturbed: list[Batches]) -> None:
    data = replace(training_set(index), positions=np.asarray([20, 3, 11, 4]))
    for found, due in zip(read(data, 0, 2), undisturbed, strict=False):
        assert sorted(by_label(found)) == [3, 4, 11, 20]
        assert by_label(found).items() <= by_label(due).items()


@pytest.mark.usefixtures("many_workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_generator_is_left_alone(workers: int, index: Index) -> None:
    before = torch.random.get_rng_state()
    read(training_set(index, workers=workers), 0, 1)
    list(ValidationSet(index, SPEC, 5, loader_config(workers, 0)).batches())
    assert torch.equal(torch.random.get_rng_state(), before)


def remove(index: Index) -> None:
    for path in index.paths:
        (index.root / path).unlink()


@pytest.fixture
def removable(tmp_path: Path, image_folder: Callable[..., Path]) -> Index:
    return scan(image_folder(tmp_path / "train", {"a": 3, "b": 3}, size=10), ["a", "b"])


def test_the_cache_spares_the_files(removable: Index) -> None:
    due = read(training_set(removable), 0, 2)
    cached = epochs(training_set(removable, cache_mib=1), 0, 2)
    found = [next(cached)]
    remove(removable)
    assert_equal([*found, next(cached)], due)


def test_without_a_cache_files_are_read_again(removable: Index) -> None:
    again = epochs(training_set(removable), 0, 4)
    next(again)
    remove(removable)
    with pytest.raises(UserError, match="unreadable"):
        list(again)


def test_the_cache_keeps_its_size_whatever_the_first_image_is(
    tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    image_folder(tmp_path, {"a": 1}, size=8)
    image_folder(tmp_path, {"b": 5}, size=350)  # of which two fill a mebibyte
    index = scan(tmp_path, ["a", "b"])
    cached = epochs(training_set(index, batch_size=6, cache_mib=1), 0, 4)
    next(cached)
    remove(index)
    with pytest.raises(UserError, match="3 unreadable"):
        list(cached)


@pytest.mark.usefixtures("many_workers")
@pytest.mark.parametrize(("workers", "cache_mib"), [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_validation_shows_everything_in_order_in_every_pass(workers: int, cache_mib: int, index: Index) -> None:
    data = ValidationSet(index, SPEC, 7, loader_config(workers, cache_mib))
    for _ in range(2):
        found = list(data.batches())
        assert [len(labels) for _, labels in found] == [7, 7, 7, 2]
        assert torch.cat([labels for _, labels in found]).tolist() == list(range(COUNT))
        assert torch.equal(torch.cat([pixels for pixels, _ in found]), expected(index, list(range(COUNT))))


def test_validation_images_are_kept_where_they_fit(removable: Index) -> None:
    due = torch.cat([pixels for pixels, _ in ValidationSet(removable, SPEC, 4, loader_config(0, 0)).batches()])
    kept, read_again = (ValidationSet(removable, SPEC, 4, loader_config(0, mib)) for mib in (1, 0))
    for data in (kept, read_again):
        list(data.batches())
    remove(removable)
    assert torch.equal(torch.cat([pixels for pixels, _ in kept.batches()]), due)
    with pytest.raises(UserError, match="4 unreadable"):
        list(read_again.batches())


def test_a_broken_off_validation_is_not_taken_for_the_whole(index: Index) -> None:
    data = ValidationSet(index, SPEC, 7, loader_config(0, 1))
    next(data.batches())
    for _ in range(2):
        assert sum(len(labels) for _, labels in data.batches()) == COUNT


def all_batches(index: Index, workers: int) -> list[Callable[[], object]]:
    """Each way to read an index, in one batch."""
    validation = ValidationSet(index, SPEC, 64, loader_config(workers, 1))
    return [
        lambda: list(evaluated(index, np.arange(len(index)), 64, workers)),
        lambda: list(validation.batches()),
        partial(read, training_set(index, 64, workers=workers), 0, 1),
        partial(read, training_set(index, 64, workers=workers, cache_mib=1), 0, 1),
    ]


@pytest.mark.usefixtures("many_workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_every_unreadable_file_is_named(workers: int, tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(tmp_path / "train", {"a": 4, "b, c": 4}, size=32, suffix=".jpg")
    bad = {"gone.jpg", "empty.jpg", "cut.jpg", "text.jpg", "folder.jpg"}
    whole = (root / "a" / "00001.jpg").read_bytes()
    (root / "a" / "empty.jpg").touch()
    (root / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "a" / "text.jpg").write_text("a list of things to do")
    (root / "a" / "folder.jpg").mkdir()
    good = scan(root, ["a", "b, c"])
    paths = [*good.paths, "a/gone.jpg", "a/folder.jpg"]
    index = Index(root, tuple(paths), np.zeros(len(paths), dtype=np.int64))
    for read_all in all_batches(index, workers):
        with pytest.raises(UserError, match=r"^data: 5 unreadable image\(s\)") as caught:
            read_all()
        lines = caught.value.what.splitlines()[1:]
        assert sorted(line.strip().split(": ")[0] for line in lines) == sorted(str(root / "a" / name) for name in bad)


def test_batches_before_an_unreadable_file_are_delivered(removable: Index) -> None:
    (removable.root / removable.paths[4]).write_bytes(b"")
    stream = evaluated(removable, np.arange(6), 2)
    assert [next(stream)[1].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match=removable.paths[4]):
        next(stream)


BACKENDS = ["torchvision", pytest.param("dali-cpu", marks=pytest.mark.skipif(not loader.has_dali(), reason="no DALI"))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_unreadable_files_are_left_out_and_listed_where_that_is_asked_for(removable: Index, backend: Loader) -> None:
    for number, content in ((1, b""), (4, b"no image")):
        (removable.root / removable.paths[number]).write_bytes(content)
    bad = BadFiles("skip")
    found = list(evaluation_batches(removable, np.arange(6), SPEC, 2, loader_config(0, 0, backend, "skip"), bad))
    assert [positions.tolist() for _, positions in found] == [[0], [2, 3], [5]]
    assert [file.path for file in bad.files] == [removable.paths[1], removable.paths[4]]
    assert all(file.reason for file in bad.files)
    data = training_set(removable, 2, backend=backend, on_bad="skip")
    assert [sorted(order) for order in orders(read(data, 0, 3))] == [[0, 0, 1, 1]] * 3
    assert len(data.bad.skipped) == 6 and len(data.bad.files) == 2
    for mib in (0, 1):
        val = ValidationSet(removable, SPEC, 4, loader_config(0, mib, backend, "skip"))
        for _ in range(2):
            assert sum(len(labels) for _, labels in val.batches()) == 4
        assert [file.position for file in val.bad.files] == [1, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_show_the_same_images(index: Index, undisturbed: list[Batches], backend: Loader) -> None:
    step = 1.001 / 255 / min(SPEC.std)
    kept = ValidationSet(index, SPEC, 7, loader_config(1, 1, backend))
    for _ in range(2):  # the second time from memory, which DALI must not have used again
        found = torch.cat([pixels for pixels, _ in kept.batches()])
        assert (found - expected(index, list(range(COUNT)))).abs().max() <= step
    for batches, due in zip(read(training_set(index, backend=backend), 0, 4), undisturbed, strict=True):
        for (pixels, labels), (others, same) in zip(batches, due, strict=True):
            assert torch.equal(labels, same)
            assert (pixels - others).abs().max() <= step


def test_auto_is_dali_but_for_training_images_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = LoaderConfig("auto", CPU), LoaderConfig("auto", torch.device("cuda"))
    monkeypatch.setattr(loader, "has_dali", lambda: True)
    assert [cpu.backend(training=t) for t in (False, True)] == ["dali-cpu", "torchvision"]
    assert [gpu.backend(training=t) for t in (False, True)] == ["dali-gpu", "dali-gpu"]
    monkeypatch.setattr(loader, "has_dali", lambda: False)
    assert [gpu.backend(training=t) for t in (False, True)] == ["torchvision", "torchvision"]


@pytest.mark.parametrize(
    ("backend", "device", "dali", "message"),
    [
        ("dali-cpu", "cpu", False, "not installed"),
        ("dali-gpu", "cpu", True, "requires a GPU; this run is on the CPU"),
        ("dali-cpu", "cuda", True, "loads images for the CPU; this run is on a GPU"),
    ],
)
def test_a_backend_that_is_not_there_is_refused(
    backend: Loader, device: str, dali: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "has_dali", lambda: dali)
    with pytest.raises(UserError, match=message):
        loader.check(backend, torch.device(device))


@pytest.mark.parametrize("backend", BACKENDS)
def test_facts_name_the_backend_and_its_versions(backend: Loader) -> None:
    facts = loader_config(backend=backend).facts(training=False)
    assert facts["loader"] == backend
    assert all(key.startswith("loader") and value for key, value in facts.items()) and len(facts) == 3


def test_the_table_of_files_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    one, two = bad_files.BadFile(3, "a b/é,.png", "is empty"), bad_files.BadFile(5, "00010/x.jpg", 'says "no"')
    bad_files.write(run.teacher / bad_files.TABLE, {"train": [one], "val": []})
    bad_files.write(run.rank / f"00003.{bad_files.TABLE}", {"train": [one, two]})
    bad_files.write(run.rank / f"00004.{bad_files.TABLE}", {"train": []})
    assert not (run.rank / f"00004.{bad_files.TABLE}").exists()
    assert bad_files.gather(run).to_numpy().tolist() == [
        ["train", "a b/é,.png", "is empty"],
        ["train", "00010/x.jpg", 'says "no"'],
    ]
