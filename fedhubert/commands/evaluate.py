"""``fedhubert evaluate``: what a checkpoint has learned, in a table and a JSON file."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedhubert.evaluation.checkpoint import Probing
    from fedhubert.evaluation.finetuned import TunedScore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="C",
        help=(
            "round checkpoint, run folder, HuggingFace folder, or any encoder that can be imported"
        ),
    )
    parser.add_argument(
        "--manifest", required=True, type=Path, metavar="M", help="audio to evaluate on"
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="where its paths start (default: its own folder)"
    )
    tuned = parser.add_mutually_exclusive_group()
    tuned.add_argument(
        "--text-column",
        metavar="NAME",
        help=(
            "of a run with task=ctc: word and character error rates against this column, and no "
            "probes"
        ),
    )
    tuned.add_argument(
        "--label-column",
        metavar="NAME",
        help=(
            "of a run with task=classify: accuracy and macro F1 against this column, and no probes"
        ),
    )
    parser.add_argument(
        "--head", type=Path, metavar="FILE", help="with them: a client's own head, at its site"
    )
    add_annotation_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N, mps or auto")


def add_annotation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that name annotations and say how much to compute."""
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="labels of utterances: path,task,label lines, or a column per task",
    )
    parser.add_argument(
        "--phones",
        type=Path,
        metavar="FILE",
        help="alignment: path,start_sample,end_sample,phone lines",
    )
    parser.add_argument(
        "--item",
        type=Path,
        metavar="FILE",
        help=(
            "ZeroSpeech item file, for ABX: #file onset offset #phone prev-phone next-phone "
            "speaker (default: the phones)"
        ),
    )
    parser.add_argument(
        "--abx",
        default="mean,mean-z",
        metavar="I,J",
        help=(
            "how segments are compared: mean, dtw, mean-z, dtw-z (every dimension standardised), "
            "or none (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--abx-context",
        choices=("within", "any"),
        help=(
            "compare phones with the same neighbours, or all (default: within with --item, any "
            "with --phones)"
        ),
    )
    parser.add_argument(
        "--abx-most",
        type=_count,
        default=20,
        metavar="N",
        help="segments of each phone, context and speaker; 0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--probe",
        action="append",
        metavar="NAME",
        help=(
            "probe for this task of the labels file or manifest column; may be repeated (default: "
            "all tasks of the labels file)"
        ),
    )
    parser.add_argument(
        "--pooling",
        default="mean",
        metavar="I,J",
        help=(
            "frames of an utterance for its probes: mean, or thirds, the means of three parts "
            "(default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--purity",
        action="append",
        metavar="NAME",
        help="also compare clusters of frames with these labels; may be repeated",
    )
    parser.add_argument(
        "--train-manifest",
        type=Path,
        metavar="M",
        help="fit utterance probes on other audio (default: cross-validation)",
    )
    parser.add_argument("--train-root", type=Path, metavar="DIR", help="where its paths start")
    parser.add_argument("--train-labels", type=Path, metavar="FILE", help="its labels")
    parser.add_argument(
        "--layers",
        metavar="I,J",
        help="layers to look at, 0 being the transformer's input (default: all)",
    )
    parser.add_argument(
        "--clusters",
        type=_count,
        default=100,
        metavar="K",
        help="clusters of frames; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--folds",
        type=_positive,
        default=5,
        metavar="N",
        help="parts of cross-validation (default: %(default)s)",
    )
    parser.add_argument(
        "--max-frames",
        type=_positive,
        default=20_000,
        metavar="N",
        help="frames drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--max-utterances",
        type=_positive,
        default=4_000,
        metavar="N",
        help="utterances drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of what is drawn, and of k-means (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help=(
            "threads of torch (default: as many as there are processors); speed is measured with "
            "one"
        ),
    )
    parser.add_argument(
        "--cache-gb",
        type=float,
        default=2.0,
        metavar="GB",
        help="features kept in the cache folder (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate as the flags say, print tables; returns 0."""
    from fedhubert import live
    from fedhubert.commands.evaluation_tables import print_results, print_tuned
    from fedhubert.data.corpora import cache_folder
    from fedhubert.evaluation.checkpoint import evaluate_checkpoint, write_results
    from fedhubert.reporting.console import log_to_terminal, output_console

    log_to_terminal()
    score = None
    # tables are printed after it: within, standard output is the libraries'
    with live.libraries_write_to(cache_folder() / "evaluate.log"):
        if args.text_column or args.label_column:
            score = _tuned_score(args)
            results = score.as_plain()
        else:
            results = evaluate_checkpoint(args.checkpoint, probing_of(args))
    output = output_console(110)
    if score is not None:
        print_tuned(output, score)
    else:
        print_results(output, results)
    if args.out:
        write_results(args.out, results)
        output.print(f"results: {args.out}", soft_wrap=True, highlight=False)
    return 0


def _tuned_score(args: argparse.Namespace) -> "TunedScore":
    from fedhubert.data.manifest import Manifest
    from fedhubert.evaluation.finetuned import finetuned_score
    from fedhubert.training.device import resolve_device

    key = "text_column" if args.text_column else "label_column"
    column = args.text_column or args.label_column
    manifest, device = Manifest.read(args.manifest, args.root), resolve_device(args.device)
    source = Path(args.checkpoint)
    return finetuned_score(source, manifest, key, column, device, args.seed, args.head)


def probing_of(args: argparse.Namespace) -> "Probing":
    """Return what the flags ask for; raises :class:`ConfigError` for layers that are no numbers."""
    from fedhubert.errors import ConfigError
    from fedhubert.evaluation.abx_section import MEASURES, AbxSettings
    from fedhubert.evaluation.checkpoint import Audio, Probing
    from fedhubert.evaluation.study import POOLING, StudySettings

    try:
        layers = (
            None if args.layers is None else tuple(int(layer) for layer in args.layers.split(","))
        )
    except ValueError:
        raise ConfigError(
            f"--layers {args.layers!r}: give numbers, for example 0,6,12", setting="--layers"
        ) from None

    settings = StudySettings(
        probes=tuple(args.probe or ()),
        purities=tuple(args.purity or ()),
        layers=layers,
        clusters=args.clusters,
        folds=args.folds,
        pooling=_chosen("--pooling", args.pooling, POOLING),
        abx=AbxSettings(
            () if args.abx == "none" else _chosen("--abx", args.abx, MEASURES),
            args.abx_most,
            args.max_utterances,
            args.seed,
        ),
        max_frames=args.max_frames,
        max_utterances=args.max_utterances,
        seed=args.seed,
        device=args.device,
    )
    fitted_on = (
        Audio(args.train_manifest, args.train_root, args.train_labels)
        if args.train_manifest
        else None
    )
    return Probing(
        Audio(
            args.manifest,
            args.root,
            args.labels,
            args.phones,
            args.item,
            None if args.abx_context is None else args.abx_context == "within",
        ),
        settings,
        fitted_on,
        args.cache_gb,
        args.threads or 0,
    )


def _chosen(flag: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return names given with commas between them."""
    from fedhubert.errors import ConfigError

    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"{flag} {text!r}: {unknown[0]!r} is none of {', '.join(known)}", setting=flag
        )
    return names


def _positive(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value
