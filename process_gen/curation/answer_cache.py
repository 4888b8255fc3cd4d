"""Answers of remote models on disk, by the content of their question: a re-run asks nothing twice.

    folder/ab/abcd...ef.json     {"version", "question", "answer"}

The name is a hash of everything that decides an answer (model, rendered text, pictures, schema,
seed, further options), but of no address and no key: a cache may be moved and shared. Files are
written under another name and then renamed, so that many threads and processes can use one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

VERSION = 1


def default_folder() -> str:
    """``${XDG_CACHE_HOME:-~/.cache}/process_gen/answers``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "process_gen", "answers")


def content_key(question: Mapping[str, Any]) -> str:
    """64 hex digits over a JSON object, whatever the order of its keys."""
    text = json.dumps(question, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(f"{VERSION} {text}".encode()).hexdigest()


class AnswerCache:
    """A folder of answers."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Uses `folder`, which is made with the first answer."""
        self._folder = epath.Path(folder)

    def path(self, key: str) -> epath.Path:
        """The file of an answer, whether it is there or not."""
        return self._folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Any | None:
        """The answer to a question; None where it was not asked, or its file is damaged."""
        try:
            record = json.loads(self.path(key).read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(record, dict) or record.get("version") != VERSION:
            return None
        return record.get("answer")

    def put(self, key: str, question: Mapping[str, Any], answer: Any) -> None:
        """Keeps an answer (a JSON value); the question is kept for people to read."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"version": VERSION, "question": question, "answer": answer}
        unfinished = path.with_name(f".{key}.{uuid.uuid4().hex}")
        unfinished.write_text(json.dumps(record, ensure_ascii=False))
        unfinished.replace(path)
