"""Settings of a run as small frozen dataclasses, read from a plain nested mapping.

`launch` turns an ml_collections ConfigDict into a dict and hands it to `from_mapping`; nothing
below `launch` ever sees a ConfigDict. An unknown key, a wrong type or a value out of range raises
one `ConfigError` that names the key. The sections are defined in `model_config`, `data_config`,
`train_config` and `sampler_config`; all of them are names of this module too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from process_gen.core.data_config import DataConfig, GrammarConfig, SourceConfig
from process_gen.core.model_config import LoraConfig, ModelConfig
from process_gen.core.sampler_config import SamplerConfig
from process_gen.core.settings import build
from process_gen.core.train_config import LossConfig, MeshConfig, OptimizerConfig, TrainConfig

__all__ = [
    "Config",
    "DataConfig",
    "GrammarConfig",
    "LoraConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SamplerConfig",
    "SourceConfig",
    "TrainConfig",
    "from_mapping",
    "to_mapping",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    sampler: SamplerConfig = SamplerConfig()


def from_mapping(mapping: Mapping[str, Any]) -> Config:
    """Reads a whole config; sections and keys that are absent keep their defaults.

    Raises:
      ConfigError: an unknown key, a wrong type, a value out of range; the text names the key.
    """
    return build(Config, mapping)


def to_mapping(config: Any) -> dict[str, Any]:
    """The nested plain dict of any settings dataclass, ready for JSON; `from_mapping` reads it."""
    return dataclasses.asdict(config)
