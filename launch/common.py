"""What the commands share: flags, one-line errors with exit status 2, the compilation cache."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_dict, config_flags

from process_gen.core import configs
from process_gen.core.errors import ConfigError, LostDataError, ProcessGenError, StalledError
from process_gen.core.interrupts import Preempted, preempted_on_sigterm

# Exit status after SIGTERM, EX_TEMPFAIL of sysexits.h: the same command, started again, goes on.
PREEMPTED = 75
_LOST = (
    "Where the error above speaks of a connection or of the exchange between devices, another "
    "process of this run has ended: see what that one said. Started again, the run goes on from "
    "its last checkpoint."
)


def run(
    main: Callable[[flags.FlagValues], None],
    define_flags: Callable[[flags.FlagValues], None],
    doc: str,
    argv: Sequence[str] | None = None,
    join: Callable[[flags.FlagValues], None] | None = None,
) -> None:
    """Parses the command line and calls `main`.

    What a user can mend (any `ProcessGenError`, a wrong flag) becomes one line on stderr and exit
    status 2, or 1 where the same command may go on later (`core.errors`); Ctrl-C exits with 130 and
    SIGTERM with 75; anything else is a defect and keeps its traceback.

    Args:
      main: the command; gets the parsed flags.
      define_flags: defines flags on the given holder. Each command has its own holder, so that
        modules of several commands can be imported together.
      doc: the command's module docstring, which is what `--help` prints.
      argv: command line with the program first; by default the process's own.
      join: called with the parsed flags before `main`, see `launch.distributed`.
    """
    argv = list(sys.argv if argv is None else argv)
    if any(arg in ("--help", "-help", "-h") for arg in argv[1:]):
        print(doc.strip())
        return
    flags.FLAGS.mark_as_parsed()  # nobody sets those of other libraries, but some want to be read
    try:
        with preempted_on_sigterm():
            values = parse(define_flags, argv)
            if join is not None:
                join(values)
            main(values)
    except StalledError as error:
        _end(f"error: {_one_line(error)}", 1)  # threads wait for the source: do not wait for them
    except LostDataError as error:
        _fail(f"error: {_one_line(error)}", 1)  # perhaps only for a while
    except ProcessGenError as error:
        _fail(f"error: {_one_line(error)}", 2)
    except Preempted:
        print("preempted", file=sys.stderr)
        sys.exit(PREEMPTED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception:
        if not _others():
            raise
        _fail(f"{traceback.format_exc().rstrip()}\n{_LOST}", 1)


def _others() -> bool:
    if "jax" not in sys.modules:  # some commands, and the workers that they start, do without
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def _fail(text: str, status: int) -> None:
    """Ends the process after an error.

    One of several does not wait for the others, as an orderly exit would: they may be waiting for
    it, in the middle of a step.
    """
    if not _others():
        print(text, file=sys.stderr)
        sys.exit(status)
    import jax

    _end(f"process {jax.process_index()}: {text}", status)


def _end(text: str, status: int) -> NoReturn:
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def parse(define_flags: Callable[[flags.FlagValues], None], argv: list[str]) -> flags.FlagValues:
    """Parses `argv` into a fresh holder of flags.

    Raises:
      ConfigError: an unknown or malformed flag, an unknown key after `--config.`, a config file
        that cannot be loaded, a stray word.
    """
    values = flags.FlagValues()
    define_flags(values)
    file = _config_file(argv)
    if file and not Path(file.split(":")[0]).exists():
        raise ConfigError(f"config file {file.split(':')[0]} does not exist")
    # config_flags looks for the overrides in sys.argv, whatever is being parsed.
    before, sys.argv = sys.argv, argv
    try:
        rest = values(argv)[1:]
    except flags.Error as error:
        if "config" in values and "config." in str(error) and not file:
            raise ConfigError("--config=FILE is missing; --help shows an example") from error
        raise ConfigError(f"{_one_line(error)}; --help shows an example") from error
    except Exception as error:  # whatever a config file, which is a program, may raise
        unknown = _unknown_key(error, argv, file.split(":")[0])
        raise ConfigError(unknown or _refusal(file, error)) from error
    finally:
        sys.argv = before
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; flags look like --name=value")
    return values


def define_config(values: flags.FlagValues) -> None:
    """Defines `--config=FILE[:ARG]`, whose keys `--config.section.key=value` overrides."""
    config_flags.DEFINE_config_file(
        "config", None, "config file, FILE[:ARG]", lock_config=True, flag_values=values
    )


def read_config(values: flags.FlagValues) -> configs.Config:
    """The run's settings from `--config` and its overrides.

    Raises:
      ConfigError: the flag is missing, its file cannot be loaded, or a setting is unknown, of a
        wrong type or out of range.
    """
    value = values["config"].value
    if value is None:
        raise ConfigError("--config=FILE is missing; --help shows an example")
    try:
        getattr(value, "keys", None)  # what a file left that raised OSError raises it at any use
    except OSError as error:
        file = config_flags.get_config_filename(values["config"])
        raise ConfigError(_refusal(file, error)) from error
    return configs.from_mapping(_plain(value))


def required(values: flags.FlagValues, name: str) -> str:
    """A flag that must be given.

    Raises:
      ConfigError: it is not.
    """
    value = values[name].value
    if not value:
        raise ConfigError(f"--{name} is missing; --help shows an example")
    return value


def compilation_cache() -> dict[str, str]:
    """JAX's variables for keeping compiled programs between runs.

    They go to `process_gen/jax` in `$XDG_CACHE_HOME` (`~/.cache`).
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return {
        "JAX_COMPILATION_CACHE_DIR": str(Path(base) / "process_gen" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, so that the second start takes seconds.

    What the environment says of JAX's own variables takes precedence over `compilation_cache`.
    """
    import jax

    for name, value in compilation_cache().items():
        if not os.environ.get(name):
            number = name.endswith("SECS")
            jax.config.update(name.lower(), float(value) if number else value)


def git_hash() -> str:
    """Commit of the code, "+" if it was changed since, "unknown" outside a clone."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def command(values: flags.FlagValues, module: str) -> str:
    """The command line that was given, for records: `module` and the flags that were set."""
    words = ["python", "-m", module]
    for name in sorted(values):
        flag = values[name]
        if not flag.present or flag.value is None:
            continue
        if isinstance(flag.value, bool):
            words.append(f"--{'' if flag.value else 'no'}{name}")
        elif isinstance(flag, flags.MultiFlag):
            words += [f"--{name}={value}" for value in flag.value]
        elif isinstance(flag.value, list):
            words.append(f"--{name}={','.join(map(str, flag.value))}")
        else:
            words.append(f"--{name}={flag.value}")
    return shlex.join(words)


def _plain(value: Any) -> Any:
    if isinstance(value, config_dict.ConfigDict):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _config_file(argv: Sequence[str]) -> str:
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        if arg in ("--config", "-config"):
            return following
        if match := re.fullmatch(r"--?config=(.*)", arg):
            return match[1]
    return ""


def _refusal(file: str, error: BaseException) -> str:
    if isinstance(error, OSError) and error.__cause__:  # config_flags puts one around the file's
        error = error.__cause__
    passed = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
    if "config_path.py" in passed:  # where config_flags looks a key up in what was loaded
        return f"a --config. flag names nothing that can be set: {_one_line(error)}"
    return f"config file {file} cannot be loaded: {type(error).__name__}: {_one_line(error)}"


def _unknown_key(error: Exception, argv: Sequence[str], file: str) -> str:
    """Names the override that hit a key which the config does not have; "" if none did."""
    passed = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if not isinstance(error, (KeyError, AttributeError)) or file in passed:
        return ""  # of the file's own code, which may look for any key
    quoted = re.findall(r"[\w.]+", str(error).replace("\\n", " ").replace("\\", ""))
    key = quoted[0] if quoted else "?"
    override = next((a for a in argv if re.search(rf"config\.(.*\.)?{re.escape(key)}\b", a)), "")
    if not override:
        return ""
    close = re.search(r'Did you mean "(\w+)"', str(error))
    hint = f"; did you mean {close[1]!r}?" if close else ""
    return f"unknown config key {key!r} in {override}{hint}"
