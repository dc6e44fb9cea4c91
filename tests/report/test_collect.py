import json
import math
from pathlib import Path

import pytest
from helpers import fake_run
from helpers.fake_run import Shape

from delt_hpc.config.schema import Config, Recover
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.index import ClassMap
from delt_hpc.errors import UserError
from delt_hpc.report import losses, samples
from delt_hpc.report.collect import collect
from delt_hpc.report.content import Diversity, Missing, Report
from delt_hpc.run.folder import RunFolder

MEASURED = Diversity(initial=0.8, distilled=0.7, images=100, classes=10)
STD = math.sqrt(7 / 3)  # of 87, 88, 85, with n - 1


def content(made: tuple[Config, RunFolder, Dataset], diversity: Diversity | Missing = MEASURED) -> Report:
    config, run, dataset = made
    found = samples.read_pairs(run) if (run.distilled / "done.json").exists() else []
    return collect(config, run, dataset, found, diversity)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return content(fake_run.write(tmp_path_factory.mktemp("run")))


def test_accuracies_are_means_and_sample_deviations_over_seeds(whole: Report) -> None:
    first = whole.accuracy[0]
    assert (first.student, first.arm) == ("convnet3", "distilled-soft")
    assert [training.final for training in first.trainings] == [85.0, 87.0, 88.0]  # seeds ascending
    assert first.final.mean == pytest.approx(260 / 3)
    assert first.final.std == pytest.approx(STD)
    assert first.final.n == 3
    assert first.best.mean == pytest.approx(260 / 3 + 0.5)
    assert first.ema is not None
    assert first.ema.mean == pytest.approx(260 / 3 + 0.25)


def test_arms_are_in_the_order_of_the_type(whole: Report) -> None:
    assert [result.arm for result in whole.accuracy] == [
        "distilled-soft",
        "distilled-hard",
        "selected-soft",
        "random-soft",
    ]


def test_headline(whole: Report) -> None:
    headline = whole.headline
    assert (headline.train_images, headline.images, headline.classes, headline.ipc) == (1437, 100, 10, 10)
    assert headline.ratio == pytest.approx(14.37)
    assert headline.teacher_accuracy == fake_run.TEACHER
    assert (headline.student, headline.labels) == ("convnet3", "soft")
    assert headline.distilled is not None
    assert headline.random is not None
    assert headline.random.mean == pytest.approx(236 / 3)
    assert headline.difference is not None
    assert headline.difference.points.mean == pytest.approx(8.0)
    assert headline.difference.verdict.startswith("+8.0 points, 95 % interval ")
    assert headline.recover_seconds == pytest.approx(31.0)


def test_costs_are_added_up_by_stage_and_round(whole: Report) -> None:
    assert whole.costs is not None
    stages = {stage.stage: stage for stage in whole.costs.stages}
    assert list(stages) == ["squeeze", "rank", "recover", "evaluate"]
    assert stages["recover"].units == 2
    assert stages["recover"].peak_memory_mib == 703.0
    assert stages["evaluate"].seconds == pytest.approx(12 * 6.5)
    total = 14.2 + 1.1 + 31.0 + 78.0
    assert whole.costs.seconds == pytest.approx(total)
    assert stages["recover"].share == pytest.approx(31.0 / total)
    # 10 images over 4 rounds: 3, 6, 8, 10 active; 5 classes a batch, 100 iterations a round, 2 batches
    rounds = whole.costs.rounds
    assert [cost.image_iterations for cost in rounds] == [3000, 6000, 8000, 10000]
    assert [cost.seconds for cost in rounds] == pytest.approx([4.0, 7.0, 9.0, 11.0])
    assert [cost.seconds_per_batch for cost in rounds] == pytest.approx([2.0, 3.5, 4.5, 5.5])
    assert rounds[0].image_iterations_per_s == pytest.approx(750.0)


def test_student_curves_are_means_over_the_seeds_validated(whole: Report) -> None:
    curve = whole.students[0]
    assert curve.epochs == tuple(range(5, 61, 5))
    assert curve.mean[-1] == pytest.approx(260 / 3)
    assert curve.std[-1] == pytest.approx(STD)


