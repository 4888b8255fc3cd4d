"""Run the trials of a sweep, here or on a cluster, and keep what came of each.

    python -m launch.sweep --sweep=configs/sweeps/study.py --workdir=runs/study

--sweep=FILE    a file with get_sweep(), a list of launch.trials.Trial
--workdir=DIR   a folder a trial: what its commands write, log.txt, done.json; and of all
                results.json, results.md, results.png, and comparison/ (launch.compare)
--record=DIR    also keep DIR/<trial>.json of every finished trial, and skip trials that have one
--only=A,B      these trials, and whatever they need
--jobs=N        trials at a time (1)
--list          say what would be done, and do nothing
--json          print one JSON object as the last line
--target=T      where: local, slurm (an array), gke (a JobSet), commands (prints one a line);
                docs/launching.md has their flags, --dry_run prints what would be sent
--trial=T       runs the one of that name or number and no other, as the targets do

Started again it goes on where it stopped: finished trials are skipped, an interrupted one is run
again and its commands go on from what they find. A failing trial is reported and stops only those
that need it. Exit status 1 when any failed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from absl import flags

from launch import common, submit, sweep_results, sweep_targets, trials
from launch.trials import Trial
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.interrupts import finish_on_interrupt
from process_gen.train.progress import duration

LOG, DONE, SPENT = "log.txt", "done.json", "spent.json"
_ROOT = Path(__file__).parent.parent
_POLL = 0.1  # seconds between looks at the running trials
_GRACE = 120.0  # seconds that a trial has to save and stop after an interrupt


@dataclasses.dataclass
class Running:
    """A trial at work.

    Attributes:
      trial: which one.
      commands: those still to come.
      process: the command that runs.
      started: clock at the start.
      cpu: CPU seconds of its commands that ended.
      lock: held by this process and by the command, so that a command which outlives a killed
        runner keeps the next one from starting the trial beside it.
      commit: of the code at the start.
    """

    trial: Trial
    commands: list[list[str]]
    process: subprocess.Popen
    started: float
    lock: IO[str]
    commit: str
    cpu: float = 0.0

    def ended(self) -> bool:
        """Whether the command that runs is over; takes its CPU time down."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu += usage.ru_utime + usage.ru_stime
        return self.process.returncode is not None


