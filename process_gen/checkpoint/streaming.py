"""Writing and reading a checkpoint one array at a time, for models larger than a host's memory.

The result is an ordinary checkpoint of `manager`. Orbax's partial saves append arrays to one tree
without holding the others; uncompressed and uncopied, an array costs no memory but its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from process_gen.checkpoint import adapters, integrity, manager, name_map
from process_gen.core import configs

# Small arrays are written together, for every save costs a tenth of a second.
_AT_ONCE = 64 << 20
# Arrays are stored in pieces of about this size, cut along their longest dimensions. A host that
# holds a shard reads the pieces that it lies in and not the whole array (`mesh.fsdp`).
_PIECE = 16 << 20


def write(
    workdir: Path,
    config: configs.Config,
    arrays: Iterator[tuple[str, np.ndarray]],
    meta: Mapping[str, Any],
) -> None:
    """Writes `checkpoints/0`, with the sums of its files, and `config.json` of a working directory.

    Args:
      workdir: a new folder.
      config: stored with the weights.
      arrays: path (slashes between keys) and value of every weight; each is dropped once written.
      meta: further JSON facts.
    """
    target = manager.absolute(workdir) / "checkpoints" / "0"
    session = manager.absolute(workdir) / "arrays"
    context = manager.open_context()
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_compression = False
    context.array.saving.storage_options.chunk_byte_size = _PIECE
    with context:
        waiting: dict[str, np.ndarray] = {}
        for path, array in arrays:
            waiting[path] = array
            del array
            if sum(x.nbytes for x in waiting.values()) >= _AT_ONCE:
                ocp.partial.save(session, name_map.unflatten(waiting))
                waiting.clear()
                _give_back()
        if waiting:
            ocp.partial.save(session, name_map.unflatten(waiting))
        ocp.partial.finalize(session)
        facts = {
            "format_version": manager.FORMAT_VERSION,
            "step": 0,
            "config": configs.to_mapping(config),
            "versions": manager.versions(),
            "plan_hash": None,
            "best_metric": config.train.best_metric,
            "metrics": None,
            **meta,
        }
        # A partial save knows a single tree, a checkpoint has several parts: the tree takes the
        # place of a stand-in of the same kind.
        ocp.save_checkpointables(
            target, {"params": {"stand_in": np.zeros(1)}, "data": {}, "meta": facts}
        )
    (target / "params").rmtree()
    (session / "state").replace(target / "params")
    session.rmtree()
    integrity.record(target)
    (workdir / "config.json").write_text(json.dumps(configs.to_mapping(config), indent=2) + "\n")


def weights_reader(
    folder: epath.Path, weights: str, config: configs.Config
) -> tuple[dict[str, Any], Callable[[str], Callable[[int | None], np.ndarray]]]:
    """The weights of a checkpoint one array at a time, adapters worked in.

    Args:
      folder: of the checkpoint, as `manager.find` gives it.
      weights: "ema" (where a weight has no average because it is not trained, the weight) or
        "params".
      config: of the checkpoint.

    Returns:
      `(shapes, read)`: the tree of shapes and types as stored, and a function that reads an array
      by its path and returns one of its layers, or the whole of one without a number. A weight with
      an adapter is float32.
    """
    parts = {part: manager.stored_shapes(folder, part) for part in {"params", weights}}
    own = name_map.flatten(parts[weights])
    everything = manager.stored_weights(folder, weights)
    known = name_map.flatten(everything)

    def stored(path: str) -> np.ndarray:
        part = weights if path in own else "params"
        return read_one(folder, part, path, parts[part])

    def read(path: str) -> Callable[[int | None], np.ndarray]:
        array = stored(path)
        halves: dict[str, np.ndarray] = {}
        beside = f"{path.rpartition('/')[0]}/{adapters.NAME}"
        if path.endswith("/kernel") and f"{beside}/a" in known:
            halves = {half: stored(f"{beside}/{half}") for half in "ab"}

        def layer(number: int | None) -> np.ndarray:
            if number is None:
                return array
            here = {half: value[number] for half, value in halves.items()}
            scale = config.model.lora.scale
            return adapters.add(array[number], here, scale) if here else array[number]

        return layer

    return adapters.without(everything), read


def _give_back() -> None:
    """Returns the memory of written pieces to the system, which glibc would keep for later."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def read_one(folder: epath.Path, part: str, path: str, shapes: Any) -> np.ndarray:
    """One array of a checkpoint, the others staying on disk.

    Args:
      folder: of the checkpoint, as `manager.find` gives it.
      part: "params" or "ema".
      path: of the array, slashes between keys.
      shapes: `manager.stored_shapes` of the part.
    """
    flat: dict[str, Any] = dict.fromkeys(name_map.flatten(shapes), ocp.PLACEHOLDER)
    wanted = name_map.flatten(shapes)[path]
    flat[path] = np.empty(wanted.shape, wanted.dtype)
    with manager.open_context():
        loaded = ocp.load_checkpointables(folder, {part: name_map.unflatten(flat)})
    return name_map.flatten(loaded[part])[path]
