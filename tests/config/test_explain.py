"""Keys in words: ``fedhubert config``, and the resolved configuration with comments."""

import pytest
import yaml

from fedhubert import cli
from fedhubert.compose import compose, to_yaml
from fedhubert.config.catalog import all_keys
from fedhubert.config.explain import explain, with_comments


@pytest.mark.parametrize("experiment", ["demo", "demo_distill"])
def test_comments_apart_the_explained_configuration_is_the_same_text(experiment: str) -> None:
    text = to_yaml(
        compose([f"experiment={experiment}", f"out=/{'long/' * 40}", "init_from='# no comment'"])
    )
    explained = with_comments(text)
    kept = [
        line for line in explained.splitlines(keepends=True) if not line.lstrip().startswith("# ")
    ]
    assert "".join(kept) == text and yaml.safe_load(explained) == yaml.safe_load(text)
    lines = explained.splitlines()
    for name in yaml.safe_load(text):
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{name}:"))
        assert lines[place - 1].startswith("# "), name
    assert max(map(len, set(lines) - set(text.splitlines()))) <= 100


def test_comments_say_type_unit_bounds_default_and_resuming(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "--cfg", "job", "--explain", "client.lr=3e-4"]) == 0
    printed = capsys.readouterr().out
    assert "  # number > 0; default 0.0005; fixed when resuming\n  lr: 0.0003\n" in printed
    assert (
        "  # number > 0, in s; default 3600.0; may differ when resuming\n  round_timeout_s: 3600.0\n"
        in printed
    )
    assert "\n# Local training on one client.\nclient:\n" in printed
    assert cli.main(["train", "--cfg", "job", "client.lr=3e-4"]) == 0
    plain = capsys.readouterr().out
    assert "#" not in plain and yaml.safe_load(plain) == yaml.safe_load(printed)


def test_one_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "targets.min_frames"]) == 0
    said = capsys.readouterr().out
    assert "integer >= 1" in said and "20" in said and "unit:      frames" in said
    assert (
        "a site raises it for itself, never lowers it, as min-frames=... in its node's configuration"
        in said
    )
    assert "must be what the run began with" in said and "begins anew: labels" in said
    assert "may differ" in explain("out") and "not seen" in explain("task.teacher")
    assert "has to be given" in explain("task.teacher") and "only with: task=distill" in explain(
        "task.teacher"
    )
    assert "one of FedAvg, FedAvgM" in explain("federated.strategy")
    assert "one of 50, 100 or null" in explain("targets.label_rate_hz")


def test_groups_and_the_whole_are_lists_of_one_line_a_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        name for name, key in all_keys().items() if not key.is_group
    ]
    group = explain("federated").splitlines()
    assert group[0].startswith("federated: Who takes part") and group[2].startswith(
        "federated.num_clients "
    )
    assert any(line.startswith("federated.early_stopping.patience ") for line in group)
    assert max(map(len, explain("", width=60).splitlines())) <= 60


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("federated.num_round", "did you mean federated.num_rounds"),
        ("lr", "did you mean client.lr or baseline.lr?"),
        ("nonsense", "`fedhubert config` lists all keys"),
    ],
)
def test_an_unknown_key_has_names_like_it(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", name]) == 1
    assert f"unknown key `{name}`" in (error := capsys.readouterr().err) and said in error


def test_a_key_of_another_choice_is_named_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--cfg", "job", "task.freeze_conv=true"]) == 1
    assert "unknown key `task.freeze_conv`: only task=distill has it" in capsys.readouterr().err


def test_every_key_can_be_explained() -> None:
    for name in all_keys():
        assert name in explain(name)