class Ledger:
    """What became of every trial: files in the working directory and in the record."""

    def __init__(self, workdir: Path, record: Path | None):
        """Reads nothing yet."""
        self.workdir, self.record = workdir, record

    def folder(self, trial: Trial) -> Path:
        """The trial's own folder."""
        return self.workdir / trial.name

    def made(self, trial: Trial) -> bool:
        """Whether the trial's files are here, finished by the very same commands."""
        return self._read(self.folder(trial) / DONE, trial) is not None

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """What a finished trial left, here or in the record; None when it has yet to run.

        Raises:
          DataError: a result of other commands under the same name.
        """
        found = self._read(self.folder(trial) / DONE, trial)
        if found is None and self.record is not None:
            found = self._read(self.record / f"{trial.name}.json", trial)
        return found

    def _read(self, path: Path, trial: Trial) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        try:
            result = json.loads(path.read_text())
            digest = result["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}); delete it to run the trial") from error
        if digest != trial.digest():
            raise DataError(
                f"{path} was made by other commands than the sweep now has for {trial.name!r}; "
                "rename the trial, or delete the file to run it anew"
            )
        return result

    def spend(self, trial: Trial, seconds: float, cpu: float) -> dict[str, float]:
        """Adds to the time that a trial has taken, over all its starts; returns the sums."""
        path = self.folder(trial) / SPENT
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError):
            before = {}
        now = {"seconds": seconds, "cpu_seconds": cpu}
        sums = {key: round(value + before.get(key, 0.0), 1) for key, value in now.items()}
        _write(path, json.dumps(sums) + "\n")
        return sums

    def finish(
        self, trial: Trial, spent: Mapping[str, float], command: str, commit: str
    ) -> dict[str, Any]:
        """Writes down a trial whose commands all succeeded.

        Args:
          trial: which one.
          spent: of `spend`.
          command: that runs it again with a --workdir; which one it was means nothing to others.
          commit: of the code when it was started; one of later is kept beside it.

        Raises:
          DataError: its scores are missing or no JSON.
        """
        folder = self.folder(trial)
        scores = _json(folder / trial.scores) if trial.scores else None
        also = {name: _json(folder / name) for name in trial.also}
        log = (folder / LOG).read_bytes()
        later = common.git_hash()
        result = {
            "trial": trial.name,
            "about": trial.about,
            "digest": trial.digest(),
            "command": command,
            "commands": [" ".join(("python", "-m", *words)) for words in trial.commands],
            "commit": commit,
            **({"commit_at_end": later} if later != commit else {}),
            **spent,
            "log_sha256": hashlib.sha256(log).hexdigest(),
            "scores": scores,
            **({"also": also} if also else {}),
        }
        # Folders of the machine mean nothing to others.
        text = json.dumps(result, indent=1) + "\n"
        for place in (self.workdir.resolve(), _ROOT.resolve()):
            text = text.replace(f"{place}/", "")
        _write(folder / DONE, text)
        (folder / SPENT).unlink(missing_ok=True)
        self._keep(trial, text)
        return result

    def complete(self, ordered: Sequence[Trial]) -> None:
        """Puts into the record what it lacks of the trials whose files are here, as they left it.

        Raises:
          DataError: a result of other commands under the same name.
        """
        for trial in ordered:
            if self.record is None or (self.record / f"{trial.name}.json").is_file():
                continue
            if self.made(trial):
                self._keep(trial, (self.folder(trial) / DONE).read_text())

    def _keep(self, trial: Trial, text: str) -> None:
        if self.record is not None:
            self.record.mkdir(parents=True, exist_ok=True)
            _write(self.record / f"{trial.name}.json", text)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from error


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")  # a task of an array may write the same one
    part.write_text(text)
    os.replace(part, path)


def needed(ordered: Sequence[Trial], ledger: Ledger, only: Sequence[str]) -> list[Trial]:
    """The trials to run: those asked for without a result, and makers of what they read.

    Args:
      ordered: all trials, each behind its needs.
      ledger: what there is.
      only: names; empty is all.
    """
    known = {trial.name: trial for trial in ordered}
    for name in only:
        if name not in known:
            raise ConfigError(f"--only={name} is not in the sweep; there is {', '.join(known)}")
    todo: set[str] = set()

    def want(name: str) -> None:
        if name not in todo and not ledger.made(known[name]):
            todo.add(name)
            for other in known[name].needs:
                want(other)

    for name in only or known:
        if ledger.result(known[name]) is None:
            want(name)
    return [trial for trial in ordered if trial.name in todo]


