import os
from collections.abc import Callable
from pathlib import Path

import pytest

from delt_hpc.launch import queue
from delt_hpc.launch.queue import Entry


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("15", ["15"]),
        ("15_3", ["15_3"]),
        ("15_[0-3]", ["15_0", "15_1", "15_2", "15_3"]),
        ("15_[0-1,7%2]", ["15_0", "15_1", "15_7"]),
        ("15_[0-8:4]", ["15_0", "15_4", "15_8"]),
        ("15_[3]", ["15_3"]),
        ("15+0", []),
        ("15.batch", []),
        ("15_[0-2,...]", []),
        ("", []),
        ("CLUSTER: other", []),
    ],
)
def test_expand(text: str, ids: list[str]) -> None:
    assert queue.expand(text) == ids


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:07", 7), ("12:34", 754), ("1:02:03", 3723), ("2-01:00:00", 176400), ("INVALID", None), ("", None)],
)
def test_duration(text: str, seconds: int | None) -> None:
    assert queue.duration(text) == seconds


@pytest.mark.parametrize(
    ("state", "standing"),
    [
        ("PENDING", "pending"),
        ("CONFIGURING", "pending"),
        ("REQUEUED", "pending"),
        ("REQUEUE_HOLD", "pending"),
        ("SPECIAL_EXIT", "pending"),
        ("RUNNING", "running"),
        ("COMPLETING", "running"),
        ("SUSPENDED", "running"),
        ("STAGE_OUT", "running"),
        ("COMPLETED", "completed"),
        ("FAILED", "failed"),
        ("TIMEOUT", "failed"),
        ("NODE_FAIL", "failed"),
        ("OUT_OF_MEMORY", "failed"),
        ("PREEMPTED", "failed"),
        ("DEADLINE", "failed"),
        ("BOOT_FAIL", "failed"),
        ("CANCELLED", "failed"),
        ("LAUNCH_FAILED", "failed"),
        ("A_STATE_OF_TOMORROW", "failed"),
    ],
)
def test_meaning_of_states(state: str, standing: str) -> None:
    assert Entry("1", state).standing == standing


def test_squeue() -> None:
    text = "\n".join(
        [
            "15_0|RUNNING|n[1-2]|1-00:00:01|None",
            "15_[1-2%1]|PENDING||0:00|JobArrayTaskLimit",
            "16|PENDING||0:00|BeginTime",
            "17|PENDING||0:00|(launch failed | held)",
            "18|COMPLETING|n1|0:05|None",
            "slurm_load_jobs error: something",
            "19|RUNNING",
            "",
        ]
    )
    found = queue.parse_squeue(text)
    assert found["15_0"] == Entry("15_0", "RUNNING", "n[1-2]", "", 86401)
    assert found["15_1"].reason == found["15_2"].reason == "JobArrayTaskLimit"
    assert found["17"].reason == "(launch failed | held)"
    assert found["18"].live
    assert set(found) == {"15_0", "15_1", "15_2", "16", "17", "18"}


