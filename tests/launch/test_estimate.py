import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.schema import Stage
from delt_hpc.errors import UserError
from delt_hpc.launch import estimate, figures, modelled, plan, profile, show
from delt_hpc.launch.figures import Rate
from delt_hpc.models.registry import build
from delt_hpc.recovery.schedule import image_iterations
from delt_hpc.run.folder import RunFolder, write_text

CONFIG = load_config("imagenet-1k-resnet18-ipc10")
SITE = profile.parse({"gpus": 1, "parallel": 4, "classes_per_task": 100}, "x")


def rates(speeds: dict[Stage, float]) -> dict[Stage, Rate]:
    return {stage: Rate(speed, "a GPU", "test", 1) for stage, speed in speeds.items()}


def rows(speeds: dict[Stage, Rate], **more: int) -> dict[str, estimate.Row]:
    jobs = plan.jobs(CONFIG, SITE, 1000)
    return {row.stage: row for row in estimate.rows(CONFIG, SITE, jobs, 1000, speeds, **more)}


def test_ranking_costs_all_images_or_the_crops_of_the_pool() -> None:
    rank = plan.Task("rank", ClassRange(0, 99))
    assert estimate.Work(CONFIG, 1000, 1_281_167).of(rank) == 128_116
    crops = load_config("imagenet-1k-resnet18-ipc10", ["method=rded"])
    assert estimate.Work(crops, 1000, 1_281_167).of(rank) == 100 * 300 * 5
    assert estimate.Work(crops, 1000, 100_000).of(rank) == 100 * 100 * 5
    assert estimate.Work(crops, 1000, None).of(rank) == 100 * 300 * 5


def test_a_run_without_recovery_takes_no_time_for_it() -> None:
    config = load_config("imagenet-1k-resnet18-ipc10", ["method=random"])
    found = estimate.rows(config, SITE, plan.jobs(config, SITE, 1000), 1000, {})
    assert {row.stage: row.hours for row in found}["recover"] == 0
    show.plan(Console(file=StringIO()), found, None, None)


def test_a_plan_says_what_smaller_blocks_save() -> None:
    fadrm = load_config("imagenet-1k-resnet18-ipc10", ["method=fadrm"])
    found = estimate.rows(fadrm, SITE, plan.jobs(fadrm, SITE, 1000), 1000, {})
    shares = {row.stage: row.pixels for row in found}
    assert shares.pop("recover") == pytest.approx((200**2 + 224**2) / (2 * 224**2))
    assert set(shares.values()) == {None}
    console = Console(width=200, record=True, file=StringIO())
    show.plan(console, found, None, None)
    assert "recover: blocks of smaller images, on average 89.9% of the pixels of a full image" in console.export_text()
    assert rows({})["recover"].pixels is None
    small = load_config("cifar10-resnet18-ipc10", ["method=fadrm"])
    assert {row.pixels for row in estimate.rows(small, SITE, plan.jobs(small, SITE, 10), 10, {})} == {None}


def test_recovery_costs_all_images_that_have_entered_in_every_round() -> None:
    recover = CONFIG.recover
    passes = 1000 * image_iterations(10, recover.rounds, recover.round_length)
    found = rows(rates({"recover": 1000.0}))["recover"]
    assert (found.tasks, found.arrays, found.warm_up) == (10, 1, True)
    # Each task also starts (90 s), and its pipeline fills for seven turns of a batch of ten classes.
    total = passes / 1000 + 10 * (90 + 7 * passes / 100 / 1000)
    assert found.hours == pytest.approx(total / 3600)
    # Ten equal tasks on four slots take three turns.
    assert found.wall_hours == pytest.approx(total / 3600 * 3 / 10)
    assert rows(rates({"recover": 1000.0}), slots=1)["recover"].wall_hours == pytest.approx(found.hours)


def test_what_is_not_measured_or_not_known_is_not_estimated() -> None:
    found = rows(rates({"rank": 500.0, "recover": 1.0}))
    assert found["evaluate"].hours is found["evaluate"].wall_hours is None
    assert found["rank"].hours is None  # how many training images there are is not known
    known = rows(rates({"rank": 500.0}), train_images=1_281_167)["rank"]
    assert known.hours == pytest.approx(1_281_167 / 500 / 3600, rel=1e-4)


