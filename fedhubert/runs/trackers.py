"""The figures of ``metrics.jsonl`` in TensorBoard, Weights & Biases and MLflow, as they come.

``metrics.jsonl`` stays what is true: when a run goes on after an interruption, trackers are given
what it holds, and take what they do not have yet. Only totals over clients go to them, and settings
without paths. What goes wrong while a run is on costs the tracker, not the run.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedhubert.config import Config
from fedhubert.config.catalog import rules_for
from fedhubert.errors import ConfigError
from fedhubert.runs.metrics import Event

log = logging.getLogger("fedhubert")


@dataclass(frozen=True)
class Point:
    """One figure: ``family/name`` at a round (or an iteration of k-means)."""

    family: str
    name: str
    step: int
    value: float


class Tracker(Protocol):
    """A place where figures go."""

    def track(self, moment: int, points: list[Point]) -> None:
        """Take the points of one event. ``moment`` grows from event to event, and is the same for
        an event that is told again after a resume."""

    def close(self) -> None:
        """Finish what is under way."""


def require_packages(names: Iterable[str]) -> None:
    """Raise :class:`ConfigError` that says how to install what is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(missing)
        raise ConfigError(
            f"reporting.trackers: {', '.join(missing)} not installed: pip install "
            f"'fedhubert[{extras}]', or leave it out",
            setting="reporting.trackers",
        )


class Trackers:
    """The trackers of a run (``reporting.trackers``).

    Args:
        config: Of the run.
        folder: Of the run, where TensorBoard's files go.
        key: The run's name in places that many runs share.
        events: What ``metrics.jsonl`` has already.

    Raises:
        ConfigError: a tracker that does not start.
    """

    def __init__(
        self, config: Config, folder: Path, key: str, events: Iterable[Event] = ()
    ) -> None:
        self._offset = config.targets.max_iterations
        self._hide = config.privacy.hides_figures
        self._open: dict[str, Tracker] = {}
        require_packages(config.reporting.trackers)
        for name in config.reporting.trackers:
            try:
                self._open[name] = _BUILDERS[name](config, folder, key)
            except (
                Exception
            ) as error:  # of libraries that have no common kind: nobody has waited for anything yet
                self.close()
                raise ConfigError(
                    f"reporting.trackers: {name} does not start: {_said(error)}",
                    setting="reporting.trackers",
                ) from None
        if self._open:
            for event in events:
                self.track(event)

    def track(self, event: Event) -> None:
        """Tell every tracker of an event; one that fails is told no more."""
        points = list(points_of(event, clients_figures=not self._hide))
        for name, tracker in list(self._open.items()) if points else []:
            try:
                tracker.track(self._moment(event), points)
            except Exception as error:
                del self._open[name]
                log.warning(
                    "tracker %s failed and is left out from here on; metrics.jsonl has all: %s",
                    name,
                    _said(error),
                )

    def close(self) -> None:
        """Let trackers finish."""
        for tracker in self._open.values():
            with suppress(Exception):
                tracker.close()
        self._open = {}

    def _moment(self, event: Event) -> int:
        if event["event"] == "kmeans":
            return int(event["iteration"])
        return self._offset + int(event["round"]) + int(event["event"] == "final")


def points_of(event: Event, *, clients_figures: bool = True) -> Iterator[Point]:
    """Yield the figures of an event that trackers take. Validation is of the model of an earlier
    round, and stands at that round.

    Without ``clients_figures``: only what the server measures itself, and epsilon.
    """
    kind = event.get("event")
    if kind == "kmeans" and "set" not in event and clients_figures:
        yield from _points(
            "kmeans", event["iteration"], {"inertia_per_frame": event["inertia_per_frame"]}
        )
    if kind not in ("round", "final"):
        return
    number: int = event["round"]
    yield from _points("server_validation", number, event.get("server_validation"))
    yield from _points("privacy", number, {"epsilon": (event.get("privacy") or {}).get("epsilon")})
    if not clients_figures:
        return
    scored: int = (event.get("validation") or {}).get("model_round", number)
    yield from _points("validation", scored, event.get("validation"))
    yield from _points("fairness", scored, event.get("fairness"))
    for family in ("train", "drift", "seconds"):
        yield from _points(family, number, event.get(family))
    if kind == "round":
        used = {
            "clients": len(event.get("clients") or ()),
            "failed": len(event.get("failed") or ()),
        }
        yield from _points(
            "round", number, used | {name: event.get(name) for name in ("bytes_down", "bytes_up")}
        )


