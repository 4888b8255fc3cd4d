"""Reading TensorBoard's event files back."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event


def events(folder: Path) -> list[tuple[int, str, str, Any]]:
    """What event files hold: (step, tag, kind of value, value)."""
    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:  # TFRecord: length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                found.append((event.step, value.tag, kind, getattr(value, kind)))
    return found
