"""The study: does painting in steps pay, and what does each kind of supervision bring?

    python -m launch.sweep --sweep=configs/sweeps/study.py --workdir=runs/study --record=docs/study

Arms are those of configs/strokes_study.py, trained with equal FLOPs. The order is that of their
worth, in the easy world and then in the hard one (`hard_...`); an arm with a result in docs/study
is skipped, and an interrupted one goes on.
"""

from __future__ import annotations

from configs.strokes_study import FULL
from launch.trials import Trial

CONFIG = "configs/strokes_study.py"
PROBES = 40  # a tag, faulty ones; twice as many right ones
OWN = "configs/data/strokes_own_sketches.py"
_SEEDS = ((0, ""), (1, ", seed 1"))  # those of the full budget, and how a trial speaks of them


def _train(arm: str, seed: int = 0, *more: str) -> tuple[str, ...]:
    return (
        "launch.train",
        f"--config={CONFIG}:{arm}",
        "--workdir={here}/run",
        f"--config.train.seed={seed}",
        f"--config.data.seed={seed}",
        *more,
    )


def _evaluate(suite: str, out: str, *more: str, checkpoint: str = "{here}/run") -> tuple[str, ...]:
    where = (f"--checkpoint={checkpoint}", f"--suite={suite}", f"--out={{here}}/{out}")
    return ("launch.evaluate", *where, "--overwrite", "--set=batch=32", *more)


def painter(
    name: str,
    arm: str,
    about: str,
    *more: str,
    seed: int = 0,
    needs: tuple[str, ...] = (),
    both_modes: bool = False,
    world: str = "",
) -> Trial:
    """Trains an arm that paints in steps, and scores its paintings and its inspections."""
    commands = [
        _train(arm, seed, *more),
        _evaluate(f"strokes{world}", "process"),
        _evaluate(f"inspection{world}", "inspection", f"--num_per_tag={PROBES}"),
    ]
    also = ["inspection/scores.json", "run/flops.json"]
    if both_modes:
        commands.append(_evaluate(f"strokes{world}", "one_shot", "--one_shot"))
        also.append("one_shot/scores.json")
    scores = "process/scores.json"
    return Trial(name, tuple(commands), needs, scores, tuple(also), about)


def control(
    name: str, about: str, *more: str, seed: int = 0, arm: str = "one_shot", world: str = ""
) -> Trial:
    """Trains the one-shot control, and scores it as the recipe does, without guidance."""
    commands = (
        _train(arm, seed, *more),
        _evaluate(f"strokes{world}", "one_shot", "--one_shot"),
    )
    return Trial(name, commands, (), "one_shot/scores.json", ("run/flops.json",), about)


def resampled(name: str, of: str, about: str, *more: str, suite: str = "strokes") -> Trial:
    """Scores a trained arm with other settings of the sampler."""
    command = _evaluate(suite, "eval", *more, checkpoint=f"{{{of}}}/run")
    return Trial(name, (command,), (of,), "eval/scores.json", (), about)


def chosen(name: str, about: str, *more: str, inspector: str = "process_s0") -> Trial:
    """The control's paintings, several a prompt, and those of them that an inspector chose.

    Args:
      name, about: of the trial.
      *more: settings of the sampler, `--num` among them.
      inspector: a trial; empty for the painter that comes along.
    """
    where = f"--inspector={{{inspector}}}/run" if inspector else "--inspector="
    command = _evaluate(
        "strokes", "eval", "--one_shot", where, *more, checkpoint="{one_shot_s0}/run"
    )
    needs = ("one_shot_s0", inspector) if inspector else ("one_shot_s0",)
    return Trial(name, (command,), needs, "eval/scores.json", (), about)


def shipped(name: str, about: str, *more: str, suite: str = "strokes") -> Trial:
    """Scores the painter that comes along, with other settings of the sampler."""
    where = (f"--suite={suite}", "--out={here}/eval", "--overwrite", "--set=batch=32")
    command = ("launch.evaluate", *where, *more)
    return Trial(name, (command,), (), "eval/scores.json", (), about)