def settings_of(config: Config) -> dict[str, object]:
    """Return the run's settings by dotted key, without paths and addresses."""

    def flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            elif not rules_for(f"{prefix}{key}").get("path"):
                yield f"{prefix}{key}", value

    return dict(flat(config.model_dump(mode="json")))


def _points(family: str, step: int, figures: object, prefix: str = "") -> Iterator[Point]:
    for name, value in figures.items() if isinstance(figures, dict) else ():
        if isinstance(value, dict):
            yield from _points(family, step, value, f"{prefix}{name}_")
        elif isinstance(value, (int, float)) and name != "model_round":
            yield Point(family, f"{prefix}{name}", step, float(value))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


class _TensorBoard:
    """Event files in the run's folder, written anew from ``metrics.jsonl`` when a run goes on."""

    def __init__(self, config: Config, folder: Path, key: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        for file in place.glob("events.out.tfevents.*"):
            file.unlink()
        self._writer: Any = SummaryWriter(str(place))

    def track(self, moment: int, points: list[Point]) -> None:
        for point in points:
            self._writer.add_scalar(f"{point.family}/{point.name}", point.value, point.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases named by the run's key; its own settings come from WANDB_*
    variables (``WANDB_MODE=offline``)."""

    def __init__(self, config: Config, folder: Path, key: str) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=config.reporting.project,
            id=key,
            name=f"{config.experiment}/{folder.name}",
            dir=str(folder),
            config=settings_of(config),
            resume="allow",
            # no command line
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, x_disable_meta=True
            ),
        )
        self._families: set[str] = set()

    def track(self, moment: int, points: list[Point]) -> None:
        if moment < self._run.step:
            return  # told before the interruption
        for family in sorted({point.family for point in points} - self._families):
            self._run.define_metric(f"{family}/*", step_metric=f"{family}/step")
            self._families.add(family)
        values: dict[str, float] = {}
        for point in points:
            values |= {
                f"{point.family}/{point.name}": point.value,
                f"{point.family}/step": point.step,
            }
        self._run.log(values, step=moment)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """A run of MLflow whose id is kept in the run's folder; the server comes from
    MLFLOW_TRACKING_URI."""

    def __init__(self, config: Config, folder: Path, key: str) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        found = self._client.get_experiment_by_name(config.reporting.project)
        experiment = (
            found.experiment_id
            if found
            else self._client.create_experiment(config.reporting.project)
        )
        kept = folder / "mlflow_run_id"
        if kept.is_file():
            self._id = kept.read_text().strip()
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(
                experiment, run_name=f"{config.experiment}/{folder.name}"
            ).info.run_id
            kept.write_text(self._id + "\n")
            for name, value in settings_of(config).items():
                self._client.log_param(self._id, name, str(value)[:500])
        self._last = int(self._client.get_run(self._id).data.metrics.get("moment", -1))

    def track(self, moment: int, points: list[Point]) -> None:
        if moment <= self._last:
            return  # told before the interruption
        for point in points:
            self._client.log_metric(
                self._id, f"{point.family}/{point.name}", point.value, step=point.step
            )
        self._client.log_metric(self._id, "moment", moment, step=moment)

    def close(self) -> None:
        self._client.set_terminated(self._id)


_BUILDERS: dict[str, Callable[[Config, Path, str], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}
