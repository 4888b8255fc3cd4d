"""Checks steps, and reads scene graphs out of free text, with a remote model.

The model that is asked must see pictures, unless only plans are checked. Its answers are JSON; what
breaks the schema or contradicts itself is asked again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from process_gen.core.errors import DataError
from process_gen.core.trajectory import parse_plan, plan_text
from process_gen.curation.protocols import (
    CheckRequest,
    Edge,
    Failed,
    Node,
    Parser,
    SceneGraph,
    Verdict,
)
from process_gen.curation.remote_client import RemoteClient
from process_gen.curation.remote_questions import ChatQuestion, Unfit

_TAG = re.compile(r"</?(?:ins|des|refine)>|<\|")


def object_schema(**properties: Any) -> dict[str, Any]:
    """A JSON object with exactly these properties; servers' strict mode wants all of them named."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def clean(text: str, name: str) -> str:
    """A text of a model without blanks around it.

    Raises:
      Unfit: it is empty, or holds a tag of the grammar, which would end a plan or an inspection.
    """
    text = " ".join(text.split())
    if not text:
        raise Unfit("contradiction", f"{name} is empty")
    if _TAG.search(text):
        raise Unfit("markup", f"{name}: {text[:80]!r}")
    return text


# ---- judge ---------------------------------------------------------------------------------------

_VERDICT = object_schema(
    seen={"type": "string"},
    analysis={"type": "string"},
    fault={"type": "string", "enum": ["none", "conflict", "misalignment"]},
    kind={"type": "string"},
    command={"type": "string"},
    corrected_instruction={"type": "string"},
    corrected_description={"type": "string"},
)


class RemoteJudge:
    """The `Judge` behind ``/chat/completions``, in the words of `judge.j2`."""

    def __init__(self, client: RemoteClient):
        """Asks `client`'s `chat_model`."""
        self._client = client

    def check(self, requests: Sequence[CheckRequest]) -> list[Verdict | Failed]:
        """The verdict on each request.

        The judge sees the prompt, the plans so far, the picture before the step and the one after
        it; not the metadata, which is the measure that a judge is held against.

        Raises:
          DataError: a plan is not ``<ins>..</ins><des>..</des>``.
          RemoteError: the server cannot be used.
        """
        return self._client.ask([self._question(request) for request in requests])

    def _question(self, request: CheckRequest) -> ChatQuestion:
        pictures = []
        if request.picture is not None:
            before = request.earlier[-1].image if request.earlier else None
            pictures = [image for image in (before, request.picture) if image is not None]
        template = self._client.template("judge")
        system, user = template.render(
            prompt=request.prompt,
            earlier=[_plan(step.refined_plan or step.plan) for step in request.earlier],
            pictures=len(pictures),
            **_plan(request.plan),
        )
        drawn = request.picture is not None
        return ChatQuestion(
            "judge",
            system,
            user,
            tuple(pictures),
            _VERDICT,
            request.seed,
            template.fingerprint,
            lambda answer: verdict(answer, drawn),
        )


def _plan(text: str) -> dict[str, str]:
    parts = parse_plan(text)
    if parts is None:
        raise DataError(f"a plan to be judged is not <ins>..</ins><des>..</des>: {text[:80]!r}")
    return {"instruction": parts[0], "description": parts[1]}


def verdict(answer: Mapping[str, str], drawn: bool) -> Verdict:
    """What a judge's JSON says; `drawn` is whether it was shown a picture.

    Raises:
      Unfit: "contradiction" where the fields do not go together, "markup" where they hold tags.
    """
    fault = answer["fault"]
    seen = clean(answer["seen"], "seen") if drawn else ""
    analysis = f"{seen} {clean(answer['analysis'], 'analysis')}".strip()
    if fault == "none":
        return Verdict(analysis)
    command = clean(answer["command"], "command")
    kind = " ".join(answer["kind"].lower().split())[:40]
    if fault == "misalignment":
        if not drawn:
            raise Unfit("contradiction", "a misalignment, but no picture was shown")
        return Verdict(analysis, "misalignment", command, None, kind)
    corrected = plan_text(
        clean(answer["corrected_instruction"], "corrected_instruction"),
        clean(answer["corrected_description"], "corrected_description"),
    )
    return Verdict(analysis, "conflict", command, corrected, kind)


# ---- parser --------------------------------------------------------------------------------------

_MAX_COUNT = 100
_GRAPH = object_schema(
    nodes={
        "type": "array",
        "items": object_schema(
            name={"type": "string"},
            count={"type": "integer"},
            color={"type": ["string", "null"]},
            attributes={"type": "array", "items": {"type": "string"}},
            background={"type": "boolean"},
        ),
    },
    edges={
        "type": "array",
        "items": object_schema(
            subject={"type": "integer"}, relation={"type": "string"}, target={"type": "integer"}
        ),
    },
)


class RemoteParser:
    """The `Parser` behind ``/chat/completions``, in the words of `parse.j2`."""

    def __init__(self, client: RemoteClient, first: Parser | None = None, seed: int = 0):
        """Asks `client`'s `chat_model` for those prompts that the parser `first` fails on."""
        self._client, self._first, self._seed = client, first, seed

    def parse(self, prompts: Sequence[str]) -> list[SceneGraph | Failed]:
        """The graph of each prompt."""
        found: list[SceneGraph | Failed] = [Failed("not asked")] * len(prompts)
        if self._first is not None:
            found = self._first.parse(prompts)
        asked = [i for i, graph in enumerate(found) if isinstance(graph, Failed)]
        answers = self._client.ask([self._question(prompts[i]) for i in asked])
        for i, answer in zip(asked, answers, strict=True):
            found[i] = answer
        return found

    def _question(self, prompt: str) -> ChatQuestion:
        template = self._client.template("parse")
        system, user = template.render(prompt=prompt)
        return ChatQuestion(
            "parse", system, user, (), _GRAPH, self._seed, template.fingerprint, scene_graph
        )


def scene_graph(answer: Mapping[str, Any]) -> SceneGraph:
    """The graph that a model's JSON says.

    Raises:
      Unfit: "contradiction": no nodes, a count out of range, an edge to a node that is not there.
    """
    nodes = []
    for i, item in enumerate(answer["nodes"]):
        count = int(item["count"])  # to the schema 2.0 is an integer too
        if not 1 <= count <= _MAX_COUNT:
            raise Unfit("contradiction", f"node {i} has count {count}")
        attributes = tuple(clean(text, f"attribute of node {i}") for text in item["attributes"])
        color = clean(item["color"], f"color of node {i}") if item["color"] else None
        name = clean(item["name"], f"name of node {i}")
        nodes.append(Node(name, count, color, attributes, item["background"]))
    if not nodes:
        raise Unfit("contradiction", "no nodes")
    edges = []
    for i, item in enumerate(answer["edges"]):
        ends = (int(item["subject"]), int(item["target"]))
        if ends[0] == ends[1] or not all(0 <= end < len(nodes) for end in ends):
            raise Unfit("contradiction", f"edge {i} joins {ends[0]} and {ends[1]}")
        edges.append(Edge(ends[0], clean(item["relation"], f"relation of edge {i}"), ends[1]))
    return SceneGraph(tuple(nodes), tuple(edges))
