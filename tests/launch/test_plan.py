import pytest

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config
from delt_hpc.errors import UserError
from delt_hpc.launch import plan, profile
from delt_hpc.launch.plan import Task
from delt_hpc.recovery.batches import block_size

GPU = profile.load("generic-gpu")
RECIPE = "imagenet-1k-resnet18-ipc50"


def config(*overrides: str, recipe: str = "digits") -> Config:
    return load_config(recipe, overrides)


@pytest.mark.parametrize(
    ("recipe", "classes"),
    [("digits", 10), ("imagenet-1k-resnet18-ipc50", 1000), ("imagenet-1k-resnet18-ipc100", 10450), ("digits", 1)],
)
@pytest.mark.parametrize("each", [None, 1, 7, 100_000])
def test_ranges_cover_every_class_once_and_cut_no_batch(recipe: str, classes: int, each: int | None) -> None:
    given = config(recipe=recipe)
    site = profile.parse({"parallel": 8, "classes_per_task": each}, "x")
    block = block_size(given.select.ipc, given.recover)
    for stage in ("rank", "recover"):
        tasks = [t for job in plan.jobs(given, site, classes) if job.stage == stage for t in job.tasks]
        seen = [c for t in tasks if t.classes for c in t.classes.indices]
        assert seen == list(range(classes))
        assert all(t.classes and t.classes.first % block == 0 for t in tasks)


def test_classes_per_task_follow_the_slots_or_the_profile() -> None:
    given = config(recipe="imagenet-1k-resnet18-ipc50")
    assert block_size(50, given.recover) == 2
    assert plan.width(given, GPU, "recover", 1000) == 72  # 36 batches
    assert plan.width(given, GPU, "rank", 1000) == 64  # 16 slots, one task each
    own = profile.parse({"classes_per_task": 5}, "x")
    assert plan.width(given, own, "recover", 1000) == 6


@pytest.mark.parametrize(
    ("classes", "parallel", "batches"),
    [
        (1000, 64, 36),  # 500 batches: 14 tasks
        (2000, 4, 63),  # 16 tasks: four a slot
        (40, 8, 20),  # 20 batches are fewer than three times 11
        (60, 64, 15),  # more slots than batches: two tasks
        (6, 64, 3),
    ],
)
def test_a_recover_task_has_enough_batches_to_fill_its_pipeline(classes: int, parallel: int, batches: int) -> None:
    given = config("recover.iterations=4000", "recover.round_iterations=500", recipe="imagenet-1k-resnet18-ipc50")
    site = profile.parse({"gpus": 1, "parallel": parallel}, "x")
    assert plan.fill_turns(given, site) == 7
    assert plan.width(given, site, "recover", classes) == 2 * batches
    first = [job for job in plan.jobs(given, site, classes) if job.stage == "recover"][-1].tasks[0]
    # Modelled: 10,331 image-iterations/s, so that a batch takes 22.4 s, and 90 s of start-up 4.0 turns.
    assert plan.lost_turns(given, site) == pytest.approx(11.02, abs=0.01)
    assert plan.efficiency(given, site, first) == pytest.approx(batches / (batches + 11.02), abs=0.001)


def test_a_network_without_a_modelled_speed_loses_the_turns_of_its_pipeline() -> None:
    given = config("teacher.model=vgg11_bn", "teacher.source=train", "teacher.weights=null", recipe=RECIPE)
    assert plan.lost_turns(given, GPU) == plan.fill_turns(given, GPU) == 7


def test_a_warm_up_of_its_own_comes_before_several_tasks_that_compile() -> None:
    def stages(given: Config, site: profile.Profile = GPU) -> list[list[Task]]:
        return [list(job.tasks) for job in plan.jobs(given, site, 1000, stages=("recover",))]

    assert stages(config(recipe=RECIPE))[0] == [plan.WARM_UP]
    assert plan.WARM_UP.name == "recover-warm-up"
    for without in ("recover.compile=false", "recover.engine=reference", "machine.device=cpu"):
        assert plan.WARM_UP not in stages(config(without, recipe=RECIPE))[0]
    assert stages(config("recover.compile=true", recipe=RECIPE), profile.load("generic-cpu"))[0] == [plan.WARM_UP]
    one = profile.parse({"gpus": 1, "classes_per_task": 1000}, "x")
    assert len(stages(config(recipe=RECIPE), one)) == 1
    (job,) = plan.jobs(config(recipe=RECIPE), GPU, 1000, stages=("recover",), done={plan.WARM_UP})
    assert plan.WARM_UP not in job.tasks


