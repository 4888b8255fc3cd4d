"""Joining the processes of one run.

On pods and clusters the same command is started once per host (TPU) or per device (GPU), and jax
finds the others by itself. `--distributed` says whether it is asked:

    auto  join where jax recognises SLURM, Open MPI, a TPU VM or GKE; elsewhere run alone
    on    join, or end with an error: for launch scripts, where running alone would be a mistake
    off   run alone

`--coordinator_address=HOST:PORT --num_processes=N --process_id=I` say it in words instead, for
anything that jax does not recognise and for tests.
"""

from __future__ import annotations

import logging

import jax
from absl import flags

from process_gen.core.errors import ConfigError

_NAMES = ("coordinator_address", "num_processes", "process_id")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of a command that several processes may run together."""
    choices = ["auto", "on", "off"]
    flags.DEFINE_enum("distributed", "auto", choices, "join others", flag_values=values)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many", 1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "which one, from 0", 0, flag_values=values)


def join(values: flags.FlagValues) -> None:
    """Joins the other processes, if there are any; must come before anything else asks jax.

    Raises:
      ConfigError: the flags contradict each other, or there is nobody to join.
    """
    given = {name: values[name].value for name in _NAMES if values[name].value is not None}
    if given and (len(given) < len(_NAMES) or values.distributed == "off"):
        raise ConfigError(
            f"--{' --'.join(_NAMES)} go together, and not with --distributed=off; "
            f"got --{' --'.join(given)}"
        )
    if values.distributed == "off":
        return
    try:
        jax.distributed.initialize(**given)
        if jax.process_index() > 0:  # all find the same things worth a warning
            logging.getLogger("process_gen").setLevel(logging.ERROR)
    except ValueError as error:
        recognised = "coordinator_address" not in str(error)
        if recognised or given or values.distributed == "on":
            raise ConfigError(
                f"jax cannot tell which processes to join ({error}); start the command with srun, "
                f"mpirun, on TPU VMs or in GKE, or give --{' --'.join(_NAMES)}; "
                "--distributed=off runs alone"
            ) from error
