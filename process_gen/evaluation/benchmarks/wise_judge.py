"""Judging WISE's pictures with a model behind an OpenAI-compatible endpoint.

The rubric is the official one where the user's clone of WISE holds the program with it; otherwise
ours, which asks the same in other words (`rubrics/`). Which one it was stands in every report.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from process_gen.core.errors import ConfigError, DataError
from process_gen.core.trajectory import decode_image
from process_gen.curation.prompt_templates import load_template
from process_gen.curation.protocols import Failed
from process_gen.curation.remote_client import RemoteClient
from process_gen.curation.remote_options import RemoteOptions
from process_gen.curation.remote_questions import ChatQuestion, Unfit
from process_gen.evaluation.benchmarks.benchmark import Item
from process_gen.evaluation.benchmarks.wise import LEGACY, VERIFIED, Variant

RUBRICS = Path(__file__).parent / "rubrics"
# Fields of a request as the official programs send them.
REQUESTS = {
    LEGACY.name: {"temperature": 0.0, "max_tokens": 2000},
    VERIFIED.name: {
        "temperature": 0.0,
        "max_tokens": 500,
        "chat_template_kwargs": {"enable_thinking": False},
    },
}


@dataclasses.dataclass(frozen=True)
class Rubric:
    """How a judge is asked.

    Attributes:
      name: "official" or "in our words", with a fingerprint.
      fingerprint: of the text.
      render: (prompt, explanation) -> system and user text.
    """

    name: str
    fingerprint: str
    render: Callable[[str, str], tuple[str, str]]


def find_rubric(variant: Variant, clone: str) -> Rubric:
    """The rubric of a clone of WISE, or ours where there is none.

    Raises:
      DataError: the clone's program is there, and no rubric can be read out of it.
    """
    program = epath.Path(clone) / variant.program
    if program.is_file():
        return _official(program)
    template = load_template(variant.name, str(RUBRICS))
    return Rubric(
        f"in our words ({template.fingerprint})",
        template.fingerprint,
        lambda prompt, explanation: template.render(prompt=prompt, explanation=explanation),
    )


def _official(program: epath.Path) -> Rubric:
    """The two texts of `build_evaluation_messages`; the program is read, not run."""
    text = program.read_text()
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise DataError(f"{program} cannot be read: {error}") from error
    texts = [
        value
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "build_evaluation_messages"
        for node in ast.walk(function)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "text"
    ]
    texts.sort(key=lambda node: node.lineno)
    if len(texts) != 2:
        raise DataError(f"{program} holds {len(texts)} texts of a rubric, wanted 2")
    system, user = (_pieces(node, program) for node in texts)
    fingerprint = hashlib.sha256(repr((system, user)).encode()).hexdigest()[:16]

    def render(prompt: str, explanation: str) -> tuple[str, str]:
        given = {"Prompt": prompt, "Explanation": explanation}
        whole = ["".join(given[p[0]] if isinstance(p, tuple) else p for p in t) for t in rubric]
        return whole[0], whole[1]

    rubric = (system, user)
    return Rubric(f"official ({fingerprint})", fingerprint, render)


def _pieces(node: ast.expr, program: epath.Path) -> list[str | tuple[str]]:
    """A literal or an f-string of `prompt_data[NAME]`, as texts and (NAME,)."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    found: list[str | tuple[str]] = []
    for part in parts:
        inner = part.value if isinstance(part, ast.FormattedValue | ast.Constant) else None
        if isinstance(inner, str):
            found.append(inner)
        elif isinstance(inner, ast.Subscript) and isinstance(inner.slice, ast.Constant):
            found.append((str(inner.slice.value),))
        else:
            raise DataError(f"{program}: a rubric with {ast.unparse(part)} cannot be read")
    if any(isinstance(p, tuple) and p[0] not in ("Prompt", "Explanation") for p in found):
        raise DataError(f"{program}: a rubric with other fields than Prompt and Explanation")
    return found


