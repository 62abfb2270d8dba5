"""Configuration: every shipped experiment composes, and what is wrong is refused by name."""

import subprocess
import sys

import pytest

from fedhubert.cli import main
from fedhubert.compose import compose, group_choices, to_yaml
from fedhubert.config import ClientJob, Config, DistillConfig, from_json
from fedhubert.errors import ConfigError
from fedhubert.federation.strategies.strategy import client_job

MANIFEST = "data.manifest=/tmp/manifest.csv"


@pytest.mark.parametrize("experiment", group_choices()["experiment"])
def test_every_experiment_composes_and_validates(experiment: str) -> None:
    teacher = ["task.teacher=/tmp/teacher"] if "distill" in experiment else []
    config = compose(
        [f"experiment={experiment}", MANIFEST, "targets.checkpoint=/tmp/run", *teacher]
    )
    assert config.experiment == experiment
    assert config.model.num_classes == config.targets.num_clusters + 4
    assert "???" not in to_yaml(config)


@pytest.mark.parametrize("model", group_choices()["model"])
@pytest.mark.parametrize("targets", group_choices()["targets"])
def test_every_group_choice_composes(model: str, targets: str) -> None:
    config = compose(
        [f"model={model}", f"targets={targets}", "targets.labels=x.km", "targets.checkpoint=run"]
    )
    assert config.model.name == model


def test_research_distillation() -> None:
    with pytest.raises(ConfigError, match=r"task\.teacher"):
        compose(["experiment=research_standard_distillation", MANIFEST])
    config = compose(
        [
            "experiment=research_standard_distillation",
            MANIFEST,
            "task.teacher=torchaudio:HUBERT_BASE",
        ]
    )
    federated, model, task = config.federated, config.model, config.task
    assert (
        isinstance(task, DistillConfig)
        and task.layers == (4, 8, 12)
        and task.objectives.active == ("layers",)
    )
    assert (
        federated.num_clients,
        federated.num_rounds,
        federated.clients_per_round,
        federated.strategy,
    ) == (
        10,
        100,
        5,
        "FedAdam",
    )
    assert (federated.beta1, federated.beta2, federated.eta, federated.tau) == (
        0.9,
        0.999,
        0.01,
        0.001,
    )
    assert (model.embed_dim, model.num_layers, model.ffn_dim) == (384, 6, 1536)
    assert "HUBERT_BASE" not in client_job(config).model_dump_json()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("task.objectives.layers=0", "task.objectives: all weights are 0"),
        ("task.objectives.hints=1", "objectives.hints has a weight"),
        ("task.objectives.hints=1 task.hints=[[9,1]]", "layer 9 of the student"),
        ("task.layers=[4,4]", "none of them twice"),
        ("task.layers=[0]", "task.layers.0=0"),
        ("task.teacher_precision=fp8", "task.teacher_precision"),
        ("task.freeze_conv=true init_from=x", "task.freeze_conv"),
        ("task.name=imitate", "task.name: 'imitate' is none of pretrain, distill"),
        ("task.freeze=true", "task.freeze"),
    ],
)
def test_what_is_wrong_with_a_distillation_is_named(override: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose(["experiment=demo_distill", *override.split(" ")])
    assert named in str(error.value)


def test_research_settings() -> None:
    config = compose(["experiment=research_standard_pretraining", MANIFEST])
    federated, model = config.federated, config.model
    assert (
        federated.num_clients,
        federated.num_rounds,
        federated.client_fraction,
        federated.strategy,
    ) == (
        10,
        100,
        0.5,
        "FedAdam",
    )
    assert (federated.beta1, federated.beta2, federated.eta, federated.tau) == (
        0.9,
        0.999,
        0.01,
        0.001,
    )
    assert (model.embed_dim, model.num_layers, model.num_classes) == (768, 12, 504)
    assert federated.clients_per_round == 5


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("federated.num_round=3", "federated.num_rounds"),
        ("nonsense=1", "nonsense"),
        ("federated.num_clients=0", "federated.num_clients"),
        ("federated.client_fraction=1.5", "federated.client_fraction"),
        ("client.lr=-1", "client.lr"),
        ("client.lr=abc", "client.lr"),
        ("client.precision=fp8", "client.precision"),
        ("model=hubert_huge", "hubert_huge"),
        ("model.num_heads=5", "num_heads"),
        ("model.num_classes=7", "model.num_classes"),
        ("data.partition.kind=column data.partition.column=null", "column"),
        ("data.max_seconds=0.3", "max_seconds"),
        ("targets=precomputed", "labels"),
        ("targets.source=layer:2", "targets.checkpoint"),
        ("targets.source=layer:0", "layer:N"),
        ("targets.source=fbank", "targets.source"),
        ("targets.label_rate_hz=50", "label_rate_hz"),
        ("targets.source=layer:2 targets.checkpoint=x targets.label_rate_hz=100", "label_rate_hz"),
        ("targets.label_column=language", "label_values"),
        ("targets.label_column=language targets.label_values=[en,en]", "twice"),
        ("federated.min_clients=50", "min_clients"),
        ("a b", "a b"),
    ],
)
def test_what_is_wrong_is_named(override: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([override] if override == "a b" else override.split())
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_clients_receive_no_server_paths_and_the_same_job() -> None:
    config = compose(
        [
            "out=/secret/place",
            "checkpoint_dir=/secret/checkpoints",
            "evaluation.manifest=/secret/eval.csv",
            "targets.source=layer:2",
            "targets.checkpoint=/secret/run",
            "init_from=/secret/encoder",
        ]
    )
    text = client_job(config).model_dump_json()
    assert "secret" not in text
    assert from_json(ClientJob, text) == client_job(config)


def test_label_rate_follows_the_source_and_iteration_2_is_as_in_the_paper() -> None:
    assert compose([]).targets.label_rate_hz == 100
    config = compose(
        ["experiment=research_standard_iteration2", MANIFEST, "targets.checkpoint=run"]
    )
    targets = config.targets
    assert (targets.source, targets.layer, targets.label_rate_hz, targets.num_clusters) == (
        "layer:6",
        6,
        50,
        500,
    )
    assert config.model.num_classes == 504 and config.experiment == "research_standard_iteration2"
    first = compose(["experiment=research_standard_pretraining", MANIFEST])
    assert (config.federated, config.client, config.data) == (
        first.federated,
        first.client,
        first.data,
    )


def test_configs_are_frozen() -> None:
    config = compose([])
    with pytest.raises(Exception, match="frozen"):
        config.federated.num_rounds = 3  # type: ignore[misc]
    assert isinstance(config, Config)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedhubert.cli", *arguments], capture_output=True, text=True
    )


