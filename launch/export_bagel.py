"""Write a checkpoint in the official BAGEL layout.

    python -m launch.export_bagel --checkpoint=runs/paint --output=BAGEL-paint

--checkpoint=DIR   an imported folder, a run's working directory, or one checkpoints/STEP of it
--output=DIR       new folder: ema.safetensors, ae.safetensors, JSON and tokenizer files
--origin=DIR       the imported folder that the run started from (the run's train.init_from)
--weights=NAME     ema (the default: averaged weights where there are any) or params
--dtype=NAME       stored (the default), bfloat16 or float32
--json             print one JSON object as the last line

Import followed by export gives every tensor back bit for bit. A run keeps its averaged weights in
float32; --dtype=bfloat16 halves the file, and is what the released one has.
"""

from __future__ import annotations

import json

from absl import flags

from launch import common
from process_gen.checkpoint import bagel


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("checkpoint", "", "what to export", flag_values=values)
    flags.DEFINE_string("output", "", "new folder", flag_values=values)
    flags.DEFINE_string("origin", "", "imported folder", flag_values=values)
    flags.DEFINE_enum("weights", "ema", ["ema", "params"], "which weights", flag_values=values)
    flags.DEFINE_enum(
        "dtype", "stored", ["stored", "bfloat16", "float32"], "of tensors", flag_values=values
    )
    flags.DEFINE_bool("json", False, "print one JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Exports and says how much."""
    output = common.required(values, "output")
    count = bagel.export_folder(
        common.required(values, "checkpoint"),
        output,
        origin=values.origin or None,
        weights=values.weights,
        dtype=values.dtype,
    )
    print(f"{output}: {count} tensors in ema.safetensors")
    if values.json:
        print(json.dumps({"output": output, "tensors": count}))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
