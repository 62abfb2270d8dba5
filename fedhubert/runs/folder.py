"""The folder of a run: where it is, and the files in it that others read."""

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from fedhubert.config import Config
from fedhubert.errors import ConfigError
from fedhubert.files import check_writable, on_server


def resolve_out(config: Config) -> Path:
    """Return the run's folder, absolute.

    ``out`` as given, or ``outputs/<experiment>/<date>-<time>``; a relative path starts from
    ``FEDHUBERT_HOME`` or, where that is not set, from the working directory of the process that
    runs the server (the shell of ``fedhubert train``, the SuperLink of ``flwr run``).
    """
    return on_server(
        config.out or str(Path("outputs", config.experiment, time.strftime("%Y%m%d-%H%M%S")))
    )


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path
    checkpoints: Path

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        out = resolve_out(config)
        checkpoints = (
            on_server(config.checkpoint_dir) if config.checkpoint_dir else out / "checkpoints"
        )
        return cls(out, checkpoints)

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "federated_training.log"

    @property
    def plot_file(self) -> Path:
        return self.path / "curves.png"

    def create(self) -> None:
        """Make the folders; raises :class:`ConfigError` when they cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            check_writable(self.path)
            check_writable(self.checkpoints)
        except OSError as error:
            raise ConfigError(
                f"cannot write to the run's folder {self.path}: {error.strerror}; choose another "
                "with out=...",
                setting="out",
            ) from None

    def run_key(self) -> str:
        """Return the run's name for its sites: random at the first start, the same after a
        resume."""
        file = self.path / "run.json"
        if not file.is_file():
            self.renew_run_key()
        return str(json.loads(file.read_text())["run_key"])

    def renew_run_key(self) -> None:
        """Give the run another name: for its sites it is a new one."""
        (self.path / "run.json").write_text(json.dumps({"run_key": secrets.token_hex(8)}) + "\n")
