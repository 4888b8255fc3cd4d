"""What the processes of a run must be of one mind about: where to stop, how far, and the data."""

from __future__ import annotations

import os
import signal
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from process_gen.checkpoint import integrity
from process_gen.core.errors import LostDataError
from process_gen.core.interrupts import Preempted


def agreed_stop(stop: KeyboardInterrupt | None, step: int) -> KeyboardInterrupt | None:
    """What to raise after this step, on all processes or on none.

    After a SIGTERM anywhere, jax's coordination service finds a step that no process has passed
    yet. It knows no other signal, so a Ctrl-C is passed on to it as one.
    """
    if stop:
        os.kill(os.getpid(), signal.SIGTERM)
    if not multihost_utils.reached_preemption_sync_point(step):
        return None
    return stop or Preempted()


def agreed_total(total_steps: int) -> int:
    """The first process's number, on every process."""
    if jax.process_count() == 1:
        return total_steps
    return int(multihost_utils.broadcast_one_to_all(np.int32(total_steps)))


def same_plan(dataset: Any, seen: str) -> str:
    """Compares what the processes are about to read, where it is another plan than before.

    Each process measures the data by itself, and a record that only one of them could not read
    then gives it other packs. Plans that agree end at the same batch, so all processes are here
    for the next one together. Of epochs that are shorter than a batch only those in which one
    begins are compared.

    Args:
      dataset: of the loop; one without `plan_facts` is not compared.
      seen: what this function gave last; "" at first.

    Returns:
      The facts of the plan that the next batch begins in.

    Raises:
      LostDataError: on every process, where the plans differ.
    """
    if jax.process_count() == 1:
        return seen
    facts = getattr(dataset, "plan_facts", seen)
    if facts == seen:
        return seen
    found = integrity.gathered(facts)
    if len(set(found)) == 1:
        return facts
    first = found[0]
    number, other = next((i, words) for i, words in enumerate(found) if words != first)
    raise LostDataError(
        f"processes would train on different packs: process 0 has {first}; process {number} has "
        f"{other}. A record that one of them could read and another could not while lengths were "
        "measured does that, and so do other files or another version of the code on one of the "
        "hosts. Nothing was trained on these packs. Let all hosts see the same data and start "
        "again: records that could not be read are then looked at anew"
    )
