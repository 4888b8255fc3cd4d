"""Painting prompts with a checkpoint.

A painting depends on the weights, the settings, the seed, the prompt's index and the sample's
number only, never on its batch mates.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from process_gen.checkpoint import bagel, manager, shipped
from process_gen.core import trees
from process_gen.core.configs import Config, SamplerConfig
from process_gen.core.errors import CheckpointError, ConfigError, DataError
from process_gen.core.grammar import Kind, context_kinds
from process_gen.core.trajectory import MODES, Image, Trajectory
from process_gen.data.images import painted_copy
from process_gen.data.tokenizer import Tokenizer, load_tokenizer, token_ids
from process_gen.kernels.native_library import available
from process_gen.models import functional, image_codecs
from process_gen.models.shapes import BAGEL
from process_gen.sampling import interleaved
from process_gen.sampling.cache import Weights
from process_gen.sampling.contexts import ContextPrograms
from process_gen.sampling.painting import Given, Request, given_parts
from process_gen.sampling.programs import Programs
from process_gen.sampling.studio import Studio, Usage

# Settings that the host reads; the compiled pieces are handed them, or never hear of them.
_OF_A_CALL = (
    "denoise_steps",
    "one_shot_steps",
    "final_steps",
    "later_start",
    "timestep_shift",
    "process_shift",
    "guidance",
    "one_shot_guidance",
    "max_images",
    "max_prompt",
)

# What can be asked for.
Prompt = str | Mapping[str, Any] | Trajectory


class Painter:
    """Weights and settings, ready to paint.

    Attributes:
      config: of the run that made the weights.
      weights: of the model, as `arranged` lays them out, and of its codec.
      meta: what the checkpoint says of itself.
    """

    def __init__(
        self,
        config: Config,
        params: Any,
        *,
        vae: Any = None,
        tokenizer: Tokenizer | None = None,
        meta: Mapping[str, Any] | None = None,
    ):
        """Takes weights as `models.functional` gives them, and as `models.vae` does for its codec.

        Without weights (None) it paints once `with_params` has given it some.

        Raises:
          CheckpointError: the codec's weights are missing.
        """
        if config.model.codec == "flux" and vae is None:
            raise CheckpointError("model.codec='flux' needs the autoencoder's weights")
        self.config = config
        self.meta = dict(meta or {})
        self.weights = Weights(arranged(config, params), vae)
        self._fns = functional.build(config.model)
        self._codec = image_codecs.build(config.model)
        self._tokenizer = tokenizer or load_tokenizer(config.data.tokenizer)
        self._programs: dict[tuple, Programs] = {}

    def with_params(self, params: Any) -> Painter:
        """The same painter with other weights of the model; both share what is compiled."""
        other = copy.copy(self)
        other.weights = Weights(arranged(self.config, params), self.weights.vae)
        vars(other).pop("fingerprint", None)
        return other

    def paint(
        self,
        prompts: Sequence[Prompt],
        *,
        mode: str = "process",
        seed: int = 0,
        num: int = 1,
        size: tuple[int, int] | None = None,
        images: Sequence[Image] = (),
        **settings: Any,
    ) -> list[Trajectory]:
        """Paints every prompt `num` times.

        Args:
          prompts: words, or mappings with a "prompt" (the rest is handed through as metadata), or,
            in mode "process", trajectories to go on with: their steps are read as if the model had
            made them, and the last one may end after any of its parts.
          mode: "process"; "one_shot" for the bare prompt and one picture; and with a BAGEL
            checkpoint "think", "edit" and "understand" (docs/sampling.md).
          seed: the same seed gives the same pictures.
          num: paintings a prompt.
          size: height and width in pixels; by default that of the pictures the run was trained
            on, or the largest square that the model knows, or that of the last given picture.
          images: pictures given with every prompt, before its words, ``uint8[H, W, 3]``; "edit"
            and "understand" need some, "think" takes them.
          **settings: of `SamplerConfig`, instead of the run's own.

        Returns:
          ``len(prompts) * num`` trajectories, prompt-major. Malformed output closes a painting with
          its `finish_reason`; a prompt that cannot be read is "refused".

        Raises:
          ConfigError: an unknown mode or setting, a size that does not divide into patches, a mode
            that the checkpoint does not serve, pictures too many or too few for the mode.
          DataError: a mapping without a prompt.
        """
        done = self.stream(
            prompts, mode=mode, seed=seed, num=num, size=size, images=images, **settings
        )
        return sorted(done, key=lambda t: (t.sampled.index, t.sampled.sample))  # type: ignore

    def stream(
        self,
        prompts: Iterable[Prompt],
        *,
        mode: str = "process",
        seed: int = 0,
        num: int = 1,
        size: tuple[int, int] | None = None,
        images: Sequence[Image] = (),
        stop: Callable[[], bool] | None = None,
        unfinished: bool = False,
        skip: Container[tuple[int, int]] = (),
        usage: Usage | None = None,
        **settings: Any,
    ) -> Iterator[Trajectory]:
        """Yields paintings as they are finished, in no particular order; see `paint`.

        `stop` is asked between calls to the device; once it answers True, what is under way is
        closed as "stopped" and nothing new is begun. With `unfinished`, a painting comes after each
        of its parts too, its `finish_reason` still None; modes process and one_shot only. Paintings
        in `skip`, (index, sample), are left out; the others are what they would be with them.
        `usage` is told how full the calls to the device were, in these two modes too.
        """
        check_mode(self.config, mode, len(images))
        if num < 1:
            raise ConfigError(f"num must be at least 1, got {num}")
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed must lie in [0, 2**32), got {seed}")
        sampler = interleaved.sampler_settings(self.config.sampler, mode, bool(images), settings)
        picture_size = size or self._default_size()
        requests = (
            Request(*read_prompt(prompt), index, sample, self._given(prompt, mode, picture_size))
            for index, prompt in enumerate(prompts)
            for sample in range(num)
            if (index, sample) not in skip
        )
        stop = stop or (lambda: False)
        if mode in interleaved.MODES:
            if size is not None or not images:
                size = picture_size
                self._check_size(size)
            return interleaved.Interleaver(
                self._contexts,
                self.weights,
                self._tokenizer,
                sampler,
                mode,
                seed,
                requests,
                stop,
                images,
                size,
            ).run()
        return Studio(
            self._bound(sampler, picture_size),
            sampler,
            self.weights,
            self._tokenizer,
            mode,
            seed,
            requests,
            stop,
            unfinished,
            usage,
        ).run()

    def _given(self, prompt: Prompt, mode: str, size: tuple[int, int]) -> tuple[Given, ...]:
        if not isinstance(prompt, Trajectory) or not prompt.steps:
            return ()
        if mode != "process":
            raise ConfigError(f"mode {mode!r} cannot go on with a painting; process does")
        for image in prompt.images:
            if image.shape[:2] != size:
                raise ConfigError(
                    f"cannot go on with a painting of {image.shape[0]}x{image.shape[1]} px at "
                    f"{size[0]}x{size[1]} px"
                )
        return given_parts(prompt)

    def _default_size(self) -> tuple[int, int]:
        side = self.config.data.image_size
        side = side or self.config.model.latent_grid * self._codec.side
        return side, side

    @functools.cached_property
    def _contexts(self) -> ContextPrograms:
        ids = token_ids(self._tokenizer)
        return ContextPrograms(self._fns, self.config, ids, self._tokenizer.vocab_size)

    def _check_size(self, size: tuple[int, int], und: bool = False) -> None:
        model = self.config.model
        cuts = [(self._codec.side, model.latent_grid)]
        if und:
            cuts.append((model.und_patch, model.und_grid))
        for side, grid in cuts:
            for pixels in size:
                if pixels % side or not 0 < pixels // side <= grid:
                    raise ConfigError(
                        f"a picture of {size[0]}x{size[1]} px does not divide into 1 to {grid} "
                        f"patches of {side} px a side"
                    )

    def _bound(self, sampler: SamplerConfig, size: tuple[int, int]) -> Programs:
        model = self.config.model
        und = Kind.UND in context_kinds(self.config.data.grammar)
        self._check_size(size, und and painted_copy(model) is None)
        # What differs in these only needs no compiling of its own.
        same = {name: getattr(SamplerConfig, name) for name in _OF_A_CALL}
        sampler = dataclasses.replace(sampler, **same)
        key = (sampler, size)
        if key not in self._programs:
            self._programs[key] = Programs(
                fns=self._fns,
                config=self.config,
                ids=token_ids(self._tokenizer),
                vocab_size=self._tokenizer.vocab_size,
                sampler=sampler,
                size=size,
            )
        return self._programs[key]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self._tokenizer

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name the weights, `trees.fingerprint`; read from the device once."""
        model = functional.together(self.weights.model)
        return trees.fingerprint({"model": model, "vae": self.weights.vae})


