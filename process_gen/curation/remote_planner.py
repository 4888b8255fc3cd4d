"""Plans paintings, and puts planned steps into words, with a remote model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from process_gen.curation.protocols import (
    Change,
    Failed,
    Parser,
    PlannedStep,
    PlanRequest,
    SceneGraph,
)
from process_gen.curation.remote_client import RemoteClient
from process_gen.curation.remote_judge import clean, object_schema
from process_gen.curation.remote_questions import ChatQuestion, Unfit

_WORDS = object_schema(instruction={"type": "string"}, description={"type": "string"})
_STEPS = object_schema(
    steps={
        "type": "array",
        "items": object_schema(
            operation={"type": "string", "enum": ["add", "modify", "swap", "remove"]},
            instruction={"type": "string"},
            description={"type": "string"},
        ),
    }
)


class RemoteWriter:
    """The `Writer` behind ``/chat/completions``, in the words of `write.j2`: a request a step."""

    def __init__(self, client: RemoteClient):
        """Asks `client`'s `chat_model`."""
        self._client = client

    def write(self, changes: Sequence[Change]) -> list[tuple[str, str] | Failed]:
        """(instruction, description) of each change."""
        template = self._client.template("write")
        questions = []
        for change in changes:
            system, user = template.render(
                prompt=change.prompt,
                operation=change.operation,
                before=change.before,
                after=change.after,
            )
            questions.append(
                ChatQuestion(
                    "write", system, user, (), _WORDS, change.seed, template.fingerprint, _words
                )
            )
        return self._client.ask(questions)


def _words(answer: Mapping[str, str]) -> tuple[str, str]:
    return (
        clean(answer["instruction"], "instruction"),
        clean(answer["description"], "description"),
    )


class RemotePlanner:
    """The `Planner` behind ``/chat/completions``, in the words of `plan.j2`: a request a prompt."""

    def __init__(
        self,
        client: RemoteClient,
        parser: Parser | None = None,
        *,
        max_steps: int = 5,
        detours: float = 0.3,
    ):
        """Asks `client`'s `chat_model`.

        Args:
          client: where.
          parser: gives the scene graph that the plan shall follow; what it fails on is planned
            from the prompt alone.
          max_steps: longest plan.
          detours: share of prompts whose plan shall modify, swap or remove something again.
        """
        self._client, self._parser = client, parser
        self._max_steps, self._detours = max_steps, detours

    def plan(self, requests: Sequence[PlanRequest]) -> list[tuple[PlannedStep, ...] | Failed]:
        """The steps of each request."""
        graphs: list[SceneGraph | None] = [None] * len(requests)
        if self._parser is not None:
            parsed = self._parser.parse([request.prompt for request in requests])
            graphs = [None if isinstance(graph, Failed) else graph for graph in parsed]
        template = self._client.template("plan")
        questions = []
        for request, graph in zip(requests, graphs, strict=True):
            system, user = template.render(
                prompt=request.prompt,
                graph=graph,
                max_steps=self._max_steps,
                detour=random.Random(request.seed).random() < self._detours,
            )
            questions.append(
                ChatQuestion(
                    "plan",
                    system,
                    user,
                    (),
                    _STEPS,
                    request.seed,
                    template.fingerprint,
                    self._steps,
                )
            )
        return self._client.ask(questions)

    def _steps(self, answer: Mapping[str, Any]) -> tuple[PlannedStep, ...]:
        steps = answer["steps"]
        if not 1 <= len(steps) <= self._max_steps:
            raise Unfit("contradiction", f"{len(steps)} steps, wanted 1 to {self._max_steps}")
        return tuple(PlannedStep(*_words(step), step["operation"]) for step in steps)
