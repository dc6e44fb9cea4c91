from pathlib import Path

import pytest

from delt_hpc.errors import UserError
from delt_hpc.launch import profile
from delt_hpc.launch.containers import interpreter
from delt_hpc.run.folder import write_text


@pytest.mark.parametrize("name", profile.names())
def test_every_shipped_profile_loads(name: str) -> None:
    assert profile.load(name).resources("recover").minutes > 0


def test_the_ready_profiles_are_there() -> None:
    assert {"generic-gpu", "generic-cpu", "apptainer", "pyxis", "testcluster"} <= set(profile.names())


def test_a_stage_overrides_what_it_names_and_inherits_the_rest() -> None:
    found = profile.parse({"gpus": 1, "cpus": 8, "stages": {"select": {"gpus": 0}, "report": None}}, "x.yaml")
    assert (found.resources("select").gpus, found.resources("select").cpus) == (0, 8)
    assert found.resources("report").gpus == found.resources("rank").gpus == 1


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"partitoin": "a"}, "x.yaml: partitoin: unknown key; did you mean `partition`?"),
        ({"stages": {"recover": {"mem": 3}}}, "x.yaml: stages.recover.mem: unknown key; allowed here: partition"),
        ({"stages": {"recover": {"setup": []}}}, "stages.recover.setup: unknown key"),
        ({"stages": {"recovery": {}}}, "x.yaml: stages.recovery: no such stage; allowed here: squeeze"),
        ({"stages": {"recover": 3}}, "x.yaml: stages.recover"),
        ({"apptainer": {"img": "a"}}, "x.yaml: apptainer.image"),
        ({"apptainer": {"image": "a"}, "pyxis": {"image": "b"}}, "only one of them"),
        ({"cpus": "4"}, "x.yaml: cpus: '4': input should be a valid integer"),
        ({"minutes": 0}, "x.yaml: minutes: 0"),
        ({"partition": "two words"}, "x.yaml: partition"),
        ({"sbatch": ["exclude=n3"]}, "x.yaml: sbatch"),
        ({"environment": {"A-B": "1"}}, "x.yaml: environment"),
        ({"environment": {"A": 1}}, "x.yaml: environment.A: 1"),
        ({"scratch": '"/tmp"'}, "x.yaml: scratch"),
        ({"minutes": 3, "signal_seconds": 61}, "x.yaml: minutes: 3: too short to start a task"),
        ({"stages": {"rank": {"minutes": 3}}}, "stages.rank.minutes: 3: too short to start a task"),
        ([], "x.yaml: the file"),
    ],
)
def test_errors_are_named(tree: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        profile.parse(tree, "x.yaml")
    assert message in str(caught.value)


def test_a_task_needs_time_before_its_stop_signal() -> None:
    assert profile.parse({"minutes": 3, "signal_seconds": 60}, "x").minutes == 3
    with pytest.raises(UserError, match=r"at least 4 with signal_seconds = 61$"):
        profile.parse({"minutes": 3, "signal_seconds": 61, "stages": {"rank": {"minutes": 9}}}, "x")


def test_all_problems_at_once() -> None:
    with pytest.raises(UserError) as caught:
        profile.parse({"a": 1, "cpus": -1}, "x.yaml")
    assert "x.yaml: a:" in str(caught.value) and "x.yaml: cpus:" in str(caught.value)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="generic-gpu"):
        profile.load("generic-gpus")


def test_a_file_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("partition: long\n")
    assert profile.load(str(path)).partition == "long"
    path.write_text("cpus: 2\ncpus: 4\n")
    with pytest.raises(UserError, match="key `cpus` is given twice"):
        profile.load(str(path))
    path.write_text("partition: [\n")
    with pytest.raises(UserError, match="not valid YAML"):
        profile.load(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        profile.load(str(path.with_name("other.yaml")))


def test_interpreter_outside_and_inside_an_image() -> None:
    bare = profile.parse({}, "x")
    assert interpreter(bare, ("/r",), "/w", "/my env/bin/python") == "'/my env/bin/python'"
    held = profile.parse({"apptainer": {"image": "/i.sif", "binds": ["/d:/data:ro"]}}, "x")
    command = interpreter(held, ("/r", "/w", "/r"), "/w", "/venv/python")
    assert command.startswith("apptainer exec --nv --bind /r --bind /w --bind /d:/data:ro --pwd /w /i.sif sh -c ")
    assert command.endswith(' "$scratch/pid" python')
    given = profile.parse({"python": "exec nice python3"}, "x")
    assert interpreter(given, (), "/w", "/venv/python") == "exec nice python3"


def test_profiles_of_the_user_come_first_and_one_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(UserError, match="no cluster is named") as caught:
        profile.chosen(None)
    assert str(tmp_path / "delt-hpc" / "default.yaml") in caught.value.remedy
    assert profile.chosen(None, "generic-gpu") == "generic-gpu"
    write_text(tmp_path / "delt-hpc" / "default.yaml", "cpus: 3\n")
    write_text(tmp_path / "delt-hpc" / "generic-gpu.yaml", "cpus: 5\n")
    assert profile.chosen("mine") == "mine"
    assert profile.load(profile.chosen(None)).cpus == 3
    assert profile.load("generic-gpu").cpus == 5


def test_options_that_hide_the_job_from_a_container_are_refused() -> None:
    with pytest.raises(UserError, match="hide the variables of the job"):
        profile.parse({"apptainer": {"image": "x.sif", "options": ["--nv", "--cleanenv"]}}, "x")


def test_singularity_takes_the_place_of_apptainer() -> None:
    site = profile.parse({"apptainer": {"image": "x.sif", "program": "singularity"}}, "x")
    assert interpreter(site, ("/data",), "/work", "python").startswith("singularity exec --nv --bind /data ")
