"""``fedhubert report``: runs side by side on one page."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run, a baseline, a comparison, or a sweep",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="page to write (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page; returns 0."""
    from fedhubert.errors import ConfigError
    from fedhubert.reporting.report_comparison import as_csv
    from fedhubert.reporting.report_files import read_runs
    from fedhubert.reporting.report_page import render

    runs = read_runs(args.runs)
    page, table = render(runs), as_csv(runs)
    beside = args.out.with_suffix(".csv")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page, encoding="utf-8")
        if table:
            beside.write_text(table, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write {args.out}: {error.strerror}; choose another --out", setting="--out"
        ) from None
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print(f"report of {count}: {args.out} ({len(page) / 1e3:.0f} kB)")
    if table:
        print(f"figures of each seed: {beside}")
    return 0
