"""Accuracy against the number of velocity evaluations: which settings of the sampler pay.

The prompts and the oracle are those of ``launch.evaluate --suite=strokes``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from launch.suites import check_world
from process_gen.evaluation.strokes import score
from process_gen.sampling.painter import Painter
from process_gen.sampling.studio import Usage
from process_gen.strokes import oracle
from process_gen.strokes.prompts import TAGS, held_out_requirements
from process_gen.strokes.scene import EASY

# Name of a family, and its settings from few evaluations to many.
PROCESS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "euler": [{"denoise_steps": n} for n in (2, 3, 4, 6, 10)],
    "dpm": [{"denoise_steps": n, "solver": "dpm"} for n in (3, 4, 6)],
    "adams": [{"denoise_steps": n, "solver": "adams"} for n in (3, 4, 6)],
    "heun": [{"denoise_steps": n, "solver": "heun"} for n in (2, 3)],
    "shift 0.5": [{"denoise_steps": n, "process_shift": 0.5} for n in (3, 4)],
    "shift 2": [{"denoise_steps": n, "process_shift": 2.0} for n in (3, 4)],
    "later start 0.8": [{"denoise_steps": n, "later_start": 0.8} for n in (3, 4)],
    "last picture again": [{"denoise_steps": 2, "final_steps": 6}],
    "guidance in (0.3, 1]": [{"denoise_steps": n, "guidance_interval": (0.3, 1.0)} for n in (4, 6)],
    "guidance every 2nd": [{"denoise_steps": n, "guidance_every": 2} for n in (4, 6)],
    "no guidance": [{"denoise_steps": n, "guidance": 1.0} for n in (4, 10)],
}
ONE_SHOT: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "one-shot euler": [{"one_shot_steps": n} for n in (2, 4, 8, 16, 50)],
    "one-shot dpm": [{"one_shot_steps": n, "solver": "dpm"} for n in (4, 8)],
}


def measure(painter: Painter, per_tag: int, mode: str, settings: Mapping[str, Any]) -> dict:
    """Paints the suite's prompts and scores them."""
    wanted = [r for tag in TAGS for r in held_out_requirements(tag, per_tag, 0)]
    usage, started = Usage(), time.perf_counter()
    size = (EASY.size, EASY.size)
    painted = list(painter.stream(wanted, mode=mode, size=size, usage=usage, **settings))
    seconds = time.perf_counter() - started
    report = score(painted, oracle.judge)
    exact = report["overall"]["exact"]
    pictures = sum(len(t.images) for t in painted)
    return {
        "mode": mode,
        "settings": dict(settings),
        "n": len(painted),
        "exact": exact,
        "geneval": report["overall"]["geneval"],
        "evaluations_a_painting": sum(t.sampled.nfe for t in painted if t.sampled) / len(painted),
        "pictures_a_painting": pictures / len(painted),
        "seconds": round(seconds, 2),
        "occupancy": usage.summary()["occupancy"],
    }


def measure_all(painter: Painter, per_tag: int) -> dict[str, Any]:
    """A row for each setting, with the family that it belongs to.

    Raises:
      ConfigError: the painter has learned another world only.
    """
    check_world("steps", EASY, painter.config)
    rows = []
    for mode, families in (("process", PROCESS), ("one_shot", ONE_SHOT)):
        for family, members in families.items():
            for settings in members:
                row = {"family": family, **measure(painter, per_tag, mode, settings)}
                rate = row["exact"]
                print(f"{family:<22} {settings} {rate['rate']:.3f}", flush=True)
                rows.append(row)
    return {"per_tag": per_tag, "rows": rows}
