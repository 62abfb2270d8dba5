"""Muon against torch's own, and what it is given to step."""

import pytest
import torch

from fedhubert.compose import compose
from fedhubert.config import ClientConfig, ModelConfig
from fedhubert.config.muon import MuonConfig
from fedhubert.errors import TrainingError
from fedhubert.models.hubert import build_hubert
from fedhubert.training.muon import (
    Muon,
    hidden_matrices,
    is_hidden_matrix,
    muon_step,
    orthogonalise,
    orthogonalising_flop,
)
from fedhubert.training.parameters import ParameterLayout

from .steps import BATCHES, QUIET, model_of, relative, train, vector

MUON = ClientConfig(lr=1e-2, optimizer="muon", optimizer_policy="keep", schedule="constant")


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (6, 5, 3), (5, 6, 2)])
def test_on_matrices_in_bfloat16_it_has_the_bits_of_torchs(shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    ours = torch.randn(shape, generator=draws)
    theirs = torch.nn.Parameter(ours.flatten(1).clone())
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    buffer = torch.zeros(shape)
    for _ in range(4):
        gradient = torch.randn(shape, generator=draws)
        theirs.grad = gradient.flatten(1).clone()
        torchs.step()
        muon_step(ours, gradient, buffer, MuonConfig(), 0.02, 0.1)
    assert torch.equal(ours.flatten(1), theirs.detach())


def test_singular_values_come_near_one_and_zeros_stay() -> None:
    matrix = torch.randn(40, 17, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalise(matrix, "fp32")
    singular = torch.linalg.svdvals(found)
    assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3
    # the same directions: U^T X V is diagonal
    inner = u.T @ found @ v.T
    assert float((inner - torch.diag(inner.diagonal())).abs().max()) < 1e-4
    assert torch.equal(orthogonalise(torch.zeros(3, 4), "fp32"), torch.zeros(3, 4))


def test_hidden_matrices_of_hubert_base_by_name() -> None:
    """Two layers of it, which has twelve."""
    model = compose(["experiment=research_standard_pretraining", "model.num_layers=2"]).model
    layout = ParameterLayout.of(build_hubert(model, 0))
    left = {
        name.removeprefix("wav2vec2.").replace("encoder.transformer.", "")
        for name, shape in zip(layout.names, layout.shapes, strict=True)
        if len(shape) > 1 and not is_hidden_matrix(name, shape)
    }
    assert left == {
        "feature_extractor.conv_layers.0.conv.weight",
        "pos_conv_embed.conv.parametrizations.weight.original0",
        "pos_conv_embed.conv.parametrizations.weight.original1",
        "logit_generator.label_embeddings",
        "logit_generator.final_proj.weight",
    }
    matrices = list(hidden_matrices(layout))
    assert len(matrices) == 6 + 1 + 2 * 6 and (512, 1536) in matrices and (768, 512) in matrices
    # five iterations of 2 (2 m^2 n + m^3), the sum by hand
    attention, feed_forward = 2 * 3 * 768**3, 2 * (2 * 768**2 * 3072 + 768**3)
    convolutions = 4 * 2 * (2 * 512**2 * 1536 + 512**3) + 2 * 2 * (2 * 512**2 * 1024 + 512**3)
    projection = 2 * (2 * 512**2 * 768 + 512**3)
    assert orthogonalising_flop(layout) == 5 * (
        8 * attention + 4 * feed_forward + convolutions + projection
    )


def test_a_step_is_as_long_as_adamws_and_everything_moves(tiny_model_config: ModelConfig) -> None:
    model = model_of(tiny_model_config, **QUIET)
    start = ParameterLayout.of(model).split(vector(model))
    train(model, client=MUON)
    moved = {
        name: (after - start[name]).square().mean().sqrt() / MUON.lr
        for name, after in ParameterLayout.of(model).split(vector(model)).items()
    }
    # an orthogonal [M, N] has a root mean square of 1 / sqrt(max(M, N)), which the scale makes 0.2;
    # gradients of few frames have fewer directions, and steps as much shorter
    steps = [float(moved[name]) for name in moved if is_hidden_matrix(name, start[name].shape)]
    assert max(steps) < 0.22 and min(steps[:6]) > 0.15 and min(steps) > 0.03 and len(steps) == 19
    others = [float(value) for name, value in moved.items() if not len(start[name].shape) > 1]
    assert max(others) == pytest.approx(1.0, rel=0.05)


def test_rounds_with_a_kept_optimiser_are_one_run_to_the_bit(
    tiny_model_config: ModelConfig,
) -> None:
    whole, halves = (model_of(tiny_model_config, **QUIET) for _ in range(2))
    train(whole, BATCHES[:4], 4, client=MUON)
    state = train(halves, BATCHES[:2], 2, client=MUON).optimizer_state
    assert state is not None
    kinds = {tuple(sorted(entry)) for entry in state["state"].values()}
    assert kinds == {("momentum_buffer",), ("exp_avg", "exp_avg_sq", "step")}
    train(halves, BATCHES[2:4], 2, client=MUON, optimizer_state=state)
    assert torch.equal(vector(whole), vector(halves))


@pytest.mark.parametrize(("kept", "next_"), [("muon", "adamw"), ("adamw", "muon"), ("sgd", "muon")])
def test_the_kept_state_of_another_optimiser_is_refused(
    tiny_model_config: ModelConfig, kept: str, next_: str
) -> None:
    model = model_of(tiny_model_config, **QUIET)
    client = MUON.model_copy(update={"momentum": 0.9})
    state = train(model, client=client.model_copy(update={"optimizer": kept})).optimizer_state
    with pytest.raises(TrainingError, match=r"client\.optimizer_policy=reset"):
        train(model, client=client.model_copy(update={"optimizer": next_}), optimizer_state=state)


def test_bfloat16_and_fp32_take_nearly_the_same_step(tiny_model_config: ModelConfig) -> None:
    start = vector(model_of(tiny_model_config, **QUIET))
    moved = []
    for precision in ("fp32", "bf16"):
        model = model_of(tiny_model_config, **QUIET)
        muon = MuonConfig(precision=precision)  # type: ignore[arg-type]
        train(model, client=MUON.model_copy(update={"muon": muon}))
        moved.append(vector(model) - start)
    assert 0 < relative(moved[1], moved[0]) < 0.05


def test_a_matrix_without_a_gradient_stays(tiny_model_config: ModelConfig) -> None:
    model = model_of(tiny_model_config, **QUIET)
    named = dict(model.named_parameters())
    optimizer, before = Muon(named, MUON), vector(model)
    optimizer.step()
    assert torch.equal(vector(model), before) and not optimizer.state


def test_scaled_fp16_losses_take_the_step_of_fp32(tiny_model_config: ModelConfig) -> None:
    start = vector(model_of(tiny_model_config, **QUIET))
    moved = []
    for precision in ("fp32", "fp16"):
        model = model_of(tiny_model_config, **QUIET)
        train(model, client=MUON.model_copy(update={"precision": precision}))
        moved.append(vector(model) - start)
    assert relative(moved[1], moved[0]) < 0.2
