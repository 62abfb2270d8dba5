"""The policy file: a template that is what it says, errors by key, and a refusal for every key."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedhubert.errors import ConfigError
from fedhubert.federation.site import policy as policies
from fedhubert.federation.site.admission import Guard, policy_of
from fedhubert.federation.site.policy import (
    Policy,
    default_policy,
    explain,
    load_policy,
    policy_keys,
    value_of,
)
from fedhubert.federation.wire.messages.message import Instruction
from fedhubert.federation.wire.messages.nodes import (
    Describe,
    HasExtractor,
    SendExtractor,
    SendTeacher,
)
from fedhubert.federation.wire.messages.rounds import Evaluate
from fedhubert.federation.wire.messages.targets import Label, StepKMeans

from .server import CENTROIDS, Server, label, train
from .test_attacks import ONE_CLUSTER

README = Path(policies.__file__).with_name("README.md")
KEYS = [key.name for key in policy_keys() if not key.is_group]


@pytest.mark.parametrize("own_data", [True, False])
def test_the_template_is_read_as_what_it_was_made_from(tmp_path: Path, own_data: bool) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(explain(default_policy(own_data)))
    assert load_policy(file) == default_policy(own_data)
    assert all(
        len(line) <= 100 for line in file.read_text().splitlines() if line.lstrip().startswith("#")
    )
    file.write_text("")
    assert load_policy(file) == default_policy(own_data=True) == Policy()


def test_every_key_has_words_in_the_template_and_in_the_chapter() -> None:
    text, chapter = " ".join(explain(Policy()).replace("#", " ").split()), README.read_text()
    for key in policy_keys():
        assert key.description and (key.is_group or key.description in text)
    assert all(f"| `{name}` |" in chapter for name in KEYS)
    assert policies.table(Policy()) in chapter


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("update: {min_steps: 0}", "update.min_steps=0"),
        ("updat: 1", "unknown key `updat`"),
        ("audio: {min_seconds: .nan}", "audio.min_seconds"),
        ("faults: 1", "faults=1"),
        ("model: {max_layers: '24'}", "model.max_layers='24'"),
        ("instructions: [train.everything]", "instructions: 'train.everything' is none of"),
        ("- a", "a policy is a mapping of keys"),
        ("a: [", "is no YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_policy(file)
    assert said in str(error.value) and "policy.yaml" in str(error.value) and error.value.setting


def test_a_node_has_the_policy_that_it_names_or_a_strict_one_with_a_manifest_of_its_own(
    tmp_path: Path,
) -> None:
    assert policy_of({}) is None and policy_of({"manifest": "/own.csv"}) == Policy()
    file = tmp_path / "policy.yaml"
    file.write_text("faults: true\nkmeans: {min_frames: 50}\n")
    named = {
        "manifest": "/own.csv",
        "policy": str(file),
        "state-dir": str(tmp_path / "state"),
        "group-frames": 30,
    }
    assert policy_of(named) == Policy(faults=True, kmeans=policies.KMeansPolicy(min_frames=50))
    guard = Guard.of(policy_of(named) or Policy(), named)
    assert (guard.node_config["min-frames"], guard.node_config["group-frames"]) == (50, 30)


def test_a_site_whose_policy_cannot_be_read_answers_nothing_else(
    server: Server, tmp_path: Path
) -> None:
    server.node["policy"] = str(tmp_path / "nowhere.yaml")
    (failure,) = server.ask(Describe()).failures
    assert (failure.code, failure.setting) == ("config", "policy")


Case = tuple[object, Callable[[Server], Instruction], list[str], str]
"""What the key is set to, what is asked, with what job, and the key of the run that the refusal names."""


def _describe(server: Server) -> Instruction:
    return Describe()


def _step(server: Server) -> Instruction:
    return StepKMeans(arrays={"centroids": ONE_CLUSTER})


def _label(server: Server) -> Instruction:
    return Label(targets=label(server), arrays={"centroids": CENTROIDS})


def _evaluate(server: Server) -> Instruction:
    request = train(server)
    return Evaluate(
        round=1,
        positions=request.positions,
        layout=request.layout,
        targets=request.targets,
        arrays=request.arrays,
    )


CLASSIFY = ["task=classify", "task.label_column=speaker"]
CASES: dict[str, Case] = {
    "instructions": (
        ["query.describe"],
        lambda server: HasExtractor(extractor="a"),
        [],
        "query.extractor",
    ),
    "faults": (False, _describe, ["faults.nan=0.1"], "faults.nan"),
    "tasks": (["pretrain"], _describe, [*CLASSIFY, "task.labels=[a,b]"], "task.name"),
    "places": (False, _describe, ["targets=precomputed", "targets.labels=/a.km"], "targets.labels"),
    "model.convolutions": ([[[10, 5], [8, 8], [8, 8]]], _describe, [], "model.conv_layers"),
    "model.max_channels": (15, _describe, [], "model.conv_layers"),
    "model.max_width": (31, _describe, [], "model.embed_dim"),
    "model.max_layers": (1, _describe, ["model.num_layers=2"], "model.num_layers"),
    "model.max_heads": (1, _describe, [], "model.num_heads"),
    "model.max_ffn": (63, _describe, [], "model.ffn_dim"),
    "model.max_clusters": (5, _describe, [], "model.num_classes"),
    "model.max_sets": (1, _describe, ["targets.sets=[mfcc,static]"], "model.other_classes"),
    "model.max_bytes": (1000, _describe, [], "model"),
    "audio.min_seconds": (0.7, _describe, [], "data.min_seconds"),
    "audio.max_seconds": (1.9, _describe, [], "data.max_seconds"),
    "audio.max_batch_seconds": (7.9, _describe, [], "data.batch_seconds"),
    "update.min_utterances": (61, _describe, [], "data.manifest"),
    "update.min_seconds": (100.0, _describe, [], "client.local_steps"),
    "update.min_validation_utterances": (40, _describe, [], "data.partition.validation_fraction"),
    "update.min_steps": (11, _describe, [], "client.local_steps"),
    "update.max_steps": (9, _describe, [], "client.local_steps"),
    "update.min_momentum": (
        0.96,
        _describe,
        ["client.optimizer=muon", "client.optimizer_policy=shared"],
        "client.muon.momentum",
    ),
    "update.max_accumulate": (1, _describe, ["client.accumulate=2"], "client.accumulate"),
    "update.max_outputs": (2, _describe, [*CLASSIFY, "task.labels=[a,b,c]"], "task.labels"),
    "update.min_noise_multiplier": (1.0, _describe, [], "privacy.noise_multiplier"),
    "update.max_unreadable": (0.0, _describe, [], "data.max_unreadable"),
    "kmeans.iterations_per_run": (0, _step, [], "iterations_per_run"),
    "kmeans.iterations_per_day": (0, _step, [], "iterations_per_day"),
    "kmeans.labellings_per_run": (0, _label, [], "labellings_per_run"),
    "kmeans.labellings_per_day": (0, _label, [], "labellings_per_day"),
    "kmeans.needless": (
        False,
        _step,
        ["targets=precomputed", "targets.labels=column:a"],
        "targets.kind",
    ),
    "kmeans.max_label_values": (
        1,
        _describe,
        ["targets.label_column=a", "targets.label_values=[b,c]"],
        "targets.label_values",
    ),
    "limits.messages_per_day": (1, _describe, [], "messages_per_day"),
    "limits.messages_per_run": (1, _evaluate, [], "messages_per_run"),
    "limits.work_seconds_per_day": (1e-9, _describe, [], "work_seconds_per_day"),
    "limits.work_seconds_per_run": (1e-9, _evaluate, [], "work_seconds_per_run"),
    "limits.bytes_per_day": (100, _step, [], "bytes_per_day"),
    "limits.bytes_per_run": (100, _step, [], "bytes_per_run"),
    "limits.max_threads": (1, _describe, ["client.threads=2"], "client.threads"),
    "limits.max_prefetch": (3, _describe, [], "data.prefetch_batches"),
    "limits.max_teacher_cache_bytes": (
        1,
        _describe,
        ["task=distill", "task.teacher=a", "task.feature_penalty=0", "targets.num_clusters=6"],
        "task.teacher_cache_bytes",
    ),
}
SHOWN_ELSEWHERE = {
    "update.rewinding",
    "kmeans.own_sample",
    "kmeans.frames",
    "kmeans.min_frames",
    "kmeans.group_frames",
    "describe.different_per_day",
    "describe.round_utterances",
    "describe.round_seconds",
    "limits.runs_per_day",
}
"""Keys that change what is answered, or need several runs: test_attacks.py, and below."""


def test_no_key_is_without_a_test() -> None:
    assert set(CASES) | SHOWN_ELSEWHERE == set(KEYS) and not set(CASES) & SHOWN_ELSEWHERE


def policy_with(name: str, value: object) -> dict[str, object]:
    """Return the values of a file that refuses nothing but by the key ``name``."""
    values: dict[str, object] = yaml.safe_load(explain(default_policy(own_data=False)))
    inside, *rest = (values, *name.split("."))
    for part in rest[:-1]:
        inside = inside[part]  # type: ignore[assignment]
    inside[rest[-1]] = value
    return values


@pytest.mark.parametrize("name", CASES)
def test_what_a_key_refuses_is_told_by_name_and_done_where_it_does_not(
    server: Server, tmp_path: Path, name: str
) -> None:
    value, asks, overrides, setting = CASES[name]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(policy_with(name, value)))
    strict = server.without_policy(tmp_path)
    strict.node |= {"policy": str(tmp_path / "one.yaml"), "state-dir": str(tmp_path / "strict")}
    strict.ask(Describe())  # what counts begins with a message that is answered
    request = asks(strict)
    assert strict.refusal(request, *overrides) == setting
    assert server.without_policy(tmp_path).refusal(asks(server), *overrides) == ""
    if isinstance(value, float | int):
        assert value_of(load_policy(tmp_path / "one.yaml"), name) == value


def test_models_of_other_shapes_are_no_extractor_and_no_teacher(
    server: Server, tmp_path: Path
) -> None:
    model = server.job().model.model_copy(update={"conv_layers": ((1, 1, 1), (4096, 400, 320))})
    tensors = {"a": np.zeros(3, np.float32)}
    assert (
        server.refusal(SendExtractor(extractor="a", model=model, arrays=tensors))
        == "targets.checkpoint"
    )
    assert server.refusal(SendTeacher(teacher="a", model=model, arrays=tensors)) == "task.teacher"
    assert (
        server.without_policy(tmp_path).refusal(
            SendTeacher(teacher="a", model=model, arrays=tensors)
        )
        == ""
    )


def test_runs_are_counted_by_the_day_and_a_restart_forgets_none(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(policy_with("limits.runs_per_day", 2)))
    server.node["policy"] = str(tmp_path / "one.yaml")
    ask = HasExtractor(extractor="a")
    assert [server.refusal(ask, run=run) for run in ("a", "b", "a", "c", "b")] == [
        "",
        "",
        "",
        "runs_per_day",
        "",
    ]
    ledger = tmp_path / "state/policy/ledger.json"
    assert ledger.stat().st_mode & 0o777 == 0o600
    ledger.write_text(ledger.read_text()[:-9])
    (failure,) = server.ask(ask, run="a").failures
    assert (failure.code, failure.setting) == ("ledger", "client.state_dir")
