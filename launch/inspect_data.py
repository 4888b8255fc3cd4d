"""Say what is in training data: contents, lengths, how full packs get, and a better shape for them.

    python -m launch.inspect_data --data=my_paintings --out=page.html
    python -m launch.inspect_data --config=configs/strokes_tiny.py --speed=100 --json

--config=FILE[:ARG]         settings of a run; without one the defaults and --data
--config.SECTION.KEY=VALUE  overrides a setting, for example --config.data.text_len=512
--data=DIR                  look at this trajectory folder instead of the config's sources
--split=eval                look at data.eval_sources instead of data.sources
--sample=N                  trajectories whose contents are counted (1000); 0 takes all
--out=FILE                  also write an HTML page: the numbers, packs with their masks, samples
--packs=N                   packs on the page (4)
--show=N                    trajectories on the page (12)
--speed=N                   also build N batches and say how fast that goes
--steps=N                   also time the training step, in N turns with batches, on this machine:
                            how many times over the pipeline feeds it
--strict                    stop at a record that cannot be used, instead of counting it
--json                      print the numbers as one JSON object as the last line

Needs no accelerator but for --steps. What is measured of an epoch is kept: a second look is quick.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from launch import common
from process_gen.core.batch import Dropout
from process_gen.core.configs import Config, SourceConfig
from process_gen.core.errors import ConfigError
from process_gen.data import statistics
from process_gen.data.rows import Order, Rows
from process_gen.data.sources import Split


def sections(found: Mapping[str, Any], rows: Rows | None, packs: int) -> list[Any]:
    """The parts of the page.

    Args:
      found: from `data.statistics.describe`.
      rows: to draw packs of; None where nothing fits a pack.
      packs: how many are drawn.
    """
    from process_gen.report.html import Section
    from process_gen.report.packs import KINDS, legend, mask_drawing, mask_picture

    contents = found["contents"]
    made = [
        Section("Sources", tables=[_table("drawn in an epoch", found["sources"])]),
        Section(
            "Contents",
            f"{contents['sampled']} of {found['trajectories']} trajectories of an epoch.",
            [
                _histogram("steps", contents["steps"]),
                _histogram("pictures", contents["images"]),
                ("verdicts", ("verdict", "steps"), list(contents["verdicts"].items())),
                ("pictures by size", ("size", "pictures"), list(contents["picture_sizes"].items())),
                (
                    "tokens a trajectory, by stage; supervised ones carry a loss",
                    ("stage", *statistics.STREAMS, "supervised"),
                    [
                        (stage, *(n.get(x, 0) for x in (*statistics.STREAMS, "supervised")))
                        for stage, n in contents["tokens"].items()
                    ],
                ),
            ],
        ),
        Section(
            "Lengths",
            "Tokens a trajectory.",
            [_histogram(name, x) for name, x in found["lengths"].items()],
        ),
        Section("Packs", " ".join(_pack_lines(found))),
    ]
    skipped = found["skipped"]
    if skipped["counts"]:
        said = ", ".join(f"{count} {kind}" for kind, count in skipped["counts"].items())
        made.append(Section("Left out", said, drawing="\n".join(skipped["examples"])))
    if rows is not None and packs:
        drawn = [rows[i] for i in range(min(packs, len(rows.plan(0))))]
        captions = [
            f"pack {i}: {len(rows.plan(0)[i])} trajectories; "
            + ", ".join(
                f"{name} {int((part.order >= 0).sum())}/{part.order.size}"
                for name, part in zip("TVG", row[:3], strict=True)
            )
            for i, row in enumerate(drawn)
        ]
        items = [item for i in range(len(drawn)) for item in rows.plan(0)[i]]
        alone = (rows.build(Order(0, i, [item])).pack for i, item in enumerate(items))
        short = next((text for row in alone if (text := mask_drawing(row))), "")
        made.append(
            Section(
                "Masks",
                "A line is a query, a column a key, in the order of the mask. Colours, from grey: "
                + ", ".join(KINDS)
                + (f". In letters: {legend()}." if short else "."),
                pictures=list(zip(captions, (mask_picture(row) for row in drawn), strict=True)),
                drawing=short,
            )
        )
    return made


def _table(
    caption: str, rows: Sequence[Mapping[str, Any]]
) -> tuple[str, Sequence[str], Sequence[Sequence[Any]]]:
    return caption, list(rows[0]), [list(row.values()) for row in rows]


def _histogram(
    name: str, found: Mapping[str, Any]
) -> tuple[str, Sequence[str], Sequence[Sequence[Any]]]:
    said = ", ".join(f"{key} {value}" for key, value in found.items() if key != "histogram")
    most = max(found["histogram"].values(), default=1) or 1
    rows = [(key, n, "▇" * -(-24 * n // most)) for key, n in found["histogram"].items()]
    return f"{name}: {said}", (name, "trajectories", ""), rows


def _pack_lines(found: Mapping[str, Any]) -> list[str]:
    packs, shape = found["packs"], found["proposal"]
    lines = ["nothing fits a pack of this shape."]
    if packs is not None:
        fill = ", ".join(f"{name} {100 * x:.1f} %" for name, x in packs["fill"].items())
        lines = [
            f"T, V, G = {', '.join(str(x) for x in packs['limits'].values())}: {packs['count']} "
            f"packs of {packs['trajectories_each']} trajectories.",
            f"Filled: {fill}; und stream {100 * packs['stream_fill']['und']:.1f} %, gen stream "
            f"{100 * packs['stream_fill']['gen']:.1f} %.",
        ]
    if shape is not None:
        total = sum(shape[f"{name}_len"] for name in statistics.STREAMS)
        lines.append(
            f"Proposed: data.text_len={shape['text_len']}, data.und_len={shape['und_len']}, "
            f"data.gen_len={shape['gen_len']} ({total} tokens), und {100 * shape['und_fill']:.1f} "
            f"%, gen {100 * shape['gen_fill']:.1f} %, {100 * shape['left_out']:.1f} % too long."
        )
    return lines


def lines(found: Mapping[str, Any]) -> list[str]:
    """What the command prints."""
    contents = found["contents"]
    out = [
        f"{x['kind']} {x['path']}: {x['drawn']} trajectories, weight {x['weight']:g}, supervised: "
        f"{x['supervise']}"
        for x in found["sources"]
    ]
    out.append(
        f"{contents['sampled']} of {found['trajectories']} looked into: "
        f"{contents['steps']['mean']} steps, {contents['images']['mean']} pictures each; "
        + ", ".join(f"{n} {mode}" for mode, n in contents["modes"].items())
    )
    out.append("steps:    " + ", ".join(f"{n}: {c}" for n, c in _bars(contents["steps"])))
    out.append("pictures: " + ", ".join(f"{n}: {c}" for n, c in _bars(contents["images"])))
    total = max(sum(contents["verdicts"].values()), 1)
    said = [f"{name} {100 * n / total:.1f} %" for name, n in contents["verdicts"].items()]
    out.append("verdicts: " + (", ".join(said) or "none"))
    for stage, counts in contents["tokens"].items():
        out.append(f"tokens of {stage}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    for name, x in found["lengths"].items():
        values = ", ".join(f"{key} {value}" for key, value in x.items() if key != "histogram")
        out.append(f"length of {name}: {values}")
    out += _pack_lines(found)
    skipped = found["skipped"]
    if skipped["counts"]:
        out.append("left out: " + ", ".join(f"{n} {k}" for k, n in skipped["counts"].items()))
        out += [f"  {text}" for text in skipped["examples"][:5]]
    return out


def _bars(found: Mapping[str, Any]) -> list[tuple[str, int]]:
    return list(found["histogram"].items())


def write_page(
    path: str, found: Mapping[str, Any], config: Config, split: Split, packs: int, show: int
) -> None:
    """Writes the HTML page; the first packs of the epoch, and what is in them."""
    from process_gen.report.html import write_report  # matplotlib takes a second

    rows, samples = None, []
    if found["packs"] is not None:
        sources = config.data.sources if split == "train" else config.data.eval_sources
        rows = Rows(config, sources, split, Dropout())
        plan = rows.plan(0)
        pairs = [pair for number in range(min(len(plan), show)) for pair in plan[number]][:show]
        samples = [rows.sources[source][index] for source, index in pairs]
    made = sections(found, rows, packs)
    write_report(path, samples, title="Training data", sections=made)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    common.define_config(values)
    flags.DEFINE_string("data", None, "trajectory folder", flag_values=values)
    flags.DEFINE_enum("split", "train", ["train", "eval"], "which sources", flag_values=values)
    flags.DEFINE_integer("sample", 1000, "trajectories looked into", 0, flag_values=values)
    flags.DEFINE_string("out", None, "HTML page to write", flag_values=values)
    flags.DEFINE_integer("packs", 4, "packs on the page", 0, flag_values=values)
    flags.DEFINE_integer("show", 12, "trajectories on the page", 0, flag_values=values)
    flags.DEFINE_integer("speed", 0, "batches to time", 0, flag_values=values)
    flags.DEFINE_integer("steps", 0, "turns of steps to time", 0, flag_values=values)
    flags.DEFINE_boolean("strict", False, "stop at a bad record", flag_values=values)
    flags.DEFINE_boolean("json", False, "print a JSON object", flag_values=values)


def settings(values: flags.FlagValues) -> Config:
    """The config that is looked at.

    Raises:
      ConfigError: neither a config nor a folder is given, or a setting is wrong.
    """
    config = Config()
    if values["config"].value is not None or not values.data:
        config = common.read_config(values)
    data = config.data
    if values.data:
        folder = SourceConfig("folder", path=values.data)
        data = dataclasses.replace(data, sources=(folder,), eval_sources=(folder,))
    data = dataclasses.replace(data, strict=values.strict or data.strict)
    return dataclasses.replace(config, data=data)


def main(values: flags.FlagValues) -> None:
    """Reads the flags, looks, says what was seen."""
    for flag in ("speed", "steps"):
        if values[flag].value and values.split != "train":
            raise ConfigError(f"--{flag} times data.sources; leave out --split={values.split}")
    config = settings(values)
    found = statistics.describe(config, values.sample, values.split)
    if values.speed:
        found["speed"] = statistics.speed(config, values.speed)
    print("\n".join(lines(found)))
    if speed := found.get("speed"):
        print("speed: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in speed.items()))
    if values.steps:
        common.enable_compilation_cache()
        from process_gen.train.feeding import feeding  # loads JAX

        found["feeding"] = fed = feeding(config, values.steps)
        print("feeding: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in fed.items()))
    if values.out:
        write_page(values.out, found, config, values.split, values.packs, values.show)
        print(f"page: {values.out}")
    if values.json:
        print(json.dumps(found))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
