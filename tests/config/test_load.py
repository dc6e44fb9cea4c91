"""Loading a configuration from YAML and --set: the layers, the round trip, and the message of every error."""

import os
from pathlib import Path

import pytest
from helpers.config_files import given, refusal

from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.schema import Config
from delt_hpc.errors import UserError

# Unquoted, YAML would read these as numbers, dates, booleans or null, or break the line.
AMBIGUOUS = ["10", "00010", "1e3", "12e4", "1.5e3", ".5e2", "-1E+2", "1.0", "0x1f", "1:30", "2024-01-01", "yes", "null"]
AMBIGUOUS += ["~", " ", "a: b", "# no", "'", '"', "Ångström", "été au  lac", "a" * 200, "x y " * 60, "\u2028", "🐟"]


# --- parsing


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert given(tmp_path, "") == given(tmp_path, "# nothing\n") == Config()


def test_an_empty_section_is_its_defaults(tmp_path: Path) -> None:
    assert given(tmp_path, "rank:\nselect: {ipc: 3}\nmachine:\n").select.ipc == 3
    assert given(tmp_path, "method: cda\nrecover:\n").recover.batching == "mixed"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E+2", 100.0), ("1.5e3", 1500.0), (".5e1", 5.0), ("2.e-1", 0.2), ("1.5e-3", 1.5e-3), ("2", 2.0)],
)
def test_numbers_are_read_as_yaml_1_2_does(text: str, value: float, tmp_path: Path) -> None:
    assert given(tmp_path, f"recover: {{lr: {text}}}").recover.lr == value
    assert given(tmp_path, "", f"recover.lr={text}").recover.lr == value


def test_a_quoted_number_stays_a_string(tmp_path: Path) -> None:
    assert given(tmp_path, 'data: {name: "1e3"}').data.name == "1e3"


def test_a_merge_key_of_yaml_works(tmp_path: Path) -> None:
    config = given(tmp_path, "squeeze: &base {lr: 0.3, momentum: 0.5}\nrecover: {<<: {lr: 0.4}, r_bn: 0.02}\n")
    assert (config.squeeze.lr, config.recover.lr, config.recover.r_bn) == (0.3, 0.4, 0.02)


def test_paths_are_paths(tmp_path: Path) -> None:
    config = given(tmp_path, "data: {root: a b/c}\nteacher: {source: checkpoint, checkpoint: t.pt}", "rank.csv=r.csv")
    assert (config.data.root, config.rank.csv) == (Path("a b/c"), Path("r.csv"))
    assert config.teacher.checkpoint == Path("t.pt")


# --- layers


def test_later_layers_win(tmp_path: Path) -> None:
    """Defaults, then the method's preset, then the file, then --set."""
    assert given(tmp_path, "method: sre2l").recover.init == "noise"
    text = "method: sre2l\nrecover: {init: selected}"
    config = given(tmp_path, text)
    assert (config.recover.init, config.recover.crop_schedule, config.recover.lr) == ("selected", "constant", 0.25)
    config = given(tmp_path, text, "recover.init=noise", "recover.lr=0.1", "recover.lr=0.2")
    assert (config.recover.init, config.recover.crop_schedule, config.recover.lr) == ("noise", "constant", 0.2)


def test_the_preset_of_an_overridden_method_wins_over_the_file(tmp_path: Path) -> None:
    text = "method: sre2l\nrecover: {round_iterations: 500, batching: by_class, lr: 0.1}"
    recover = given(tmp_path, text, "method=cda").recover
    assert (recover.batching, recover.rounds, recover.lr) == ("mixed", 1, 0.1)
    assert recover.init == "selected", "the preset of the file's method must not apply"
    assert given(tmp_path, text, "method=cda", "recover.batching=by_class").recover.batching == "by_class"
    (tmp_path / "config.yaml").write_text(dump_config(load_config("digits")), encoding="utf-8")
    assert load_config(str(tmp_path), ["method=cda"]).recover.batching == "mixed"


def test_an_override_may_be_a_section_or_a_list(tmp_path: Path) -> None:
    config = given(tmp_path, "recover: {lr: 0.1}", "recover={r_bn: 0.5}", "evaluate.seeds=[1, 2]", "data.size=null")
    assert (config.recover.lr, config.recover.r_bn, config.evaluate.seeds) == (0.1, 0.5, [1, 2])


def test_a_value_may_contain_an_equals_sign(tmp_path: Path) -> None:
    assert given(tmp_path, "", "data.train=a=b").data.train == "a=b"


# --- round trip