def run_trials(
    todo: Sequence[Trial], ledger: Ledger, jobs: int, sweep: str
) -> tuple[dict[str, str], KeyboardInterrupt | None]:
    """Runs trials, `jobs` at a time.

    Args:
      todo: of `needed`.
      ledger: where results go.
      jobs: how many at a time.
      sweep: the flag that names the sweep, for the record.

    Returns:
      Reasons of failure by name, and what to raise if an interrupt ended it early.
    """
    waiting, running, finished = list(todo), list[Running](), set[str]()
    failed: dict[str, str] = {}
    names, held = {trial.name for trial in todo}, set[str]()
    with finish_on_interrupt() as interrupted:
        try:
            while (waiting or running) and not interrupted():
                for trial in list(waiting):
                    broken = [n for n in trial.needs if n in failed]
                    if broken:
                        waiting.remove(trial)
                        failed[trial.name] = f"needs {', '.join(broken)}"
                        print(f"{trial.name}: left out, it needs {', '.join(broken)}", flush=True)
                    elif len(running) < jobs and all(
                        n in finished or n not in names for n in trial.needs
                    ):
                        if (lock := _lock(ledger.folder(trial) / "lock")) is None:
                            if trial.name not in held:
                                said = "waits for a command of an earlier runner"
                                print(f"{trial.name}: {said}", flush=True)
                            held.add(trial.name)
                            continue
                        waiting.remove(trial)
                        if ledger.made(trial):  # by another runner meanwhile
                            lock.close()
                            finished.add(trial.name)
                            continue
                        running.append(_start(trial, ledger, lock))
                for one in list(running):
                    if not one.ended():
                        continue
                    if one.process.returncode == 0 and one.commands:
                        one.process = _launch(
                            one.commands.pop(0), ledger.folder(one.trial), one.lock
                        )
                        continue
                    running.remove(one)
                    one.lock.close()
                    if reason := _close(one, ledger, sweep):
                        failed[one.trial.name] = reason
                    else:
                        finished.add(one.trial.name)
                time.sleep(_POLL)
        finally:
            _stop(running)
            for one in running:
                ledger.spend(one.trial, time.time() - one.started, one.cpu)
    return failed, interrupted() if waiting or running else None


def _close(one: Running, ledger: Ledger, sweep: str) -> str:
    """Writes down a trial that ended; returns the reason when it failed."""
    name = one.trial.name
    spent = ledger.spend(one.trial, time.time() - one.started, one.cpu)
    reason = ""
    if one.process.returncode:
        reason = f"exit status {one.process.returncode}"
    else:
        try:
            command = f"python -m launch.sweep {sweep} --only={name}"
            ledger.finish(one.trial, spent, command, one.commit)
        except DataError as error:
            reason = str(error)
    where = f"; see {ledger.folder(one.trial) / LOG}"
    said = f"FAILED, {reason}{where}" if reason else f"done in {duration(spent['seconds'])}"
    print(f"{name}: {said}", flush=True)
    return reason


