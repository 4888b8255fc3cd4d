"""Starting from a checkpoint: what a run takes over from it beside the weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from etils import epath

from process_gen.checkpoint import bagel, manager, shipped, stored
from process_gen.core.configs import Config
from process_gen.core.errors import ConfigError
from process_gen.data.stored_latents import open_all
from process_gen.models.shapes import BAGEL

# How the same model is run is the new run's own affair.
_OWN = ("dtype", "param_dtype", "layers", "remat", "attention", "freeze_und", "lora")


def adopt(config: Config, workdir: epath.PathLike) -> Config:
    """Fills in what `train.init_from` decides.

    Args:
      config: of the run. Without `train.init_model` it comes back as it is, but for an absent
        `train.init_from`.
      workdir: of the run; one that goes on need not be told again where it started from.

    Raises:
      ConfigError: `train.init_model` without anything to start from.
      CheckpointError: what is named there cannot be read.
    """
    train = config.train
    if not train.init_from and (before := manager.settings_in(workdir)) is not None:
        train = dataclasses.replace(train, init_from=before.train.init_from)
        config = dataclasses.replace(config, train=train)
    if not train.init_model:
        return config
    if not train.init_from:
        raise ConfigError(
            "this config takes the model from a checkpoint; name an imported folder or a run with "
            "--config.train.init_from=DIR"
        )
    source = _settings(train.init_from)
    own = {name: getattr(config.model, name) for name in _OWN}
    tokenizer = config.data.tokenizer or source.data.tokenizer
    return dataclasses.replace(
        config,
        model=dataclasses.replace(source.model, **own),
        data=dataclasses.replace(config.data, tokenizer=tokenizer),
    )


def _settings(path: str) -> Config:
    return shipped.read(path)[0] if shipped.is_painter(path) else manager.find(path, "params")[2]


def weights(path: str, like: Any) -> Any:
    """The weights that a run starts from.

    Args:
      path: a run or one of its checkpoints (the averaged weights, where there are some), or a
        folder of `checkpoint.shipped`.
      like: tree of `jax.ShapeDtypeStruct`s with shardings, which they are placed and cast by.

    Raises:
      CheckpointError: nothing is there, or it is damaged or of another shape than `like`.
    """
    if not shipped.is_painter(path):
        return manager.load_for_sampling(path, "ema", like=like)[1]
    params = shipped.read(path)[1]
    stored.check_shapes(params, like, epath.Path(path))
    return jax.tree.map(lambda x, p: jax.device_put(x.astype(p.dtype), p.sharding), params, like)


def frozen_codec(config: Config) -> Any:
    """The codec's weights, NumPy arrays; None where it has none or its work was done ahead.

    Raises:
      ConfigError: there are some, and `train.init_from` does not say where.
      CheckpointError: no imported folder stands behind it, or its file is damaged.
      DataError: stored latents were made by another autoencoder, or there are none.
    """
    if config.model.codec != "flux":
        return None
    start = config.train.init_from
    if not start:
        raise ConfigError(
            "model.codec='flux' needs the autoencoder of an imported folder; name one, or a run "
            "that started from one, with --config.train.init_from=DIR"
        )
    folder, _, stated, _ = manager.find(start, "params")
    official = bagel.find_official(start, folder, stated)
    if config.data.stored_latents:
        fingerprint = bagel.vae_fingerprint(official)
        open_all(config, (*config.data.sources, *config.data.eval_sources), fingerprint)
        return None
    return bagel.load_vae(official, config.model.vae, BAGEL)
