"""Joining the processes of one run.

On pods and clusters the same command is started once per host (TPU) or per device (GPU), and jax
finds the others by itself. `--distributed` says whether it is asked:

    auto  join where jax recognises SLURM, Open MPI, a TPU VM or GKE; elsewhere run alone
    on    join, or end with an error: for launch scripts, where running alone would be a mistake
    off   run alone

`--coordinator_address=HOST:PORT --num_processes=N --process_id=I` say it in words instead, for
anything that jax does not recognise and for tests.

Each process then tells the others every few seconds that it is there. One that has not been heard
of for `--heartbeat_seconds` was killed, stopped or cut off; the others end, with its number.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import flags

from process_gen.core.errors import ConfigError

# jax ends what has lost a process as well, with an abort; it is given this much longer.
_GRACE = 30
_NAMES = ("coordinator_address", "num_processes", "process_id")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of a command that several processes may run together."""
    choices = ["auto", "on", "off"]
    flags.DEFINE_enum("distributed", "auto", choices, "join others", flag_values=values)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many", 1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "which one, from 0", 0, flag_values=values)
    flags.DEFINE_integer("heartbeat_seconds", 100, "of a lost process", 5, flag_values=values)


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
        limit = values.heartbeat_seconds
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=limit + _GRACE)
        if jax.process_count() > 1:
            from jax._src import distributed  # jax shows its key-value store nowhere else

            client = distributed.global_state.client
            Peers(client, jax.process_index(), jax.process_count(), limit).start()
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


class Peers:
    """Beats, and listens to the others' beats, through jax's coordination service.

    Args:
      client: of the service; `key_value_set` and `key_value_dir_get` are used.
      own, count: number of this process, and how many there are.
      limit: seconds after which a silent process is given up.
      end: what is done then, with the message; ends the process by default.
      clock: seconds from any origin.
    """

    def __init__(
        self,
        client: Any,
        own: int,
        count: int,
        limit: float,
        end: Callable[[str], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._own, self._limit = client, own, limit
        self._end, self._clock = end or self._exit, clock
        # By number: the last beat that came, and when; a beat is a count, as clocks differ.
        self._heard = {n: ("", clock()) for n in range(count) if n != own}
        self._reached = clock()
        self._beats = 0

    def start(self) -> None:
        """Does so in two threads until the process ends: the service may not answer at all."""
        for act in (self.beat, self.judge):
            threading.Thread(target=self._repeat, args=(act,), name="peers", daemon=True).start()

    def beat(self) -> None:
        """Beats once and hears the others."""
        self._beats += 1
        try:
            self._client.key_value_set(f"beat/{self._own}", str(self._beats), allow_overwrite=True)
            found = dict(self._client.key_value_dir_get("beat/"))
        except Exception:  # whatever the service raises; `judge` sees the time pass
            return
        self._reached = now = self._clock()
        for number, (before, _) in self._heard.items():
            if (beat := found.get(f"beat/{number}", "")) != before:
                self._heard[number] = (beat, now)

    def judge(self) -> None:
        """Ends the process if another has been silent for too long."""
        now = self._clock()
        if now - self._reached > self._limit:
            silent = now - self._reached
            self._give_up(f"process 0, where all meet, has not answered for {silent:.0f} s")
            return
        for number, (_, since) in self._heard.items():
            if now - since > self._limit:
                self._give_up(f"process {number} has not been heard of for {now - since:.0f} s")
                return

    def _repeat(self, act: Callable[[], None]) -> None:
        while True:
            act()
            time.sleep(max(0.5, self._limit / 10))

    def _give_up(self, what: str) -> None:
        self._end(
            f"{what}: it was killed, stopped or cut off. This process ends too; started again, "
            "the run goes on from its last checkpoint"
        )

    def _exit(self, message: str) -> NoReturn:
        print(f"process {self._own}: error: {message}", file=sys.stderr, flush=True)
        os._exit(1)
