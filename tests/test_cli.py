"""The command line: lists, refusals with exit code 2, `verify`, and stopping."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers.program import Program
from PIL import Image

from delt_hpc import cli
from delt_hpc.config import methods, recipes
from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.schema import STAGES
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.index import ClassMap
from delt_hpc.distilled import manifest
from delt_hpc.launch import environment
from delt_hpc.models import registry
from delt_hpc.version import VERSION

COMMANDS = ("run", *STAGES, "compare", "verify", "recipes", "datasets", "models", "check", "config", "new")


def inside(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# --- listing


def test_help_names_every_command(program: Program) -> None:
    answer = program("--help")
    assert answer.code == 0
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s+\S", answer.out, re.MULTILINE), command


def test_no_arguments_print_help(program: Program) -> None:
    answer = program()
    assert "Usage" in answer.out + answer.err
    assert "recover" in answer.out + answer.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, program: Program) -> None:
    answer = program(command, "--help")
    assert answer.code == 0
    assert "Usage" in answer.out
    assert ("--classes" in answer.out) == (command in ("rank", "recover"))
    assert ("--set" in answer.out) == (command in ("run", "check", "compare", "config", *STAGES))


def test_a_shell_completes_commands(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the test may run outside any shell
    script = program("--show-completion", "bash")
    assert (script.code, "_DELT_HPC_COMPLETE=complete_bash" in script.out) == (0, True)
    for name, value in {"_DELT_HPC_COMPLETE": "complete_bash", "COMP_WORDS": "delt-hpc sta", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    assert program().out == "status\n"


def test_the_version(program: Program) -> None:
    assert program("--version") == (0, f"{VERSION}\n", "")


def test_the_recipes_are_listed_by_name(program: Program) -> None:
    answer = program("recipes")
    listed, known_methods = answer.out.split("\nmethods, for any of them (--set method=NAME):\n")
    assert [line.split()[0] for line in listed.splitlines()] == [recipe.name for recipe in recipes.names()]
    assert [line.split()[0] for line in known_methods.splitlines()] == list(methods.names())
    assert answer.code == 0


def test_a_recipe_is_printed_to_be_saved_and_run(program: Program) -> None:
    answer = program("recipes", "cifar10-resnet18-ipc50")
    assert answer.code == 0
    assert yaml.safe_load(answer.out)["select"] == {"ipc": 50}


def test_the_data_sets_are_listed(program: Program) -> None:
    answer = program("datasets")
    assert [line.split()[0] for line in answer.out.splitlines()] == list(SPECS)
    assert re.search(r"^tiny-imagenet +200 classes +64 px", answer.out, re.MULTILINE)


def test_the_networks_are_listed(program: Program) -> None:
    assert program("models") == (0, "\n".join(registry.names()) + "\n", "")
    assert program("models", "--teachers") == (0, "\n".join(registry.teacher_names()) + "\n", "")


def test_lists_as_json(program: Program) -> None:
    def listed(*arguments: str) -> Any:
        answer = program(*arguments, "--json")
        assert (answer.code, answer.err) == (0, "")
        return json.loads(answer.out)

    assert listed("recipes") == [asdict(recipe) for recipe in recipes.names()]
    assert listed("recipes", "digits") == recipes.load("digits")
    assert [spec["name"] for spec in listed("datasets")] == list(SPECS)
    networks = {row["name"]: row["can_be_teacher"] for row in listed("models")}
    assert tuple(networks) == registry.names()
    assert (networks["resnet18"], networks["vit_b_16"]) == (True, False)


def test_the_doctor_s_findings_as_json(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [environment.Finding("OK", "disk"), environment.Finding("error", "no compiler", "install one")]
    monkeypatch.setattr(environment, "examine", lambda: iter(findings))
    answer = program("doctor", "--json")
    assert (answer.code, json.loads(answer.out)) == (1, [asdict(finding) for finding in findings])


def test_the_resolved_configuration_is_printed(program: Program) -> None:
    answer = program("config", "digits", "--set", "method=cda")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == dump_config(load_config("digits", ["method=cda"]))


def test_light_commands_load_no_heavy_library() -> None:
    code = """
