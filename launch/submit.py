"""Send a training run to a cluster: fills in a short template and runs one command.

    python -m launch.submit --target=gke --name=bagel --topology=v5p:4x4x4 --image=REGISTRY/IMAGE \\
        --config=configs/bagel_7b.py --workdir=gs://BUCKET/bagel --config.train.steps=1000 --dry_run

--target     tpu (queued resources of TPU VMs, through gcloud), gke (a JobSet, through kubectl),
             gke_toolkit (Cluster Toolkit, gcluster) or slurm (a batch of GPU nodes, sbatch)
--dry_run    prints what would be sent and run, and does nothing
--config, --config.SECTION.KEY, --workdir   as for launch.train, to which they are passed on
--name       of the run on the cluster;  --restarts  at most that many after failures (10)
TPU:    --topology=CHIP:SHAPE (v5e:16x16)  --slices=N  --image  --service_account
        tpu: --zone  --project  --spot    gke: --queue, of Kueue  --spot    gke_toolkit: --queue
slurm:  --nodes  --gpus_per_node  --partition  --hours  --directory (of the checkout)  --python

docs/launching.md says what each target needs, and how a run that was preempted goes on.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from absl import flags

from launch import common
from process_gen.core.errors import ConfigError, ProcessGenError
from process_gen.sharding.mesh import axis_sizes


class SubmitError(ProcessGenError):
    """The cluster's own command failed."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the services call a kind of TPU. Machines with four chips are used throughout.

    Sources: cloud.google.com/tpu/docs/runtimes and /supported-tpu-configurations, and
    cloud.google.com/kubernetes-engine/docs/concepts/tpus.

    Attributes:
      accelerator: accelerator type of TPU VMs, before the dash.
      counted: what the number after the dash counts, per chip.
      runtime: software version of TPU VMs.
      node: value of the GKE node label.
      machine: GKE machine type.
      dimensions: of a shape.
    """

    accelerator: str
    counted: int
    runtime: str
    node: str
    machine: str
    dimensions: int


CHIPS = {
    "v4": Chip("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu-4t", 3),
    "v5e": Chip(
        "v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", 2
    ),
    "v5p": Chip("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu-4t", 3),
    "v6e": Chip("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard-4t", 2),
}
PER_HOST = 4
_GRACE = 120  # seconds between SIGTERM and SIGKILL, to save in

# Flags of each target: those that must be given, and those that may.
_TPU = ("slices", "spot", "service_account")
TARGETS = {
    "tpu": (("topology", "image", "zone"), (*_TPU, "project")),
    "gke": (("topology", "image"), (*_TPU, "queue")),
    "gke_toolkit": (("topology", "image"), ("slices", "service_account", "queue")),
    "slurm": (("nodes", "gpus_per_node"), ("partition", "hours", "directory", "python")),
}

# Texts that reach a shell, YAML or a service's own parser are held to what these may contain.
_FORMS = {
    "name": (r"[a-z]([-a-z0-9]{0,26}[a-z0-9])?", "lower-case letters, digits, dashes; 28 at most"),
    "image": (r"[a-z0-9][\w.\-/:@]*", "REGISTRY/NAME:TAG"),
    "zone": (r"[a-z0-9-]+", "a zone such as us-east5-a"),
    "project": (r"[a-z0-9:.-]+", "the id of a project"),
    "service_account": (r"[\w.@-]+", "the name of a service account"),
    "queue": (r"[a-z0-9.-]+", "the name of a queue"),
    "partition": (r"[\w.,-]+", "the name of a partition"),
}


class Plan(NamedTuple):
    """What is run.

    Attributes:
      command: of the cluster, as a list; it is run in a folder that holds `file`.
      file: name of the file that it reads, "" for none.
      text: of that file.
      notes: further commands for people, to watch the run and to end it.
    """

    command: list[str]
    file: str
    text: str
    notes: tuple[str, ...]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    common.define_config(values)
    flags.DEFINE_enum("target", None, list(TARGETS), "kind of cluster", flag_values=values)
    for name in ("workdir", "topology", *_FORMS):
        flags.DEFINE_string(name, None, "see --help", flag_values=values)
    flags.DEFINE_integer("slices", 1, "TPU slices", 1, flag_values=values)
    flags.DEFINE_integer("restarts", 10, "after failures", 0, flag_values=values)
    flags.DEFINE_integer("nodes", None, "machines", 1, flag_values=values)
    flags.DEFINE_integer("gpus_per_node", None, "GPUs a machine", 1, flag_values=values)
    flags.DEFINE_integer("hours", 24, "time limit", 1, flag_values=values)
    flags.DEFINE_string("directory", None, "of the checkout", flag_values=values)
    flags.DEFINE_string("python", ".venv/bin/python", "interpreter", flag_values=values)
    flags.DEFINE_boolean("spot", False, "machines that may be taken away", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "print and do nothing", flag_values=values)


def main(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Checks the flags, and prints or runs what they come to.

    Args:
      values: the parsed flags.
      argv: the command line they were parsed from; launch.train gets its part of it as it stands.
    """
    send(make_plan(values, argv), values.dry_run)