def test_loss_curves_are_means_over_finished_batches(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    header = "iteration,round,active,lr,min_crop,loss,cross_entropy,bn_loss\n"
    for name, first, second in (
        ("a", "0,0,4,1,1,1,5,10", "1,1,8,1,1,2,6,20"),
        ("b", "0,0,2,1,1,3,7,30", "1,1,4,1,1,4,8,40"),
    ):
        (run.recover / name).mkdir(parents=True)
        (run.recover / name / "curve.csv").write_text(f"{header}{first}\n{second}\n")
        (run.recover / name / "done.json").write_text("{}")
    (run.recover / "unfinished").mkdir()
    curve = losses.average(losses.finished(run), Recover(iterations=2, round_iterations=1))
    assert curve is not None
    assert curve.batches == 2
    assert (curve.total, curve.borders) == (2, (0, 1))
    assert curve.active == (3.0, 6.0)
    assert (curve.loss, curve.cross_entropy, curve.bn_loss) == ((2.0, 3.0), (6.0, 7.0), (20.0, 30.0))


def test_the_first_iteration_of_each_round_is_marked(whole: Report) -> None:
    assert whole.recovery is not None
    assert whole.recovery.borders == (0, 100, 200, 300)
    assert whole.recovery.active[::100] == (15.0, 30.0, 40.0, 50.0)


def test_a_new_run_names_every_stage_to_run(tmp_path: Path) -> None:
    empty = content(fake_run.write(tmp_path, Shape(stages=())), Missing("Nothing to measure.", "aggregate"))
    assert {part: reason.stage for part, reason in empty.missing.items()} == {
        "accuracy": "evaluate",
        "classes": "",
        "samples": "aggregate",
        "recovery": "recover",
        "costs": "",
        "diversity": "aggregate",
        "teacher": "squeeze",
    }
    assert empty.headline.distilled is None
    assert empty.headline.images == 100


def test_a_finished_run_misses_nothing_and_a_lost_evaluation_is_named(tmp_path: Path, whole: Report) -> None:
    assert whole.missing == {}
    made = fake_run.write(tmp_path)
    (made[1].evaluate / "convnet3-4663-random-soft" / "done.json").unlink()
    partial = content(made)
    assert list(partial.missing) == ["accuracy"]
    assert partial.missing["accuracy"].what == "1 of 12 trainings are not finished yet: convnet3-4663-random-soft."
    assert partial.accuracy[-1].final.n == 2


def test_batches_that_are_not_recovered_yet_are_counted(tmp_path: Path) -> None:
    made = fake_run.write(tmp_path, Shape(ipc=20))
    # ipc 20: five classes a batch of 100, so two batches
    assert "recovery" not in content(made).missing
    (made[1].recover / "00005-00009" / "done.json").unlink()
    assert content(made).missing["recovery"] == Missing("1 of 2 batches are not recovered yet.", "recover")


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    single = content(fake_run.write(tmp_path, Shape(seeds=(3407,))))
    assert single.accuracy[0].final.std is None
    assert single.to_json()["accuracy"][0]["final"] == {"mean": 87.0, "std": None, "n": 1}


def test_hard_labels_are_the_headline_where_nothing_else_was_trained(tmp_path: Path) -> None:
    hard = content(fake_run.write(tmp_path, Shape(arms=("distilled-hard", "random-soft"))))
    assert hard.headline.labels == "hard"
    assert hard.headline.random is None  # never compared with other labels
    assert hard.headline.difference is None


def test_json_holds_null_instead_of_nan(tmp_path: Path) -> None:
    made = fake_run.write(tmp_path)
    (made[1].teacher / "history.csv").write_text("epoch,lr,train_loss,val_accuracy\n1,0.1,nan,\n2,0.1,0.5,90\n")
    curve = next(made[1].recover.glob("*/curve.csv"))
    lines = curve.read_text().splitlines()
    fields = lines[1].split(",")
    curve.write_text("\n".join([lines[0], ",".join([*fields[:5], "nan", *fields[6:]]), *lines[2:]]) + "\n")
    plain = content(made).to_json()
    assert plain["teacher"]["train_loss"] == [None, 0.5]
    assert plain["teacher"]["accuracy"] == [None, 90.0]
    assert plain["recovery"]["loss"][0] is None
    json.dumps(plain, allow_nan=False)


def test_initial_images_are_found_by_class_and_number(tmp_path: Path) -> None:
    _, run, _ = fake_run.write(tmp_path, Shape(classes=("00010", "NA"), ipc=2, rounds=1))
    assert [(pair.distilled, pair.initial) for pair in samples.read_pairs(run)] == [
        (f"{folder}/{number:05d}.png",) * 2 for folder in ("00010", "NA") for number in (0, 1)
    ]


def test_images_from_noise_have_no_initial_image(tmp_path: Path) -> None:
    _, run, _ = fake_run.write(tmp_path, Shape(noise=True))
    assert {pair.initial for pair in samples.read_pairs(run)} == {None}


def test_samples_are_spread_over_classes_and_entry_rounds() -> None:
    found = [samples.Pair(c, n, f"{c}/{n}", None, n // 10, 100) for c in range(1200) for n in range(50)]
    names = tuple(f"class {c}" for c in range(1200))
    chosen = samples.choose_samples(found, ClassMap(names, names))
    assert len(chosen) == 10
    assert (chosen[0].index, chosen[-1].index, chosen[-1].name) == (0, 1199, "class 1199")
    assert [image.entry_round for image in chosen[0].images] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("text", ["", "epoch,val_accuracy\n1,high\n", "epoch\n1\n"])
def test_a_damaged_table_is_named(tmp_path: Path, text: str) -> None:
    made = fake_run.write(tmp_path)
    history = made[1].evaluate / "convnet3-3407-distilled-soft" / "history.csv"
    history.write_text(text)
    with pytest.raises(UserError) as error:
        content(made)
    assert error.value.where == str(history)


@pytest.mark.parametrize("text", ["{}", "[]", "{", None])
@pytest.mark.parametrize("file", ["evaluate/convnet3-3407-distilled-soft/result.json", "teacher/teacher.json"])
def test_a_damaged_record_is_named(tmp_path: Path, file: str, text: str | None) -> None:
    made = fake_run.write(tmp_path)
    path = tmp_path / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError) as error:
        content(made)
    assert error.value.where == str(path)
