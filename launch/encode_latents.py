"""Encode the pictures of a trajectory folder ahead of training, which then needs no autoencoder.

    python -m launch.encode_latents --data=process_data --checkpoint=runs/bagel
    python -m launch.train --config=configs/bagel_7b.py:process_data \\
        --config.train.init_from=runs/bagel --config.data.stored_latents=True --workdir=runs/paint

--data=DIR         a folder that launch.make_data wrote; its subfolder latents/ is made
--checkpoint=DIR   an imported BAGEL folder, or a run that started from one: the autoencoder
--image_size=N     the run's data.image_size; 0, the default, takes the sizes of BAGEL's training
--json             print one JSON object as the last line

The latents are bound to autoencoder, pictures and sizes: a run with others is refused. Interrupted,
the command goes on with the shard that it was at. docs/bagel.md has the cost.
"""

from __future__ import annotations

import json
from typing import Any

import jax
from absl import flags

from launch import common
from process_gen.checkpoint import bagel, manager
from process_gen.core.configs import Config, DataConfig, MeshConfig
from process_gen.core.errors import ConfigError
from process_gen.models.shapes import BAGEL
from process_gen.sharding.mesh import make_mesh
from process_gen.train.latent_cache import encode_folder


def find_autoencoder(checkpoint: str) -> tuple[Any, Config]:
    """Where the autoencoder of a checkpoint lies, and the checkpoint's settings.

    Raises:
      CheckpointError: there is no such checkpoint, or its autoencoder is gone.
      ConfigError: it has none.
    """
    chosen, _, stored, _ = manager.find(checkpoint, "params")
    if stored.model.codec != "flux":
        raise ConfigError(f"{checkpoint}: its pictures are pixels; there is nothing to encode")
    return bagel.find_official(checkpoint, chosen, stored), stored


def encode(folder: str, checkpoint: str, image_size: int = 0) -> dict[str, Any]:
    """Encodes a folder's pictures, says how far it is, and returns the manifest of the latents.

    Args:
      folder: of trajectories.
      checkpoint: whose autoencoder.
      image_size: the run's `data.image_size`.

    Raises:
      CheckpointError, ConfigError: see `find_autoencoder`.
      DataError: see `train.latent_cache.encode_folder`.
    """
    official, stored = find_autoencoder(checkpoint)
    common.enable_compilation_cache()
    manifest = encode_folder(
        folder,
        Config(model=stored.model, data=DataConfig(image_size=image_size)),
        bagel.load_vae(official, stored.model.vae, BAGEL),
        bagel.vae_fingerprint(official),
        make_mesh(MeshConfig(), jax.local_devices()),
        lambda done, count: print(f"{done} of {count} trajectories", flush=True),
    )
    size = sum(shard["bytes"] for shard in manifest["shards"])
    print(f"{folder}/latents: {manifest['count']} trajectories, {size:,} bytes")
    return manifest


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("data", "", "trajectory folder", flag_values=values)
    flags.DEFINE_string("checkpoint", "", "whose autoencoder", flag_values=values)
    flags.DEFINE_integer("image_size", 0, "data.image_size", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("json", False, "print one JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Encodes what the flags say."""
    folder = common.required(values, "data")
    manifest = encode(folder, common.required(values, "checkpoint"), values.image_size)
    if values.json:
        size = sum(shard["bytes"] for shard in manifest["shards"])
        print(json.dumps({"data": folder, "count": manifest["count"], "bytes": size}))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