def test_modelled_speeds_are_operations_over_a_sustained_speed_and_say_so() -> None:
    found = modelled.rates(CONFIG, SITE)
    assert found["recover"].passes_per_s == pytest.approx(7.5e13 / (2 * 3.63e9))
    assert found["rank"].passes_per_s == 4 * 560.0  # four CPU cores read images
    assert all(rate.records == 0 and rate.source.startswith("modelled") for rate in found.values())
    larger = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"size": 448})})
    assert modelled.rates(larger, SITE)["recover"].passes_per_s == pytest.approx(7.5e13 / (8 * 3.63e9))
    other = CONFIG.model_copy(update={"teacher": CONFIG.teacher.model_copy(update={"model": "vgg11_bn"})})
    assert set(modelled.rates(other, SITE)) == {"evaluate"}


def test_the_speed_of_a_running_stage_is_compared_with_the_modelled_one() -> None:
    half = modelled.rates(CONFIG, SITE)["recover"].passes_per_s / 2
    lines = estimate.speeds(CONFIG, SITE, rates({"recover": half, "rank": 1.0}), ["recover", "report"])
    assert lines == [f"recover: {half:,.0f} image-iterations/s a task on a GPU, 50% of the modelled speed"]


@pytest.mark.parametrize("network", modelled.FORWARD)
def test_operations_of_a_forward_pass_are_those_that_torch_counts(network: str) -> None:
    billions, size = modelled.FORWARD[network]
    counted = FlopCounterMode(display=False)
    with counted, torch.no_grad():
        build(network, 100, size).eval()(torch.zeros(1, 3, size, size))
    assert counted.get_total_flops() / 1e9 == pytest.approx(billions, rel=0.01)


def test_evaluation_is_every_trials_passes() -> None:
    found = rows(rates({"evaluate": 100.0}))["evaluate"]
    assert found.hours == pytest.approx(12 * 300 * 10_000 / 100 / 3600)


def test_evaluation_on_the_full_data_set_costs_all_its_images() -> None:
    config = load_config("imagenet-1k-resnet18-ipc10", ["evaluate.arms=[full-hard]", "evaluate.epochs=2"])
    (task,) = {job.tasks[0] for job in plan.jobs(config, SITE, 1000) if job.stage == "evaluate"}
    assert estimate.Work(config, 1000, 1_281_167).of(task) == 2 * 1_281_167
    assert estimate.Work(config, 1000, None).of(task) is None


@pytest.mark.parametrize(("slots", "ends"), [(1, 10.0), (2, 7.0), (3, 5.0), (9, 4.0)])
def test_makespan(slots: int, ends: float) -> None:
    assert estimate.makespan([3.0, 1.0, 2.0, 4.0], slots) == ends


def test_disk_counts_raw_pixels_twice_and_a_checkpoint_each() -> None:
    found = estimate.disk(CONFIG, 1000, list(rows({}).values()), 3)
    assert found
    assert found.images == 2 * 10_000 * 3 * 224 * 224
    assert found.checkpoints == 3 * 10 * 100 * 3 * 224 * 224 * 4 * 3  # ten batches on their way in each task
    unknown = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"name": "own"})})
    assert estimate.disk(unknown, 1000, []) is None


def record(stage: str, seconds: float, passes: int, unit: str = "a") -> str:
    return json.dumps({"stage": stage, "unit": unit, "seconds": seconds, "image_iterations": passes, "device": "a GPU"})


def test_the_runs_own_figures_come_before_given_ones(tmp_path: Path) -> None:
    run, given = RunFolder(tmp_path / "run"), tmp_path / "given.jsonl"
    lines = [record("recover", 2.0, 100), record("recover", 3.0, 400, "b"), '{"stage": "rec']
    write_text(run.timing / "a.jsonl", "\n".join(lines))
    write_text(given, record("recover", 1.0, 1) + "\n" + record("rank", 1.0, 50))
    found = figures.measured(CONFIG, run, SITE, [given])
    assert found["recover"] == Rate(100.0, "a GPU", "this run", 2)
    assert (found["rank"].passes_per_s, found["rank"].source) == (50.0, str(given))


def test_figures_of_a_csv_file(tmp_path: Path) -> None:
    write_text(tmp_path / "timing.csv", "stage,unit,seconds,image_iterations,device\nrank,a,2.0,10,cpu\n")
    assert (
        figures.measured(CONFIG, RunFolder(tmp_path / "run"), SITE, [tmp_path / "timing.csv"])["rank"].passes_per_s
        == 5.0
    )


