"""Argument parsing with configuration files, errors as sentences, logging."""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from msif.cli.version import ShowVersion
from msif.errors import MsifError, one_line

# what the values of flags for files, folders and names are called in the help
PATHS = ("DIR", "FILE", "FILE.jsonl", "M", "M0", "M1", "D", "E", "F0", "F1")


class Parser(argparse.ArgumentParser):
    """An argument parser with ``--config FILE``: a YAML of flags, which the command line overrides."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self._needed: list[str] = []
        self.add_argument(
            "--config", metavar="FILE", help="YAML of flags that an earlier run wrote; flags given override it"
        )
        self.add_argument("--version", action=ShowVersion, help="versions of msif, torch and transformers")

    def need(self, *flags: str) -> None:
        """Flags that must be given, on the command line or in the configuration."""
        self._needed.extend(flags)

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parses, with the configuration's values as defaults.

        Raises:
            MsifError: the configuration cannot be read or holds an unknown flag; exits with status 2 on bad flags.
        """
        known, _ = self._config_only().parse_known_args(arguments)
        if (known.config or "").strip():
            self.set_defaults(**self._read(Path(known.config)))
        values = self.parse_args(arguments)
        self._check_not_empty(values)
        missing = [flag for flag in self._needed if getattr(values, flag.lstrip("-").replace("-", "_")) is None]
        if missing:
            self.error(f"the following arguments are required: {', '.join(missing)}")
        return values

    def given(self, arguments: Sequence[str] | None = None) -> set[str]:
        """The options that are named on the command line, not in a configuration."""
        missing = object()
        untouched = argparse.Namespace(**{action.dest: missing for action in self._actions})
        return {name for name, value in vars(self.parse_args(arguments, untouched)).items() if value is not missing}

    def _check_not_empty(self, values: argparse.Namespace) -> None:
        """An empty path would be the current folder, and an empty name nothing; only texts may be empty.

        Raises:
            MsifError: names the first flag that is.
        """
        for action in self._actions:
            value = getattr(values, action.dest, None)
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, str) and not part.strip() and action.metavar != "TEXT":
                    flag = next(iter(action.option_strings), action.metavar)
                    what = "a file, folder or name" if action.metavar in PATHS else "a value, or leave it out"
                    raise MsifError(f"{flag} is empty: give {what}.")

    @staticmethod
    def _config_only() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--config")
        return parser

    def _read(self, path: Path) -> dict[str, Any]:
        import yaml

        if not path.is_file():
            raise MsifError(f"there is no configuration file {path}: check the path after --config.")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise MsifError(f"{path} is not YAML ({one_line(error)}): mend it or leave --config out.") from error
        if not isinstance(values, dict):
            raise MsifError(f"{path} holds no flags: it must be a mapping from flag names to values.")
        names = {action.dest for action in self._actions}
        values = {str(key).replace("-", "_"): value for key, value in values.items()}
        unknown = sorted(values.keys() - names)
        if unknown:
            raise MsifError(f"{path} holds an unknown flag '{unknown[0]}': see --help for those that there are.")
        actions = {action.dest: action for action in self._actions}
        given = {key: value for key, value in values.items() if value is not None}
        return {key: _converted(actions[key], value, path) for key, value in given.items()}

    def error(self, message: str) -> NoReturn:
        _Voice.say(f"error: {message} (see --help)\n")
        raise SystemExit(2)


def _converted(action: argparse.Action, value: Any, path: Path) -> Any:
    """A configuration's value as the command line would have it."""
    if action.nargs == 0:
        if isinstance(value, bool):
            return value
        raise MsifError(f"{action.dest} in {path} is {value!r}: it must be true or false.")
    several = action.nargs == "+"
    kind: Any = action.type or str
    try:
        items = [kind(str(item)) for item in (value if several and isinstance(value, list) else [value])]
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise MsifError(f"{action.dest} in {path} is wrong ({error}): mend it or leave --config out.") from error
    for item in items:
        if action.choices is not None and item not in action.choices:
            choices = ", ".join(str(choice) for choice in action.choices)
            raise MsifError(f"{action.dest} in {path} is '{item}': choose one of {choices}.")
    return items if several else items[0]


_OTHER_ENDS = re.compile("[\r\x85\u2028\u2029]")
NOT_CONFIGURATION = ("config", "dry_run", "processes", "quiet", "shard")


def configuration(values: argparse.Namespace) -> dict[str, Any]:
    """The flags that make a run what it is, for the YAML beside its results."""
    return {key: value for key, value in sorted(vars(values).items()) if key not in NOT_CONFIGURATION}


