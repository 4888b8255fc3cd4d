"""A local HTTP server with the OpenAI-compatible interface, which misbehaves as it is told."""

from __future__ import annotations

import base64
import collections
import email.parser
import email.policy
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from process_gen.core.trajectory import encode_png

# What each misbehaviour is counted as.
REASONS = {
    "429": "rate limit",
    "429 retry-after": "rate limit",
    "500": "server error",
    "503 html": "server error",
    "silence": "timeout",
    "drop": "connection",
    "half a body": "connection",
    "html page": "malformed answer",
    "truncated body": "malformed answer",
    "no choices": "malformed answer",
    "no json": "malformed JSON",
    "half json": "malformed JSON",
    "against schema": "against the schema",
    "extra field": "against the schema",
    "cut off": "cut off",
    "half an image": "bad picture",
    "not base64": "bad picture",
    "no image": "malformed answer",
}
CHAT = [name for name in REASONS if name not in ("half an image", "not base64", "no image")]
PICTURES = [
    name
    for name in REASONS
    if name
    not in ("no choices", "no json", "half json", "against schema", "extra field", "cut off")
]


def picture_of(text: str) -> np.ndarray:
    """The picture that the server draws for a text."""
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    return rng.integers(0, 256, (24, 16, 3), dtype=np.uint8)


def graph_of(user: str) -> dict:
    name = json.loads(user.partition("Prompt: ")[2].partition("\n")[0]).split()[-1]
    node = {"name": name, "count": 1, "color": None, "attributes": [], "background": False}
    return {"nodes": [node], "edges": []}


def plan_of(user: str) -> dict:
    prompt = json.loads(user.partition("Prompt: ")[2].partition("\n")[0])
    return {
        "steps": [
            {"operation": "add", "instruction": "Paint a lawn.", "description": "A lawn."},
            {"operation": "add", "instruction": f"Add {prompt}.", "description": f"{prompt}."},
        ]
    }


def words_of(user: str) -> dict:
    return {"instruction": "Add it.", "description": user.splitlines()[-1]}


def verdict_of(user: str) -> dict:
    """Right, unless the prompt says which fault it wants."""
    prompt = json.loads(user.partition("Prompt: ")[2].partition("\n")[0])
    answer = {
        "seen": "a lawn",
        "analysis": f"{prompt} is still to come.",
        "fault": "none",
        "kind": "",
        "command": "",
        "corrected_instruction": "",
        "corrected_description": "",
    }
    for fault in ("conflict", "misalignment"):
        if fault in prompt:
            answer |= {"fault": fault, "kind": "Color", "command": "Make it red."}
    if "conflict" in prompt:
        answer |= {"corrected_instruction": "Add a red dog.", "corrected_description": "A dog."}
    return answer


ANSWERS = {"parse": graph_of, "plan": plan_of, "write": words_of, "judge": verdict_of}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # 5 are fewer than clients open at once, and the rest waits seconds


