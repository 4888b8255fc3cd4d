"""What can be asked of an OpenAI-compatible server: a JSON answer about texts and pictures, or a
picture.

A question knows what decides its answer (`content`, hashed for the cache), how it is sent, and how
the body of a response becomes a value. A response that does not fit raises `Unfit`.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
from PIL import Image as PILImage

from process_gen.core.trajectory import Image, decode_image, encode_png
from process_gen.curation.remote_account import Usage
from process_gen.curation.remote_options import RemoteOptions

_SEEDS = 2**31  # servers read seeds as signed 32-bit numbers


class Unfit(Exception):
    """An answer that cannot be used.

    Attributes:
      reason: a few words, for the counts.
      final: whether asking again is pointless.
    """

    def __init__(self, reason: str, detail: str = "", final: bool = False):
        """Takes the reason and what exactly was wrong."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.final = reason, detail, final


def _fingerprint(image: Image | None) -> str | None:
    """Hash of a picture's size and pixels, not of its PNG, which differs between zlib versions."""
    if image is None:
        return None
    pixels = np.ascontiguousarray(image)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class ChatQuestion:
    """A JSON object that answers a text and pictures.

    Attributes:
      kind: for the counts.
      system, user: texts; the first may be empty.
      pictures: ``uint8[H, W, 3]`` each, shown after the text.
      schema: JSON Schema of the answer.
      seed: of the server's random choices, where it heeds it.
      template: fingerprint of the template that the texts come from.
      accept: turns a valid answer into a value; raises `Unfit` where it contradicts itself.
    """

    kind: str
    system: str
    user: str
    pictures: tuple[Image, ...]
    schema: Mapping[str, Any]
    seed: int
    template: str
    accept: Callable[[dict[str, Any]], Any]

    def content(self, options: RemoteOptions) -> dict[str, Any]:
        """What decides the answer, as JSON."""
        return {
            "chat": self.kind,
            "model": options.chat_model,
            "system": self.system,
            "user": self.user,
            "pictures": [_fingerprint(image) for image in self.pictures],
            "schema": self.schema if options.answers != "free" else None,
            "seed": self.seed,
            "template": self.template,
            "options": dict(options.chat_options),
        }

    def tokens(self, options: RemoteOptions) -> float:
        """A rough guess at what the request takes, for the rate limit."""
        letters = len(self.system) + len(self.user)
        return letters / 4 + options.tokens_per_picture * len(self.pictures)

    def send(self, client: Any, options: RemoteOptions, headers: Mapping[str, str]) -> str:
        """Sends it through an `openai.OpenAI`; the body of the response."""
        content: Any = self.user
        if self.pictures:
            content = [{"type": "text", "text": self.user}]
            for image in self.pictures:
                url = "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
                content.append({"type": "image_url", "image_url": {"url": url}})
        messages = [{"role": "system", "content": self.system}] if self.system else []
        request: dict[str, Any] = {
            "model": options.chat_model,
            "messages": [*messages, {"role": "user", "content": content}],
        }
        if options.answers == "json_schema":
            named = {"name": self.kind, "strict": True, "schema": self.schema}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        elif options.answers == "json_object":
            request["response_format"] = {"type": "json_object"}
        if options.send_chat_seed:
            request["seed"] = self.seed % _SEEDS
        response = client.chat.completions.with_raw_response.create(
            **request, extra_headers=headers, extra_body=dict(options.chat_options)
        )
        return response.http_response.text

    def usage(self, body: Mapping[str, Any]) -> Usage:
        """What the response says it took."""
        return _usage(body, "prompt_tokens", "completion_tokens", 0)

    def said(self, body: Mapping[str, Any]) -> str:
        """The text of the answer in a response's body.

        Raises:
          Unfit: "refused", "cut off" or "malformed answer".
        """
        try:
            choice = body["choices"][0]
            message = choice["message"]
            reason, text, refusal = (
                choice.get("finish_reason"),
                message.get("content"),
                message.get("refusal"),
            )
        except (LookupError, TypeError, AttributeError):
            raise Unfit("malformed answer", "no choices[0].message") from None
        if refusal or reason == "content_filter":
            raise Unfit("refused", str(refusal or reason), final=True)
        if reason == "length":
            raise Unfit("cut off", "the answer reached the server's token limit")
        if not isinstance(text, str):
            raise Unfit("malformed answer", "the message has no text")
        return text.strip()

    def answer(self, body: Mapping[str, Any]) -> Any:
        """The JSON answer in a response's body.

        Raises:
          Unfit: "refused", "cut off", "malformed answer" or "malformed JSON".
        """
        text = self.said(body)
        if text.startswith("```") and text.endswith("```"):  # some models cannot leave it
            text = text[3:-3].removeprefix("json")
        try:
            return json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise Unfit("malformed JSON", f"{error}: {text[:80]!r}") from None

    def value(self, answer: Any, options: RemoteOptions) -> Any:
        """What the caller gets for an answer, fresh or out of the cache.

        Raises:
          Unfit: "against the schema", or what `accept` finds.
        """
        problem = schema_problem(json.dumps(self.schema), answer)
        if problem:
            raise Unfit("against the schema", problem)
        return self.accept(answer)


