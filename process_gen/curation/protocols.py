"""Who makes training data: a planner, a drafter and a judge, and what they say to each other.

A recipe hands over *lists* of requests and gets lists of answers of the same length, in the same
order. Remote implementations work on a list concurrently, the sampler in batches, the embedded
ones one after the other. What cannot be answered is a `Failed` in its place, never an exception: a
recipe counts it with its reason and goes on. Only what makes every further request pointless (a
wrong setting, a refused key) is raised, as a `ProcessGenError`.

Answers depend on the request alone, never on its neighbours in the list or on earlier calls; the
request's seed decides whatever is drawn at random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Image, Step, plan_text

Operation = Literal["add", "modify", "swap", "remove"]
Fault = Literal["conflict", "misalignment"]


@dataclasses.dataclass(frozen=True)
class Failed:
    """No answer.

    Attributes:
      reason: what is counted; a few words that are the same for all failures of a kind ("timeout").
      detail: of this one, for the log.
      fault: of a judge that knows there is one, but cannot put it into words.
    """

    reason: str
    detail: str = ""
    fault: Fault | None = None


# ---- scene graphs --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Node:
    """Objects of one kind.

    Attributes:
      name: class, singular ("parking meter"). What fills the picture ("garden") is a node as well.
      count: how many.
      color: None where the prompt leaves it free.
      attributes: further properties in the prompt's words ("wooden", "running").
      background: whether it is a setting rather than a thing; settings are painted first.
    """

    name: str
    count: int = 1
    color: str | None = None
    attributes: tuple[str, ...] = ()
    background: bool = False


@dataclasses.dataclass(frozen=True)
class Edge:
    """Node `subject` stands in `relation` ("left of", "holding") to node `target`."""

    subject: int
    relation: str
    target: int


@dataclasses.dataclass(frozen=True)
class SceneGraph:
    """What a prompt asks for, nodes in the order in which the prompt names them."""

    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()

    def subgraph(self, keep: Iterable[int]) -> SceneGraph:
        """The nodes with these indices, in the graph's order, and the edges between them."""
        kept = sorted(set(keep))
        new = {old: i for i, old in enumerate(kept)}
        edges = tuple(
            Edge(new[e.subject], e.relation, new[e.target])
            for e in self.edges
            if e.subject in new and e.target in new
        )
        return SceneGraph(tuple(self.nodes[i] for i in kept), edges)


class Parser(Protocol):
    """Reads scene graphs out of prompts."""

    def parse(self, prompts: Sequence[str]) -> list[SceneGraph | Failed]:
        """The graph of each prompt."""
        ...


@dataclasses.dataclass(frozen=True)
class Change:
    """One step of painting, as graphs.

    Attributes:
      operation: what kind of step it is.
      before, after: what is in the picture.
      seed: for a writer that varies its words.
    """

    prompt: str
    operation: Operation
    before: SceneGraph
    after: SceneGraph
    seed: int = 0


class Writer(Protocol):
    """Puts steps into words."""

    def write(self, changes: Sequence[Change]) -> list[tuple[str, str] | Failed]:
        """(instruction, description of the whole scene after the step) of each change."""
        ...


# ---- planner -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """A prompt to be painted in steps.

    Attributes:
      metadata: whatever came with the prompt; GenEval's requirement, for one.
      seed: decides the order of the steps and the detours.
    """

    prompt: str
    metadata: Mapping[str, Any]
    seed: int


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One step as it should go.

    Attributes:
      instruction: what to paint next.
      description: the whole scene as it should look afterwards.
      operation: what kind of step it is.
    """

    instruction: str
    description: str
    operation: Operation = "add"

    @property
    def plan(self) -> str:
        """``<ins>..</ins><des>..</des>``."""
        return plan_text(self.instruction, self.description)


class Planner(Protocol):
    """Decides the steps of a painting."""

    def plan(self, requests: Sequence[PlanRequest]) -> list[tuple[PlannedStep, ...] | Failed]:
        """The steps of each request, at least one."""
        ...


# ---- drafter -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class DrawRequest:
    """A picture to be drawn.

    Attributes:
      instruction: what changes with respect to `previous`.
      description: the whole scene as it should look.
      previous: the picture so far, ``uint8[H, W, 3]``; None for an empty canvas.
      seed: the same for all steps of one painting, so that what stays can stay as it is.
    """

    instruction: str
    description: str
    previous: Image | None
    seed: int


class Drafter(Protocol):
    """Draws steps."""

    def draw(self, requests: Sequence[DrawRequest]) -> list[Image | Failed]:
        """``uint8[H, W, 3]`` for each request."""
        ...


# ---- judge ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class CheckRequest:
    """A step to be judged.

    Attributes:
      prompt: the whole prompt.
      metadata: whatever came with it.
      earlier: the steps before; the picture so far is the last one's `image`.
      plan: of the step, ``<ins>..</ins><des>..</des>``.
      picture: its sketch; None asks for the plan's consistency with the prompt alone.
      seed: for a judge that draws at random.
      said, replanned: what the painter itself wrote of it, inspection and re-emitted plan; None
        where it wrote none, or not to the end.
    """

    prompt: str
    metadata: Mapping[str, Any]
    earlier: tuple[Step, ...]
    plan: str
    picture: Image | None
    seed: int = 0
    said: str | None = None
    replanned: str | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge says.

    Attributes:
      analysis: what is seen and what is right or wrong with it, without `<refine>`. Of a step
        without a fault, that what is not painted yet is no fault.
      fault: None; "conflict": the plan contradicts the prompt; "misalignment": the plan is right,
        the picture does not show it.
      command: the corrective instruction of a fault.
      corrected_plan: of a conflict, the plan as it should have been; None where the judge writes
        none.
      kind: which fault it is ("color", "missing"), for the counts; free words.
    """

    analysis: str
    fault: Fault | None = None
    command: str | None = None
    corrected_plan: str | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        """Checks that a fault comes with its command, and nothing else does."""
        if (self.fault is None) != (self.command is None):
            raise DataError(f"a verdict of fault {self.fault!r} with command {self.command!r}")

    @property
    def ok(self) -> bool:
        """Whether the step is right."""
        return self.fault is None

    @property
    def inspection(self) -> str:
        """The text of the inspection: analysis, then ``<refine>command</refine>`` for a fault."""
        if self.fault is None:
            return self.analysis
        return f"{self.analysis} <refine>{self.command}</refine>"


class Judge(Protocol):
    """Checks steps."""

    def check(self, requests: Sequence[CheckRequest]) -> list[Verdict | Failed]:
        """The verdict on each request."""
        ...