def write_configuration(path: Path, values: argparse.Namespace) -> None:
    import yaml

    from msif.atomic import write_text

    class Dumper(yaml.SafeDumper):
        """Quotes what YAML would fold, and read back as a space: the ends of lines beside "\\n"."""

        def represent_text(self, text: str) -> Any:
            return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _OTHER_ENDS.search(text) else None)

    Dumper.add_representer(str, Dumper.represent_text)
    write_text(path, yaml.dump(configuration(values), Dumper=Dumper, allow_unicode=True))


def run(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> NoReturn:
    """Calls a command and exits: status 2 and one sentence for a mistake that the user can mend.

    Under ``torchrun`` the processes join first, and of several that fail the first speaks for all.
    """
    try:
        if _launched():
            from msif import distributed

            _Voice.store = distributed.start()
            signal.signal(signal.SIGTERM, _stopped)
        main(arguments)
        if _Voice.store is not None:
            distributed.stop()
    except MsifError as error:
        _Voice.say(f"error: {' '.join(str(error).split())}\n")
        if _Voice.store is not None:
            sys.stdout.flush()
            os._exit(2)  # a backend whose connections are gone aborts on its way out
        raise SystemExit(2) from None
    except OSError as error:
        # what could be foreseen is said where it happens; this is the file system's own no
        _Voice.say(f"error: {error.strerror or error}: {error.filename or 'a file'}; check the path and its rights\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _Voice.say("interrupted; run the same command again to go on\n")
        raise SystemExit(130) from None
    raise SystemExit(0)


def _stopped(*_: Any) -> NoReturn:
    """What ``torchrun`` does to the others when one has ended; what is done is kept on the way out."""
    from msif.distributed import ENDED

    _Voice.say(f"error: {ENDED}\n")
    raise SystemExit(143)


def _launched() -> bool:
    """Whether this is one of several processes, by what ``torchrun`` leaves in their environment."""
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
    return all(name in os.environ for name in needed) and int(os.environ["WORLD_SIZE"]) > 1


class _Voice:
    """What a command's processes say of an end that all of them come to: once."""

    store: Any = None

    @classmethod
    def say(cls, text: str) -> None:
        try:
            first = cls.store is None or cls.store.add("spoken", 1) == 1
        except RuntimeError:  # the store went with its machine
            first = True
        if first:
            sys.stderr.write(text)
            sys.stderr.flush()


def set_up_logging(quiet: bool) -> None:
    """msif's own messages to stderr; other libraries' warnings only where they matter."""
    follows = _launched() and os.environ["RANK"] != "0"
    level = logging.ERROR if follows else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("msif").setLevel(level)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal cannot show must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    _let_tokenizers_use_threads()
    # these are read when tqdm and datasets are imported, which is later
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
    if quiet or not sys.stderr.isatty() or follows:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)


@functools.cache
def _let_tokenizers_use_threads() -> None:
    """Threads of fast tokenizers in this process, and none in processes forked from it, where they would hang.

    By itself the library says so at every fork, on standard error.
    """
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ or not hasattr(os, "register_at_fork"):
        return
    os.register_at_fork(
        before=lambda: os.environ.setdefault(name, "false"), after_in_parent=lambda: os.environ.pop(name, None)
    )


def byte_count(text: str) -> int:
    """An argument type: "20GB", "512MB", "1.5 GiB" or a number of bytes."""
    match = re.fullmatch(r"(\d+\.?\d*)\s*([KMGT]I?)?B?", text.strip().upper())
    if match is None or float(match.group(1)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give one such as 20GB")
    unit = match.group(2) or ""
    base, power = (2**10 if unit.endswith("I") else 1000), " KMGT".index(unit[:1] or " ")
    return int(float(match.group(1)) * base**power)


def positive_int(text: str) -> int:
    """An argument type: an integer of 1 or more."""
    return _int_from(text, 1)


def share(text: str) -> Any:
    """An argument type: "2/8", the second of eight shares."""
    from msif.index.build import Share

    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"'{text}' is no share: give I/N with I from 1 to N")
    return Share(int(number) - 1, int(of))


def bakeable(text: str) -> str:
    """An argument type: "none" or "train", an R that no query takes part in."""
    from msif.index.baking import BAKED

    if text not in BAKED:
        raise argparse.ArgumentTypeError(
            f"R '{text}' cannot be baked: give none or train, for mixed R depends on the queries"
        )
    return text


def seed(text: str) -> int:
    """An argument type: an integer of 0 or more."""
    return _int_from(text, 0)


def _int_from(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer of {least} or more")
    return value


def not_negative(text: str) -> float:
    """An argument type: a finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 0 or more")
    return value


def not_negative_or_auto(text: str) -> float | str:
    """An argument type: a name of 1/τ and what follows it, which ``Damping`` reads, or a number of 0 or more."""
    if text.startswith(("auto", "evidence")):
        return text
    try:
        return not_negative(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto or evidence") from None
