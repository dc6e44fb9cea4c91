"""Batches: every image once and in order, equal for all backends, workers and caches."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.loading import (
    BACKENDS,
    COUNT,
    CPU,
    SPEC,
    Batches,
    delete_files,
    epochs,
    loader_config,
    orders,
    read,
    reference_images,
    training_set,
)

from delt_hpc.config.schema import Loader
from delt_hpc.data import loader
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.epochs import shuffled_batches
from delt_hpc.data.index import Index, scan
from delt_hpc.data.loader import LoaderConfig, ValidationSet, evaluation_batches, images
from delt_hpc.data.transforms import Augmentation, decode, normalise, training
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import uniforms

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core


def evaluated(
    index: Index, positions: np.ndarray, batch_size: int, workers: int = 0, **options: Any
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    settings = loader_config(workers, **options)
    return evaluation_batches(index, positions, SPEC, batch_size, settings, BadFiles(settings.on_bad))


@pytest.mark.parametrize("batch_size", [1, 3, 7, COUNT, 100])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("many_workers")
def test_every_image_is_read_once_and_in_order(batch_size: int, workers: int, index: Index) -> None:
    found = list(evaluated(index, np.arange(COUNT), batch_size, workers))
    whole, left = divmod(COUNT, batch_size)
    assert [len(batch) for batch, _ in found] == [batch_size] * whole + [left] * bool(left)
    assert np.concatenate([positions for _, positions in found]).tolist() == list(range(COUNT))
    assert torch.equal(torch.cat([batch for batch, _ in found]), reference_images(index, list(range(COUNT))))


def test_positions_may_come_in_any_order(index: Index) -> None:
    wanted = [22, 0, 7, 7, 13, 1]
    found = list(evaluated(index, np.asarray(wanted), 4))
    assert [positions.tolist() for _, positions in found] == [wanted[:4], wanted[4:]]
    assert torch.equal(torch.cat([batch for batch, _ in found]), reference_images(index, wanted))


def test_no_positions_no_batches(index: Index) -> None:
    assert list(evaluated(index, np.arange(0), 4)) == []


def test_images_of_a_few_files(index: Index) -> None:
    found = list(images(index.root, [index.paths[5], index.paths[2], index.paths[9]], SPEC, 2))
    assert [len(batch) for batch in found] == [2, 1]
    assert torch.equal(torch.cat(found), reference_images(index, [5, 2, 9]))


def assert_equal(found: list[Batches], reference: list[Batches]) -> None:
    assert orders(found) == orders(reference)
    for one, other in zip(found, reference, strict=True):
        for (pixels, _), (others, _) in zip(one, other, strict=True):
            assert torch.equal(pixels, others)


@pytest.fixture(scope="module")
def undisturbed(index: Index) -> list[Batches]:
    return read(training_set(index), 0, 4)


def test_every_epoch_is_another_permutation(undisturbed: list[Batches]) -> None:
    found = orders(undisturbed)
    assert all(sorted(order) == list(range(COUNT)) for order in found)
    assert len({tuple(order) for order in found}) == 4


def test_images_have_their_own_labels_and_augmentation(index: Index, undisturbed: list[Batches]) -> None:
    transform = training(SPEC, Augmentation((0.5, 1.0)))
    for epoch, batches in enumerate(undisturbed):
        for pixels, labels in batches:
            files = [decode(index.root / index.paths[i]) for i in labels]
            streams = [uniforms(0, "test", "augment", epoch, i) for i in labels.tolist()]
            reference = np.stack([transform(file, stream) for file, stream in zip(files, streams, strict=True)])
            assert torch.equal(pixels, normalise(torch.from_numpy(reference), SPEC))
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
def test_a_later_start_equals_an_undisturbed_run(first: int, index: Index, undisturbed: list[Batches]) -> None:
    assert_equal(read(training_set(index), first, 4), undisturbed[first:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_start_inside_an_epoch_has_the_batches_that_are_left(step: int, backend: Loader, index: Index) -> None:
    data = training_set(index, backend=backend)
    whole, rest = list(data.batches(1, 3)), list(data.batches(1, 3, step))
    assert [(batch.epoch, batch.step) for batch in rest] == [(batch.epoch, batch.step) for batch in whole][step:]
    assert [batch.step for batch in whole] == [*range(5), *range(5)]
    for left, right in zip(rest, whole[step:], strict=True):
        assert torch.equal(left.images, right.images)
        assert np.array_equal(left.positions, right.positions)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_kept_epochs_are_repeated_with_the_same_draws(first: int, backend: Loader, index: Index) -> None:
    """Two epochs have draws of their own; epochs 2 and 3 repeat them, also after a restart in an epoch."""
    own = list(training_set(index, backend=backend).batches(0, 2))
    data = replace(training_set(index, backend=backend), epochs_kept=2)
    found, expected = list(data.batches(first, 5, 3)), [*own, *own, *own[:5]][5 * first + 3 :]
    assert [batch.epoch for batch in found] == [first] * 2 + [e for e in range(first + 1, 5) for _ in range(5)]
    for left, right in zip(found, expected, strict=True):
        assert (left.step, data.drawn(left.epoch)) == (right.step, right.epoch)
        assert torch.equal(left.images, right.images)
        assert np.array_equal(left.positions, right.positions)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_without_readable_files_leaves_a_gap_in_the_steps(backend: Loader, removable: Index) -> None:
    data = training_set(removable, 2, backend=backend, on_bad="skip")
    second = list(shuffled_batches(data.positions, 2, *data.key, "order", 0))[1]
    for position in second.tolist():
        (removable.root / removable.paths[position]).unlink()
    assert [batch.step for batch in data.batches(0, 1)] == [0, 2]


@pytest.mark.usefixtures("many_workers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_stop_signal_does_not_end_the_workers(
    number: signal.Signals, index: Index, undisturbed: list[Batches]
) -> None:
    data = training_set(index, workers=2)
    found = []
    for batch in data.batches(0, 1):
        found.append((batch.images, data.labels(batch)))
        for process in multiprocessing.active_children():
            assert process.pid
            os.kill(process.pid, number)
    assert_equal([found], undisturbed[:1])


@pytest.mark.usefixtures("many_workers")
def test_closing_the_batches_ends_the_workers(index: Index) -> None:
    batches = training_set(index, workers=2).batches(0, 1)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


def test_augmentation_does_not_depend_on_the_batch_size(index: Index, undisturbed: list[Batches]) -> None:
    found = read(training_set(index, batch_size=COUNT), 0, 1)
    together = [tuple(torch.cat(parts) for parts in zip(*undisturbed[0], strict=True))]
    assert_equal(found, [together])  # type: ignore[list-item]


def test_another_key_is_another_order(index: Index, undisturbed: list[Batches]) -> None:
    assert orders(read(training_set(index, key=(1, "test")), 0, 1)) != orders(undisturbed[:1])


def images_by_label(batches: Batches) -> dict[int, bytes]:
    pixels, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return {int(label): image.numpy().tobytes() for image, label in zip(pixels, labels, strict=True)}


def test_some_positions_of_an_index(index: Index, undisturbed: list[Batches]) -> None:
    data = replace(training_set(index), positions=np.asarray([20, 3, 11, 4]))
    for found, reference in zip(read(data, 0, 2), undisturbed, strict=False):
        assert sorted(images_by_label(found)) == [3, 4, 11, 20]
        assert images_by_label(found).items() <= images_by_label(reference).items()


@pytest.mark.usefixtures("many_workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_global_generator_is_not_used(workers: int, index: Index) -> None:
    before = torch.random.get_rng_state()
    read(training_set(index, workers=workers), 0, 1)
    list(ValidationSet(index, SPEC, 5, loader_config(workers, 0)).batches())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_cached_images_are_not_read_again(removable: Index) -> None:
    reference = read(training_set(removable), 0, 2)
    cached = epochs(training_set(removable, cache_mib=1), 0, 2)
    found = [next(cached)]
    delete_files(removable)
    assert_equal([*found, next(cached)], reference)


def test_without_a_cache_files_are_read_again(removable: Index) -> None:
    uncached = epochs(training_set(removable), 0, 4)
    next(uncached)
    delete_files(removable)
    with pytest.raises(UserError, match="unreadable"):
        list(uncached)


def test_the_cache_size_does_not_depend_on_the_first_image(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    image_folder(tmp_path, {"a": 1}, size=8)
    image_folder(tmp_path, {"b": 5}, size=350)  # two of them fill a mebibyte
    index = scan(tmp_path, ["a", "b"])
    cached = epochs(training_set(index, batch_size=6, cache_mib=1), 0, 4)
    next(cached)
    delete_files(index)
    with pytest.raises(UserError, match="3 unreadable"):
        list(cached)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_deliver_the_same_images(index: Index, undisturbed: list[Batches], backend: Loader) -> None:
    step = 1.001 / 255 / min(SPEC.std)
    val = ValidationSet(index, SPEC, 7, loader_config(1, 1, backend))
    for _ in range(2):  # the second pass is cached; DALI must not have overwritten it
        found = torch.cat([pixels for pixels, _ in val.batches()])
        assert (found - reference_images(index, list(range(COUNT)))).abs().max() <= step
    for batches, reference in zip(read(training_set(index, backend=backend), 0, 4), undisturbed, strict=True):
        for (pixels, labels), (others, other_labels) in zip(batches, reference, strict=True):
            assert torch.equal(labels, other_labels)
            assert pixels.is_contiguous(memory_format=torch.channels_last)
            assert (pixels - others).abs().max() <= step


def test_auto_on_a_cpu_is_dali_for_evaluation_images_that_are_jpegs(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = LoaderConfig("auto", CPU), LoaderConfig("auto", torch.device("cuda"))
    monkeypatch.setattr(loader, "has_dali", lambda: True)
    assert [cpu.backend(training=t) for t in (False, True)] == ["dali-cpu", "torchvision"]
    assert [replace(cpu, jpegs=False).backend(training=t) for t in (False, True)] == ["torchvision", "torchvision"]
    for made in (gpu, replace(gpu, jpegs=False)):
        assert [made.backend(training=t) for t in (False, True)] == ["dali-gpu", "dali-gpu"]
    assert replace(cpu, loader="dali-cpu", jpegs=False).backend(training=False) == "dali-cpu"
    monkeypatch.setattr(loader, "has_dali", lambda: False)
    assert [gpu.backend(training=t) for t in (False, True)] == ["torchvision", "torchvision"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["a.jpg", "b.JPEG", "c.png"], True), (["a.jpg", "b.png"], True), (["a.png", "jpg.webp", "c.jpg"], False)],
)
def test_the_files_names_tell_whether_they_are_jpegs(names: list[str], expected: bool) -> None:
    assert loader.mostly_jpegs(Index(Path(), tuple(names), np.zeros(len(names), dtype=np.int64))) == expected


@pytest.mark.parametrize(
    ("backend", "device", "dali", "message"),
    [
        ("dali-cpu", "cpu", False, "not installed"),
        ("dali-gpu", "cpu", True, "requires a GPU; this run is on the CPU"),
        ("dali-cpu", "cuda", True, "loads images for the CPU; this run is on a GPU"),
    ],
)
def test_an_unavailable_backend_is_refused(
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
