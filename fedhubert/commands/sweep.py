"""``fedhubert train -m``: one run after the other, and a table of all at the end."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedhubert.errors import FedhubertError

if TYPE_CHECKING:
    from rich.table import Table

    from fedhubert.config import Config

log = logging.getLogger("fedhubert")


@dataclass
class Job:
    """A run of a sweep.

    Attributes:
        differs: The overrides in which it differs from others.
        out: Its folder.
        loss: Of its last model on the held-out audio; infinite where it failed.
        error: Why it failed.
    """

    differs: str
    out: Path
    loss: float = math.inf
    error: str = ""


def run_sweep(overrides: Sequence[str]) -> int:
    """Train every combination, all checked before the first begins; one that fails later is
    reported and does not stop the others.

    Raises:
        FedhubertError: some failed, or (code ``interrupted``) the sweep was asked to stop.
    """
    from fedhubert.compose.sweeps import differing, multirun, sweep_jobs
    from fedhubert.federation.engine.run import check_here, train_here
    from fedhubert.reporting.console import log_to_terminal, output_console

    planned = sweep_jobs(overrides)
    searched = {_key(text) for _, names in planned for text in names}
    differ = searched | set(map(_key, differing(planned)))
    jobs: list[Job] = []
    interrupted: list[FedhubertError] = []

    def one(out: str, given: Sequence[str], configuration: "Callable[[], Config]") -> float:
        own = [text for text in given if _key(text) in differ]
        job = Job(" ".join(own) or "all as given", Path(out))
        if interrupted:
            return math.inf
        jobs.append(job)
        log_to_terminal()
        log.info("job %d%s: %s", len(jobs), "" if searched else f" of {len(planned)}", job.differs)
        try:
            job.loss = train_here(configuration())
        except FedhubertError as error:
            if error.code == "interrupted":
                interrupted.append(error)
            job.error = str(error)
        return job.loss  # a search's worst; Optuna ends at a NaN

    multirun(overrides, one, check_here)
    if interrupted:
        raise interrupted[0]
    output_console(110).print(table(jobs))
    failed = [job for job in jobs if job.error]
    if failed:
        reasons = "; ".join(f"{job.out}: {job.error}" for job in failed)
        raise FedhubertError(f"{len(failed)} of {len(jobs)} jobs of the sweep failed: {reasons}")
    return 0


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def table(jobs: Sequence[Job]) -> "Table":
    """Return a row for each job: what it was, how it did, and whether it learned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from fedhubert.reporting.console import near
    from fedhubert.reporting.summary import how_it_ended
    from fedhubert.runs.folder import RunFolder

    result = Table(title="Jobs", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("job", "loss", "accuracy"):
        result.add_column(name, justify="right", no_wrap=True)
    for name in ("what differs", "learned", "folder"):
        result.add_column(name, overflow="fold")
    for number, job in enumerate(jobs, start=1):
        found = how_it_ended(RunFolder(job.out, job.out / "checkpoints").metrics_file)
        learned = "failed: the reason is below" if job.error else found.learned
        row = [found.loss, found.second, job.differs, learned, near(job.out)]
        result.add_row(str(number), *(["", "", *row[2:]] if job.error else row))
    return result
