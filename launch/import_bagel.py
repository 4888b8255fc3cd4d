"""Read a BAGEL checkpoint folder into a working directory of this project.

    python -m launch.import_bagel --source=BAGEL-7B-MoT --output=runs/bagel

--source=DIR           folder with llm_config.json, vit_config.json, ema.safetensors (or
                       model.safetensors, or a sharded index of either) and ae.safetensors
--output=DIR           new folder; train with --config.train.init_from=DIR, sample with
                       --checkpoint=DIR
--weights=NAME         ema, model, or auto (the default: the averaged weights where there are any)
--tokenizer=NAME       files (the default: of the folder), or bytes for a folder without any
--json                 print one JSON object as the last line

Either folder may be remote (gs://, s3://, hf://): tensors are then fetched one by one, and the
output is made on the local disk (TMPDIR) and copied.

Tensors keep their stored type and are read one at a time: a host needs about twice the largest
stacked array of memory, 8 GB for BAGEL-7B, and as much free disk as the file takes. Pickles are
refused. docs/bagel.md describes the rest.
"""

from __future__ import annotations

import json

from absl import flags
from etils import epath

from launch import common
from process_gen.checkpoint import bagel, bagel_config, manager
from process_gen.core.errors import ConfigError
from process_gen.data import qwen_tokenizer
from process_gen.data.tokenizer import BOS, EOS, IMAGE_END, IMAGE_START, BpeTokenizer
from process_gen.models.shapes import BAGEL


def tokenizer_text(
    folder: epath.Path, kind: str, settings: bagel_config.Settings, vocab_rows: int
) -> tuple[str, str]:
    """The `tokenizer.json` of a folder, and its fingerprint.

    Its ids are compared with those that `config.json` states.

    Raises:
      DataError: the folder has no tokenizer, or its ids differ.
    """
    stated = bagel_config.stated_ids(settings)
    if kind == "bytes":
        names = {
            BOS: "bos_token_id",
            EOS: "eos_token_id",
            IMAGE_START: "start_of_image",
            IMAGE_END: "end_of_image",
        }
        ids = {name: stated[key] for name, key in names.items() if key in stated}
        text = qwen_tokenizer.bytes_json(ids, vocab_rows)
    else:
        text = qwen_tokenizer.from_folder(folder)
    tokenizer = BpeTokenizer(text, str(folder))
    qwen_tokenizer.check_ids(tokenizer, stated, vocab_rows)
    return text, tokenizer.fingerprint


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("source", "", "official folder", flag_values=values)
    flags.DEFINE_string("output", "", "new folder", flag_values=values)
    flags.DEFINE_enum("weights", "auto", ["auto", "ema", "model"], "which file", flag_values=values)
    flags.DEFINE_enum(
        "tokenizer", "files", ["files", "bytes"], "where ids come from", flag_values=values
    )
    flags.DEFINE_bool("json", False, "print one JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Imports and says what was found."""
    source = manager.absolute(common.required(values, "source"))
    output = manager.absolute(common.required(values, "output"))
    if output.is_relative_to(source):
        raise ConfigError(f"--output={output} lies inside --source; choose another place")
    folder = source if source.is_dir() else source.parent
    config, notes = bagel.import_folder(
        source,
        output,
        BAGEL,
        lambda settings, rows: tokenizer_text(folder, values.tokenizer, settings, rows),
        values.weights,
    )
    for note in notes:
        print(f"note: {note}")
    model = config.model
    print(
        f"{output}: {model.num_layers} layers of width {model.width}, {model.param_dtype}, "
        f"understanding encoder {model.und_encoder}"
    )
    if values.json:
        print(json.dumps({"output": str(output), "notes": notes, "layers": model.num_layers}))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