@pytest.mark.parametrize("recipe", ["digits", "imagenet-1k-convnet-ipc1"])
@pytest.mark.parametrize("method", ["delt", "cda", "sre2l"])
def test_what_is_written_is_read_back(recipe: str, method: str, tmp_path: Path) -> None:
    config = load_config(recipe, [f"method={method}"])
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(tmp_path)) == config == load_config(str(tmp_path / "config.yaml"))


def test_ambiguous_strings_and_numbers_are_read_back(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "name": "1e3",
            "seed": 2**63 - 1,
            "data": {
                "name": "0123",
                "root": Path("a/ü b"),
                "train": "1e5",
                "val": ".5e3",
                "classes": AMBIGUOUS,
                "mean": [0.1, 1e-7, 1 / 3],
            },
            "teacher": {"source": "checkpoint", "checkpoint": Path("1e3")},
            "rank": {"csv": Path("#r: ~.csv")},
            "recover": {"lr": 1e-05, "r_bn": 1e22, "round_iterations": None},
        }
    )
    assert given(tmp_path, dump_config(config)) == config


# --- refusals: keys


def test_an_unknown_key_of_a_section(tmp_path: Path) -> None:
    message = refusal(tmp_path, "recover: {iteration: 5}")
    assert message.startswith("FILE: recover.iteration: unknown key; did you mean `iterations`? allowed here: engine, ")


def test_an_unknown_section(tmp_path: Path) -> None:
    message = refusal(tmp_path, "recovery: {lr: 5}")
    assert message.startswith("FILE: recovery: unknown key; did you mean `recover`? allowed here: name, method, seed, ")


def test_a_key_unlike_all_others_gets_the_list_only(tmp_path: Path) -> None:
    message = refusal(tmp_path, "select: {zzz: 1}")
    assert message == "FILE: select.zzz: unknown key; allowed here: ipc, strategy"


def test_a_key_must_be_a_string(tmp_path: Path) -> None:
    assert "FILE: recover: 5: keys should be strings" in refusal(tmp_path, "recover: {5: 1}")


# --- refusals: types and values

