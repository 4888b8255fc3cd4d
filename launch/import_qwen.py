"""Start a model from a Qwen2.5 folder instead of BAGEL: its weights become both experts.

    python -m launch.import_qwen --source=Qwen2.5-0.5B --config=configs/strokes_tiny.py --output=D

--source=DIR           folder with config.json, model.safetensors (or its index), tokenizer files
--config=FILE[:ARG]    what stands around the language model: model.codec, und_encoder, patch, ...;
                       sizes of the language model are the source's
--output=DIR           new folder; train with --config.train.init_from=DIR
--vae=FILE             ae.safetensors, with model.codec="flux"
--seed=N               of the weights that are drawn (0)

Everything but the language model is drawn anew, the flow head is zero. docs/bagel.md says more.
"""

from __future__ import annotations

import jax
import numpy as np
from absl import flags

from launch import common
from process_gen.checkpoint import manager, name_map, qwen
from process_gen.core.configs import ModelConfig
from process_gen.data import qwen_tokenizer
from process_gen.data.tokenizer import BpeTokenizer
from process_gen.models.functional import build
from process_gen.models.shapes import BAGEL


def draw(model: ModelConfig, paths: frozenset[str], seed: int) -> dict[str, np.ndarray]:
    """The model's own initial weights at some paths; the others are never made."""
    init = build(model).init

    @jax.jit
    def some(key: jax.Array) -> dict[str, jax.Array]:
        flat = name_map.flatten(init(key))
        return {path: flat[path] for path in sorted(paths)}

    return {path: np.asarray(array) for path, array in some(jax.random.key(seed)).items()}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    common.define_config(values)
    flags.DEFINE_string("source", "", "Qwen2 folder", flag_values=values)
    flags.DEFINE_string("output", "", "new folder", flag_values=values)
    flags.DEFINE_string("vae", "", "the autoencoder's file", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of drawn weights", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Imports and says what came out."""
    source = manager.absolute(common.required(values, "source"))

    def tokenizer(rows: int) -> tuple[str, str]:
        text = qwen_tokenizer.from_folder(source)
        read = BpeTokenizer(text, str(source))
        qwen_tokenizer.check_ids(read, {}, rows)
        return text, read.fingerprint

    output = common.required(values, "output")
    config = qwen.import_folder(
        source,
        output,
        common.read_config(values),
        BAGEL,
        lambda model, paths: draw(model, paths, values.seed),
        tokenizer,
        values.vae or None,
    )
    model = config.model
    print(f"{output}: {model.num_layers} layers of width {model.width}, both experts from {source}")


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