class FakeServer:
    """Answers on 127.0.0.1 until the `with` block ends.

    Attributes:
      behave: (text of the question, number of its request from 0) -> "good" or a key of `REASONS`,
        or one of "refused", "400", "401", "404", "no quota", "bad question".
      requests: every request: path, question's text, behaviour, headers, body, time.
      most_at_once: requests under way at the same time.
    """

    def __init__(self, behave: Callable[[str, int], str] = lambda text, n: "good"):
        self.behave = behave
        self.requests: list[dict] = []
        self.most_at_once = self._at_once = 0
        self.answers = dict(ANSWERS)
        self.delay = 0.0
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._asked: collections.Counter = collections.Counter()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):  # noqa: N802
                owner._serve(self)

            def log_message(self, format, *args):
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self):
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def count(self, behaviour: str) -> int:
        """Requests that met a behaviour."""
        return sum(request["behaviour"] == behaviour for request in self.requests)

    # ---- one request -----------------------------------------------------------------------------

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        started = time.monotonic()
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        body, files = _read_body(handler.headers["Content-Type"], raw)
        text = body["prompt"] if "prompt" in body else _user_text(body)
        with self._lock:
            number = self._asked[text]
            self._asked[text] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            behaviour = self.behave(text, number)
            self.requests.append(
                {
                    "path": handler.path,
                    "text": text,
                    "behaviour": behaviour,
                    "headers": dict(handler.headers),
                    "body": body,
                    "files": files,
                    "time": started,
                }
            )
        try:
            self.closing.wait(self.delay)
            self._respond(handler, behaviour, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone: what a timeout looks like from here
        finally:
            with self._lock:
                self._at_once -= 1

    def _respond(self, handler, behaviour: str, body: dict) -> None:
        status = int(behaviour[:3]) if behaviour[:3].isdigit() else 200
        if behaviour == "silence":
            self.closing.wait()
            handler.close_connection = True
        elif behaviour == "drop":
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif behaviour in ("html page", "503 html"):
            self._write(handler, status, b"<html><h1>Bad gateway</h1></html>", "text/html")
        elif behaviour == "429 retry-after":
            self._write(handler, 429, _error("slow down"), headers={"Retry-After": "0.2"})
        elif behaviour == "no quota":
            self._write(handler, 429, _error("pay first", "insufficient_quota"))
        elif behaviour == "bad question":
            self._write(handler, 400, _error("not that", "content_policy_violation"))
        elif status != 200:
            key = handler.headers.get("Authorization", "")
            self._write(handler, status, _error(f"no good: {key}"))
        else:
            data = json.dumps(self._body(behaviour, handler.path, body)).encode()
            if behaviour == "truncated body":
                self._write(handler, 200, data[: len(data) // 2])
            elif behaviour == "half a body":
                self._write(handler, 200, data, sent=len(data) // 2)
            else:
                self._write(handler, 200, data)

    def _body(self, behaviour: str, path: str, body: dict) -> dict:
        if path.startswith("/v1/images/"):
            data = encode_png(picture_of(body["prompt"]))
            encoded = base64.b64encode(data[: len(data) // 2 if "half" in behaviour else None])
            item = {"b64_json": encoded.decode()}
            if behaviour == "no image":
                item = {"url": "http://127.0.0.1/picture.png"}
            elif behaviour == "not base64":
                item = {"b64_json": "*" * 40}
            usage = {"input_tokens": 5, "output_tokens": 50, "total_tokens": 55}
            return {"created": 0, "data": [item], "usage": usage}
        wanted = body.get("response_format", {}).get("json_schema", {"name": "judge"})["name"]
        answer = self.answers[wanted](_user_text(body))
        text = answer if isinstance(answer, str) else json.dumps(answer)
        if behaviour == "against schema":
            text = json.dumps({key: 7 for key in answer})
        elif behaviour == "extra field":
            text = json.dumps(answer | {"more": "of it"})
        elif behaviour == "no json":
            text = "I would rather write prose."
        elif behaviour in ("half json", "cut off"):
            text = text[: len(text) // 2]
        message = {"role": "assistant", "content": None if behaviour == "refused" else text}
        if behaviour == "refused":
            message["refusal"] = "No."
        reason = "length" if behaviour == "cut off" else "stop"
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        choices = [{"index": 0, "finish_reason": reason, "message": message}]
        return {"choices": [] if behaviour == "no choices" else choices, "usage": usage}

    def _write(self, handler, status, data, kind="application/json", headers=None, sent=None):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data[:sent])
        if sent is not None:
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True


def _error(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()


def _user_text(body: dict) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def _read_body(kind: str, raw: bytes) -> tuple[dict, dict[str, bytes]]:
    """The fields and files of a request, JSON or multipart."""
    if not kind.startswith("multipart/"):
        return json.loads(raw), {}
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + raw)
    fields, files = {}, {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if part.get_filename():
            files[name] = part.get_payload(decode=True)
        else:
            fields[name] = part.get_payload(decode=True).decode()
    return fields, files
