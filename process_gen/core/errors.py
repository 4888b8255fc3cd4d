"""Errors a user can act on. `launch` prints their text as one line and exits with status 2.

Two kinds that may be gone when the same command is started again exit with 1: `StalledError` and
`LostDataError`.
"""


class ProcessGenError(ValueError):
    """Base of every error that says what was wrong, where, and what to do about it."""


class ConfigError(ProcessGenError):
    """A setting is unknown, has the wrong type, or lies outside its range."""


class TrajectoryError(ProcessGenError):
    """A trajectory breaks the rules of `core.trajectory`."""


class GrammarError(ProcessGenError):
    """A sequence of segments is not one that `core.grammar` writes."""


class DataError(ProcessGenError):
    """A record, a prompt file or a data source cannot be used."""


class StalledError(DataError):
    """A source of data does not answer.

    Threads that wait for it cannot be ended, so `launch` ends the process without waiting for them.
    """


class LostDataError(DataError):
    """A run's data cannot be read any more, or not by all of its processes."""


class CheckpointError(ProcessGenError):
    """A checkpoint is missing, damaged, or belongs to another config."""
