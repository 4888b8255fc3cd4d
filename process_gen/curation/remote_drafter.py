"""Draws steps with a remote model: a new picture, or an edit of the one before."""

from __future__ import annotations

from collections.abc import Sequence

from process_gen.core.trajectory import Image
from process_gen.curation.protocols import DrawRequest, Failed
from process_gen.curation.remote_client import RemoteClient
from process_gen.curation.remote_questions import PictureQuestion


class RemoteDrafter:
    """The `Drafter` behind ``/images/generations`` and ``/images/edits``."""

    def __init__(self, client: RemoteClient):
        """Draws with `client`'s `image_model`, in the words of `draw.j2`."""
        self._client = client

    def draw(self, requests: Sequence[DrawRequest]) -> list[Image | Failed]:
        """``uint8[H, W, 3]`` for each request; reasons of failures are in docs/curation.md."""
        template = self._client.template("draw")
        questions = []
        for request in requests:
            _, text = template.render(
                instruction=request.instruction,
                description=request.description,
                edit=request.previous is not None,
            )
            questions.append(
                PictureQuestion(text, request.previous, request.seed, template.fingerprint)
            )
        return self._client.ask(questions)