def get_sweep() -> list[Trial]:
    """All arms, the most valuable first."""
    full = (f"--config.train.flops={FULL}", "--config.optimizer.ema_decay=0.997")
    trials = [
        shipped(
            f"painter_one_shot_guidance_{scale}",
            f"shipped painter, one-shot, guidance {scale}",
            "--one_shot",
            f"--set=one_shot_guidance={scale}",
        )
        for scale in (1, 2, 5)
    ]
    trials += [
        shipped(
            f"painter_denoise_{steps}",
            f"shipped painter, {steps} denoising steps a picture",
            f"--set=denoise_steps={steps}",
        )
        for steps in (4, 8, 16, 32)
    ]
    trials += [
        shipped(
            f"painter_guidance_{scale}",
            f"shipped painter, in steps, guidance {scale}",
            f"--set=guidance={scale}",
        )
        for scale in (1, 2, 3)
    ]
    trials += [
        painter("process_s0", "process", "everything"),
        control("one_shot_s0", "one-shot, no guidance"),
    ]
    trials += [
        resampled(
            f"one_shot_s0_guidance_{scale}",
            "one_shot_s0",
            f"one-shot, guidance {scale}",
            "--one_shot",
            f"--set=one_shot_guidance={scale}",
        )
        for scale in (2, 3, 5)
    ]
    trials += [
        painter("multi_turn_s0", "multi_turn", "no critiques"),
        painter("conflict_s0", "conflict", "conflicts only"),
        painter("alignment_s0", "alignment", "misalignments only"),
        painter("process_s1", "process", "everything, seed 1", seed=1),
        control("one_shot_s1", "one-shot, no guidance, seed 1", seed=1),
    ]
    trials += [
        resampled(
            f"one_shot_s1_guidance_{scale}",
            "one_shot_s1",
            f"one-shot, seed 1, guidance {scale}",
            "--one_shot",
            f"--set=one_shot_guidance={scale}",
        )
        for scale in (2, 3)
    ]
    trials += [
        resampled(
            f"process_s0_denoise_{steps}",
            "process_s0",
            f"{steps} denoising steps a picture",
            f"--set=denoise_steps={steps}",
        )
        for steps in (4, 8, 16, 32)
    ]
    trials += [
        resampled(
            f"process_s0_guidance_{scale}",
            "process_s0",
            f"in steps, guidance {scale}",
            f"--set=guidance={scale}",
        )
        for scale in (1, 2, 3)
    ]
    trials += [
        painter("joint_s0", "joint", "with one-shot pictures", both_modes=True),
        painter("add_only_s0", "add_only", "objects are only added"),
        painter("verdict_s0", "verdict", "bare verdicts"),
        painter("no_plans_s0", "no_plans", "no text-only planning"),
        painter("supervise_rejected_s0", "supervise_rejected", "faulty sketches are targets"),
        painter("rejected_keep_s0", "rejected_keep", "latents seen, rejected kept"),
        painter("rejected_vit_only_s0", "rejected_vit_only", "latents of rejected hidden"),
        painter("rejected_drop_s0", "rejected_drop", "rejected hidden"),
        painter("copies_1_s0", "copies_1", "noised once"),
        painter("copies_4_s0", "copies_4", "noised four times"),
    ]
    # Half of the budget, then the other half with critiques of either kind.
    half = ("--config.train.flops=1e13",)
    start = (*half, "--config.train.init_from={half_s0}/run", "--config.optimizer.ema_warmup=False")
    trials += [
        Trial("half_s0", (_train("process", 0, *half),), about="half of the budget"),
        Trial(
            "own_s0",
            (("launch.make_data", f"--config={OWN}:{{half_s0}}/run", "--out={here}/data"),),
            needs=("half_s0",),
            about="its own sketches, judged",
        ),
        painter(
            "critique_rendered_s0",
            "process",
            "second half: rendered critiques",
            *start,
            seed=1,
            needs=("half_s0",),
        ),
        painter(
            "critique_self_s0",
            "self_critique,own={own_s0}/data",
            "second half: self-sampled critiques",
            *start,
            seed=1,
            needs=("half_s0", "own_s0"),
        ),
    ]
    trials += [
        trial
        for seed, of in _SEEDS
        for trial in (
            painter(f"process_full_s{seed}", "process", f"full budget{of}", *full, seed=seed),
            control(f"one_shot_full_s{seed}", f"one-shot, full budget{of}", *full, seed=seed),
        )
    ]
    trials += [
        resampled(
            f"one_shot_full_s{seed}_guidance_{scale}",
            f"one_shot_full_s{seed}",
            f"one-shot, full budget{of}, guidance {scale}",
            "--one_shot",
            f"--set=one_shot_guidance={scale}",
        )
        for seed, of in _SEEDS
        for scale in (2, 3, 5)
    ]
    # Steps after its own and after true ones; the best of several, by the oracle and inspected.
    trials += [
        shipped("painter_context", "shipped painter, own and true context", suite="context"),
        resampled("process_s0_context", "process_s0", "own and true context", suite="context"),
        resampled(
            "one_shot_s0_best_of_4", "one_shot_s0", "one-shot, best of 4", "--one_shot", "--num=4"
        ),
    ]
    trials += [
        chosen("one_shot_s0_chosen_of_4", "best of 4, chosen by process_s0", "--num=4"),
        chosen(
            "one_shot_s0_chosen_of_4_guidance_2",
            "best of 4 with guidance 2, chosen by process_s0",
            "--num=4",
            "--set=one_shot_guidance=2",
        ),
        chosen(
            "one_shot_s0_chosen_of_2_equal_nfe",
            "best of 2 in 4 steps with guidance 2, chosen by process_s0",
            "--num=2",
            "--set=one_shot_guidance=2",
            "--set=one_shot_steps=4",
        ),
        chosen(
            "one_shot_s0_chosen_of_4_by_shipped",
            "best of 4, chosen by the shipped painter",
            "--num=4",
            inspector="",
        ),
    ]
    return trials + _hard(full)