def test_figures_of_other_work_are_refused(tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other")
    write_text(other.timing / "a.jsonl", record("recover", 1.0, 1))
    write_text(other.config, dump_config(load_config("digits")))
    with pytest.raises(UserError, match=r"teacher\.model: measured 'convnet3', now 'resnet18'"):
        figures.measured(CONFIG, RunFolder(tmp_path / "run"), SITE, [other.root])
    write_text(other.config, dump_config(load_config("imagenet-1k-resnet18-ipc50")))
    assert figures.measured(CONFIG, RunFolder(tmp_path / "run"), SITE, [other.root])["recover"].passes_per_s == 1.0


def test_a_place_without_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no measured speeds"):
        figures.measured(CONFIG, RunFolder(tmp_path / "run"), SITE, [tmp_path])


def synthesis(folder: Path, **changes: str) -> Path:
    """A table of one row, as `delt-hpc bench synthesis` writes it, of a GPU."""
    row = {
        "network": "resnet18", "size": "224", "variant": "triton-compiled-packed", "precision": "bfloat16",
        "image_iterations_per_s": "50000", "ipc": "50", "batch_size": "100", "repeats": "5", "gpu": "H200", "cpu": "x",
    } | changes  # fmt: skip
    write_text(folder / "synthesis.csv", ",".join(row) + "\n" + ",".join(row.values()) + "\n")
    return folder / "synthesis.csv"


def test_a_benchmark_gives_the_speed_of_the_engine_that_the_run_uses(tmp_path: Path) -> None:
    table = synthesis(tmp_path)
    found = figures.measured(CONFIG, RunFolder(tmp_path / "run"), SITE, [table])
    source = f"{table}: triton-compiled-packed, bfloat16, IPC 50, batch 100"
    assert found == {"recover": Rate(50_000.0, "H200", source, 5)}
    reference = load_config("imagenet-1k-resnet18-ipc10", ["recover.engine=reference"])
    synthesis(tmp_path, variant="reference", precision="float32")
    assert figures.measured(reference, RunFolder(tmp_path / "run"), SITE, [table])["recover"].records == 5


@pytest.mark.parametrize(
    "changes",
    [{"network": "resnet50"}, {"size": "32"}, {"precision": "float32"}, {"gpu": ""}, {"image_iterations_per_s": ""}],
)
def test_a_benchmark_of_other_work_is_refused(changes: dict[str, str], tmp_path: Path) -> None:
    table = synthesis(tmp_path, **changes)
    with pytest.raises(UserError, match=r"resnet18 224 triton-compiled-packed bfloat16 on a GPU") as error:
        figures.measured(CONFIG, RunFolder(tmp_path / "run"), SITE, [table])
    assert "delt-hpc bench synthesis --networks resnet18 --variants triton-compiled-packed" in str(error.value)


def loading(folder: Path, *rows: tuple[str, str, int, float]) -> Path:
    lines = [f"{network},224,{backend},{threads},{rate},3,,EPYC" for network, backend, threads, rate in rows]
    write_text(
        folder / "loading.csv", "\n".join(["network,size,backend,threads,images_per_s,repeats,gpu,cpu", *lines, ""])
    )
    return folder / "loading.csv"


def test_ranking_uses_the_loader_of_the_configuration_and_no_more_threads_than_cpus(tmp_path: Path) -> None:
    site, run = profile.parse({"cpus": 4}, "x"), RunFolder(tmp_path / "run")
    rows = [
        ("resnet18", "torchvision", 1, 90.0),
        ("resnet18", "dali-cpu", 4, 400.0),
        ("resnet18", "dali-cpu", 8, 700.0),
    ]
    table = loading(tmp_path, *rows)
    found = figures.measured(CONFIG, run, site, [table])["rank"]
    assert found == Rate(400.0, "EPYC", f"{table}: dali-cpu, 4 threads, scored by resnet18", 3)
    by_pil = load_config("imagenet-1k-resnet18-ipc10", ["machine.loader=torchvision"])
    assert figures.measured(by_pil, run, site, [table])["rank"].passes_per_s == 90.0
    loading(tmp_path, ("", "dali-cpu", 4, 900.0))
    with pytest.raises(UserError, match="delt-hpc bench loading --network resnet18"):
        figures.measured(CONFIG, run, site, [table])


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "", '{"a": 1}\n[]\n', "\x00"])
@pytest.mark.parametrize("name", ["some.csv", "some.jsonl"])
def test_a_file_of_something_else_is_refused(name: str, text: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, text)
    with pytest.raises(UserError, match=r"holds no measured speeds\n.*synthesis\.csv or loading\.csv"):
        figures.measured(CONFIG, RunFolder(tmp_path / "run"), SITE, [tmp_path / name])
