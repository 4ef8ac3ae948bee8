"""What the influence command can refuse from its flags alone."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from msif.attribution.methods import DAMPED, METHODS, NOT_RESULTS, PROJECTED, READ_BY, SOLVERS, check_index
from msif.cli.parsing import configuration
from msif.errors import MsifError


def check_arguments(args: argparse.Namespace) -> None:
    """Everything that can be told to be wrong without reading a model.

    Raises:
        MsifError: flags that contradict each other, or an output folder with other results in it.
    """
    from msif.candidates.selection import parse_candidates

    spec = parse_candidates(args.candidates)
    if args.method not in METHODS:
        raise MsifError(f"there is no method '{args.method}': choose one of {', '.join(METHODS)}.")
    check_index(args.method, spec.of_index is not None, args.index, args.search)
    if not args.pretrained and not args.finetuned:
        raise MsifError(
            "there is no model: give --pretrained and --finetuned, or one of them with --method single-stage."
        )
    if bool(args.query) == bool(args.queries):
        raise MsifError("give either --query TEXT or --queries FILE.")
    for flag, text in (("--query", args.query), ("--completion", args.completion)):
        if any("\ud800" <= character <= "\udfff" for character in text or ""):
            raise MsifError(f"{flag} is not UTF-8 text: write it in UTF-8, or into a file for --queries.")
    if args.query and not args.query.strip():
        raise MsifError("--query is blank: write a prompt.")
    if args.completion is not None and not args.query:
        raise MsifError("--completion belongs to --query; in a file of queries it is a field.")
    if args.completion == "":
        raise MsifError("--completion is empty: write the answer, or leave --completion out for the model's own.")
    both = bool(args.pretrained and args.finetuned)
    if args.method == "multi-stage" and not both:
        raise MsifError("multi-stage influence needs --pretrained and --finetuned; single-stage needs one model.")
    for which in needed_factors(args):
        if not getattr(args, f"{which}_factors"):
            raise MsifError(
                f"--method {args.method} needs --{which}-factors: make them with python -m msif.fit_factors."
            )
    if args.method in PROJECTED and isinstance(args.damping, str):
        raise MsifError(f"--damping auto is for the inverses of stages: give --method {args.method} a number.")
    if args.method == "trak" and args.trak_weighting == "example" and args.measurement not in (None, "margin"):
        raise MsifError("--trak-weighting example is defined for --measurement margin only: leave one of them out.")
    if args.method == "single-stage" and both and args.task == "classification":
        raise MsifError(
            "single-stage influence measures the query on the pre-trained model, which is no classifier: "
            "use --method multi-stage, or leave --pretrained out."
        )
    if args.learning_rate_sum and len(args.learning_rate_sum) != 1 + both:
        raise MsifError("--learning-rate-sum needs one number for each model: pre-training, then fine-tuning.")
    if args.checkpoints and len(args.checkpoints) != 1 + both:
        raise MsifError(
            "--checkpoints needs one folder for each model: pre-training, then fine-tuning; a model's own folder takes "
            "its training as one segment."
        )
    if args.output:
        check_output(Path(args.output), args)


def check_options(args: argparse.Namespace, given: Iterable[str]) -> None:
    """Options that nothing reads must not be given; those of a configuration are left alone.

    Args:
        given: named on the command line. A configuration may be of another method, which is asked for with its flags.

    Raises:
        MsifError: names the first that is.
    """
    method, given = args.method, set(given)
    # R is read where an index chooses candidates, whatever the method
    of_index = {"r"} if _chosen_by(args, "index") else set()
    for option in sorted(READ_BY.keys() & given - of_index):
        if method not in READ_BY[option]:
            flag, readers = option.replace("_", "-"), ", ".join(READ_BY[option])
            raise MsifError(f"--method {method} does not read --{flag}: leave it out, or use it with {readers}.")
    check_read(given, [*_read_with_an_inverse(args), *_read_with_data(args), of_dry_run(args), *of_damping(given)])


Reader = tuple[str, bool, str]
"""An option, whether anything reads it beside these flags, and what would."""


def check_read(given: Iterable[str], readers: Iterable[Reader]) -> None:
    """
    Raises:
        MsifError: names the first option that is given and not read.
    """
    given = set(given)
    for option, is_read, needs in readers:
        if option in given and not is_read:
            raise MsifError(f"nothing reads --{option.replace('_', '-')} here: leave it out, or {needs}.")


def of_dry_run(args: argparse.Namespace) -> Reader:
    return "processes", args.dry_run, "give --dry-run, which foretells a run of so many"


def of_damping(given: Iterable[str]) -> list[Reader]:
    """λ is given by one of two."""
    return [("damping_scale", "damping" not in given, "leave --damping out, which takes its place")]


def _read_with_an_inverse(args: argparse.Namespace) -> Iterator[Reader]:
    """What the kinds of --ihvp read."""
    of_data = args.method in PROJECTED or args.adapter_hop or args.halves
    yield (
        "ihvp_examples",
        bool(of_data) or args.ihvp in SOLVERS,
        f"give --halves, --adapter-hop, or --ihvp {_one_of(SOLVERS)}",
    )
    kinds = {
        "ihvp_iterations": SOLVERS,
        "ihvp_tolerance": ("cg", "ekfac-cg"),
        "lissa_scale": ("lissa", "ekfac-lissa"),
        "arnoldi_top": ("arnoldi",),
    }
    for option, readers in kinds.items():
        yield option, args.ihvp in readers, f"give --ihvp {_one_of(readers)}"


def _read_with_data(args: argparse.Namespace) -> Iterator[Reader]:
    """What reads an index, an embedding model, and the data of stages."""
    yield "r", bool(args.index), "give --index"
    yield "embedding_model", _chosen_by(args, "knn"), "give --candidates knn:N"
    solves = args.method in DAMPED and args.ihvp in SOLVERS
    nears = args.method in DAMPED and bool(args.halves)
    first = args.method in PROJECTED or solves or nears
    last = (args.method == "multi-stage" and (solves or args.adapter_hop)) or (not args.pretrained and first)
    needs = f"give --method {_one_of(PROJECTED)}, --halves, or --ihvp {_one_of(SOLVERS)}"
    by_index = bool(args.index) and not _chosen_by(args, "index")
    yield "halves", not by_index, "leave --index out, whose features are of the models themselves"
    yield "pretrained_data", bool(args.pretrained) and first, f"{needs}, with --pretrained"
    yield "finetuned_data", bool(args.finetuned) and last, f"{needs}, or --adapter-hop, of the fine-tuned model"


def _chosen_by(args: argparse.Namespace, kind: str) -> bool:
    from msif.candidates.selection import parse_candidates

    return kind in dict(parse_candidates(args.candidates).parts)


def _one_of(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def follow_the_command_line(args: argparse.Namespace, given: Iterable[str]) -> None:
    """What the command line replaces goes together with what a configuration has beside it.

    Args:
        given: named on the command line.
    """
    given = set(given)
    if "queries" in given and not given & {"query", "completion"}:
        args.query = args.completion = None
    if "query" in given and "queries" not in given:
        args.queries = None
        args.completion = args.completion if "completion" in given else None
    scale_takes_its_place(args, given)


def scale_takes_its_place(args: argparse.Namespace, given: Collection[str]) -> None:
    """Of a configuration's λ, by the --damping-scale of the command line."""
    if "damping_scale" in given and "damping" not in given:
        args.damping = None