def send(plan: Plan, dry_run: bool) -> None:
    """Runs a plan and prints its notes; with `dry_run` prints it all and does nothing."""
    if dry_run:
        if plan.file:
            print(f"# ---- {plan.file}\n{plan.text}")
        print("# ---- command")
        print(shlex.join(plan.command))
    else:
        run(plan)
    for note in plan.notes:
        print(f"# {note}")


def make_plan(values: flags.FlagValues, argv: Sequence[str]) -> Plan:
    """What the flags come to; runs and writes nothing.

    Raises:
      ConfigError: a flag is missing, wrong or of another target.
    """
    target = common.required(values, "target")
    name = common.required(values, "name")
    check_flags(values, target, TARGETS)
    config = common.read_config(values)
    workdir = common.required(values, "workdir")
    if target != "slurm":
        if not re.fullmatch(r"gs://[a-z0-9][\w.-]+/\S*", workdir):
            raise ConfigError(f"--workdir={workdir} must be gs://BUCKET/FOLDER: all hosts write it")
    elif "://" not in workdir and not workdir.startswith("/"):
        raise ConfigError(f"--workdir={workdir} must be absolute, on a disk that all nodes share")
    devices = _SIZES[target](values)
    axis_sizes(config.mesh, devices)
    train = ["python", "-m", "launch.train", *_passed_on(argv, target), "--distributed=on"]
    return _PLANS[target](values, name, train)


def run(plan: Plan) -> None:
    """Runs the command of a plan.

    Raises:
      SubmitError: it is not installed or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        if plan.file:
            (Path(folder) / plan.file).write_text(plan.text)
        try:
            status = subprocess.run(plan.command, cwd=folder).returncode
        except FileNotFoundError as error:
            raise SubmitError(f"{plan.command[0]} is not installed on this machine") from error
    if status:
        raise SubmitError(f"{plan.command[0]} ended with status {status}; see what it said above")


# ---- flags ---------------------------------------------------------------------------------------


def check_flags(values: flags.FlagValues, target: str, targets: Mapping[str, Any]) -> None:
    """Checks the flags of a target.

    Args:
      values: the parsed flags.
      target: a key of `targets`.
      targets: names of flags that must and that may be given, as in `TARGETS`.

    Raises:
      ConfigError: a flag is missing, malformed or of another target.
    """
    must, may = targets[target]
    for flag in must:
        common.required(values, flag)
    others = {flag for m, o in targets.values() for flag in (*m, *o)} - {*must, *may}
    for flag in sorted(others):
        if values[flag].present:
            raise ConfigError(f"--{flag} has no meaning for --target={target}")
    for flag, (form, words) in _FORMS.items():
        value = values[flag].value if flag in values else None
        if value is not None and not re.fullmatch(form, value):
            raise ConfigError(f"--{flag}={value} should be {words}")


def _passed_on(argv: Sequence[str], target: str) -> list[str]:
    """The arguments that are launch.train's.

    Raises:
      ConfigError: one of them is split in two, or its config file would not be in the image.
    """
    found = []
    for arg in argv[1:]:
        if match := re.match(r"--?(no)?(config|workdir)\b", arg):
            if "=" not in arg and not match[1]:  # --noconfig.KEY sets it to false
                raise ConfigError(f"{arg} and its value must be one word, {arg}=VALUE")
            found.append(arg)
    file = next(a.partition("=")[2] for a in found if re.match(r"--?config=", a)).split(":")[0]
    if target != "slurm" and (Path(file).is_absolute() or ".." in Path(file).parts):
        raise ConfigError(
            f"--config={file} must lie in the checkout, of which the image has a copy"
        )
    return found


class Slices(NamedTuple):
    """TPU slices of one shape."""

    chip: Chip
    shape: str
    chips: int


def read_slices(values: flags.FlagValues) -> Slices:
    """What `--topology` names.

    Raises:
      ConfigError: nothing that is known.
    """
    kind, colon, shape = str(values.topology).partition(":")
    known = ", ".join(CHIPS)
    if not colon or kind not in CHIPS:
        raise ConfigError(f"--topology={values.topology} is not CHIP:SHAPE; chips are {known}")
    chip = CHIPS[kind]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != chip.dimensions:
        example = "x".join("4" * chip.dimensions)
        raise ConfigError(f"--topology={values.topology}: a shape of {kind} is like {example}")
    chips = math.prod(int(side) for side in shape.split("x"))
    if chips % PER_HOST:
        raise ConfigError(f"--topology={values.topology} has {chips} chips; a host has {PER_HOST}")
    return Slices(chip, shape, chips)


_SIZES: dict[str, Callable[[flags.FlagValues], int]] = {
    "slurm": lambda values: values.nodes * values.gpus_per_node,
    **dict.fromkeys(
        ("tpu", "gke", "gke_toolkit"), lambda values: read_slices(values).chips * values.slices
    ),
}


# ---- plans ---------------------------------------------------------------------------------------


def fill(template: str, **fields: Any) -> str:
    """A template of this folder with its fields; an unknown one raises."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(quote=shlex.quote, command=shlex.join)
    return environment.get_template(template).render(
        **fields, preempted=common.PREEMPTED, grace=_GRACE
    )


