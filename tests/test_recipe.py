"""Recipes: stages in order, checkpoints handed on, and what is wrong found before anything runs."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from fedhubert.cli import main
from fedhubert.compose.recipes import read_recipe, recipe_names
from fedhubert.config import DistillConfig
from fedhubert.errors import ConfigError
from fedhubert.federation.engine.recipe import StagePlan


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_composes(name: str, tmp_path: Path) -> None:
    plan = StagePlan.make(name, [f"out={tmp_path}", "data.manifest=/tmp/manifest.csv"])
    second = "student" if name == "speech_mini" else "iteration2"
    assert list(plan.configs)[:2] == ["iteration1", second]
    assert plan.sources["huggingface"] == second
    assert [config.out for config in plan.configs.values()] == [
        f"{tmp_path}/{name}" for name in plan.configs
    ]
    assert all(config.resume == "auto" for config in plan.configs.values())


def test_the_full_recipe_is_the_papers(tmp_path: Path) -> None:
    plan = StagePlan.make(
        "full", [f"out={tmp_path}", "data.manifest=/tmp/manifest.csv", "federated.num_rounds=1234"]
    )
    first, second, student = plan.configs.values()
    assert isinstance(student.task, DistillConfig)
    assert student.task.teacher == f"{tmp_path}/iteration2/checkpoints/round_1234_checkpoint.pt"
    assert plan.sources["student_huggingface"] == "student"
    assert (
        first.targets.source,
        first.targets.num_clusters,
        second.targets.source,
        second.targets.num_clusters,
    ) == (
        "mfcc",
        100,
        "layer:6",
        500,
    )
    assert (
        second.targets.checkpoint == f"{tmp_path}/iteration1/checkpoints/round_1234_checkpoint.pt"
    )
    assert first.federated.num_rounds == second.federated.num_rounds == 1234


def test_overrides_reach_all_stages_or_one_and_odd_paths_survive(tmp_path: Path) -> None:
    out = tmp_path / "it's a, [run]=x"
    plan = StagePlan.make(
        "demo",
        [
            f"out={out}",
            "client.lr=0.02",
            "iteration2:targets.source=layer:1",
            "iteration1:federated.num_rounds=3",
        ],
    )
    first, second = plan.configs.values()
    assert first.client.lr == second.client.lr == 0.02
    assert (first.targets.source, second.targets.source) == ("mfcc", "layer:1")
    assert (first.federated.num_rounds, second.federated.num_rounds) == (3, 8)
    assert second.targets.checkpoint == f"{out}/iteration1/checkpoints/round_003_checkpoint.pt"
    assert plan.out == out


def test_a_recipe_is_an_experiment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Sequence[str]]] = []
    monkeypatch.setattr(
        "fedhubert.federation.engine.recipe.run_recipe",
        lambda name, arguments: calls.append((name, arguments)),
    )
    assert (
        main(["train", f"out={tmp_path}", "experiment=full_recipe", "iteration2:client.lr=0.1"])
        == 0
    )
    assert calls == [("full", [f"out={tmp_path}", "iteration2:client.lr=0.1"])]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["full2"], "demo, full"),
        (["demo", "federated.num_round=3"], "stage iteration1: unknown key `federated.num_round`"),
        (["demo", "iteration2:targets.source=layer:x"], "stage iteration2: targets.source"),
        (["demo", "iteration3:seed=1"], "no training stage 'iteration3'"),
        (["demo", "huggingface:seed=1"], "no training stage 'huggingface'"),
        (["demo", "resume=never"], "sets out, resume, checkpoint_dir"),
        (["demo", "iteration1:out=x"], "sets out, resume, checkpoint_dir"),
        (["demo", "quick"], "KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDHUBERT_HOME", str(tmp_path))
    assert main(["recipe", *arguments]) == 1
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


RECIPES = {
    "stages: []": "stages",
    "just text": "`stages` is missing",
    "[1, 2]": "has no `stages`",
    "stages: [": "is not a recipe",
    "stages: [{name: a, overrides: [seed=1]}, {name: a, overrides: [seed=2]}]": "the name is taken",
    "stages: [{name: a}]": "needs either overrides or export",
    "stages: [{name: a, overrides: ['targets.checkpoint={b}']}, {name: b, overrides: [seed=1]}]": "takes the checkpoint of 'b'",
    "stages: [{name: a, export: huggingface}]": "takes the checkpoint of 'previous'",
    "stages: [{name: a, overrides: [seed=1]}, {name: e, export: vhs}]": "no format 'vhs'",
    "stages: [{name: ../a, overrides: [seed=1]}]": "name",
    "stages: [{name: a, override: [seed=1]}]": "override",
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_of_ones_own_is_checked(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        StagePlan.make(str(path), [])
    assert RECIPES[text] in str(error.value) and "\n" not in str(error.value)


def test_a_stage_can_name_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    take = "targets.source=layer:1, 'targets.checkpoint={a}'"
    path.write_text(
        f"stages: [{{name: a, overrides: [seed=1]}}, {{name: b, overrides: [{take}]}}, {{name: c, overrides: [{take}]}}, "
        "{name: e, export: huggingface, of: a}]"
    )
    assert [stage.name for stage in read_recipe(str(path)).stages] == ["a", "b", "c", "e"]
    plan = StagePlan.make(str(path), [f"out={tmp_path}"])
    assert plan.configs["c"].targets.checkpoint == plan.configs["b"].targets.checkpoint
    assert "/a/checkpoints/" in str(plan.configs["c"].targets.checkpoint) and plan.sources == {
        "e": "a"
    }


def test_help_lists_recipes_and_no_name_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "--help"]) == 0
    assert "recipes: demo, full" in capsys.readouterr().out
    assert main(["recipe"]) == 2 and main(["recipe", "demo", "--fast"]) == 2
    assert main(["train", "--help"]) == 0
    assert "recipe=" not in capsys.readouterr().out
