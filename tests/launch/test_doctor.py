import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from delt_hpc.launch import doctor, environment, profile
from delt_hpc.version import VERSION

GPU, CPU = profile.parse({"gpus": 1}, "x"), profile.parse({}, "x")
ANSWER: dict[str, Any] = {
    "host": "n1",
    "version": VERSION,
    "scontrol": True,
    "environment": {"torch": {"version": "2.14", "gpus": 1}},
}


def levels(site: profile.Profile, **changes: Any) -> list[str]:
    return [finding.level for finding in doctor.judge_node(ANSWER | changes, site)]


def test_a_good_node() -> None:
    assert set(levels(GPU)) == set(levels(CPU)) == {"OK"}


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"version": "0.0.1"}, "error"),
        ({"environment": {"torch": {"version": "2.14", "gpus": 0}}}, "error"),
    ],
)
def test_errors_of_a_node(changes: dict[str, Any], level: str) -> None:
    assert [found for found in levels(GPU, **changes) if found != "OK"] == [level]


def test_a_cpu_profile_requires_no_gpu() -> None:
    assert set(levels(CPU, environment={"torch": {"version": "2.14", "gpus": 0}})) == {"OK"}


@pytest.mark.parametrize(
    ("settings", "level", "message"),
    [
        ({"MaxArraySize": "1"}, "error", "no job arrays"),
        ({"MaxArraySize": "1001", "PreemptType": "preempt/qos", "PreemptMode": "CANCEL"}, "warning", "are cancelled"),
        ({"MaxArraySize": "1001", "KillWait": "5 sec"}, "warning", "KillWait = 5 s"),
    ],
)
def test_settings(settings: dict[str, str], level: str, message: str) -> None:
    found = [finding for finding in doctor.judge_settings(settings, CPU) if finding.level != "OK"]
    assert [finding.level for finding in found] == [level]
    assert message in found[0].text


def test_preemption_with_and_without_a_signal() -> None:
    base = {"MaxArraySize": "1001", "PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}
    silent = [finding.text for finding in doctor.judge_settings(base, CPU)]
    signalled = [f.text for f in doctor.judge_settings(base | {"SlurmctldParameters": "preempt_send_user_signal"}, CPU)]
    assert any("SIGTERM" in text for text in silent) and any("USR2" in text for text in signalled)


def test_a_profile_that_wants_larger_arrays_than_the_cluster_is_an_error() -> None:
    site = profile.parse({"max_array_size": 5000}, "x")
    assert next(f.level for f in doctor.judge_settings({"MaxArraySize": "1001"}, site)) == "error"


def test_the_probe_answers(tmp_path: Path) -> None:
    (tmp_path / "ask").write_text("x")
    command = [sys.executable, "-m", "delt_hpc.launch.environment", str(tmp_path / "ask"), str(tmp_path / "answer")]
    subprocess.run(command, check=True)
    from delt_hpc.run.folder import read_json

    assert set(read_json(tmp_path / "answer")) == set(ANSWER)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([*command[:3], str(tmp_path / "none"), command[4]], check=True, stderr=subprocess.DEVNULL)


def test_a_machine_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = doctor.examine(CPU, tmp_path, job=True, wait=1)
    assert finding.level == "error" and "sbatch" in finding.text
    assert environment.probe_node()["scontrol"] is False