WRONG = [
    ("seed: '10'", "seed: '10': should be a valid integer"),
    ("seed: true", "seed: True: should be a valid integer"),
    ("seed: -1", "seed: -1: should be greater than or equal to 0"),
    ("seed: 9223372036854775808", "seed: 9223372036854775808: should be less than 9223372036854775808"),
    ("name: 10", "name: 10: should be a string (put it in quotes if it looks like a number)"),
    ("name: ../x", "name: '../x': expected letters, digits, `.`"),
    ("name: ''", "name: '': expected letters, digits, `.`"),
    ("recover: {lr: '0.1'}", "recover.lr: '0.1': should be a valid number"),
    ("recover: {lr: .nan}", "recover.lr: nan: should be a finite number"),
    ("recover: {lr: 0}", "recover.lr: 0: should be greater than 0"),
    ("recover: {lr: }", "recover.lr: None: should be a valid number"),
    ("recover: {betas: 0.5}", "recover.betas: 0.5: should be a valid list"),
    ("recover: {betas: [0.5]}", "recover.betas: [0.5]: list should have at least 2 items"),
    ("recover: {betas: [0.5, 1.0]}", "recover.betas: 1.0: should be less than 1"),
    ("recover: {init: zeros}", "recover.init: 'zeros': should be 'selected' or 'noise'"),
    ("recover: {image_format: PNG}", "recover.image_format: 'PNG': should be 'jpeg', 'png' or 'jpeg75'"),
    ("method: fdelt", "method: 'fdelt': there is no such method; did you mean `delt`? allowed here: cda, delt, "),
    ("evaluate: {students: convnet3}", "evaluate.students: 'convnet3': should be a valid list"),
    ("evaluate: {students: []}", "evaluate.students: []: list should have at least 1 item"),
    ("evaluate: {arms: [soft]}", "evaluate.arms: 'soft': should be 'distilled-soft', 'distilled-hard', "),
    ("evaluate: {randaugment: 1}", "evaluate.randaugment: 1: should be a valid boolean"),
    ("data: {classes: [00010]}", "data.classes: 8: should be a string (put it in quotes if it looks like a number)"),
    ("data: {mean: blue}", "data.mean: 'blue': should be 'measure'"),
    ("data: {root: 5}", "data.root: 5: should be a path"),
    ("rank: fast", "rank: 'fast': should be a section (keys with values)"),
    ("rank: [1]", "rank: [1]: should be a section (keys with values)"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=[text for text, _ in WRONG])
def test_a_wrong_value_is_named_with_what_is_allowed(text: str, expected: str, tmp_path: Path) -> None:
    assert f"FILE: {expected}" in refusal(tmp_path, text)


# --- refusals: files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c", "mapping values are not allowed"),
        ("seed: [1", "expected ',' or ']'"),
        ("seed: 1\nseed: 1", "the key `seed` is given twice"),
        ("recover:\n  lr: 1\n  'lr': 2", "the key `lr` is given twice"),
        ("? [a, b]\n: 1", "found unhashable key"),
        ("seed: *a", "undefined alias"),
        ("name: 2024-13-45", "month must be in 1..12"),
        ("name: !!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_unreadable_yaml(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        given(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: is not valid YAML: ")
    assert expected in str(caught.value)


def test_the_line_of_a_yaml_error_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 3, column 1"):
        given(tmp_path, "seed: 1\nname: x\nseed: 2\n")


def test_a_list_is_not_a_configuration(tmp_path: Path) -> None:
    message = refusal(tmp_path, "- seed: 1")
    assert message.startswith("FILE: contains a list, not a configuration\n  expected: sections such as")
    assert "contains a int" in refusal(tmp_path, "5")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_config(str(tmp_path / "mine.yaml"))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file") as caught:
        load_config(str(tmp_path / "none.yaml"))
    assert "delt-hpc recipes" in caught.value.remedy


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder: it contains no config\.yaml"):
        load_config(str(tmp_path))


def test_an_unknown_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no recipe `digit`") as caught:
        load_config("digit")
    assert caught.value.expected == "digits"


# --- refusals: overrides


@pytest.mark.parametrize("text", ["recover.lr", "=1", "", " =1"])
def test_an_argument_without_key_or_value_is_not_an_override(text: str, tmp_path: Path) -> None:
    assert (
        refusal(tmp_path, "", text)
        == f"--set {text}: is not an override\n  expected: section.key=value, e.g. --set recover.lr=0.1"
    )


def test_an_override_must_be_valid_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--set recover.lr=\[1: the value is not valid YAML"):
        given(tmp_path, "", "recover.lr=[1")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("recover.lrr=1", "recover.lrr: unknown key; did you mean `lr`?"),
        ("recovery.lr=1", "recovery: unknown key; did you mean `recover`?"),
        ("sed=1", "sed: unknown key; did you mean `seed`?"),
        ("seed.x=1", "seed: {'x': 1}: should be a valid integer"),
        ("recover={lr: 1, init: x}", "recover.init: 'x': should be 'selected' or 'noise'"),
        ("recover.lr=high", "recover.lr: 'high': should be a valid number"),
        ("recover.lr=", "recover.lr: None: should be a valid number"),
        ("recover.round_iterations=600", "recover.round_iterations: 600 does not divide"),
    ],
)
def test_the_message_names_the_wrong_override(override: str, key: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, "recover: {r_bn: 0.1}", override).startswith(f"--set {override}: {key}")


def test_the_last_override_of_a_key_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, "seed: 1", "select.ipc=0", "seed=a", "seed=b", "recover.lr=1")
    assert message.splitlines()[0].startswith("--set seed=b: seed: 'b'")
    assert message.splitlines()[1].startswith("--set select.ipc=0: select.ipc: 0")
    message = refusal(tmp_path, "", "recover={r_bn: 1}", "recover.lr=x", "recover.init=noise")
    assert message.startswith("--set recover.lr=x: recover.lr: 'x'")


def test_a_wrong_recipe_value_names_the_recipe() -> None:
    with pytest.raises(UserError, match=r"^recipe digits: recover.round_iterations: \d+ does not divide"):
        load_config("digits", ["recover.iterations=7"])


def test_home_folders_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert given(tmp_path, "data: {root: ~/images}").data.root == Path("/home/somebody/images")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "more than 50000 values"),
        ("a: &a [*a]", "an alias inside its own anchor"),
        ("a: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("# " + "x" * 2**20, "more than 1048576"),
        ("recover: {iterations: 1000000007}", "less than or equal to 1000000"),
        ("recover: {iterations: 1000000, round_iterations: 1}", "1000000 rounds; at most 1000"),
        ("recover: {iterations: 999983, round_iterations: 2}", "use a divisor such as 1, 999983"),
        ("data: {size: 100000}", "less than or equal to 4096"),
    ],
)
def test_absurd_input_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(tmp_path, text)


def test_a_pipe_and_a_name_that_is_too_long_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="is not a regular file"):
        load_config(str(tmp_path / "pipe.yaml"))
    with pytest.raises(UserError, match="File name too long"):
        load_config("x" * 5000)
