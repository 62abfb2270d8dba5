"""What secure sums cost a site and the server, on one thread: beside a plain sum, and beside Flower's SecAgg+ by its own functions.

``python -m tests.benchmarks.secure`` prints JSON lines for 95 M parameters and 5, 10 and 50 clients; Flower's functions are timed on
``--peer-numel`` parameters (they take tens of seconds each), and both sides are stated for that size then.
"""

import argparse
import os
import secrets
import time
from collections.abc import Callable

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedhubert.federation.secure.opening import LIMIT, Opening, largest_entry
from fedhubert.federation.secure.participant import Dealt
from fedhubert.federation.updates.exact_sum import ExactSum
from tests.benchmarks.figures import figure
from tests.federation.secure.cohort import Cohort
from tests.flower import secagg_mask, secagg_unmask


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def fold_s(numel: int) -> float:
    """A plain update into the server's sum."""
    total, update = ExactSum(numel), torch.full((numel,), 1e-3)

    def add() -> None:
        total.add(update, 1000)
        total.partial()

    add()
    return seconds(add)


def stream_s(num_bytes: int) -> float:
    """A plain AES-256-CTR stream of so many bytes, added to nothing: what this machine does now."""
    stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    zeros, buffer = bytes(2**18), bytearray(2**18 + 15)

    def run() -> None:
        for _ in range(num_bytes // len(zeros)):
            stream.update_into(zeros, buffer)

    return seconds(run)


def site_s(cohort: Cohort, numel: int) -> float:
    """A client looks whether its vector fits, agrees on masks, masks it, and deals its shares."""
    vector = np.ones(numel, np.int64)  # memory that is there already

    def work() -> None:
        assert largest_entry(vector) < LIMIT // cohort.size
        cohort.part(cohort.numbers[0]).mask([vector])

    return seconds(work)


def shares_s(cohort: Cohort) -> float:
    """The same without a vector: keys and shares alone."""
    return seconds(lambda: cohort.part(cohort.numbers[0]).mask([np.zeros(1, np.int64)]))


def server_s(cohort: Cohort, numel: int, dropped: int) -> float:
    """The server adds the masked vectors of all but ``dropped`` clients, checks and joins shares, takes the masks off, and looks
    whether the total can be one."""
    included = cohort.numbers[: cohort.size - dropped]
    dealt: dict[int, Dealt] = {
        number: cohort.part(number).mask([np.zeros(1, np.int64)]) for number in included
    }
    helpers = included[: cohort.terms.threshold]
    opened = {
        helper: cohort.part(helper).open(included, cohort.sealed_for(helper, included, dealt))
        for helper in helpers
    }
    total, masked = np.ones(numel, np.int64), np.ones(numel, np.int64)
    commitments = {number: dealt[number].commitments for number in included}

    def work() -> None:
        for _ in included:
            np.add(total, masked, out=total)
        opening = Opening(cohort.terms, included, commitments)
        for helper, shares in opened.items():
            opening.take(helper, shares)
        opening.unmask([total])
        largest_entry(total)

    return seconds(work)


def compare(numel: int, peer_numel: int, sizes: list[int]) -> None:
    """Print the costs of each size of a cohort."""
    figure(f"plain: one update into the sum, {numel / 1e6:g} M", fold_s(numel), None, "CPU s")
    for size in sizes:
        cohort = Cohort(size)
        named = f"{size} clients"
        figure(f"secure: keys and shares of a client, {named}", shares_s(cohort), None, "CPU s")
        figure(f"a bare AES-CTR stream of {size} masks", stream_s(8 * numel * size), None, "CPU s")
        figure(f"secure: a site, {named}, {numel / 1e6:g} M", site_s(cohort, numel), None, "CPU s")
        for dropped in (0, 1) if size - 1 >= cohort.terms.threshold else (0,):
            what = f"secure: the server, {named}, {dropped} dropped, {numel / 1e6:g} M"
            figure(what, server_s(cohort, numel, dropped), None, "CPU s")
        if not peer_numel:
            continue
        seeds = [secrets.token_bytes(32) for _ in range(size)]
        update = np.full(peer_numel, 1e-3, np.float32)
        peer = seconds(lambda s=seeds, u=update, t=cohort.terms.threshold: secagg_mask(u, s, t))
        ours = site_s(cohort, peer_numel)
        figure(f"a site, {named}, {peer_numel / 1e6:g} M, beside SecAgg+", ours, peer, "CPU s")
        peer = seconds(lambda s=seeds, n=peer_numel: secagg_unmask(n, s))
        ours = server_s(cohort, peer_numel, 0)
        what = f"the server takes masks off, {named}, {peer_numel / 1e6:g} M, beside SecAgg+"
        figure(what, ours, peer, "CPU s")
        sealed = cohort.part(cohort.numbers[0]).mask([np.zeros(1, np.int64)])
        kilobytes = (sealed.sealed.nbytes + sealed.commitments.nbytes) / 1e3
        figure(f"secure: sealed shares and commitments, {named}", kilobytes, None, "kB up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numel", type=int, default=94_697_600)
    parser.add_argument("--peer-numel", type=int, default=1_000_000, help="0: without the peer")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 50])
    arguments = parser.parse_args()
    compare(arguments.numel, arguments.peer_numel, arguments.sizes)


if __name__ == "__main__":
    main()
