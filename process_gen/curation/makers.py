"""Who takes part in a recipe: planner, drafter and judge by name, made when they are needed."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from process_gen.core.checks import check
from process_gen.curation.graphs import GraphPlanner
from process_gen.curation.prompt_graph import RuleParser
from process_gen.curation.protocols import Drafter, Judge, Parser, Planner, Writer
from process_gen.curation.remote_options import RemoteOptions
from process_gen.curation.strokes_judge import OracleJudge
from process_gen.curation.strokes_maker import StrokesDrafter, StrokesPlanner
from process_gen.curation.wording import TemplateWriter
from process_gen.strokes.plans import StrokesOptions


@dataclasses.dataclass(frozen=True)
class Makers:
    """Who does what; "remote" asks the server of `remote`.

    Attributes:
      planner: "strokes", "graph" for scene graphs, or "remote" for a model that plans by itself.
      parser: of planner "graph" and "remote": by rules, or rules first and a model for the rest.
      writer: of planner "graph".
      drafter: who draws.
      judge: who inspects; "model" is a checkpoint.
      max_steps: longest painting.
      diversify: probability of a detour: modify, swap, remove.
      max_faults: the oracle puts no more faults of one sketch into words.
      checkpoint, step, weights: of judge "model"; by default the painter that comes with the
        package.
      remote: `remote_options.RemoteOptions`.
      remote_drafter: the same for the drafter, where it is another server.
    """

    planner: Literal["strokes", "graph", "remote"] = "strokes"
    parser: Literal["rules", "remote"] = "rules"
    writer: Literal["template", "remote"] = "template"
    drafter: Literal["strokes", "remote"] = "strokes"
    judge: Literal["oracle", "model", "remote"] = "oracle"
    max_steps: int = 5
    diversify: float = 0.3
    max_faults: int = 2
    checkpoint: str = ""
    step: str = "latest"
    weights: str = "ema"
    remote: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remote_drafter: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks ranges, and that what is needed is named."""
        check(0.0 <= self.diversify <= 1.0, "makers.diversify must lie in [0, 1]")
        check(self.max_steps >= 3, "makers.max_steps must be at least 3")
        check(self.max_faults >= 1, "makers.max_faults must be at least 1")
        check(
            self.judge != "oracle" or self.drafter == "strokes",
            f"makers.judge='oracle' cannot read the pictures of drafter {self.drafter!r}",
        )
        server = RemoteOptions.from_mapping(self.remote)
        asked = "remote" in (self.planner, self.parser, self.writer, self.judge)
        check(not asked or server.chat_model != "", "makers.remote.chat_model names no model")
        if self.drafter == "remote":
            name = "remote_drafter" if self.remote_drafter else "remote"
            server = RemoteOptions.from_mapping(self.remote_drafter or self.remote)
            check(server.image_model != "", f"makers.{name}.image_model names no model")

    @property
    def strokes(self) -> bool:
        """Whether pictures are of the Strokes world, which the oracle can read."""
        return self.drafter == "strokes"


# Settings of a server that decide how it is asked, not what it answers. Templates belong to the
# identity by their contents, not by their place.
_HOW = (
    "base_url",
    "api_key_env",
    "ask_base64",
    "templates",
    "cache",
    "concurrency",
    "timeout",
    "attempts",
    "backoff",
    "max_wait",
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_picture",
    "prices",
)


def identity_of(options: Any) -> dict[str, Any]:
    """The options of a recipe as its identity has them, and what they name by a place only.

    That is the words that servers are asked in, and the weights of a checkpoint that judges: the
    latest of a run becomes another one while the run goes on.

    Args:
      options: a dataclass with a field `makers`.

    Raises:
      CheckpointError: nothing usable is where the judge should be.
    """
    makers: Makers = options.makers
    values = dataclasses.asdict(options)
    for server in ("remote", "remote_drafter"):
        settings = values["makers"][server]
        values["makers"][server] = {k: v for k, v in settings.items() if k not in _HOW}
    used = {
        "parse": makers.parser,
        "plan": makers.planner,
        "write": makers.writer,
        "draw": makers.drafter,
        "judge": makers.judge,
    }
    templates = {}
    for name in (name for name, by in used.items() if by == "remote"):
        from process_gen.curation.prompt_templates import load_template

        server = (
            makers.remote_drafter if name == "draw" and makers.remote_drafter else makers.remote
        )
        templates[name] = load_template(name, server.get("templates", "")).fingerprint
    judged_by = {}
    if makers.judge == "model":
        from process_gen.curation.self_sampling import load_painter

        painter = load_painter(makers.checkpoint, makers.step, makers.weights)
        judged_by = {"judged_by": painter.fingerprint}
    return {"options": values, "templates": templates, **judged_by}


class Workshop:
    """Makes each party once, on first use.

    Args:
      makers: who.
    """

    def __init__(self, makers: Makers):
        self._makers = makers
        self._clients: dict[str, Any] = {}

    def _client(self, which: str = "remote") -> Any:
        from process_gen.curation.remote_client import RemoteClient

        options = getattr(self._makers, which)
        if which == "remote_drafter" and not options:
            return self._client()
        if which not in self._clients:
            self._clients[which] = RemoteClient(RemoteOptions.from_mapping(options))
        return self._clients[which]

    @functools.cached_property
    def planner(self) -> Planner:
        """Decides the steps."""
        makers = self._makers
        if makers.planner == "strokes":
            options = StrokesOptions(diversify=makers.diversify, max_steps=makers.max_steps)
            return StrokesPlanner(options)
        if makers.planner == "graph":
            return GraphPlanner(
                self._parser, self._writer, max_steps=makers.max_steps, diversify=makers.diversify
            )
        from process_gen.curation.remote_planner import RemotePlanner

        return RemotePlanner(
            self._client(), self._parser, max_steps=makers.max_steps, detours=makers.diversify
        )

    @property
    def _parser(self) -> Parser:
        if self._makers.parser == "rules":
            return RuleParser()
        from process_gen.curation.remote_judge import RemoteParser

        return RemoteParser(self._client(), RuleParser())

    @property
    def _writer(self) -> Writer:
        if self._makers.writer == "template":
            return TemplateWriter()
        from process_gen.curation.remote_planner import RemoteWriter

        return RemoteWriter(self._client())

    def drafter(self, faults: float = 0.0) -> Drafter:
        """Draws; the embedded one with this probability of a fault."""
        if self._makers.strokes:
            return StrokesDrafter(faults)
        from process_gen.curation.remote_drafter import RemoteDrafter

        return RemoteDrafter(self._client("remote_drafter"))

    @property
    def exact(self) -> bool:
        """Whether the drafter draws what it is told to."""
        return self._makers.strokes

    @functools.cached_property
    def judge(self) -> Judge:
        """Inspects."""
        makers = self._makers
        if makers.judge == "oracle":
            return OracleJudge(makers.max_faults)
        if makers.judge == "model":
            from process_gen.curation.model_judge import ModelJudge

            return ModelJudge(makers.checkpoint, makers.step, makers.weights)
        from process_gen.curation.remote_judge import RemoteJudge

        return RemoteJudge(self._client())

    @functools.cached_property
    def reference(self) -> Judge | None:
        """Who knows whether the judge is right; None where nobody does, or it judges itself."""
        known = self._makers.strokes and self._makers.judge != "oracle"
        return OracleJudge(self._makers.max_faults) if known else None

    def spent(self) -> Counter[str]:
        """What was asked of servers since the last call."""
        total: Counter[str] = Counter()
        for client in self._clients.values():
            total.update({f"remote/{key}": n for key, n in client.account.drain().items()})
        return total
