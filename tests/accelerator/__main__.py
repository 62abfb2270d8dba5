"""Proof on an accelerator, in minutes: ``python -m tests.accelerator --out DIR``; see README.md beside this file."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from tests.accelerator.runner import SKIPPED, Options, Runner, select
from tests.accelerator.steps import STEPS


def main() -> int:
    """Run the steps that the command line asks for; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.accelerator", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where figures.jsonl, table.txt and a log per step go",
    )
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N or cpu")
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="MANIFEST",
        help="real speech for simulation, loader and learning",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        metavar="M",
        help="end before M minutes are over (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes: does everything still run?"
    )
    parser.add_argument("--list", action="store_true", help="show the steps and end")
    parser.add_argument("--only", metavar="NAME,...", help="these steps alone")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list:
        for step in STEPS:
            print(
                f"{step.name:<14} {step.limit_s if step.name != 'learning' else '':>6}  {step.about}"
            )
        return 0
    if given.out is None:
        parser.error("--out DIR is wanted")
    out = given.out.absolute()
    corpus = None if given.corpus is None else given.corpus.absolute()
    if given.step:
        return _one(given.step, out, given.device, corpus, given.quick, given.seconds)
    options = Options(out, given.device, corpus, given.minutes, given.quick)
    return 0 if Runner(options).run(select(given.only)) else 1


def _one(
    name: str, out: Path, device: str, corpus: Path | None, quick: bool, seconds: float
) -> int:
    """Be the process of one step."""
    import torch

    from tests.accelerator.context import Context, Skipped

    out.mkdir(parents=True, exist_ok=True)
    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))
    context = Context(name, out, torch.device(device), corpus, quick, seconds)
    try:
        if context.cuda and not torch.cuda.is_available():
            raise Skipped(
                "no CUDA device is seen here (--device cpu --quick tries the steps without one)"
            )
        importlib.import_module(f"tests.accelerator.{name}").run(context)
        context.close()
    except Skipped as reason:
        print(reason, flush=True)
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
