"""Which requests a site has begun to answer: none is answered twice, also not by a site that was
started anew."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedhubert.federation.site.ledger import LedgerError
from fedhubert.federation.wire.signing import CLOCK_SKEW_S, Envelope, Expired, Replayed
from fedhubert.files import sync_folder, temporary_path

_LINE = re.compile(rb"(\d{1,13}) ([0-9a-f]{32}|-)")
_OVER = "-"
_PRUNE_FROM = 64


@dataclass(frozen=True)
class RequestLedger:
    """A file of lines ``expiry id``, of mode 0600, that only grows until entries have expired.

    A line is on the disk before :meth:`enter` returns; processes of one site take turns. Entries
    are dropped when their requests would be refused as expired anyway, and the latest expiry among
    them stays (``expiry -``): with a clock set back they are refused all the same.
    """

    path: Path

    def enter(self, request: Envelope, now_s: float) -> None:
        """Write a request down.

        Raises:
            Replayed: it is there already.
            Expired: it may have been there.
            LedgerError: the file is damaged, or cannot be written.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked() as file:
                entries, over_s = self._entries(file)
                if request.id in entries:
                    raise Replayed(
                        "the request has been answered before", setting="coordinator-key"
                    )
                if request.expires <= over_s:
                    raise Expired(
                        f"the request expires at {request.expires}, and {self.path} begins after "
                        f"{over_s} (seconds since 1970)",
                        setting="clock",
                    )
                entries[request.id] = request.expires
                dead = [
                    number for number, expires in entries.items() if expires + CLOCK_SKEW_S < now_s
                ]
                if len(dead) >= max(_PRUNE_FROM, len(entries) // 2):
                    over_s = max(over_s, *(entries.pop(number) for number in dead))
                    self._rewrite({_OVER: over_s, **entries})
                else:
                    file.write(b"%d %s\n" % (request.expires, request.id.encode()))
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(
                f"cannot write {self.path}: {error.strerror}; nothing is answered that is not "
                "written down there",
                setting="state-dir",
            ) from None

    def _entries(self, file: BinaryIO) -> tuple[dict[str, int], int]:
        """Return id -> expiry, and the latest expiry of those that were dropped; a line that was
        cut short goes: it was never answered."""
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
        matches = [_LINE.fullmatch(line) for line in content[:whole].splitlines()]
        entries = {match.group(2).decode(): int(match.group(1)) for match in matches if match}
        if not all(matches):
            raise LedgerError(
                f"{self.path} is damaged: move it away once every request that was sent so far has "
                "expired",
                setting="state-dir",
            )
        return entries, entries.pop(_OVER, -1)

    def _rewrite(self, entries: dict[str, int]) -> None:
        scratch = temporary_path(self.path)
        scratch.unlink(missing_ok=True)
        with open(scratch, "xb", opener=_private) as file:
            file.write(
                b"".join(
                    b"%d %s\n" % (expires, number.encode()) for number, expires in entries.items()
                )
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self.path)
        sync_folder(self.path.parent)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Open the file (made if it is not there) with nobody else in it."""
        while True:
            with open(self.path, "a+b", opener=_private) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if file.tell() == 0:
                    sync_folder(self.path.parent)
                # it may have been rewritten while we waited
                if self.path.exists() and os.path.samestat(
                    os.fstat(file.fileno()), os.stat(self.path)
                ):
                    yield file
                    return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