def arranged(config: Config, params: Any, *, spend: bool = False) -> Any:
    """The weights as painting wants them: inlined layers apart, and in strips on a single CPU."""
    if params is None or config.model.layers != "unroll":
        return params
    params = functional.apart(params, spend=spend)
    if config.model.dtype != "float32" or not (_on_one_cpu(params) and available()):
        return params
    return functional.in_strips(params, spend=spend)


def _on_one_cpu(params: Any) -> bool:
    arrays = (x for x in jax.tree.leaves(params) if isinstance(x, jax.Array))
    devices = set(jax.devices()[:1]).union(*(x.devices() for x in arrays))
    return len(devices) == 1 and all(device.platform == "cpu" for device in devices)


def load(
    path: str = "", *, weights: str = "ema", step: int | str = "latest", layers: str = ""
) -> Painter:
    """Loads a painter from a run's working directory, from one checkpoint, or in `shipped` form.

    Args:
      path: of the directory; by default the trained painter that comes with the package.
      weights: "ema" or "params".
      step: "latest", "best" or a number, for a working directory.
      layers: "unroll" or "scan", see `ModelConfig`; by default as in training. Inlined layers are
        compiled for longer; looped ones are copied out of their stack in every pass on GPUs.

    Raises:
      CheckpointError: nothing usable is there, the autoencoder of the import that the run started
        from is gone, or the weights were trained with another tokenizer than `data.tokenizer` of
        their settings is now.
      ConfigError: unknown `weights` or `layers`.
      DataError: that tokenizer cannot be read.
    """
    if weights not in ("ema", "params"):
        raise ConfigError(f"weights must be 'ema' or 'params', got {weights!r}")
    if layers not in ("", "unroll", "scan"):
        raise ConfigError(f"layers must be 'unroll' or 'scan', got {layers!r}")
    path = path or str(shipped.DEFAULT)
    if shipped.is_painter(path):
        config, params, card = shipped.read(path)
        params = jax.device_put(params)
        meta = {**card, "path": path}
    else:
        config, params, meta = manager.load_for_sampling(path, weights, step)  # type: ignore[arg-type]
    if layers:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=layers))
    params = arranged(config, params, spend=True)  # nobody else has them
    tokenizer = load_tokenizer(config.data.tokenizer)
    # Weights of other origin, imported ones for one, do not say.
    if meta.get("tokenizer") not in (None, tokenizer.fingerprint):
        where = config.data.tokenizer or "the one that comes with this version"
        raise CheckpointError(
            f"{meta['path']} was trained with tokenizer {meta['tokenizer']}; its data.tokenizer "
            f"({where}) is now {tokenizer.fingerprint}: put the file it was trained with back, or "
            "use the version of this project that trained it"
        )
    vae = None
    if config.model.codec == "flux":
        official = bagel.find_official(path, epath.Path(meta["path"]), config)
        vae = jax.device_put(bagel.load_vae(official, config.model.vae, BAGEL))
    return Painter(config, params, vae=vae, tokenizer=tokenizer, meta=meta)


