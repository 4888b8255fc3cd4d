"""Asks an OpenAI-compatible server many questions at a time and gets one answer to each.

The `openai` package carries the requests. Its own retries are off: here each attempt is counted,
and what comes back is checked before it is believed. A question is answered from the cache, or
asked until its answer is good, or given up with a reason; a question that is under way is not asked
a second time.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from process_gen.core.errors import ProcessGenError
from process_gen.curation.answer_cache import AnswerCache, content_key, default_folder
from process_gen.curation.prompt_templates import PromptTemplate, load_template
from process_gen.curation.protocols import Failed
from process_gen.curation.remote_account import Account
from process_gen.curation.remote_options import RemoteOptions
from process_gen.curation.remote_pace import Pace, retry_after
from process_gen.curation.remote_questions import Question, Unfit

# So many questions given up with the first answer still to come mean a wrong setting.
_HOPELESS = 8
_REFUSALS = ("content_filter", "content_policy_violation", "moderation_blocked")


class RemoteError(ProcessGenError):
    """A server cannot be used at all: a wrong address, a refused key, an unknown model."""


class _Later(Unfit):
    """An attempt that failed on the way.

    Attributes:
      seconds: that the server asks to wait; None where it does not say.
      everyone: whether all other requests should wait too.
    """

    def __init__(self, reason: str, detail: str, seconds: float | None, everyone: bool):
        super().__init__(reason, detail)
        self.seconds, self.everyone = seconds, everyone


class RemoteClient:
    """One server, its rate limits, its cache and its account; shared by planner, drafter, judge."""

    def __init__(self, options: RemoteOptions):
        """Reads the key from the environment; nothing is sent yet.

        Raises:
          RemoteError: the `openai` or `jsonschema` package or the key is missing.
        """
        try:
            import jsonschema  # noqa: F401
            import openai
        except ImportError as error:
            raise RemoteError(
                f"remote drafters and judges need {error.name}; pip install 'process_gen[remote]'"
            ) from error
        self.options = options
        self.account = Account(options.prices)
        self._openai = openai
        self._key = _api_key(options.api_key_env)
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=options.base_url,
            timeout=options.timeout,
            max_retries=0,
        )
        self._cache = AnswerCache(options.cache or default_folder())
        self._pace = Pace(options.requests_per_minute, options.tokens_per_minute)
        self._pool = ThreadPoolExecutor(options.concurrency, "remote")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Any]] = {}
        self._templates: dict[str, PromptTemplate] = {}
        self._given_up = 0

    def template(self, name: str) -> PromptTemplate:
        """A template in the user's or in the packaged version; see `prompt_templates`."""
        if name not in self._templates:
            self._templates[name] = load_template(name, self.options.templates)
        return self._templates[name]

    def description(self) -> dict[str, Any]:
        """What a manifest says of this server: address, models, templates in use. No key."""
        used = sorted(self._templates.items())
        return {
            "base_url": self.options.base_url,
            "chat_model": self.options.chat_model,
            "image_model": self.options.image_model,
            "templates": {name: template.fingerprint for name, template in used},
        }

    def ask(self, questions: Sequence[Question]) -> list[Any]:
        """The value of each question's answer, or a `Failed`, in order.

        Raises:
          RemoteError: no further request makes sense. Answers that came before are in the cache.
        """
        by_key: dict[str, Future[Any]] = {}
        keys = []
        for question in questions:
            content = question.content(self.options)
            keys.append(content_key(content))
            if keys[-1] in by_key:
                self.account.count(question.kind, "repeated")
            else:
                by_key[keys[-1]] = self._submit(question, content, keys[-1])
        try:
            return [by_key[key].result() for key in keys]
        except BaseException:
            self._stop.set()  # those who wait for their turn give up; nobody waits for them
            for future in by_key.values():
                future.cancel()
            raise

    def close(self) -> None:
        """Ends the threads and connections."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def __enter__(self) -> RemoteClient:
        """Gives itself; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    # ---- one question ----------------------------------------------------------------------------

    def _submit(self, question: Question, content: dict[str, Any], key: str) -> Future[Any]:
        with self._lock:
            if key in self._under_way:
                self.account.count(question.kind, "repeated")
                return self._under_way[key]
            future = self._pool.submit(self._settle, question, content, key)
            self._under_way[key] = future
        future.add_done_callback(lambda _: self._forget(key))
        return future

    def _forget(self, key: str) -> None:
        with self._lock:
            self._under_way.pop(key, None)

    def _settle(self, question: Question, content: dict[str, Any], key: str) -> Any:
        """The value of an answer, kept or asked for."""
        self.account.count(question.kind, "asked")
        kept = self._cache.get(key)
        if kept is not None:
            try:
                value = question.value(kept, self.options)
            except Unfit:
                pass  # a damaged file, or one that an older version of the code let through
            else:
                self.account.count(question.kind, "cached")
                return value
        last = Unfit("never asked")
        rejected = 0
        for attempt in range(self.options.attempts):
            self._pace.wait(question.tokens(self.options), self._stop)
            if self._stop.is_set():
                raise RemoteError("stopped before every question had its answer")
            try:
                answer, value = self._attempt(question, f"{key[:40]}-{rejected}")
            except Unfit as unfit:
                last = unfit
                rejected += not isinstance(unfit, _Later)
                self.account.count(question.kind, "faults", unfit.reason)
                if unfit.final:
                    break
                self._wait(unfit, attempt)
            else:
                self._cache.put(key, content, answer)
                self.account.count(question.kind, "answered")
                return value
        self.account.count(question.kind, "failed", last.reason)
        self._despair(last)
        return Failed(last.reason, self._safe(last.detail))

    def _attempt(self, question: Question, name: str) -> tuple[Any, Any]:
        """One request: the answer as the cache keeps it, and its value.

        Raises:
          Unfit: the request failed, or its answer is no good.
        """
        text = self._send(question, name)
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            raise Unfit("malformed answer", f"no JSON: {text[:80]!r}") from None
        if not isinstance(body, dict):
            raise Unfit("malformed answer", f"no JSON object: {text[:80]!r}")
        self.account.charge(question.kind, question.usage(body))
        answer = question.answer(body)
        return answer, question.value(answer, self.options)

    def _send(self, question: Question, name: str) -> str:
        errors = self._openai
        try:
            # A server that heeds the name does not work twice for one whose answer was lost.
            return question.send(self._client, self.options, {"Idempotency-Key": name})
        except errors.APITimeoutError:
            raise _Later("timeout", f"{self.options.timeout:g} s", None, False) from None
        except errors.APIConnectionError as error:
            detail = str(error.__cause__ or error)
            raise _Later("connection", detail, None, False) from None
        except errors.APIStatusError as error:
            raise self._of_status(error) from None
        except errors.APIError as error:
            raise Unfit("malformed answer", str(error)) from None

    def _of_status(self, error: Any) -> Exception:
        """What a response with an error status means."""
        status, detail = error.status_code, " ".join(str(error.message).split())[:300]
        seconds = retry_after(error.response.headers, time.time())
        if status in (401, 403, 404) or error.code == "insufficient_quota":
            return RemoteError(
                self._safe(
                    f"{self.options.base_url} answers with status {status}: {detail}; check "
                    "remote.base_url, the models, and the key in the environment variable "
                    f"{self.options.api_key_env!r}"
                )
            )
        if status == 429:
            return _Later("rate limit", detail, seconds, True)
        if status in (408, 409, 425) or status >= 500:
            return _Later("server error", f"{status} {detail}", seconds, False)
        refused = error.code in _REFUSALS
        return Unfit("refused" if refused else "bad request", f"{status} {detail}", final=True)

    def _wait(self, unfit: Unfit, attempt: int) -> None:
        """Waits before the next attempt; twice as long each time, and never in step with others."""
        if attempt + 1 == self.options.attempts:
            return
        seconds = self.options.backoff * 2**attempt * random.uniform(0.5, 1.0)
        if isinstance(unfit, _Later) and unfit.seconds is not None:
            seconds = unfit.seconds
        seconds = min(seconds, self.options.max_wait)
        if isinstance(unfit, _Later) and unfit.everyone:
            self._pace.pause(seconds)
        else:
            self._stop.wait(seconds)

    def _despair(self, unfit: Unfit) -> None:
        """Ends a run that has had no answer at all."""
        if unfit.reason not in ("connection", "bad request") or self.account.answered():
            return
        with self._lock:
            self._given_up += 1
            hopeless = self._given_up >= _HOPELESS
        if hopeless:
            raise RemoteError(
                f"{self._given_up} questions to {self.options.base_url} failed and none was "
                f"answered; the last: {unfit.reason}: {self._safe(unfit.detail)}"
            )

    def _safe(self, text: str) -> str:
        """A text for logs and errors: without the key, whatever the server repeats of it."""
        return text.replace(self._key, "***") if self._key else text


def _api_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RemoteError(
            f"the environment variable {variable} holds no key; set it, or remote.api_key_env='' "
            "for a server that wants none"
        )
    if not (key.isascii() and key.isprintable()):
        raise RemoteError(f"the key in the environment variable {variable} is not plain ASCII")
    return key
