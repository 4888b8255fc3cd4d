"""Paint prompts with a trained model.

    python -m launch.sample --prompt="a red circle left of a blue star"

--checkpoint=DIR      a run's directory or a checkpoint; default: the painter that comes along
--step=STEP           latest (default), best, or a number, of a working directory
--weights=ema|params  averaged weights (default) or the plain ones
--prompt=TEXT         what to paint; may be given several times
--prompts=FILE        instead: plain text, a prompt a line, or metadata JSONL
--mode=MODE           process (default) or one_shot (also --one_shot); think, edit or understand
                      with a BAGEL checkpoint
--image=FILE          picture to edit, understand or think about; may be given several times
--num=K               paintings a prompt (1)
--seed=S              the same seed gives the same pictures (0)
--size=HxW            pixels; by default the largest square that the model knows
--set=KEY=VALUE       a setting of the sampler: --set=guidance=2 --set=temperature=0
--out=DIR             folder (painted); --overwrite replaces an earlier run's files in it, --resume
                      goes on with an interrupted run
--show=N              paintings on the report, from the first on (200)
--json                print one JSON object as the last line

Writes pictures, report.html and trajectories.jsonl, which docs/sampling.md describes. Ctrl-C keeps
what is painted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from absl import flags
from etils import epath

from launch import common, painting
from process_gen.core.errors import ConfigError, DataError, TrajectoryError
from process_gen.core.trajectory import Image, Trajectory, decode_image
from process_gen.report.figures import filmstrip
from process_gen.report.html import write_report
from process_gen.report.runs import strokes_verdicts
from process_gen.sampling import painter as painter_lib
from process_gen.sampling import prompt_file, records

STRIP_COUNT = 16  # paintings that get a strip of their own
STRIP_WIDTH = 128  # pixels of the strip for one of its pictures, at least


def write_strips(out: epath.Path, trajectories: Sequence[Trajectory]) -> None:
    """Draws each painting as one PNG."""
    (out / painting.STRIPS).mkdir(parents=True, exist_ok=True)
    for trajectory in trajectories:
        assert trajectory.sampled is not None
        widest = max((image.shape[1] for image in trajectory.images), default=STRIP_WIDTH)
        strip = filmstrip(
            trajectory,
            max(1, STRIP_WIDTH // widest),
            verdicts=strokes_verdicts(trajectory),
        )
        with (out / painting.STRIPS / f"{records.stem(trajectory.sampled)}.png").open("wb") as file:
            strip.save(file, format="PNG")


def _images(files: Sequence[str]) -> list[Image]:
    found = []
    for name in files:
        try:
            found.append(decode_image(epath.Path(name).read_bytes()))
        except OSError as error:
            raise DataError(f"--image={name}: {error.strerror or error}") from error
        except TrajectoryError as error:
            raise DataError(f"--image={name}: {error}") from error
    return found


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    painting.define_flags(values)
    flags.DEFINE_multi_string("prompt", [], "what to paint", flag_values=values)
    flags.DEFINE_multi_string("image", [], "picture given with the prompt", flag_values=values)
    flags.DEFINE_integer("num", 1, "paintings a prompt", 1, flag_values=values)
    flags.DEFINE_integer("show", 200, "paintings on the report", 0, flag_values=values)
    flags.DEFINE_string("out", "painted", "folder to write", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Reads flags and prompts, paints, writes the report."""
    if bool(values.prompt) == bool(values.prompts):
        raise ConfigError("one of --prompt=TEXT and --prompts=FILE is needed; --help shows how")
    found = prompt_file.PromptFile(tuple(values.prompt), (), 0)
    if values.prompts:
        found = prompt_file.read_prompts(values.prompts)
        blank = f" ({found.blank} blank lines skipped)" if found.blank else ""
        print(f"{len(found.items)} prompts in {values.prompts}{blank}")
    images = _images(values.image)
    request = painting.read_request(values, found.items, num=values.num, images=images)
    out = painting.make_room(common.required(values, "out"), values.overwrite, values.resume)
    painter = painting.load_painter(values)
    painter_lib.check_mode(painter.config, request.mode, len(images))
    made_by = painting.provenance(painter, request, common.command(values, "launch.sample"))
    print(f"checkpoint {made_by['checkpoint']}, {made_by['weights']} weights")

    done = painting.paint(
        painter,
        request,
        out,
        made_by=made_by,
        keep=max(values.show, STRIP_COUNT),
        resume=values.resume,
    )
    shown = done.trajectories[: values.show]
    write_strips(out, done.trajectories[:STRIP_COUNT])
    write_report(
        out / painting.REPORT,
        shown,
        verdicts=[strokes_verdicts(t) for t in shown],
        settings=made_by,
        curves=painting.history(painter),
    )
    _tell(done, out, shown)
    if values.json:
        summary = {
            **done.summary(),
            "prompts": len(found.items),
            "blank_lines": found.blank,
            **painting.as_json(made_by),
            "out": {
                "folder": str(out),
                "trajectories": str(out / records.FINISHED),
                "report": str(out / painting.REPORT),
            },
        }
        print(json.dumps(summary))
    if done.stopped:
        raise done.stopped


def _tell(done: painting.Painted, out: epath.Path, shown: Sequence[Trajectory]) -> None:
    for index, reason in done.refused[:10]:
        print(f"prompt {index} was refused: {reason}")
    if len(done.refused) > 10:
        print(f"... and {len(done.refused) - 10} more")
    totals = done.summary()
    ends = ", ".join(f"{n} {reason}" for reason, n in totals["finish_reasons"].items())
    rate = f"{totals['pictures_per_second']:.1f} a second"
    print(f"{ends or 'nothing painted'}; {done.pictures} pictures in {done.seconds:.1f} s, {rate}")
    if done.count < done.asked:
        print(f"{done.asked - done.count} of {done.asked} paintings were not begun")
    first = f" (the first {len(shown)} paintings)" if len(shown) < done.count else ""
    print(f"report: {out / painting.REPORT}{first}")


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
