"""BAGEL folders in and out: official safetensors to a checkpoint of this project, and back.

An imported folder is a working directory like a run's (`config.json`, `checkpoints/0`); beside it

    tokenizer.json        what the data pipeline and the sampler read
    official/             everything of the source that is no model weight: its JSON and tokenizer
                          files, `ae.safetensors`, and the position tables

The autoencoder is frozen, so its official file is its only form: it is read with `load_vae` and
copied on export. The position tables are frozen too, and the model computes them: stored ones are
checked against the computed ones and kept for the export, outside the trained weights, where no
optimiser, average or memory budget meets them. Import and export hold one array at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from etils import epath

from process_gen.checkpoint import (
    bagel_config,
    integrity,
    json_values,
    manager,
    name_map,
    remote,
    safetensors_io,
    streaming,
)
from process_gen.core.configs import Config, DataConfig, GrammarConfig, LossConfig, ModelConfig
from process_gen.core.encoder_sizes import VaeSizes
from process_gen.core.errors import CheckpointError

OFFICIAL = "official"
_TABLES_FILE = "position_tables.safetensors"
_COPIED = (
    "config.json",
    "llm_config.json",
    "vit_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_CAST = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What `models` says about shapes, handed in because it lies above this package.

    Attributes:
      model: settings to the tree of weights, leaves with a `shape`.
      vae: sizes to the autoencoder's tree.
      table: side and width to a sine-cosine position table.
    """

    model: Callable[[ModelConfig], Mapping[str, Any]]
    vae: Callable[[VaeSizes], Mapping[str, Any]]
    table: Callable[[int, int], np.ndarray]