@pytest.mark.parametrize(
    ("reason", "stuck"),
    [
        ("launch failed requeued held", True),
        ("PartitionTimeLimit", True),
        ("InvalidAccount", True),
        ("InvalidQOS", True),
        ("AccountNotAllowed", True),
        ("AssocGrpCPUMinutesLimit", True),
        ("AssocGrpBillingMinutes", True),
        ("QOSMaxWallDurationPerJobLimit", True),
        ("AssocMaxCpuPerJobLimit", True),
        ("QOSMaxGRESPerJob", True),
        ("AssocGrpGRESMinutes", True),  # no `Limit` at the end: so Slurm names what is not CPU time
        ("QOSGrpBillingMinutes", True),
        ("AssocGrpWallLimit", True),
        ("AssocMaxCpuMinutesPerJobLimit", True),
        ("QOSMaxMemoryPerNode", True),
        ("QOSMinGRES", True),
        ("MaxMemPerLimit", True),
        ("ReservationDeleted", True),
        ("AssocGrpGRES", False),  # until others' jobs end
        ("AssocGrpGRESRunMinutes", False),
        ("QOSMaxGRESPerUser", False),
        ("AssocGrpCPURunMinutesLimit", False),  # until running jobs end
        ("AssocGrpCpuLimit", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("Priority", False),
        ("Resources", False),
        ("Dependency", False),
    ],
)
def test_reasons_that_never_resolve_have_a_remedy(reason: str, stuck: bool) -> None:
    assert bool(Entry("1", "PENDING", reason=reason).remedy) == stuck


def test_sacct() -> None:
    text = "\n".join(
        [
            "20_0|CANCELLED by 1000|n1|12|None",
            "20_1|CANCELLED+|None assigned|0|None",
            "20_[2-3]|PENDING|None assigned|0|Dependency",
            "20_4|REQUEUED|n2|5|None",
            "20_4|COMPLETED|n3|50|None",
            "20_4.batch|FAILED|n3|50|",
            "21|TIMEOUT|n4||TimeLimit",
            "22|OUT_OF_ME+|n4|1|None",
        ]
    )
    found = queue.parse_sacct(text)
    assert (found["20_0"].state, found["20_0"].seconds) == ("CANCELLED", 12)
    assert (found["20_1"].state, found["20_1"].node) == ("CANCELLED", "")
    assert found["20_3"].standing == "pending"
    assert found["20_4"] == Entry("20_4", "COMPLETED", "n3", "", 50)
    assert found["21"].seconds is None
    assert found["22"].standing == "failed"


def test_settings() -> None:
    text = "Configuration data as of now\nMaxArraySize            = 1001\nSlurmctldParameters     = a=1,b\n"
    assert queue.parse_settings(text) == {"MaxArraySize": "1001", "SlurmctldParameters": "a=1,b"}


def test_slurm_is_asked_once_for_all_jobs_and_not_often(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def call(*command: str) -> str:
        asked.append(command)
        return "15_0|RUNNING|n1|0:01|None\n15_1|RUNNING|n1|0:01|None\n16|PENDING||0:00|Priority\n"

    monkeypatch.setattr(queue, "call", call)
    ask = queue.PatientQueue()
    for _ in range(100):
        assert set(ask(["15_0", "15_1", "16"])) == {"15_0", "15_1", "16"}
    assert [command[-3] for command in asked] == ["15,16"]
    assert "-u" not in asked[0]


def test_the_only_job_may_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*command: str) -> str:
        raise queue.QueueRefusedError("squeue: slurm_load_jobs error: Invalid job id specified")

    monkeypatch.setattr(queue, "call", call)
    assert queue.known(["15"]) == {}


def test_missing_and_failing_commands() -> None:
    with pytest.raises(queue.QueueError, match="no no-such-command"):
        queue.call("no-such-command")
    with pytest.raises(queue.QueueError, match="exit code 1"):
        queue.call("false")
    with pytest.raises(queue.QueueError, match="out of order"):
        queue.call("sh", "-c", "echo out of order >&2; exit 3")


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a program named sbatch from shell text, and retries immediate."""

    def make(text: str) -> None:
        program = tmp_path / "sbatch"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(queue, "_RETRY_AFTER_SECONDS", (0.0, 0.0))
    return make


def test_submission_is_repeated_while_the_controller_is_busy(sbatch: Callable[[str], None], tmp_path: Path) -> None:
    busy = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"
    sbatch(
        f'echo x >>"{tmp_path}/calls"\n'
        f'[ $(wc -l <"{tmp_path}/calls") -lt 3 ] || {{ echo "17;site"; exit; }}\n'
        f"echo {busy!r} >&2\n"
        "exit 1"
    )
    assert queue.submit("#!/bin/sh") == "17"
    assert (tmp_path / "calls").read_text() == "x\n" * 3


def test_a_refused_submission_is_not_repeated(sbatch: Callable[[str], None], tmp_path: Path) -> None:
    sbatch(f'echo x >>"{tmp_path}/calls"; echo "Invalid account" >&2; exit 1')
    with pytest.raises(queue.QueueError, match="sbatch: Invalid account"):
        queue.submit("#!/bin/sh")
    assert (tmp_path / "calls").read_text() == "x\n"


def test_the_surrounding_job_is_not_inherited() -> None:
    inherited = {"SLURM_ARRAY_TASK_ID": "3", "SUBMITIT_EXECUTOR": "slurm", "SRUN_DEBUG": "3"}
    kept = {"SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a", "PATH": "/bin"}
    assert queue.outside_any_job(inherited | kept) == kept
