"""Each key is stated once, and what programs ask about keys is what the models say."""

from typing import Annotated

import pytest
from pydantic import TypeAdapter

import fedhubert.planning.words  # noqa: F401  whose models are walked, too
from fedhubert.compose import compose
from fedhubert.config.base import Model
from fedhubert.config.catalog import all_keys, begins_anew, rules_for
from fedhubert.config.keys import key, rules_of
from fedhubert.federation.server.resume import changes
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.runs.trackers import settings_of

GROUPS_OF_THE_JOB = ("data", "model", "task", "targets", "client", "faults")
NO_PATHS = {
    "data.partition.column",
    "targets.label_column",
    "task.label_column",
    "task.teacher_sha256",
    "task.text_column",
}
"""Texts without a default that are no path: any other such key has to say ``path=True``, or trackers are told it."""


def models(root: type[Model] = Model) -> list[type[Model]]:
    below = [model for model in root.__subclasses__() if model.__module__.startswith("fedhubert.")]
    return [*below, *(model for child in below for model in models(child))]


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_key_is_described_and_its_default_is_valid(model: type[Model]) -> None:
    for name, field in model.model_fields.items():
        described = field.description or ""
        assert 4 < len(described) < 300 and described[-1] in ".)", (
            f"{model.__name__}.{name}: {described!r}"
        )
        if not field.is_required():
            schema = TypeAdapter(Annotated[field.annotation, "", *field.metadata])  # type: ignore[name-defined]
            schema.validate_python(field.default, strict=True)


def test_a_key_without_a_description_is_found() -> None:
    class Silent(Model):
        told: int = key(1, unit="s")
        """A number."""

        silent: int = 2

    assert (Silent.model_fields["told"].description, Silent.model_fields["silent"].description) == (
        "A number.",
        None,
    )
    assert (
        rules_of(Silent.model_fields["told"]) == {"unit": "s"}
        and rules_of(Silent.model_fields["silent"]) == {}
    )


def test_the_catalogue_has_every_key_of_every_choice() -> None:
    for overrides in (["experiment=demo_fedavg"], ["experiment=demo_distill"]):
        dumped = compose(overrides).model_dump()
        for name, value in dumped.items():
            assert name in all_keys()
            if all_keys()[name].is_group:
                assert {f"{name}.{inner}" for inner in value} <= all_keys().keys()
    assert (
        all_keys()["task.teacher"].choice == "task=distill"
        and all_keys()["task.min_masks"].choice == ""
    )
    assert all_keys()["task.objectives.hints"].choice == "task=distill"


def test_a_groups_rules_hold_for_its_keys_and_for_names_that_are_gone() -> None:
    assert (
        rules_for("faults.crash")["resume"]
        == "free"
        == rules_for("federated.early_stopping.patience")["resume"]
    )
    assert rules_for("checkpoint.of_an_older_version")["resume"] == "free"
    assert rules_for("data.partition.of_an_older_version")["fork"] == ["batches", "labels"]
    assert rules_for("of_an_older_version") == {} == rules_for("client.lr")
    assert "fork" not in rules_for("data.num_workers")


def test_a_resumed_run_may_differ_in_what_the_models_call_free() -> None:
    saved = compose(["experiment=demo_fedavg"]).model_dump(mode="json")
    free = [
        "simulation.num_workers=1",
        "faults.nan=0.5",
        "client.device=cuda",
        "federated.early_stopping.patience=3",
    ]
    fixed = ["client.lr=0.1", "data.partition.validation_fraction=0.5", "federated.num_rounds=3"]
    now = compose(
        ["experiment=demo_fedavg", "out=/elsewhere", "resume=auto", *free, *fixed]
    ).model_dump(mode="json")
    assert sorted(changes(saved, now)) == [
        "client.lr",
        "data.partition.validation_fraction",
        "federated.num_rounds",
    ]
    assert changes({**saved, "teacher_of_old": 1}, saved) == {"teacher_of_old": [1, None]}


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        (["client.lr", "federated.num_rounds", "model.dropout"], set()),
        (["data.partition.kind"], {"batches", "labels"}),
        (["targets.num_clusters"], {"labels"}),
        (["federated.strategy"], {"server_optimizer"}),
        (["federated.bias_correction", "seed"], {"batches", "labels", "server_optimizer"}),
        (["federated.num_clients"], {"batches", "labels"}),
    ],
)
def test_what_begins_anew_after_a_fork(changed: list[str], anew: set[str]) -> None:
    assert begins_anew(changed) == anew


def test_no_path_is_told_to_trackers_and_none_of_the_servers_to_sites() -> None:
    texts = {
        name
        for name, found in all_keys().items()
        if found.field.annotation == str | None and found.field.default is None
    }
    assert texts - {name for name in texts if rules_for(name).get("path")} == NO_PATHS
    config = compose(["experiment=demo_fedavg"])
    assert not {name for name in settings_of(config) if rules_for(name).get("path")}
    assert "client.lr" in settings_of(config)
    hidden = [name for name, found in all_keys().items() if found.rules.get("server_only")]
    assert hidden and all(
        name.count(".") == 1 and name.startswith(GROUPS_OF_THE_JOB) for name in hidden
    )
    distilling = compose(
        [
            "experiment=demo_distill",
            *(f"{name}=/secret" for name in hidden),
        ]
    )
    job = client_job(distilling)
    for name in hidden:
        group, field = name.split(".")
        assert (
            getattr(getattr(distilling, group), field) == "/secret"
            and getattr(getattr(job, group), field) is None
        )