def import_folder(
    source: epath.PathLike,
    output: epath.PathLike,
    shapes: Shapes,
    tokenizer: Callable[[bagel_config.Settings, int], tuple[str, str]],
    weights: Literal["auto", "ema", "model"] = "auto",
) -> tuple[Config, list[str]]:
    """Reads an official folder into a new working directory.

    Args:
      source: the folder, or its file of weights (whose folder then has the rest).
      output: a folder that does not exist yet; it appears only when everything is in it.
      shapes: of the models.
      tokenizer: settings and embedding rows to the text of a `tokenizer.json` and its
        fingerprint, with which samplers refuse another file; may refuse.
      weights: which file; "auto" prefers the averaged ones.

    Returns:
      The stored settings, and notes on JSON files that contradict the tensors.

    Raises:
      CheckpointError: the source is damaged, incomplete, or of another model; every missing, extra
        or misshapen tensor is counted and the first ones are named. Nothing is left behind.
    """
    if epath.Path(output).exists():
        raise CheckpointError(f"{output}: exists already; choose a new folder")
    with _open(source, shapes, weights) as found:
        reader, model = found.reader, found.model
        tokenizer_json, fingerprint = tokenizer(found.settings, model.vocab_size)
        _check_space(output, reader)
        with remote.new_folder(output, last="config.json") as part:
            official = part / OFFICIAL
            official.mkdir(parents=True)
            for name in _COPIED:
                if (found.folder / name).is_file():
                    (found.folder / name).copy(official / name)
            _copy(found.vae_reader, official / "ae.safetensors")
            _write_all(official / _TABLES_FILE, found.tables)
            integrity.record(epath.Path(official))
            (part / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
            config = Config(
                model=model,
                data=DataConfig(
                    tokenizer=str(manager.absolute(output) / "tokenizer.json"),
                    # Without an understanding encoder a painted picture has one copy.
                    grammar=GrammarConfig("vae" if model.und_encoder == "none" else "vae+vit"),
                ),
                loss=LossConfig(
                    timestep_shift=float(found.settings.main.get("timestep_shift", 1.0))
                ),
                sampler=bagel_config.sampler_config(model),
            )
            facts = {
                "tokenizer": fingerprint,
                "imported": {"tensors": len(reader.infos), "notes": found.notes},
            }
            arrays = stacked(found.entries, reader, scratch=part)
            streaming.write(part, config, arrays, facts)
    return config, found.notes


def load_folder(
    source: epath.PathLike, shapes: Shapes
) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
    """Reads an official folder into memory: settings, weights, and the autoencoder's weights.

    For models that fit twice; averaged weights are preferred, and errors are `import_folder`'s.
    """
    with _open(source, shapes, "auto") as found:
        params = name_map.unflatten(dict(stacked(found.entries, found.reader)))
        return found.model, params, _vae_params(found.vae_reader, found.vae_entries)


def export_folder(
    checkpoint: epath.PathLike,
    output: epath.PathLike,
    *,
    origin: epath.PathLike | None = None,
    weights: Literal["ema", "params"] = "ema",
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
) -> int:
    """Writes a checkpoint as an official folder.

    Args:
      checkpoint: an imported working directory, a run's, or one `checkpoints/<step>` of either.
      output: a folder that does not exist yet; it appears only when everything is in it.
      origin: the imported directory that the run started from, for the frozen parts; by default
        the checkpoint itself, or its `train.init_from`.
      weights: averaged weights where there are any, or the plain ones.
      dtype: of the model's tensors; the autoencoder keeps its own.

    Returns:
      How many tensors `ema.safetensors` got.

    Raises:
      CheckpointError: the checkpoint is damaged or no BAGEL model, or `origin` is no import of a
        model of these sizes. Nothing is left behind.
    """
    if epath.Path(output).exists():
        raise CheckpointError(f"{output}: exists already; choose a new folder")
    folder, weights, config, _ = manager.find(checkpoint, weights)
    integrity.check(folder, ("params", weights))
    official = find_official(checkpoint, folder, config, origin)
    stored, read = streaming.weights_reader(folder, weights, config)
    entries = name_map.by_path(name_map.model_entries(stored))
    with remote.new_folder(output, last="ema.safetensors") as part:
        part.mkdir()
        for file in official.iterdir():
            if file.name not in (_TABLES_FILE, integrity.HASHES):
                file.copy(part / file.name)
        with safetensors_io.Reader([official / _TABLES_FILE]) as tables:
            cast = _CAST.get(dtype)
            flat = name_map.flatten(stored)
            announced = {
                e.key: (e.shape, cast or np.dtype(flat[e.path].dtype))
                for path in entries.values()
                for e in path
            }
            announced |= {k: (i.shape, cast or i.dtype) for k, i in tables.infos.items()}
            with safetensors_io.write_file(part / "ema.safetensors", announced) as writer:
                for key in tables.infos:
                    writer.write(key, tables.read(key).astype(announced[key][1]))
                for path, tensors in entries.items():
                    array = read(path)
                    for e in tensors:
                        one = name_map.to_official(array(e.layer), e.layout)
                        writer.write(e.key, one.astype(announced[e.key][1], copy=False))
    return len(announced)


def write_frozen(
    official: Path, model: ModelConfig, shapes: Shapes, vae: epath.PathLike | None
) -> None:
    """Writes the frozen files of a model that was not imported: tables, and the autoencoder.

    Raises:
      CheckpointError: the autoencoder's file is damaged or of other sizes than `model.vae`.
    """
    dtype = _CAST[model.param_dtype]
    sides = {"latent_pos": model.latent_grid}
    if model.und_encoder == "siglip":
        sides["vit_pos"] = model.und_grid
    tables = {
        name_map.TABLES[name]: shapes.table(side, model.width).astype(dtype)
        for name, side in sides.items()
    }
    _write_all(official / _TABLES_FILE, tables)
    if vae is not None:
        with safetensors_io.Reader([vae]) as reader:
            name_map.check(name_map.vae_entries(shapes.vae(model.vae)), _shapes(reader), str(vae))
            _copy(reader, official / "ae.safetensors")


def load_vae(imported: epath.PathLike, sizes: VaeSizes, shapes: Shapes) -> dict[str, Any]:
    """The autoencoder's parameters, float32 NumPy arrays.

    Args:
      imported: an imported working directory, its `official`, or any folder with the file.
      sizes: `config.model.vae`.
      shapes: of the models.

    Raises:
      CheckpointError: the file is missing or does not fit.
    """
    folder = _official(imported)
    entries = name_map.vae_entries(shapes.vae(sizes))
    with safetensors_io.open_folder(folder, ("ae",)) as reader:
        name_map.check(entries, _shapes(reader), str(folder / "ae.safetensors"))
        return _vae_params(reader, entries)


def vae_fingerprint(imported: epath.PathLike) -> str:
    """16 hex digits over the autoencoder's tensors, for what is made with it and kept.

    Args:
      imported: see `load_vae`.

    Raises:
      CheckpointError: the file is missing or damaged.
    """
    folder = _official(imported)
    hashed = hashlib.sha256()
    with safetensors_io.open_folder(folder, ("ae",)) as reader:
        for key in sorted(reader.infos):
            info = reader.infos[key]
            hashed.update(f"{key} {info.dtype} {info.shape}\n".encode())
            hashed.update(np.ascontiguousarray(reader.read(key)).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class _Source:
    """An official folder, opened and accounted for."""

    folder: epath.Path
    settings: bagel_config.Settings
    reader: safetensors_io.Reader
    vae_reader: safetensors_io.Reader
    model: ModelConfig
    entries: dict[str, list[name_map.Entry]]
    vae_entries: list[name_map.Entry]
    tables: dict[str, np.ndarray]
    notes: list[str]


@contextlib.contextmanager
def _open(source: epath.PathLike, shapes: Shapes, weights: str) -> Iterator[_Source]:
    source = epath.Path(source)
    folder = source if source.is_dir() else source.parent
    stems = {"auto": ("ema", "model")}.get(weights, (weights,))
    with (
        safetensors_io.open_folder(source, stems) as reader,
        safetensors_io.open_folder(folder, ("ae",)) as vae_reader,
    ):
        settings = bagel_config.read_settings(folder)
        where, vae_where = str(source), str(folder / "ae.safetensors")
        sizes = bagel_config.vae_sizes(vae_reader.infos, settings, vae_where)
        vae = name_map.vae_entries(shapes.vae(sizes))
        name_map.check(vae, _shapes(vae_reader), vae_where)
        model, notes = bagel_config.model_config(reader.infos, sizes, settings, where)
        entries = name_map.by_path(name_map.model_entries(shapes.model(model)))
        held = {k: s for k, s in _shapes(reader).items() if k not in name_map.TABLES.values()}
        name_map.check((e for path in entries.values() for e in path), held, where)
        _check_types(entries, reader, where)
        tables = _tables(reader, model, shapes, where)
        yield _Source(folder, settings, reader, vae_reader, model, entries, vae, tables, notes)


def _vae_params(reader: safetensors_io.Reader, entries: list[name_map.Entry]) -> dict[str, Any]:
    return name_map.unflatten(
        {
            e.path: np.ascontiguousarray(
                name_map.from_official(reader.read(e.key), e.layout), np.float32
            )
            for e in entries
        }
    )


def _shapes(reader: safetensors_io.Reader) -> dict[str, tuple[int, ...]]:
    return {key: info.shape for key, info in reader.infos.items()}


def _check_types(
    entries: Mapping[str, list[name_map.Entry]], reader: safetensors_io.Reader, where: str
) -> None:
    for tensors in entries.values():
        first = reader.infos[tensors[0].key].dtype
        for e in tensors:
            if reader.infos[e.key].dtype != first:
                raise CheckpointError(
                    f"{where}: tensor {e.key} is {reader.infos[e.key].dtype}, {tensors[0].key} of "
                    f"another layer {first}; layers are stored together and need one type"
                )


def _tables(
    reader: safetensors_io.Reader, model: ModelConfig, shapes: Shapes, where: str
) -> dict[str, np.ndarray]:
    """The stored position tables, checked; none where the file has none."""
    sides = {"latent_pos": model.latent_grid, "vit_pos": model.und_grid}
    tables = {}
    for name, key in name_map.TABLES.items():
        if key in reader.infos:
            tables[key] = reader.read(key)
            computed = shapes.table(sides[name], model.width)
            name_map.check_table(key, tables[key], computed, where)
    return tables


def stacked(
    entries: Mapping[str, list[name_map.Entry]],
    reader: safetensors_io.Reader,
    scratch: Path | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Our arrays of the given official tensors, one alive at a time.

    Args:
      entries: tensors by the path of the array that they make up.
      reader: of the official file.
      scratch: folder for the array at hand, which the system may then keep on disk: it is needed
        beside what is written of it. By default it lies in memory.
    """
    for path, tensors in entries.items():
        first = name_map.from_official(reader.read(tensors[0].key), tensors[0].layout)
        if tensors[0].layer is None:
            whole = [np.ascontiguousarray(first)]
            del first  # its transposed view would live on while the copy is written
            yield path, whole.pop()
            continue
        array = _empty((len(tensors), *first.shape), first.dtype, scratch)
        del first
        for e in tensors:
            array[e.layer] = name_map.from_official(reader.read(e.key), e.layout)
        yield path, array
        del array


def _empty(shape: tuple[int, ...], dtype: np.dtype, scratch: Path | None) -> np.ndarray:
    if scratch is None:
        return np.empty(shape, dtype)
    length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    with tempfile.TemporaryFile(dir=scratch) as file:  # gone with the array
        file.truncate(length)
        mapped = np.memmap(file, np.uint8, "r+", shape=(length,))
    return np.asarray(mapped).view(dtype).reshape(shape)


def _copy(reader: safetensors_io.Reader, file: Path) -> None:
    announced = {key: (info.shape, info.dtype) for key, info in reader.infos.items()}
    with safetensors_io.write_file(file, announced) as writer:
        for key in reader.infos:
            writer.write(key, reader.read(key))


def _write_all(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    announced = {key: (array.shape, array.dtype) for key, array in tensors.items()}
    with safetensors_io.write_file(file, announced) as writer:
        for key, array in tensors.items():
            writer.write(key, array)


def _check_space(output: epath.PathLike, reader: safetensors_io.Reader) -> None:
    needed = sum(
        int(np.prod(i.shape, dtype=np.int64)) * i.dtype.itemsize for i in reader.infos.values()
    )
    where = Path(tempfile.gettempdir())  # of what goes elsewhere later
    if not remote.is_remote(output):
        where = Path(output).parent
        where.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(where).free
    if needed > free:
        raise CheckpointError(
            f"{where}: {free / 1e9:.1f} GB are free, the weights take {needed / 1e9:.1f} GB"
        )


def _official(imported: epath.PathLike) -> epath.Path:
    folder = epath.Path(imported)
    return folder / OFFICIAL if (folder / OFFICIAL).is_dir() else folder


def find_official(
    checkpoint: epath.PathLike,
    folder: epath.Path,
    config: Config,
    origin: epath.PathLike | None = None,
) -> epath.Path:
    """The `official` folder of frozen parts that belongs to a checkpoint, as it was written.

    Args:
      checkpoint: a working directory or one checkpoint in it.
      folder: of that checkpoint, `.../checkpoints/<step>`.
      config: of the checkpoint.
      origin: the imported directory; by default it is looked for at the checkpoint itself, then
        along `train.init_from`, through every run on the way.

    Raises:
      CheckpointError: there is none, it is damaged, or it is of a model of other sizes.
    """
    looked: list[str] = []
    waiting: list[epath.PathLike] = [origin] if origin else [checkpoint, folder.parent.parent]
    if not origin and config.train.init_from:
        waiting.append(config.train.init_from)
    while waiting:
        candidate = epath.Path(waiting.pop(0))
        if str(candidate) in looked:
            continue
        looked.append(str(candidate))
        official = candidate / OFFICIAL
        if official.is_dir():
            break
        if not origin and (candidate / "config.json").is_file():
            file = candidate / "config.json"
            before = json_values.section(json_values.read(file), "train", str(file))
            if before.get("init_from"):
                waiting.append(str(before["init_from"]))
    else:
        raise CheckpointError(
            f"{checkpoint}: no imported BAGEL folder belongs to it (looked in "
            f"{', '.join(looked)}); "
            "its official/ holds the autoencoder. When exporting, name it with --origin; otherwise "
            "put it back where train.init_from says"
        )
    file = official.parent / "config.json"
    stated = json_values.section(json_values.read(file), "model", str(file))
    for name in ("width", "num_layers", "codec_channels", "patch", "latent_grid", "und_encoder"):
        if stated.get(name) != getattr(config.model, name):
            raise CheckpointError(
                f"{official.parent}: its model.{name} is {stated.get(name)}, the checkpoint's "
                f"{getattr(config.model, name)}; it did not start from there"
            )
    integrity.check(official)
    return official