# ---- questions -----------------------------------------------------------------------------------


class ScoreQuestion(ChatQuestion):
    """A question whose answer is plain text with scores in it."""

    def send(self, client: Any, options: RemoteOptions, headers: Mapping[str, str]) -> str:
        """Sends it, without asking for JSON."""
        return super().send(client, dataclasses.replace(options, answers="free"), headers)

    def answer(self, body: Mapping[str, Any]) -> str:
        """The text of the answer."""
        return self.said(body)

    def value(self, answer: Any, options: RemoteOptions) -> Any:
        """The scores in it."""
        if not isinstance(answer, str):
            raise Unfit("malformed answer", "not a text")
        return self.accept(answer)  # type: ignore[arg-type]


def read_scores(variant: Variant, text: str) -> dict[str, float]:
    """The scores that a judge wrote: "Consistency: 2" and so on, or bare numbers, one a line.

    Raises:
      Unfit: they are not all there, or contradict each other.
    """
    text = re.sub(r"<think>.*?</think>|</think>", "", text, flags=re.DOTALL)
    digits = f"[0-{variant.most}]"
    found: dict[str, float] = {}
    for name in variant.scores:
        label = name.replace("_", r"[ _]")
        said = set(re.findall(rf"\b{label}\**\s*[::]?\s*\**({digits})\b", text, re.IGNORECASE))
        if len(said) == 1:
            found[name] = float(said.pop())
    if not found:
        bare = re.findall(rf"(?m)^\s*({digits})\s*$", text)
        if len(bare) == len(variant.scores):
            found = dict(zip(variant.scores, map(float, bare), strict=True))
    if found.keys() != variant.scores.keys():
        raise Unfit("no scores", text[:80])
    return found


def options(variant: Variant, given: Mapping[str, Any]) -> RemoteOptions:
    """Settings of the endpoint: the user's over those of the official programs.

    Raises:
      ConfigError: no model is named, or a setting is unknown or out of range.
    """
    chat = {**REQUESTS[variant.name], **(given.get("chat_options") or {})}
    found = RemoteOptions.from_mapping({"send_chat_seed": False, **given, "chat_options": chat})
    if not found.chat_model:
        raise ConfigError(
            f"--judge=chat_model=NAME is missing; {variant.name}'s own judge is {variant.judge}"
        )
    return found


def judge(
    variant: Variant,
    rubric: Rubric,
    client: RemoteClient,
    items: Sequence[Item],
    pictures: Mapping[int, str | None],
    folder: str,
) -> dict[int, dict[str, float] | Failed]:
    """Asks for the scores of pictures; answers that came before are in the client's cache.

    Args:
      variant: which.
      rubric: see `find_rubric`.
      client: of the judge.
      items: prompts.
      pictures: index of a prompt -> file below `folder`; None where nothing was painted, which gets
        0 without being asked about.
      folder: of the pictures.

    Returns:
      By index: the scores, or why there are none.

    Raises:
      RemoteError: the endpoint cannot be used.
    """
    found: dict[int, dict[str, float] | Failed] = {}
    asked = []
    for index, name in pictures.items():
        if name is None:
            found[index] = dict.fromkeys(variant.scores, 0.0)
        else:
            asked.append((index, name))
    batch = 4 * client.options.concurrency  # pictures in memory at a time
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        questions = []
        for index, name in part:
            system, user = rubric.render(items[index]["prompt"], items[index]["explanation"])
            image = decode_image((epath.Path(folder) / name).read_bytes())
            questions.append(
                ScoreQuestion(
                    variant.name,
                    system,
                    user,
                    (image,),
                    {},
                    0,
                    rubric.fingerprint,
                    lambda text: read_scores(variant, text),  # type: ignore[arg-type]
                )
            )
        answers = client.ask(questions)  # type: ignore[arg-type]
        found |= {index: answer for (index, _), answer in zip(part, answers, strict=True)}
    return found
