"""A new run that goes on from a round of another one, under other settings; where it comes from is
written into its checkpoints."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhubert.compose.saved import amend
from fedhubert.config import Config, validate
from fedhubert.config.catalog import begins_anew
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.federation.privacy.opening import fork_privacy
from fedhubert.federation.privacy.secret import create_secret
from fedhubert.federation.rounds.journal import Journal
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.server.resume import changes
from fedhubert.federation.strategies.strategy import check_strategy
from fedhubert.files import sha256_of
from fedhubert.formats.round_file import round_of
from fedhubert.models.heads import is_objectives_own
from fedhubert.objectives.spec import build_model
from fedhubert.runs.folder import RunFolder
from fedhubert.runs.metrics import append_event, read_events
from fedhubert.runs.store import LatestRound, RoundStore

log = logging.getLogger("fedhubert")


def fork(source: Path, overrides: Sequence[str], round_number: int | None = None) -> Config:
    """Make the new run's folder from round ``round_number`` (the newest by default) of the run in
    ``source``.

    What the changed settings make meaningless begins anew: positions in the data and labels with
    other data, the server optimiser's state with another strategy. Sites begin with fresh state.
    Where the folder has been forked from the same round before, it is left as it is.

    Returns:
        The new run's configuration, with ``resume=auto``: training it goes on after the round.

    Raises:
        CheckpointError: no such round, or a model of other sizes.
        ConfigError: no ``out``, one that is in use, or a setting that is not valid.
    """
    found = _find(source, round_number)
    checkpoint, resume = found.load()
    config = amend(checkpoint["config"], [*overrides, "resume=auto"])
    check_strategy(config)
    changed = changes(checkpoint["config"], config.model_dump(mode="json"))
    assert found.path is not None
    entry = {
        "round": checkpoint["round"],
        "checkpoint_sha256": sha256_of(found.path),
        "changed": changed,
    }
    if config.out is None or config.out == checkpoint["config"]["out"]:
        raise ConfigError("give the new run a folder of its own: out=...", setting="out")
    folder = RunFolder.of(config)
    folder.create()
    store = RoundStore(folder.checkpoints)
    if store.rounds():
        _check_forked_before(store, entry)
        return config
    build_and_load(config, checkpoint["model"])
    source_config = validate(Config, checkpoint["config"])
    resume["privacy"] = fork_privacy(
        source_config,
        resume.get("privacy"),
        Journal(found.path.parent).releases,
        checkpoint["round"],
        config,
    )
    if config.privacy.central:
        create_secret(folder.checkpoints)
    metrics = {
        **checkpoint["federated_metrics"],
        "lineage": [*checkpoint["federated_metrics"].get("lineage", []), entry],
    }
    for event in read_events(source / "metrics.jsonl"):
        if int(event.get("round", 0)) <= checkpoint["round"] and event.get("event") != "final":
            append_event(folder.metrics_file, event)
    plain = config.model_dump(mode="json")
    store.save(
        checkpoint["round"],
        checkpoint["model"],
        config=plain,
        federated_metrics=metrics,
        resume=_resume(resume, changed, config),
    )
    log.info(
        "forked after round %d of %s; changed: %s",
        checkpoint["round"],
        source,
        ", ".join(changed) or "nothing",
    )
    return config


def build_and_load(config: Config, state: dict[str, Any]) -> None:
    """Check that the model of ``config`` takes ``state``; raises :class:`CheckpointError` naming
    the parameter that differs."""
    expected = {
        name: tensor
        for name, tensor in build_model(config.model, config.task, config.seed).state_dict().items()
        if config.task.shares_head or not is_objectives_own(name)
    }
    for name in sorted(expected.keys() | state.keys()):
        shapes = [
            tuple(states[name].shape) if name in states else None for states in (expected, state)
        ]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"the new configuration's model does not take the checkpoint's: {name} is "
                f"{shapes[1]} there and {shapes[0]} here",
                setting="model",
            )


def _find(source: Path, round_number: int | None) -> LatestRound:
    named = round_of(source)
    if source.is_file() and named is not None and round_number in (None, named):
        source, round_number = source.parent, named
    for store in (RoundStore(source / "checkpoints"), RoundStore(source)):
        if round_number is None and store.rounds():
            return store.latest()
        if round_number in store.rounds():
            return LatestRound(round_number, store.path(int(round_number or 0)))
    wanted = (
        "a round's checkpoint"
        if round_number is None
        else f"the checkpoint of round {round_number}"
    )
    raise CheckpointError(
        f"{source} has no {wanted}; name the folder of a run, or a round_NNN_checkpoint.pt in it",
        setting="source",
    )


def _check_forked_before(store: RoundStore, entry: dict[str, object]) -> None:
    checkpoint, _ = store.latest().load()
    lineage = checkpoint["federated_metrics"].get("lineage", [])
    if not lineage or lineage[-1].get("checkpoint_sha256") != entry["checkpoint_sha256"]:
        raise ConfigError(
            f"{store.folder} holds checkpoints of another run; choose another out=...",
            setting="out",
        )


def _resume(resume: dict[str, Any], changed: dict[str, Any], config: Config) -> dict[str, object]:
    """Return what of the old run's state still means something in the new one."""
    anew = begins_anew(changed)
    state = RoundState.from_plain(resume["rounds"])
    positions = {} if "batches" in anew else state.positions
    # an update of other parts has another length
    rounds = RoundState(positions, {}, [] if "momenta" in anew else state.norms)
    fresh: dict[str, object] = {"server_optimizer": None} if "server_optimizer" in anew else {}
    if anew & {"labels", "momenta"}:
        fresh["momenta"] = {}
    else:
        rounds.momentum_norms = state.momentum_norms
    kept = {name: value for name, value in resume.items() if name != "other_centroids"}
    old = resume if "labels" not in anew else {**kept, "centroids": None}
    return {**old, "rounds": rounds.to_plain(), "fingerprints": {}, **fresh}