def test_the_command_says_why_in_its_last_line() -> None:
    done = run("train", "federated.num_clients=zero")
    assert done.returncode == 1
    assert "federated.num_clients" in done.stderr.splitlines()[-1]
    done = run("train", "--fast")
    assert done.returncode == 2
    assert "--fast" in done.stderr.splitlines()[-1]
    done = run("train", "data.manifest=/nowhere/manifest.csv")
    assert done.returncode == 1
    assert "/nowhere/manifest.csv" in done.stderr.splitlines()[-1]


def test_the_resolved_configuration_is_printed() -> None:
    done = run("train", "--cfg", "job", "seed=5", "federated.strategy=FedAdam")
    assert done.returncode == 0
    assert "seed: 5" in done.stdout
    assert "strategy: FedAdam" in done.stdout
    assert "num_classes: 54" in done.stdout
    help_text = run("train", "--help").stdout
    assert "resume=auto" in help_text and "hubert_base" in help_text


def test_what_an_experiment_sets_wins_over_the_root() -> None:
    assert compose(["experiment=demo_fedavg"]).checkpoint.every == 2
    assert compose(["experiment=demo_fedavg", "checkpoint.every=7"]).checkpoint.every == 7


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.manifest=gone.csv"], "model=hubert_tiny"),
        (["data.manifest=gone.csv", "model=hubert_small"], "model=hubert_small"),
        (["data.manifest=gone.csv", "task=ctc"], "experiment=speech_mini_ctc hold"),
        (["data.manifest=gone.csv", "experiment=speech_mini"], ""),
    ],
)
def test_training_on_own_audio_says_that_it_takes_the_demos_settings(
    overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *overrides]) == 1
    told = capsys.readouterr().err
    assert ("no experiment=... was given" in told) == bool(said) and said in told
    assert "no such file gone.csv" in told.splitlines()[-1]


@pytest.mark.parametrize("task", ["ctc", "classify", "distill"])
def test_a_task_without_an_experiment_has_the_settings_of_one_of_its_own(task: str) -> None:
    own = [
        *("data.manifest=own.csv", "out=runs/own"),
        *(["task.teacher=runs/teacher"] if task == "distill" else []),
    ]
    found = compose([f"task={task}", *own])
    assert found.task.name == task and found.experiment != "demo"
    assert found == compose([f"experiment={found.experiment}", *own])
    assert compose(["task=pretrain"]).experiment == "demo"
    assert compose([f"experiment={found.experiment}", f"task={task}", *own]) == found