def _hard(full: tuple[str, ...]) -> list[Trial]:
    """The main pair and the 2 x 2 in the hard world; `full` sets the full budget."""
    arm, world = "{},world=hard".format, "_hard"
    # 2e13 FLOPs are not enough to learn to draw this world (5.6 % exact); the rest has 6e13.
    trials = [painter("hard_process_s0", arm("process"), "hard world: everything", world=world)]
    trials += [
        trial
        for seed, of in _SEEDS
        for trial in (
            painter(
                f"hard_process_full_s{seed}",
                arm("process"),
                f"hard world: full budget{of}",
                *full,
                seed=seed,
                world=world,
            ),
            control(
                f"hard_one_shot_full_s{seed}",
                f"hard world: one-shot, full budget{of}",
                *full,
                seed=seed,
                arm=arm("one_shot"),
                world=world,
            ),
        )
    ]
    trials += [
        painter(
            f"hard_{name}_full_s0",
            arm(name),
            f"hard world: full budget, {about}",
            *full,
            world=world,
        )
        for name, about in (
            ("multi_turn", "no critiques"),
            ("conflict", "conflicts only"),
            ("alignment", "misalignments only"),
        )
    ]
    trials += [
        resampled(
            f"hard_one_shot_full_s{seed}_guidance_{scale}",
            f"hard_one_shot_full_s{seed}",
            f"hard world: one-shot, full budget{of}, guidance {scale}",
            "--one_shot",
            f"--set=one_shot_guidance={scale}",
            suite="strokes_hard",
        )
        for seed, of in _SEEDS
        for scale in (2, 3, 5)
    ]
    trials += [
        resampled(
            "hard_process_full_s1_guidance_1",
            "hard_process_full_s1",
            "hard world: full budget, seed 1, in steps, no guidance",
            "--set=guidance=1",
            suite="strokes_hard",
        )
    ]
    return trials