def _lock(path: Path) -> IO[str] | None:
    """The file, locked for this process and those that inherit it; None when others hold it.

    Raises:
      ConfigError: the disk has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise ConfigError(
            f"files in {path.parent} cannot be locked ({error.strerror}), so nothing keeps two "
            "runners from one trial; give a --workdir on a disk with file locks (flock)"
        ) from error
    return file


def _start(trial: Trial, ledger: Ledger, lock: IO[str]) -> Running:
    folder = ledger.folder(trial)
    commands = trial.words(ledger.workdir.resolve())
    print(f"{trial.name}: started{f' ({trial.about})' if trial.about else ''}", flush=True)
    commit = common.git_hash()  # before the first command reads the code
    process = _launch(commands[0], folder, lock)
    return Running(trial, commands[1:], process, time.time(), lock, commit)


def _shell(words: Sequence[str]) -> str:
    """As a line that a shell takes."""
    return shlex.join(("python", "-m", *words))


def _environment() -> dict[str, str]:
    """The variables of a trial's commands, each of which is one process with the whole machine.

    In a step of SLURM jax would make a cluster of that process: it takes the device of its number
    in the step alone, and all trials of a step would meet at one port. It sees none without the
    step's machines.
    """
    return {k: v for k, v in os.environ.items() if k != "SLURM_STEP_NODELIST"}


def _launch(words: Sequence[str], folder: Path, lock: IO[str]) -> subprocess.Popen:
    with (folder / LOG).open("a") as log:
        log.write(f"$ {_shell(words)}\n")
        log.flush()
        # Its own group: Ctrl-C reaches this process alone, which passes it on once.
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=_ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )


def _stop(running: Sequence[Running]) -> None:
    for one in running:
        one.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _GRACE
    for one in running:
        while not one.ended():
            if time.monotonic() > deadline:
                one.process.kill()
            time.sleep(_POLL)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("sweep", None, "file with get_sweep()", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the trials", flag_values=values)
    flags.DEFINE_string("record", None, "folder of the results", flag_values=values)
    flags.DEFINE_list("only", [], "names of trials", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "trials at a time", 1, flag_values=values)
    flags.DEFINE_string("trial", None, "the only trial", flag_values=values)
    flags.DEFINE_boolean("list", False, "only say what would run", flag_values=values)
    flags.DEFINE_boolean("json", False, "print a JSON object", flag_values=values)
    sweep_targets.define_flags(values)


def main(values: flags.FlagValues) -> None:
    """Runs or sends what has not run yet, and prints the table."""
    file, workdir = common.required(values, "sweep"), common.required(values, "workdir")
    sweep_targets.check(values)
    ordered = trials.load(file)
    ledger = Ledger(Path(workdir), Path(values.record) if values.record else None)
    if values.trial is not None:
        run_one(values, ordered, ledger)
        return
    todo = needed(ordered, ledger, values.only)
    names = ", ".join(t.name for t in todo) or "none"
    print(f"{len(ordered)} trials, {len(todo)} to run: {names}", file=sys.stderr, flush=True)
    if values.list:
        for trial in todo:
            for words in trial.words(ledger.workdir):
                print(f"{trial.name}: {_shell(words)}")
    elif values.target == sweep_targets.LOCAL:
        run_here(values, todo, ordered, ledger)
    else:
        send(values, todo, ordered, ledger)


def run_here(
    values: flags.FlagValues, todo: Sequence[Trial], ordered: Sequence[Trial], ledger: Ledger
) -> None:
    """Runs trials on this machine and writes what came of all.

    Raises:
      ConfigError: another runner is at it.
      KeyboardInterrupt: it was interrupted; `Preempted` by SIGTERM.
    """
    if (lock := _lock(ledger.workdir / "sweep.lock")) is None:
        raise ConfigError(f"another sweep is running in {ledger.workdir}")
    with lock:
        failed, stopped = run_trials(todo, ledger, values.jobs, f"--sweep={values.sweep}")
        ledger.complete(ordered)
        states = {trial.name: ledger.result(trial) for trial in ordered}
        command = f"python -m launch.sweep --sweep={values.sweep}"
        sweep_results.write(ledger.workdir, ordered, states, failed, command)
    if values.json:
        print(json.dumps({"trials": states, "failed": failed}))
    if stopped:
        raise stopped
    if failed:
        sys.exit(1)


def run_one(values: flags.FlagValues, ordered: Sequence[Trial], ledger: Ledger) -> None:
    """Runs the trial of `--trial`, unless it is done.

    Raises:
      ConfigError: there is no such trial, or what it needs has not been made.
      KeyboardInterrupt: it was interrupted; `Preempted` by SIGTERM.
    """
    chosen = [trial for trial in ordered if not values.only or trial.name in values.only]
    trial = sweep_targets.pick(chosen, values.trial)
    known = {other.name: other for other in ordered}
    if ledger.made(trial):
        ledger.complete([trial])
        print(f"{trial.name}: done already")
        return
    if missing := [name for name in trial.needs if not ledger.made(known[name])]:
        raise ConfigError(f"{trial.name} needs {', '.join(missing)}, not done yet")
    failed, stopped = run_trials([trial], ledger, 1, f"--sweep={values.sweep}")
    if stopped:
        raise stopped
    if failed:
        sys.exit(1)


def send(
    values: flags.FlagValues, todo: Sequence[Trial], ordered: Sequence[Trial], ledger: Ledger
) -> None:
    """Sends the trials that wait for no other, or prints their commands."""
    known = {trial.name: trial for trial in ordered}
    ready = [t for t in todo if all(ledger.made(known[name]) for name in t.needs)]
    if waiting := [trial.name for trial in todo if trial not in ready]:
        print(f"left for later, when what they need is done: {', '.join(waiting)}", file=sys.stderr)
    if values.target == "commands":
        print("\n".join(sweep_targets.commands(values, ready)))
    elif ready:
        submit.send(sweep_targets.make_plan(values, ready, ordered), values.dry_run)


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
