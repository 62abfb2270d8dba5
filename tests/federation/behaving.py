"""A worker's work that behaves as the name of its job says; apart from the tests, whose libraries it would take long to load."""

import os
import time
from dataclasses import dataclass

from fedhubert.federation.site.work import Pulled, Pushing
from fedhubert.federation.site.worker import Job, Say
from fedhubert.federation.wire.flower.supernode import Task

PATIENCE_S = 120.0
FALLBACK = Task(None, 1, 2)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Behaving:
    """Work that does what the name of its job says."""

    limit_s: float = PATIENCE_S

    def prepare(self) -> None:
        return None

    def __call__(self, job: Job, say: Say) -> None:
        what = job.token
        if what == "die unread":
            os._exit(3)
        say(Pulled("train.round", "4", 2_000_000, self.limit_s, FALLBACK))
        if what == "hang":
            time.sleep(3600)
        if what == "exit":
            os._exit(3)
        if what == "raise":
            raise ValueError("of a secret")
        if what == "slow":
            time.sleep(1.0)
        say(Pushing(1_000_000, ("config (data.manifest)",) if what == "refuse" else ()))
        if what == "die pushing":
            os._exit(3)
