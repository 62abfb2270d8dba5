"""Ranks as child processes: begun once, warm from one job to the next, ended with their parent, and
begun anew after one of them has died, hung or failed.

They meet over a file in a folder that is this user's alone, and talk over the loopback (gloo) and
between GPUs (NCCL): nothing listens to other machines.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from torch import distributed

from fedhubert.errors import FedhubertError, RankError
from fedhubert.processes import watch_parent
from fedhubert.training.ranks import Ranks

log = logging.getLogger("fedhubert.site")

LIMIT_S = 1800.0
"""For so long the ranks may say nothing: loading, and compiling, take minutes."""
_LOOK_FOR_DEATHS_S = 2.0
_KILLED_S = 30.0
_MEMORY = "SIGKILL is mostly the kernel, out of memory: name fewer devices in client.device"
_ANEW = "site.log has more; the next message begins new ranks"

GivenT = ParamSpec("GivenT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class _Alive:
    """A rank has heard of the others."""


@dataclass(frozen=True)
class _Done(Generic[ResultT]):
    result: ResultT


@dataclass(frozen=True)
class _Failed:
    error: Exception


class RankPool:
    """Processes of one job at a time.

    Args:
        devices: Of each rank.
        limit_s: See :data:`LIMIT_S`.
    """

    def __init__(self, devices: Sequence[torch.device], limit_s: float = LIMIT_S) -> None:
        self.devices, self._limit_s = tuple(devices), limit_s
        self._folder = tempfile.TemporaryDirectory(prefix="fedhubert-ranks-")
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        meeting = f"file://{self._folder.name}/ranks"
        for number, device in enumerate(self.devices):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(number, len(self.devices), device, meeting, limit_s, theirs),
                name=f"fedhubert-rank-{number}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        return [process.pid or -1 for process in self._processes]

    @property
    def ready(self) -> bool:
        """Whether there is a pool, with all of its ranks."""
        return bool(self._processes) and all(each.is_alive() for each in self._processes)

    def run(
        self,
        work: Callable[Concatenate[Ranks, GivenT], ResultT],
        *given: GivenT.args,
        **named: GivenT.kwargs,
    ) -> list[ResultT]:
        """Return what ``work`` gives in each rank, in their order.

        Both ways all is pickled. Tensors go as arrays: by themselves they would go through shared
        memory, of which containers have little.

        Raises:
            RankError: one died, hung, or failed in a way that is not known; all are ended.
            FedhubertError: what one of them raised; likewise.
        """
        message = ForkingPickler.dumps((work, given, named))
        # a rank that does not read would hold us up for ever
        sender = threading.Thread(target=self._send, args=(message,), daemon=True)
        sender.start()
        try:
            return self._results()
        except BaseException:
            self.close()
            raise
        finally:
            sender.join()

    def close(self) -> None:
        """End all ranks, whatever they are doing."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_KILLED_S)  # a driver that hangs may keep it for ever
        self._processes = []
        for connection in self._connections:
            connection.close()
        self._folder.cleanup()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # whoever waits for results finds it dead
            for connection in self._connections:
                connection.send_bytes(message)

    def _results(self) -> list[Any]:
        results: dict[int, Any] = {}
        while len(results) < len(self.devices):
            heard = wait(
                [*self._connections, *(each.sentinel for each in self._processes)], self._limit_s
            )
            if not heard:
                raise RankError(f"the ranks have said nothing for {self._limit_s:.0f} s; {_ANEW}")
            for number, connection in enumerate(self._connections):
                event = self._event(number) if connection in heard else None
                if isinstance(event, _Failed):
                    raise self._blamed(event.error)
                if isinstance(event, _Done):
                    results[number] = event.result
            if not any(connection in heard for connection in self._connections):
                raise self._blamed(RankError(f"a rank has ended; {_ANEW}"))
        return [results[number] for number in sorted(results)]

    def _event(self, number: int) -> object:
        try:
            return self._connections[number].recv()
        except (EOFError, OSError):
            raise self._blamed(RankError(f"rank {number} has ended; {_ANEW}")) from None

    def _blamed(self, error: Exception) -> Exception:
        """Return the error of a rank, or, where another one's death is behind it, that."""
        if not isinstance(error, RankError):
            return error
        ended = wait([process.sentinel for process in self._processes], _LOOK_FOR_DEATHS_S)
        for number, process in enumerate(self._processes):
            if process.sentinel in ended:
                process.join(_LOOK_FOR_DEATHS_S)  # its files are closed before it is gone
                code = process.exitcode or 0
                how = (
                    f"killed by {signal.Signals(-code).name}"
                    if code < 0
                    else f"at its end ({code})"
                )
                return RankError(
                    f"rank {number} of {len(self.devices)} ({self.devices[number]}) was {how}; "
                    f"{_MEMORY}; {_ANEW}"
                )
        return error


_pool: RankPool | None = None


def pool_of(devices: Sequence[torch.device]) -> RankPool:
    """Return this process's ranks for ``devices``; new ones where there are none, or others."""
    global _pool
    if _pool is None or _pool.devices != tuple(devices) or not _pool.ready:
        if _pool is not None:
            _pool.close()
        log.info(
            "process %d begins %d ranks: %s",
            os.getpid(),
            len(devices),
            ", ".join(map(str, devices)),
        )
        _pool = RankPool(devices)
    return _pool


def _serve(
    number: int, count: int, device: torch.device, meeting: str, limit_s: float, parent: Connection
) -> None:
    """A rank's process: one job after another until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the parent,
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which may not heed this one itself
    watch_parent()
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=meeting,
        rank=number,
        world_size=count,
        timeout=timedelta(seconds=limit_s),
    )
    ranks = Ranks(number, count, lambda: parent.send(_Alive()))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            work, given, named = parent.recv()
            try:
                parent.send(_Done(work(ranks, *given, **named)))
            except (FedhubertError, MemoryError) as error:
                parent.send(_Failed(error))
            except Exception as error:
                log.exception("rank %d of %d", number, count)
                said = f"rank {number} of {count} ({device}) failed: {type(error).__name__}"
                parent.send(_Failed(RankError(f"{said}; {_ANEW}")))