def needed_factors(args: argparse.Namespace) -> list[str]:
    """The stages whose curvature a method uses."""
    given = [which for which in ("pretrained", "finetuned") if getattr(args, which)]
    return {"multi-stage": given, "source": given, "single-stage": given[:1]}.get(args.method, [])


def check_can_be_made(path: Path) -> None:
    """A folder that is there, or may be: told before a model is loaded.

    Raises:
        MsifError: it is a file, or lies in one, or may not be written to.
    """
    if path.is_file():
        raise MsifError(f"{path} is a file: give a folder as --output.")
    above = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "may not be written to" if above.is_dir() else "is a file"
        raise MsifError(f"{path} cannot be written ({above} {why}): choose another --output.")


def check_output_of(path: Path, taken: bool, what: str) -> None:
    """For a command that makes ``what`` and marks its folder by a manifest.

    Args:
        taken: whether the folder holds anything but what an interrupted run left.

    Raises:
        MsifError: the folder cannot be made, or holds something else.
    """
    check_can_be_made(path)
    if taken and not (path / "manifest.json").is_file():
        raise MsifError(f"{path} is not empty and holds no {what}: choose another --output.")


def check_output(path: Path, args: argparse.Namespace) -> None:
    """A folder that holds results of other settings, or something else, is not written to."""
    import yaml

    check_can_be_made(path)
    if not path.exists() or not any(path.iterdir()):
        return
    config = path / "config.yaml"
    if not config.is_file():
        raise MsifError(f"{path} is not empty and holds no results of msif.influence: choose another --output.")
    try:
        then = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        then = None
    if not isinstance(then, dict):
        raise MsifError(f"{config} is damaged: choose another --output or remove that folder.")
    now = configuration(args)
    left_open = {*NOT_RESULTS} | ({"alpha"} if args.alpha is None else set())  # α is chosen with the models at hand
    changed = [key for key in now if key not in left_open and then.get(key) != now[key]]
    if changed:
        key = min(changed, key=lambda key: key != "method")  # another method brings other defaults with it
        raise MsifError(
            f"{path} holds results with other settings ({key} is {then.get(key)!r} there and {now[key]!r} now): "
            "choose another --output or remove that folder."
        )
