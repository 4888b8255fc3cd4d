"""Sending the trials of a sweep to a cluster: an array of SLURM, a JobSet, or a list of commands.

Every trial is one process on one machine, which runs `launch.sweep --trial=...`: it writes the same
files as a local sweep, so that the same command goes on after failures, wherever it is run. The
working directory lies on a disk that all machines share.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import submit
from launch.submit import Plan
from launch.trials import Trial
from process_gen.core.errors import ConfigError

LOCAL = "local"
# Flags of each target: those that must be given, and those that may.
TARGETS = {
    LOCAL: ((), ()),
    "commands": ((), ()),
    "slurm": (("name",), ("gpus_per_node", "partition", "hours", "directory", "python")),
    "gke": (
        ("name", "image", "volume"),
        ("topology", "queue", "service_account", "spot", "restarts"),
    ),
}
_ROOT = Path(__file__).resolve().parents[1]
_IN_IMAGES = ("configs", "launch", "process_gen")  # by the files in launch/docker
_VOLUME = r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?):(/[\w./-]+)"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that say where trials run."""
    text, whole = flags.DEFINE_string, flags.DEFINE_integer
    flags.DEFINE_enum("target", LOCAL, list(TARGETS), "where trials run", flag_values=values)
    for name in ("name", "image", "volume", "topology", "queue", "service_account", "partition"):
        text(name, None, "see docs/launching.md", flag_values=values)
    whole("gpus_per_node", None, "GPUs of a trial", 1, flag_values=values)
    whole("hours", 24, "time limit of a trial", 1, flag_values=values)
    whole("restarts", 10, "of a trial, after failures of its machine", 0, flag_values=values)
    text("directory", None, "of the checkout", flag_values=values)
    text("python", ".venv/bin/python", "interpreter", flag_values=values)
    flags.DEFINE_boolean("spot", False, "machines that may be taken away", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "print and do nothing", flag_values=values)


def check(values: flags.FlagValues) -> None:
    """Checks the flags of the target.

    Raises:
      ConfigError: one is missing, malformed, or of another target.
    """
    submit.check_flags(values, values.target, TARGETS)
    if values.target in ("slurm", "gke") and not Path(values.workdir).is_absolute():
        raise ConfigError(f"--workdir={values.workdir} must be absolute, on a disk that all share")


def commands(values: flags.FlagValues, ready: Sequence[Trial]) -> list[str]:
    """A command line a trial."""
    return [
        shlex.join(["python", *_words(values, values.sweep), f"--trial={trial.name}"])
        for trial in ready
    ]


def make_plan(values: flags.FlagValues, ready: Sequence[Trial], ordered: Sequence[Trial]) -> Plan:
    """What has to be run to queue trials; runs and writes nothing.

    Args:
      values: the parsed flags; `target` is "slurm" or "gke".
      ready: trials to queue.
      ordered: all trials of the sweep, in its order.
    """
    return (_slurm if values.target == "slurm" else _gke)(values, ready, ordered)


def _words(values: flags.FlagValues, sweep: str, only: Sequence[Trial] = ()) -> list[str]:
    """`launch.sweep` for one trial of `only`, or of all; `--trial` is still to come."""
    words = ["-m", "launch.sweep", f"--sweep={sweep}", f"--workdir={values.workdir}"]
    if values.record:
        words.append(f"--record={values.record}")
    if only:
        words.append(f"--only={','.join(trial.name for trial in only)}")
    return words


def _slurm(values: flags.FlagValues, ready: Sequence[Trial], ordered: Sequence[Trial]) -> Plan:
    directory = submit.batch_directory(values)
    places = {trial.name: place for place, trial in enumerate(ordered)}
    text = submit.fill(
        "slurm/sweep.sbatch.j2",
        name=values.name,
        command=[values.python, *_words(values, values.sweep)],
        tasks=",".join(str(places[trial.name]) for trial in ready),
        jobs=values.jobs,
        gpus=values.gpus_per_node,
        partition=values.partition,
        hours=values.hours,
        directory=directory,
    )
    notes = (f"watch: squeue --name={values.name}", f"end:   scancel --name={values.name}")
    return Plan(["sbatch", "sweep.sbatch"], "sweep.sbatch", text, notes)


def _gke(values: flags.FlagValues, ready: Sequence[Trial], ordered: Sequence[Trial]) -> Plan:
    del ordered  # pods are numbered without gaps: by their place among those that are sent
    if (volume := re.fullmatch(_VOLUME, values.volume)) is None:
        raise ConfigError(
            f"--volume={values.volume} should be CLAIM:FOLDER, a persistent volume claim that all "
            "pods may write, and where they see it"
        )
    claim, _, folder = volume.groups()
    if not _within(values.workdir, folder):
        raise ConfigError(f"--workdir={values.workdir} must lie on the volume, in {folder}")
    if values.record and not _within(values.record, folder):
        raise ConfigError(
            f"--record={values.record} must lie on the volume, in {folder}: a pod's own files are "
            "lost; --target=local with it writes them here, when the trials are done"
        )
    file = _in_the_image(Path(values.sweep), folder)
    slices = submit.read_slices(values) if values.topology else None
    if slices is not None and slices.chips != submit.PER_HOST:
        raise ConfigError(
            f"--topology={values.topology} has {slices.chips} chips; a trial runs on one host, "
            f"which has {submit.PER_HOST}"
        )
    text = submit.fill(
        "gke/sweep.yaml.j2",
        name=values.name,
        command=submit.for_kubernetes(["python", *_words(values, file, ready)]),
        image=values.image,
        trials=len(ready),
        jobs=min(values.jobs, len(ready)),
        chip=slices.chip if slices else None,
        shape=slices.shape if slices else "",
        per_host=submit.PER_HOST,
        claim=claim,
        folder=folder,
        restarts=values.restarts,
        spot=values.spot,
        queue=values.queue,
        service_account=values.service_account,
    )
    notes = (
        f"watch: kubectl get pods --selector=jobset.sigs.k8s.io/jobset-name={values.name}",
        f"end:   kubectl delete jobset {values.name}",
    )
    return Plan(["kubectl", "apply", "--filename=sweep.yaml"], "sweep.yaml", text, notes)


def _within(path: str, folder: str) -> bool:
    return ".." not in Path(path).parts and Path(path).is_relative_to(folder)


def _in_the_image(file: Path, volume: str) -> str:
    """A sweep's file as a pod finds it: on the volume, or in the image's copy of the checkout.

    Raises:
      ConfigError: it finds none.
    """
    if _within(str(file), volume):
        return str(file)
    found = file.resolve()
    if any(found.is_relative_to(_ROOT / part) for part in _IN_IMAGES):
        return str(found.relative_to(_ROOT))
    raise ConfigError(
        f"--sweep={file} must lie in {', '.join(_IN_IMAGES)} of the checkout, of which the image "
        f"has a copy, or on the volume, in {volume}"
    )


def pick(trials: Sequence[Trial], wanted: str) -> Trial:
    """The trial of a name, or of a number counted from 0.

    Raises:
      ConfigError: there is none.
    """
    named = {trial.name: trial for trial in trials}
    if wanted in named:
        return named[wanted]
    if wanted.isdecimal() and int(wanted) < len(trials):
        return trials[int(wanted)]
    raise ConfigError(
        f"--trial={wanted} is neither a number below {len(trials)} nor one of {', '.join(named)}"
    )
