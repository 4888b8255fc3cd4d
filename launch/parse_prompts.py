"""Read prompts into scene graphs by grammar alone, and say how many were read completely.

    python -m launch.parse_prompts --prompts=prompts.txt --show=5
    python -m launch.parse_prompts --prompts=evaluation_metadata.jsonl --out=/tmp/graphs.jsonl

--prompts=FILE  plain text, a prompt a line, or metadata JSONL with "prompt"; where a line has
                GenEval's "include", the graph is compared with it
--out=FILE      write an object a line: {"prompt", "nodes", "edges", "unread"}
--show=N        print N of the prompts that were not read completely, or not as "include" says
--json          print one JSON object as the last line

A prompt is read completely when each of its words is part of the graph (docs/curation.md). That
does not mean that the graph is right.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from absl import flags
from etils import epath

from launch import common
from process_gen.core.errors import DataError
from process_gen.curation.prompt_graph import Reading, agrees, read_prompt
from process_gen.curation.protocols import SceneGraph
from process_gen.sampling.prompt_file import read_prompts


def _read(prompt: str) -> Reading:
    try:
        return read_prompt(prompt)
    except DataError:
        return Reading(SceneGraph(), (prompt,))


def parse_prompts(path: str, out: str = "") -> tuple[dict[str, Any], list[str]]:
    """Reads a file of prompts.

    Args:
      path: of the prompts.
      out: file for the graphs; empty for none.

    Returns:
      Counts, as JSON: "prompts", "complete", and where requirements are given "compared", "equal"
      and both by tag; and what went wrong, a line a prompt.

    Raises:
      DataError: the prompts cannot be read, or the graphs cannot be written.
    """
    rows, wrong = [], []
    counts: collections.Counter[str] = collections.Counter()
    tags: dict[str, list[int]] = {}
    for item in read_prompts(path).items:
        record: Mapping[str, Any] = {"prompt": item} if isinstance(item, str) else item
        reading = _read(record["prompt"])
        counts["prompts"] += 1
        counts["complete"] += not reading.unread
        if reading.unread:
            wrong.append(f"{record['prompt']}\n  unread: {', '.join(reading.unread)}")
        if isinstance(record.get("include"), list):
            equal = agrees(reading.graph, record["include"])
            pair = tags.setdefault(str(record.get("tag", "")), [0, 0])
            pair[0] += equal
            pair[1] += 1
            if not equal:
                wrong.append(f"{record['prompt']}\n  wanted {json.dumps(record['include'])}")
        rows.append(
            {
                "prompt": record["prompt"],
                **dataclasses.asdict(reading.graph),
                "unread": reading.unread,
            }
        )
    if out:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            epath.Path(out).write_text(text)
        except OSError as error:
            raise DataError(f"cannot write {out}: {error}") from error
    result: dict[str, Any] = dict(counts)
    if tags:
        result["compared"] = sum(pair[1] for pair in tags.values())
        result["equal"] = sum(pair[0] for pair in tags.values())
        result["tags"] = {tag: f"{pair[0]}/{pair[1]}" for tag, pair in tags.items()}
    return result, wrong


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("prompts", "", "file of prompts", flag_values=values)
    flags.DEFINE_string("out", "", "file for the graphs", flag_values=values)
    flags.DEFINE_integer("show", 0, "failures to print", 0, flag_values=values)
    flags.DEFINE_boolean("json", False, "print a JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Reads the file and says how it went."""
    result, wrong = parse_prompts(common.required(values, "prompts"), values.out)
    for line in wrong[: values.show]:
        print(line)
    total = result["prompts"]
    print(
        f"{total} prompts, {result['complete']} read completely ({result['complete'] / total:.1%})"
    )
    if "compared" in result:
        share = result["equal"] / result["compared"]
        by_tag = ", ".join(f"{tag} {pair}" for tag, pair in result["tags"].items())
        print(f"equal to the metadata: {result['equal']} of {result['compared']} ({share:.1%})")
        print(f"by tag: {by_tag}")
    if values.json:
        print(json.dumps(result))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