import sys
from delt_hpc import cli
for arguments in (["--help"], ["recipes"], ["datasets"], ["run", "nothing"], ["run", "digits", "--set", "seed=x"]):
    sys.argv = ["delt-hpc", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
assert not {"torch", "torchvision", "matplotlib", "nvidia"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert [line for line in done.stderr.splitlines() if line.isdigit()] == ["0", "0", "0", "2", "2"]


# --- refusals

MISTAKES = [
    (["run", "digit"], "there is no recipe `digit`\n  expected: digits"),
    (["run", "none.yaml"], "none.yaml: there is no such file"),
    (["run", "."], ".: is not a run folder: it contains no config.yaml"),
    (["recipes", "digit"], "there is no recipe `digit`"),
    (["run", "mine.yaml"], "mine.yaml: recover.lrr: unknown key; did you mean `lr`?"),
    (["run", "digits", "--set", "seed=x"], "--set seed=x: seed: 'x': should be a valid integer"),
    (["run", "digits", "--set", "recover.round_iterations=7"], "--set recover.round_iterations=7: recover.round"),
    (["run", "digits", "--set", "seed"], "--set seed: is not an override"),
    (["run", "digits", "--stages", "rank,train"], "--stages rank,train: no stage `train`\n  expected: squeeze, rank"),
    (["run", "digits", "--stages", ""], "--stages : no stage ``"),
    (["run", "digits", "--run", "data/digits/train/run"], "data.root: the run folder"),
    (["compare", "digit"], "there is no recipe `digit`"),
    (["compare", "digits", "--methods", "dellt"], "--methods dellt: dellt: there is no such method"),
    (["compare", "digits", "--external", "mtt"], "--external mtt: is not an external set"),
    (["compare", "digits", "cifar10-resnet18-ipc10"], "digits cifar10-resnet18-ipc10: several sources can only be"),
    (["verify", "."], ".: there is no manifest.csv"),
    (["verify", "nowhere"], "nowhere: there is no manifest.csv"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_users_error_is_one_message_and_exit_code_2(arguments: list[str], message: str, program: Program) -> None:
    Path("mine.yaml").write_text("recover: {lrr: 1}")
    answer = program(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith(f"error: {message}")
    assert "Traceback" not in answer.err
    assert inside(Path()) == ["mine.yaml"], "errors come before any work"


@pytest.mark.parametrize("call", ["train", "run", "run digits --fast", "select digits --classes 1"])
def test_a_wrong_call_is_exit_code_2(call: str, program: Program) -> None:
    answer = program(*call.split())
    assert answer.code == 2
    assert "Usage" in answer.err
    assert inside(Path()) == []


@pytest.mark.parametrize("command", ["rank", "recover"])
@pytest.mark.parametrize("text", ["", "5-2", "1,2"])
def test_what_is_not_a_class_range(text: str, command: str, program: Program) -> None:
    answer = program(command, "digits", f"--classes={text}")
    assert answer.code == 2
    assert answer.err.startswith(f"error: --classes {text}: not a class range\n  expected: A-B with A <= B")
    assert inside(Path()) == []


# --- class ranges


def write_config(folder: Path, image_folder: Callable[..., Path]) -> Path:
    """Three classes of two images: small enough for a real run."""
    counts = dict.fromkeys(("00010", "10", "été au lac"), 2)
    for split in ("train", "val"):
        image_folder(folder / "images" / split, counts, 8)
    tree = {
        "name": "small",
        "data": {"name": "mine", "root": str(folder / "images"), "size": 8, "mean": [0.5] * 3, "std": [0.3] * 3},
        "squeeze": {"epochs": 1, "warmup_epochs": 0},
        "select": {"ipc": 1},
        "machine": {"device": "cpu", "workers": 0},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def test_a_class_range_is_both_ends_included(
    program: Program, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(tmp_path, image_folder)
    run = Path("runs/small")
    assert program("squeeze", config, "--quiet") == (0, f"squeeze: done in {run}\n", "")
    assert program("rank", config, "--classes", "1", "-q").code == 0
    assert sorted(path.name for path in (run / "rank").glob("*.csv")) == ["00001.csv"]
    assert program("rank", config, "--classes", "01-02", "-q").code == 0
    assert sorted(path.name for path in (run / "rank").glob("*.csv")) == ["00001.csv", "00002.csv"]
    beyond = program("rank", config, "--classes", "0-3", "-q")
    assert (beyond.code, beyond.err.splitlines()[0]) == (2, "error: --classes 0-3: class 3 is beyond the last class")
    assert not (run / "ranking.csv").exists()
    assert program("run", run, "--stages", "select, rank", "-q") == (0, f"rank, select: done in {run}\n", "")
    assert len(list((run / "selected").glob("*/*.png"))) == 3


# --- stopping


def test_ctrl_c_says_how_to_go_on(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(tmp_path, image_folder)
    command = [sys.executable, "-m", "delt_hpc.cli", "squeeze", str(config), "--set", "squeeze.epochs=1000000"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        stamp = tmp_path / "runs" / "small" / "teacher" / "made_by.json"
        while process.poll() is None and not stamp.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped on request; the same command resumes"
    assert "Traceback" not in err


# --- verify


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Two classes of two images as `aggregate` leaves them."""
    folder = tmp_path / "distilled"
    classes = ClassMap(("00010", "été au lac"), ("ten", "summer"))
    rows = []
    for class_index, name in enumerate(classes.folders):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            file = f"{name}/{number:05d}.png"
            Image.new("RGB", (8, 8), (100 * class_index, 100 * number, 50)).save(folder / file)
            digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
            rows.append((file, digest, class_index, name, number, "", 0, 10, 0.5, 0.5))
    classes.write(folder / manifest.CLASSES)
    (folder / manifest.FACTS).write_text(
        json.dumps({"ipc": 2, "spec": SPECS["digits"].to_json() | {"classes": 2, "size": 8}})
    )
    (folder / manifest.CARD).write_text("# a card")
    pd.DataFrame(rows, columns=list(manifest.COLUMNS)).to_csv(folder / manifest.MANIFEST, index=False)
    return folder


def test_a_whole_set_has_no_faults(whole: Path, program: Program) -> None:
    assert program("verify", whole) == (0, f"{whole}: 4 images, no faults\n", "")


def test_faults_as_json(whole: Path, program: Program) -> None:
    assert json.loads(program("verify", whole, "--json").out) == {"folder": str(whole), "images": 4, "faults": []}
    (whole / "00010" / "00000.png").unlink()
    answer = program("verify", whole, "--json")
    assert (answer.code, json.loads(answer.out)["faults"]) == (1, ["00010/00000.png: missing"])


def test_every_fault_of_a_damaged_set_is_named(whole: Path, program: Program) -> None:
    (whole / "00010" / "00000.png").unlink()
    (whole / "00010" / "00001.png").write_bytes((whole / "00010" / "00001.png").read_bytes()[:-20])
    (whole / "été au lac" / "stranger.png").write_bytes(b"x")
    answer = program("verify", whole)
    assert answer.code == 1
    assert answer.err == ""
    assert sorted(answer.out.splitlines()) == sorted(
        [
            "00010/00000.png: missing",
            "00010/00001.png: its content has changed (SHA-256)",
            "été au lac/stranger.png: not in the manifest",
            f"{whole}: 3 faults",
        ]
    )


def test_a_set_with_too_few_images_is_not_whole(whole: Path, program: Program) -> None:
    table = manifest.read_manifest(whole)
    table[1:].to_csv(whole / manifest.MANIFEST, index=False)
    (whole / "00010" / "00000.png").unlink()
    answer = program("verify", whole)
    assert (answer.code, answer.out.splitlines()[0]) == (1, "class 00010: 1 images in the manifest, 2 expected")


@pytest.mark.parametrize("content", [b"", b"file,sha256\na,b\n", b"\xff", b'"'])
def test_a_damaged_manifest_is_no_set(content: bytes, whole: Path, program: Program) -> None:
    (whole / manifest.MANIFEST).write_bytes(content)
    answer = program("verify", whole)
    assert answer.code == 2
    assert answer.err.startswith(f"error: {whole / manifest.MANIFEST}: ")


def test_a_run_folder_that_is_a_file_or_has_too_long_a_name_is_an_error(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = program("run", "digits", "--run", "file")
    assert (answer.code, answer.err.partition("\n")[0]) == (2, "error: file: is not a folder")
    answer = program("run", "digits", "--run", "file/below")
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    answer = program("run", "digits", "--run", "x" * 300)
    assert answer.code == 2
    assert "File name too long" in answer.err
