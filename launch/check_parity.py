"""Compare every module, loss, gradient and sampler with stored arrays of the reference BAGEL.

    python -m launch.check_parity --fixtures=tests/parity/fixtures --json

--fixtures=DIR   folder with checkpoint/ and one .npz file a case
--cases=A,B      only these cases (all)
--attention=NAME dense (the default), chunked, rows, native, auto, pallas or triton (kernels; on a
                 CPU interpreted, and slow)
--chunk=N        tokens of a chunk of chunked attention; 16, so that short sequences have several;
                 rows has blocks of its own
--layers=NAME    scan (the default) or unroll
--json           print one JSON object as the last line

An error is the largest difference over the array's largest absolute value. Allowed are 5e-5, 1e-3
for gradients, 1 for uint8 pictures; integers, masks and strings must be equal. The exit status is 0
only if every array holds and none is missing or unknown; it is 1 otherwise. Runs in float32.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

from absl import flags

from launch import common
from process_gen.core.errors import ConfigError
from process_gen.evaluation import parity, parity_inference, parity_training
from process_gen.kernels.interval_attention import IMPLEMENTATIONS

CASES: dict[str, parity.Case] = {
    "a_text": parity_training.training,
    "b_t2i_train": parity_training.training,
    "c_interleaved_train": parity_training.training,
    "c2_packed_train": parity_training.training,
    "d_vit": parity_training.vit,
    "e_vae": parity_training.vae,
    "f_t2i_infer": parity_inference.inference,
    "g_edit_infer": parity_inference.inference,
    "g2_mixed_infer": parity_inference.inference,
    "h_grads": parity_training.gradients,
    "h_grads_packed": parity_training.gradients,
    "h_grads_freeze_und": parity_training.gradients,
}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("fixtures", "", "folder of fixtures", flag_values=values)
    flags.DEFINE_list("cases", [], "only these cases", flag_values=values)
    implementations = sorted(IMPLEMENTATIONS)
    flags.DEFINE_enum("attention", "dense", implementations, "implementation", flag_values=values)
    flags.DEFINE_integer("chunk", 16, "tokens of a chunk", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("layers", "scan", ["scan", "unroll"], "how layers run", flag_values=values)
    flags.DEFINE_bool("json", False, "print one JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Checks, prints a line a case, and exits with 1 if anything differs."""
    folder = Path(common.required(values, "fixtures"))
    unknown = sorted(set(values.cases) - set(CASES))
    if unknown:
        raise ConfigError(f"--cases: unknown {', '.join(unknown)}; known: {', '.join(CASES)}")
    common.enable_compilation_cache()
    cases = {name: CASES[name] for name in values.cases or CASES}
    how = {"attention": values.attention, "layers": values.layers}
    with parity.chunks_of(values.chunk):
        rows = parity.check_folder(folder, cases, only=bool(values.cases), **how)
    for name in dict.fromkeys(row.case for row in rows):
        mine = [row for row in rows if row.case == name]
        bad = [row for row in mine if row.state != "ok"]
        floats = [r.error for r in mine if r.error is not None and 0 < (r.limit or 0) < 1]
        worst = f"largest error {max(floats):.1e}" if floats else ""
        print(f"{name:22} {len(mine) - len(bad):4} of {len(mine):4} arrays hold  {worst}")
        for row in bad:
            print(f"    {row.state}: {row.array}  error {row.error}, allowed {row.limit}")
    ok = all(row.state == "ok" for row in rows) and bool(rows)
    if values.json:
        print(json.dumps({"ok": ok, **how, "arrays": [_plain(row) for row in rows]}))
    sys.exit(0 if ok else 1)


def _plain(row: parity.Row) -> dict[str, object]:
    values = dataclasses.asdict(row)
    if row.error is not None and not math.isfinite(row.error):
        values["error"] = None
    return values


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
