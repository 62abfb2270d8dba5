"""FedMuon: central Muon over exact mean gradients, resumable, under every codec, and what it says of settings."""

from pathlib import Path

import pytest
import torch

from fedhubert.compose import compose
from fedhubert.config import Config, FederatedConfig, validate
from fedhubert.errors import ConfigError
from fedhubert.federation.strategies.strategy import check_strategy, server_share, strategy_of
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.objectives.spec import build_model
from fedhubert.training.parameters import ParameterLayout

from .test_runs import Run, gone_on, model, run  # noqa: F401

LAYOUT = ParameterLayout(
    (
        "wav2vec2.encoder.weight",
        "wav2vec2.encoder.bias",
        "wav2vec2.feature_extractor.conv_layers.1.conv.weight",
        "logit_generator.final_proj.weight",
    ),
    ((6, 4), (4,), (3, 2, 2), (4, 3)),
)
PLAIN = [
    "federated.strategy=FedMuon",
    "federated.tau=1e-6",
    "client.local_steps=1",
    "client.optimizer=sgd",
    "client.lr=1",
    "client.schedule=constant",
    "client.warmup_fraction=0",
    "client.weight_decay=0",
]


def test_it_steps_as_torchs_muon_and_adamw_would() -> None:
    config = FederatedConfig(
        strategy="FedMuon",
        num_rounds=6,
        eta=0.05,
        beta2=0.98,
        tau=1e-6,
        server_weight_decay=0.1,
        server_schedule="linear",
    )
    server = strategy_of(config, LAYOUT)
    draws = torch.Generator().manual_seed(0)
    vector = torch.randn(LAYOUT.numel, generator=draws)
    parts = {
        name: torch.nn.Parameter((part.flatten(1) if part.ndim > 2 else part).clone())
        for name, part in LAYOUT.split(vector).items()
    }
    encoder = [part for name, part in parts.items() if "bias" not in name and "logit" not in name]
    others = [part for name, part in parts.items() if "bias" in name or "logit" in name]
    theirs = [
        torch.optim.Muon(encoder, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1),
    ]
    for number in range(1, 7):
        gradient = torch.randn(LAYOUT.numel, generator=draws)
        share = server_share(config, number)
        for name, part in LAYOUT.split(gradient).items():
            parts[name].grad = part.reshape(parts[name].shape).clone()
        for optimizer in theirs:
            optimizer.param_groups[0]["lr"] = 0.05 * share
            optimizer.step()
        vector = server.step(vector, -gradient, share)
    expected = torch.cat([part.detach().flatten() for part in parts.values()])
    torch.testing.assert_close(vector, expected, rtol=1e-6, atol=1e-6)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "codec", ["int8", *(pytest.param(name, marks=SLOW) for name in ("fp32", "bf16", "fp16"))]
)
def test_it_goes_on_to_the_same_bits_under_every_codec(
    run: Run,  # noqa: F811
    codec: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = [*PLAIN, f"federated.update_codec={codec}", "federated.num_rounds=3"]
    whole = run("whole", *settings)
    config = validate(Config, load_checkpoint(whole.checkpoint)["config"])
    resume = torch.load(whole.folder.checkpoints / "round_003_resume.pt", weights_only=True)
    state = resume["server_optimizer"]
    layout = ParameterLayout.of(build_model(config.model, config.task, 0))
    planned = strategy_of(config.federated).state_numel(layout)
    # AdamW's second moments of the others alone
    assert sum(value.numel() for value in state.values()) == planned < 1.7 * layout.numel
    assert state["steps"] == 3 and float(state["momentum"].norm()) > 0
    again = gone_on(run, *settings)
    assert "resuming after round 1" in caplog.text
    assert torch.equal(model(again), model(whole))


def test_several_local_steps_and_local_muon_are_warned_of_by_name(
    run: Run,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    run("run", *PLAIN, "client.local_steps=2", "federated.num_rounds=1")
    assert "client.momentum=0 client.local_steps=1" in caplog.text
    caplog.clear()
    for settings, said in (
        (PLAIN, []),
        ([*PLAIN, "client.optimizer=adamw"], ["client.optimizer=sgd"]),
        ([*PLAIN, "client.momentum=0.5"], ["client.momentum=0"]),
        ([*PLAIN, "client.local_steps=null"], ["client.local_steps=1"]),
        (["client.optimizer=muon", "federated.strategy=FedAvg"], ["2509.26337"]),
        (["client.optimizer=muon", "federated.num_clients=1"], []),
    ):
        config = compose(["experiment=demo_fedavg", *settings])
        lines = list(check_strategy(config).warnings(config))
        assert len(lines) == len(said)
        assert all(part in line for part, line in zip(said, lines, strict=True))


def test_a_device_that_is_not_there_is_named_by_its_key() -> None:
    config = FederatedConfig(strategy="FedMuon", server_device="tpu")
    server = strategy_of(config, LAYOUT)
    with pytest.raises(ConfigError, match=r"federated\.server_device='tpu'"):
        server.step(torch.zeros(LAYOUT.numel), torch.ones(LAYOUT.numel))


def test_local_muon_with_kept_optimisers_goes_on_to_the_same_bits(
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = ["client.optimizer=muon", "client.optimizer_policy=keep", "client.lr=1e-2"]
    whole = run("whole", *settings, f"client.state_dir={tmp_path / 'whole-state'}")
    again = gone_on(run, *settings)
    assert torch.equal(model(again), model(whole))
