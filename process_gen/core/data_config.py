"""Settings of the data: what a trajectory shows, the mixture, and the shape of a pack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from process_gen.core.checks import check, fraction, positive


@dataclasses.dataclass(frozen=True)
class GrammarConfig:
    """What a trajectory shows the model, and what it is trained on (docs/grammar.md).

    Attributes:
      context_images: copies of a painted picture that later tokens see.
      rejected_context: what remains of a sketch whose inspection found a fault, once the inspection
        is over: "keep" every copy, the understanding copy only, or "drop" it.
      supervise_rejected: whether a rejected sketch is a flow target too.
      noise_copies: noised copies of each target picture in one pack, each with its own t.
      text_dropout: probability that a noised copy is trained without its plan (it takes the order
        slot before the plan), for text guidance.
      prompt_dropout: probability that it is trained without any context.
      vae_dropout, vit_dropout: probability that a clean latent copy, or an understanding copy, of a
        picture is seen by its own inspection at most, and by nothing that comes later.
      deletion_dropout: whether text_dropout, vae_dropout and vit_dropout delete whole items from
        the sequence instead, as BAGEL's trainer does: any text, also one that carries a loss, and
        any clean or understanding copy. Process data should have text_dropout=0 with it.
    """

    context_images: Literal["vae+vit", "vit", "vae"] = "vae+vit"
    rejected_context: Literal["keep", "vit_only", "drop"] = "keep"
    supervise_rejected: bool = False
    noise_copies: int = 1
    text_dropout: float = 0.1
    prompt_dropout: float = 0.0
    vae_dropout: float = 0.0
    vit_dropout: float = 0.0
    deletion_dropout: bool = False

    def __post_init__(self) -> None:
        """Checks ranges."""
        positive("data.grammar", noise_copies=self.noise_copies)
        fraction(
            "data.grammar",
            text_dropout=self.text_dropout,
            prompt_dropout=self.prompt_dropout,
            vae_dropout=self.vae_dropout,
            vit_dropout=self.vit_dropout,
        )
        check(
            self.text_dropout + self.prompt_dropout <= 1.0,
            "data.grammar: text_dropout + prompt_dropout exceed 1",
        )
        check(
            self.rejected_context != "vit_only" or "vit" in self.context_images,
            "data.grammar.rejected_context='vit_only' needs 'vit' in data.grammar.context_images",
        )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture.

    Attributes:
      kind: name of a function in `data.sources`.
      weight: relative share of trajectories.
      size: trajectories an epoch, for sources that are generated.
      path: folder, for sources that are read.
      augment: random changes of its trajectories while training, by name ("flip", "rephrase"; see
        `data.augment`).
      options: settings of the source itself.
    """

    kind: str
    weight: float = 1.0
    size: int = 10_000
    path: str = ""
    augment: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks ranges."""
        positive("data.sources", weight=self.weight, size=self.size)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The mixture, the pack shape, and what a trajectory shows.

    Attributes:
      tokenizer: path of a `tokenizer.json`, or the name of a committed one ("strokes_hard"); empty
        for that of the easy Strokes world.
      sources, eval_sources: mixtures for training and for the fixed held-out split.
      image_size: long side in pixels that all pictures are resized to, their aspect kept. With 0
        the reference's rule decides where model.codec="flux", and pixels are left as they are.
      stored_latents: whether the autoencoder's work was done ahead by `launch.encode_latents`, for
        every source. Then the run does not need it.
      text_len, und_len, gen_len: T, V and G of a pack.
      rows: packs in a global batch.
      eval_rows: packs of the held-out split, all evaluated each time.
      seed: of the mixture, the order and the per-copy dropout.
      window: trajectories planned together; a longer window packs tighter.
      prefetch: batches prepared ahead.
      workers: processes that prepare them; 0 leaves it to threads of this one. The batches are the
        same for any number.
      timeout: seconds that reading one record may take, before the run ends and names it; 0 waits
        forever.
      strict: whether a record that cannot be used is an error; else it is left out and counted.
    """

    tokenizer: str = ""
    sources: tuple[SourceConfig, ...] = (SourceConfig("strokes"),)
    eval_sources: tuple[SourceConfig, ...] = ()
    grammar: GrammarConfig = GrammarConfig()
    image_size: int = 0
    stored_latents: bool = False
    text_len: int = 448
    und_len: int = 112
    gen_len: int = 224
    rows: int = 8
    eval_rows: int = 8
    seed: int = 0
    window: int = 2048
    prefetch: int = 4
    workers: int = 0
    timeout: float = 300.0
    strict: bool = False

    def __post_init__(self) -> None:
        """Checks sizes."""
        positive("data", text_len=self.text_len, rows=self.rows, window=self.window)
        check(
            self.und_len >= 0 and self.gen_len >= 0,
            "data.und_len and data.gen_len must be >= 0",
        )
        for name in ("image_size", "eval_rows", "seed", "prefetch", "workers"):
            value = getattr(self, name)
            check(value >= 0, f"data.{name} must be >= 0, got {value}")
        check(self.timeout >= 0, f"data.timeout must be >= 0, got {self.timeout}")
        check(len(self.sources) > 0, "data.sources is empty")