def check_mode(config: Config, mode: str, pictures: int) -> None:
    """Checks that a checkpoint serves a mode with that many given pictures.

    Raises:
      ConfigError: it does not; the text says why.
    """
    model = config.model
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    if model.codec != "flux" and (mode in interleaved.MODES or pictures):
        what = f"mode {mode!r}" if mode in interleaved.MODES else "a picture given with the prompt"
        raise ConfigError(
            f"{what}: the checkpoint has no picture autoencoder (model.codec={model.codec!r}) and "
            "serves process and one_shot from words alone; think, edit, understand and --image "
            "come with BAGEL checkpoints"
        )
    if mode in ("process", "one_shot") and pictures:
        raise ConfigError(f"mode {mode!r} takes no --image; edit, think and understand do")
    if mode in ("edit", "understand") and not pictures:
        raise ConfigError(f"mode {mode!r} needs a picture: --image=FILE")
    shows = pictures or (mode == "process" and Kind.UND in context_kinds(config.data.grammar))
    if shows and model.und_encoder == "none":
        raise ConfigError(
            f"mode {mode!r}: the checkpoint has no understanding encoder "
            "(model.und_encoder='none'), so it cannot be shown a picture"
        )


def read_prompt(item: Prompt) -> tuple[str, Mapping[str, Any]]:
    """``(prompt, metadata)`` of a string, a metadata object or a trajectory.

    Raises:
      DataError: neither, or an object without a "prompt".
    """
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Trajectory):
        return item.prompt, item.metadata
    if isinstance(item, Mapping) and isinstance(item.get("prompt"), str):
        return item["prompt"], dict(item)
    raise DataError(f"a prompt is a string or an object with a 'prompt', got {str(item)[:80]!r}")