def test_without_packing_a_task_need_not_be_wide() -> None:
    given = config("machine.device=cpu", recipe="imagenet-1k-resnet18-ipc50")
    assert plan.fill_turns(given, GPU) == 0
    assert plan.width(given, GPU, "recover", 1000) == 4


def test_arrays_hold_as_much_as_the_cluster_allows_and_share_the_slots() -> None:
    site = profile.parse({"parallel": 10, "classes_per_task": 1}, "x")
    given = config("select.ipc=100")
    for count, sizes in ((4, [4]), (5, [2, 3]), (9, [3, 3, 3]), (1, [1])):
        jobs = plan.jobs(given, site, count, stages=("recover",), max_array_size=4)
        assert [len(job.tasks) for job in jobs] == sizes
        assert sum(job.parallel for job in jobs) <= 10


def test_only_missing_tasks_without_a_gap_are_joined() -> None:
    given = config("recover.batch_size=6")  # two classes a batch
    site = profile.parse({"classes_per_task": 6}, "x")
    done = {Task("recover", ClassRange(4, 5))}
    (job,) = plan.jobs(given, site, 10, done=done, stages=("recover",))
    assert [task.classes for task in job.tasks] == [ClassRange(0, 3), ClassRange(6, 9)]


def test_a_class_range_takes_rank_and_recover_alone_and_cuts_no_batch() -> None:
    given = config("recover.batch_size=6")
    jobs = plan.jobs(given, profile.parse({"classes_per_task": 2}, "x"), 10, only=[ClassRange(2, 5)])
    assert [(job.stage, job.tasks[0].unit, job.tasks[-1].unit) for job in jobs] == [
        ("rank", "00002-00003", "00004-00005"),
        ("recover", "00002-00003", "00004-00005"),
    ]
    with pytest.raises(UserError, match="cut the recovery batch"):
        plan.jobs(given, GPU, 10, only=[ClassRange(3, 5)])
    wide = profile.parse({"classes_per_task": 10}, "x")
    (job,) = plan.jobs(given, wide, 10, only=[ClassRange(0, 1), ClassRange(4, 7)], stages=("recover",))
    assert [task.classes for task in job.tasks] == [ClassRange(0, 1), ClassRange(4, 7)]


def test_evaluation_is_a_task_for_each_student_seed_and_arm() -> None:
    given = config("evaluate.students=[convnet3, convnet4]", "evaluate.seeds=[1, 2]", "evaluate.arms=[random-soft]")
    (job,) = plan.jobs(given, GPU, 10, stages=("evaluate",))
    assert [task.unit for task in job.tasks] == [
        "convnet3-1-random-soft",
        "convnet3-2-random-soft",
        "convnet4-1-random-soft",
        "convnet4-2-random-soft",
    ]


def test_stages_wait_for_what_they_read() -> None:
    given = config()
    assert plan.upstream(given, "squeeze") == ()
    assert plan.upstream(given, "recover") == ("squeeze", "select")
    assert plan.upstream(given, "evaluate") == ("squeeze", "select", "aggregate")
    noise = config("recover.init=noise", "evaluate.arms=[distilled-soft]")
    assert "select" not in noise.stages
    assert plan.upstream(noise, "recover") == ("squeeze",)
    assert plan.upstream(config("evaluate.arms=[selected-soft]"), "evaluate") == ("squeeze", "select")


def test_a_given_ranking_is_one_task() -> None:
    given = config().model_copy(update={"rank": config().rank.model_copy(update={"csv": "ranking.csv"})})
    assert plan.whole(given, "rank", 1000) == [Task("rank")]


def test_job_names() -> None:
    names = [job.name("run") for job in plan.jobs(config("recover.batch_size=6"), GPU, 10)]
    assert names == [
        "squeeze-run",
        "rank-00000-00009-run",
        "select-run",
        "recover-00000-00009-run",
        "aggregate-run",
        "evaluate-12-trials-run",
        "report-run",
    ]


def test_overlap() -> None:
    assert Task("recover", ClassRange(0, 3)).overlaps(Task("recover", ClassRange(3, 5)))
    assert not Task("recover", ClassRange(0, 3)).overlaps(Task("recover", ClassRange(4, 5)))
    assert not Task("recover", ClassRange(0, 3)).overlaps(Task("rank", ClassRange(0, 3)))
    assert Task("select").overlaps(Task("select"))