@dataclasses.dataclass(frozen=True, eq=False)
class PictureQuestion:
    """A picture for a text: drawn anew, or an edit of another one.

    Attributes:
      text: what to draw, or what to change.
      previous: ``uint8[H, W, 3]`` to edit; None for a new picture.
      seed: of the server's random choices, where it heeds it.
      template: fingerprint of the template that the text comes from.
    """

    text: str
    previous: Image | None
    seed: int
    template: str
    kind: str = "draw"

    def content(self, options: RemoteOptions) -> dict[str, Any]:
        """What decides the answer, as JSON."""
        return {
            "picture": self.text,
            "model": options.image_model,
            "size": options.image_size,
            "previous": _fingerprint(self.previous),
            "seed": self.seed,
            "template": self.template,
            "options": dict(options.image_options),
        }

    def tokens(self, options: RemoteOptions) -> float:
        """A rough guess at what the request takes, for the rate limit."""
        return len(self.text) / 4 + options.tokens_per_picture * (1 + (self.previous is not None))

    def send(self, client: Any, options: RemoteOptions, headers: Mapping[str, str]) -> str:
        """Sends it through an `openai.OpenAI`; the body of the response."""
        extra = dict(options.image_options)
        if options.send_image_seed:
            extra["seed"] = self.seed % _SEEDS
        if options.ask_base64:
            extra["response_format"] = "b64_json"
        common = {
            "model": options.image_model,
            "prompt": self.text,
            "size": options.image_size,
            "n": 1,
            "extra_headers": headers,
            "extra_body": extra,
        }
        images = client.images.with_raw_response
        if self.previous is None:
            response = images.generate(**common)
        else:
            file = ("previous.png", encode_png(self.previous), "image/png")
            response = images.edit(image=file, **common)
        return response.http_response.text

    def usage(self, body: Mapping[str, Any]) -> Usage:
        """What the response says it took."""
        return _usage(body, "input_tokens", "output_tokens", 1)

    def answer(self, body: Mapping[str, Any]) -> Any:
        """The picture's bytes in a response's body, as base64.

        Raises:
          Unfit: "malformed answer".
        """
        try:
            text = body["data"][0]["b64_json"]
        except (LookupError, TypeError):
            raise Unfit("malformed answer", "no data[0].b64_json") from None
        if not isinstance(text, str):
            raise Unfit("malformed answer", "data[0].b64_json is not a text")
        return text

    def value(self, answer: Any, options: RemoteOptions) -> Image:
        """The picture, ``uint8[H, W, 3]``, made smaller where the options say so.

        Raises:
          Unfit: "bad picture".
        """
        try:
            image = decode_image(base64.b64decode(answer, validate=True))
        except (TypeError, ValueError) as error:
            raise Unfit("bad picture", str(error)) from None
        longest = max(image.shape[:2])
        if not options.longest_side or longest <= options.longest_side:
            return image
        scale = options.longest_side / longest
        size = [max(1, round(side * scale)) for side in (image.shape[1], image.shape[0])]
        resized = PILImage.fromarray(image).resize((size[0], size[1]), PILImage.Resampling.BICUBIC)
        return np.asarray(resized)


Question = ChatQuestion | PictureQuestion


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _usage(body: Mapping[str, Any], came: str, went: str, pictures: int) -> Usage:
    said = body.get("usage")
    if not isinstance(said, Mapping):
        return Usage(pictures=pictures)
    counts = [said.get(name) for name in (came, went)]
    tokens = [n if isinstance(n, int) and n > 0 else 0 for n in counts]
    return Usage(tokens[0], tokens[1], pictures, metered=None not in counts)


@functools.lru_cache(maxsize=32)
def _validator(schema: str) -> Any:
    import jsonschema  # with the extra "remote" only

    return jsonschema.Draft202012Validator(json.loads(schema))


def schema_problem(schema: str, answer: Any) -> str:
    """The first thing in which `answer` breaks a JSON Schema; empty where it keeps it."""
    for error in _validator(schema).iter_errors(answer):
        return f"{error.json_path}: {error.message[:200]}"
    return ""