def _options(**given: Any) -> list[str]:
    """Long options for those that are given."""
    return [f"--{k.replace('_', '-')}={v}" for k, v in given.items() if v is not None]


def _tpu(values: flags.FlagValues, name: str, train: list[str]) -> Plan:
    slices = read_slices(values)
    chip = slices.chip
    where = _options(zone=values.zone, project=values.project)
    # Several slices are nodes of one resource, named by the service.
    nodes = (
        {"node_id": name}
        if values.slices == 1
        else {"node_count": values.slices, "node_prefix": name}
    )
    command = [
        *("gcloud", "alpha", "compute", "tpus", "queued-resources", "create", name),
        *where,
        *_options(
            # The service arranges that many chips in its standard shape.
            accelerator_type=f"{chip.accelerator}-{slices.chips * chip.counted}",
            runtime_version=chip.runtime,
            **nodes,
            service_account=values.service_account,
            # Rights come from the account's roles; the default scopes cannot write to storage.
            scopes="cloud-platform",
            metadata_from_file="startup-script=startup.sh",
        ),
        *(["--spot"] if values.spot else []),
    ]
    script = fill("tpu/startup.sh.j2", train=train, image=values.image, restarts=values.restarts)
    node = name if values.slices == 1 else f"{name}-0"
    watch = "docker logs --follow train"
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *where, "--worker=0"]
    delete = ["gcloud", "alpha", "compute", "tpus", "queued-resources", "delete", name, *where]
    return Plan(
        command,
        "startup.sh",
        script,
        (
            "watch: " + shlex.join([*ssh, f"--command=sudo {watch}"]),
            "end:   " + shlex.join([*delete, "--force"]),
        ),
    )


def for_kubernetes(words: Sequence[str]) -> list[str]:
    """Words of a container's command: it takes "$(NAME)" for a variable, and "$$" for "$"."""
    return [word.replace("$", "$$") for word in words]


def _gke(values: flags.FlagValues, name: str, train: list[str]) -> Plan:
    slices = read_slices(values)
    text = fill(
        "gke/jobset.yaml.j2",
        name=name,
        train=for_kubernetes(train),
        image=values.image,
        chip=slices.chip,
        shape=slices.shape,
        slices=values.slices,
        hosts=slices.chips // PER_HOST,
        per_host=PER_HOST,
        restarts=values.restarts,
        spot=values.spot,
        queue=values.queue,
        service_account=values.service_account,
    )
    return Plan(
        ["kubectl", "apply", "--filename=jobset.yaml"],
        "jobset.yaml",
        text,
        (
            f"watch: kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name={name},"
            "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0",
            f"end:   kubectl delete jobset {name}",
        ),
    )


def _gke_toolkit(values: flags.FlagValues, name: str, train: list[str]) -> Plan:
    slices = read_slices(values)
    command = [
        *("gcluster", "job", "submit"),
        *_options(
            name=name,
            image=values.image,
            compute_type=slices.chip.machine,
            topology=slices.shape,
            num_slices=values.slices,
            queue=values.queue,
            service_account=values.service_account,
            restarts=values.restarts,
            restart_on_exit_codes=common.PREEMPTED,
            grace_period=f"{_GRACE}s",
            command=shlex.join(train),
        ),
    ]
    notes = (f"watch: gcluster job logs {name}", f"end:   gcluster job cancel {name}")
    return Plan(command, "", "", notes)


def batch_directory(values: flags.FlagValues) -> str:
    """The checkout where a batch script runs: `--directory`, by default this one.

    Raises:
      ConfigError: it, or `--python`, holds what the header of a script cannot.
    """
    directory = values.directory or str(Path(__file__).parent.parent)
    for flag, value in (("directory", directory), ("python", values.python)):
        if re.search(r"[\s'\"\\]", value):
            raise ConfigError(f"--{flag}={value} must be without spaces and quotes")
    return directory


def _slurm(values: flags.FlagValues, name: str, train: list[str]) -> Plan:
    directory = batch_directory(values)
    text = fill(
        "slurm/train.sbatch.j2",
        name=name,
        train=[values.python, *train[1:]],
        nodes=values.nodes,
        gpus=values.gpus_per_node,
        partition=values.partition,
        hours=values.hours,
        directory=directory,
        restarts=values.restarts,
    )
    notes = (f"watch: tail --follow {name}-JOB.log", f"end:   scancel --name={name}")
    return Plan(["sbatch", "train.sbatch"], "train.sbatch", text, notes)


_PLANS = {"tpu": _tpu, "gke": _gke, "gke_toolkit": _gke_toolkit, "slurm": _slurm}


if __name__ == "__main__":
    common.run(lambda values: main(values, sys.argv), define_flags, __doc__ or "")
