"""Settings of remote planners, drafters and judges."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, Literal

from process_gen.core.checks import check, positive
from process_gen.core.settings import build
from process_gen.curation.remote_account import Prices

_SECRET = re.compile(r"key|secret|password|authori[sz]ation|bearer|credential", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class RemoteOptions:
    """Which server is asked, how, how often, and what it costs (docs/curation.md).

    Attributes:
      base_url: of the OpenAI-compatible interface, with its "/v1".
      api_key_env: name of the environment variable that holds the key; empty for a server that
        wants none. The key itself is nowhere in the settings.
      chat_model, image_model: names that the server knows; empty for what is not used.
      image_size: "WIDTHxHEIGHT" that is asked for.
      longest_side: pictures with a longer side are made smaller before they are kept in a
        trajectory; 0 keeps them.
      answers: how the server is told to answer in JSON. "free" tells it in the prompt only. The
        answer is checked against the schema in any case.
      send_chat_seed, send_image_seed: whether requests carry the seed. OpenAI's own picture models
        know none; many other servers do.
      ask_base64: whether a request for a picture says response_format="b64_json", which some
        servers need and OpenAI's newest models refuse.
      chat_options, image_options: further fields of a request, as the server knows them
        ({"temperature": 0.2}).
      templates: folder of templates that come before the packaged ones.
      cache: folder of answers; empty for `answer_cache.default_folder`.
      concurrency: requests under way at a time.
      timeout: seconds that a request may take to connect, and between two parts of the response.
      attempts: requests that a question may cost.
      backoff, max_wait: seconds before the second request, doubled for each further one, up to
        `max_wait`, which also bounds what a server may ask for.
      requests_per_minute, tokens_per_minute: limits that are kept; 0 for none.
      tokens_per_picture: guess for the token limit.
      prices: what the server charges.
    """

    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    chat_model: str = ""
    image_model: str = ""
    image_size: str = "1024x1024"
    longest_side: int = 0
    answers: Literal["json_schema", "json_object", "free"] = "json_schema"
    send_chat_seed: bool = True
    send_image_seed: bool = False
    ask_base64: bool = True
    chat_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    templates: str = ""
    cache: str = ""
    concurrency: int = 8
    timeout: float = 120.0
    attempts: int = 6
    backoff: float = 1.0
    max_wait: float = 120.0
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    tokens_per_picture: float = 1000.0
    prices: Prices = Prices()

    def __post_init__(self) -> None:
        """Checks ranges, and that no secret stands in the address or in place of a variable."""
        # Not shown: it may be the key itself.
        named = re.fullmatch(r"([A-Z_][A-Z0-9_]*)?", self.api_key_env) is not None
        check(named, "remote.api_key_env must name an environment variable, such as OPENAI_API_KEY")
        for name in ("chat_options", "image_options"):
            secret = next(filter(_SECRET.search, map(str, getattr(self, name))), None)
            check(
                secret is None,
                f"remote.{name} holds {secret!r}, and manifests hold remote.{name}: keys come from "
                "the environment alone (remote.api_key_env)",
            )
        positive("remote", concurrency=self.concurrency, attempts=self.attempts)
        positive("remote", timeout=self.timeout, max_wait=self.max_wait)
        for name in ("longest_side", "backoff", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            check(value >= 0, f"remote.{name} must be >= 0, got {value}")
        parts = urllib.parse.urlsplit(self.base_url)
        secret = parts.username or parts.password or parts.query
        check(not secret, "remote.base_url holds a user, a password or a query; use api_key_env")
        check(
            parts.scheme in ("http", "https") and bool(parts.hostname),
            f"remote.base_url must be http(s)://..., got {self.base_url!r}",
        )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RemoteOptions:
        """Reads the options of a config; an unknown key or a wrong value raises `ConfigError`."""
        return build(cls, mapping, "remote")
