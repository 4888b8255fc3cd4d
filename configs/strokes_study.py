"""The arms of the study: `strokes_tiny` with one thing changed at a time, at equal training FLOPs.

    python -m launch.sweep --sweep=configs/sweeps/study.py --workdir=runs/study --record=docs/study
    python -m launch.train --config=configs/strokes_study.py:one_shot --workdir=runs/one_shot
    python -m launch.train --config=configs/strokes_study.py:process,world=hard --workdir=runs/hard

The argument names the arm, a function below. After commas: `world=hard`, the arm on the hard world,
with the recipe of `strokes_hard`; `own=DIR`, the folder of self-sampled critiques that
`self_critique` trains on. docs/study/README.md says how the study goes on.

Hardware: one CPU core. An arm takes about 20 minutes of it, about an hour with the full budget;
results stand in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import strokes_hard, strokes_tiny

SMALL, FULL = 2e13, 6e13  # training FLOPs; about 1,290 and 3,870 steps of `process`

# Chances of a fault: of a painting, and of one that only its critique is learnt from. An arm with
# one kind of fault has as many of it as the arm with both has of either.
BOTH = ({"conflict": 0.12, "misalignment": 0.15}, {"conflict": 0.3, "misalignment": 0.45})
CONFLICT = ({"conflict": 0.27, "misalignment": 0.0}, {"conflict": 0.75, "misalignment": 0.0})
ALIGNMENT = ({"conflict": 0.0, "misalignment": 0.27}, {"conflict": 0.0, "misalignment": 0.75})
NEITHER = ({"conflict": 0.0, "misalignment": 0.0}, {"conflict": 0.0, "misalignment": 0.0})

RECIPES = {"easy": strokes_tiny, "hard": strokes_hard}
# T, V and G of a pack of eight pictures, by the latent tokens of a side.
ONE_SHOT_PACK = {4: (96, 0, 256), 6: (120, 0, 576)}


def _mix(
    config: ConfigDict,
    faults: tuple[Mapping[str, float], Mapping[str, float]] = BOTH,
    *,
    one_shot: float = 0.0,
    plans: float = 0.14,
    own: str = "",
    **options: Any,
) -> None:
    """Paintings, plans and critiques in the shares of the recipe, without its one-shot pictures."""
    painted, judged = ({**chances, **options} for chances in faults)
    critiques = {"kind": "strokes_critique", "size": 2_800, "options": judged}
    if own:
        critiques = {"kind": "folder", "path": own}
    sources = [
        ({"kind": "strokes", "size": 12_000, "options": painted}, 0.6),
        ({"kind": "strokes_one_shot", "size": 2_400, "options": options}, one_shot),
        ({"kind": "strokes_plans", "size": 2_800, "options": options}, plans),
        (critiques, 0.14),
    ]
    config.data.sources = tuple({**source, "weight": w} for source, w in sources if w)
    held_out = {"kind": "strokes", "size": 800, "options": {"prompts": "held_out", **options}}
    config.data.eval_sources = (held_out,)


def process(config: ConfigDict) -> None:
    """Everything: several steps, all edits, both kinds of fault."""
    _mix(config)


def one_shot(config: ConfigDict) -> None:
    """The same final pictures, painted at once."""
    config.data.sources = ({"kind": "strokes_one_shot", "size": 20_000},)
    held_out = {"kind": "strokes_one_shot", "size": 800, "options": {"prompts": "held_out"}}
    config.data.eval_sources = (held_out,)
    pack = ONE_SHOT_PACK[config.model.latent_grid]
    config.data.text_len, config.data.und_len, config.data.gen_len = pack


def joint(config: ConfigDict) -> None:
    """`process` with the recipe's share of one-shot pictures."""
    _mix(config, one_shot=0.12)


def multi_turn(config: ConfigDict) -> None:
    """Several steps, but no faults: what is inspected is always right."""
    _mix(config, NEITHER)


def conflict(config: ConfigDict) -> None:
    """With plans that contradict the prompt."""
    _mix(config, CONFLICT)


def alignment(config: ConfigDict) -> None:
    """With drawings that differ from their plan."""
    _mix(config, ALIGNMENT)


def add_only(config: ConfigDict) -> None:
    """No placeholders, changes, removals and swaps."""
    _mix(config, diversify=0.0)


def verdict(config: ConfigDict) -> None:
    """Inspections give a bare verdict, without first saying what is seen."""
    _mix(config, inspection="verdict")


def no_plans(config: ConfigDict) -> None:
    """No trajectories of plans alone."""
    _mix(config, plans=0.0)


def supervise_rejected(config: ConfigDict) -> None:
    """Faulty sketches are painting targets too."""
    _mix(config)
    config.data.grammar.supervise_rejected = True
    config.data.gen_len = 160


def _both_copies(config: ConfigDict, rejected: str) -> None:
    _mix(config)
    config.data.grammar.context_images = "vae+vit"
    config.data.grammar.rejected_context = rejected
    config.data.text_len, config.data.gen_len = 256, 192


def rejected_keep(config: ConfigDict) -> None:
    """Later steps see the latents of earlier pictures too, those of rejected ones included."""
    _both_copies(config, "keep")


def rejected_vit_only(config: ConfigDict) -> None:
    """As `rejected_keep`, but of a rejected picture only the understanding copy stays."""
    _both_copies(config, "vit_only")


def rejected_drop(config: ConfigDict) -> None:
    """As `rejected_keep`, but of a rejected picture nothing stays."""
    _both_copies(config, "drop")


def copies_1(config: ConfigDict) -> None:
    """Each picture is noised once a pack."""
    _mix(config)
    config.data.grammar.noise_copies = 1
    config.data.gen_len = 64


def copies_4(config: ConfigDict) -> None:
    """Each picture is noised four times a pack; `process` does it twice."""
    _mix(config)
    config.data.grammar.noise_copies = 4
    config.data.gen_len = 256


def self_critique(config: ConfigDict, own: str = "own") -> None:
    """Critiques of the painter's own sketches instead of rendered ones."""
    _mix(config, own=own)


ARMS: dict[str, Callable[..., None]] = {
    arm.__name__: arm
    for arm in (
        process, one_shot, joint, multi_turn, conflict, alignment, add_only, verdict, no_plans,
        supervise_rejected, rejected_keep, rejected_vit_only, rejected_drop, copies_1, copies_4,
        self_critique,
    )
}  # fmt: skip
# Their packs, or what they read, are those of the easy world.
EASY_ONLY = (
    supervise_rejected, rejected_keep, rejected_vit_only, rejected_drop, copies_1, copies_4,
    self_critique,
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    name, *rest = (arg or "process").split(",")
    if name not in ARMS:
        raise ValueError(f"unknown arm {name!r}; known: {', '.join(ARMS)}")
    options = dict(word.split("=", 1) for word in rest)
    world = options.pop("world", "easy")
    if world not in RECIPES:
        raise ValueError(f"unknown world {world!r}; known: {', '.join(RECIPES)}")
    if world != "easy" and ARMS[name] in EASY_ONLY:
        raise ValueError(f"arm {name!r} is of the easy world only")
    config = RECIPES[world].get_config()
    config.data.window = 4096
    ARMS[name](config, **options)
    if world == "hard":
        strokes_hard.set_world(config)
    config.train.minutes = 0.0
    config.train.flops = SMALL
    config.train.eval_every = 500
    config.train.save_every = 100
    config.train.keep = 1
    config.optimizer.ema_decay = 0.995
    return config
