"""The edge of `models`: plain nested-dict parameters and pure functions.

jax.jit, grad, eval_shape and scan are JAX's own outside this package; no NNX object crosses the
edge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from process_gen.core.configs import ModelConfig
from process_gen.kernels import native_products
from process_gen.kernels.native_products import STRIP
from process_gen.models.transformer import Cache
from process_gen.models.unified import Outputs, Streams, Trace, UnifiedModel

Params = dict[str, Any]

# With eager sharding, a weight with axis names could not be built without a mesh. `sharding.rules`
# looks the names up instead, and raises on an unknown one. `nnx.use_eager_sharding` would hold in
# this thread alone.
flax.config.update("flax_always_shard_variable", False)


@dataclasses.dataclass(frozen=True)
class ModelFns:
    """A model as pure functions.

    Attributes:
      init: ``key -> params``; shapes alone come from `jax.eval_shape`.
      forward: ``(params, streams, caches=()) -> Outputs``.
      logits: ``(params, hidden[..., D]) -> float32[..., W]``.
      trace: ``(params, streams) -> Trace``.
      understand: ``(params, patches, ids, images) -> (encoded, at the model's width)``, both
        without positions.
      logical_axes: like the parameters, a tuple of `core.axes` names a leaf.
    """

    init: Callable[[jax.Array], Params]
    forward: Callable[..., Outputs]
    logits: Callable[[Params, jax.Array], jax.Array]
    trace: Callable[[Params, Streams], Trace]
    understand: Callable[..., tuple[jax.Array, jax.Array]]
    logical_axes: dict[str, Any]


def build(cfg: ModelConfig) -> ModelFns:
    """Describes the model of a config; no array is made here.

    The functions raise ValueError when a parameter is missing, unknown, or of another shape.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: UnifiedModel(cfg, rngs=nnx.Rngs(0))))
    shapes = nnx.to_pure_dict(abstract)

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(UnifiedModel(cfg, rngs=nnx.Rngs(key)), nnx.Param))

    one = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), shapes["layers"])

    def bind(params: Params) -> UnifiedModel:
        expected = shapes
        if isinstance(params["layers"], tuple):
            expected = {**shapes, "layers": one}
            params = {**params, "layers": params["layers"][0]}
        check_shapes(params, _laid_out(expected, params))
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    def forward(params: Params, streams: Streams, caches: Sequence[Cache] = ()) -> Outputs:
        model, layers = bind(params), None
        if isinstance(params["layers"], tuple):
            layers = []
            for weights in params["layers"]:
                check_shapes(weights, _laid_out(one, weights))
                layer = nnx.state(model.layers)
                nnx.replace_by_pure_dict(layer, weights)
                layers.append(layer)
        return model(streams, caches, layers)

    def logits(params: Params, hidden: jax.Array) -> jax.Array:
        return bind(params).logits(hidden)

    def trace(params: Params, streams: Streams) -> Trace:
        return bind(params).trace(streams)

    def understand(params: Params, *patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        return bind(params).understand(*patches)

    names = jax.tree.map(
        lambda leaf: tuple(leaf.get_metadata()["out_sharding"]),
        abstract,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Param),
    )
    return ModelFns(init, forward, logits, trace, understand, nnx.to_pure_dict(names))


def apart(params: Params, *, spend: bool = False) -> Params:
    """The same weights with a tuple of layers in place of stacked ones; `forward` takes both.

    Inlined layers that are cut out of stacked weights are copied in every pass: the most of what
    there is to do where few tokens pass. `forward`, `logits` and `understand` alone take this form.

    Args:
      params: nested dict of weights.
      spend: deletes each stacked array once it is cut, so that no second copy of all weights has to
        fit beside it.
    """
    if isinstance(params["layers"], tuple):
        return params

    def cut(stacked: jax.Array) -> tuple[jax.Array, ...]:
        layers = _cut(stacked)
        if spend and isinstance(stacked, jax.Array):
            jax.block_until_ready(layers)
            stacked.delete()
        return layers

    leaves, tree = jax.tree.flatten(params["layers"])
    layers = zip(*map(cut, leaves), strict=True)
    return {**params, "layers": tuple(jax.tree.unflatten(tree, layer) for layer in layers)}


def in_strips(params: Params, *, spend: bool = False) -> Params:
    """Layers `apart` with kernels as C++ multiplies them best; `forward` and `logits` take both.

    That is `native_products.in_strips`, for all float32 kernels of whole strips but an encoder's,
    whose layers are looped over. Those of the layers stay where one of them has no whole strips.

    Args:
      params: of `apart`.
      spend: deletes each kernel once it is copied.
    """

    def fits(weight: jax.Array) -> bool:
        return weight.ndim == 2 and weight.dtype == jnp.float32 and weight.shape[1] % STRIP == 0

    def copied(path: tuple, weight: jax.Array) -> jax.Array:
        if not (_may_lie_in_strips(path) and fits(weight)):
            return weight
        strips = _strips(weight)
        if spend:
            jax.block_until_ready(strips)
            weight.delete()
        return strips

    flat = jax.tree_util.tree_leaves_with_path(params["layers"])
    whole = all(fits(weight) for path, weight in flat if _may_lie_in_strips(path))
    given = params if whole else {name: x for name, x in params.items() if name != "layers"}
    return {**params, **jax.tree_util.tree_map_with_path(copied, given)}


_strips = jax.jit(native_products.in_strips)


def _may_lie_in_strips(path: tuple) -> bool:
    names = [getattr(key, "key", "") for key in path]
    return names[-1] == "kernel" and names[0] not in ("und_encoder", "connector")


def _laid_out(expected: Params, params: Params) -> Params:
    """The expected shapes, of kernels in strips where those of the parameters are."""
    have = _flat(params)

    def shape(path: tuple, leaf: Any) -> Any:
        own = have.get(_name(path), leaf)
        other = own.ndim != leaf.ndim and _may_lie_in_strips(path)
        return jax.eval_shape(native_products.in_strips, leaf) if other else leaf

    return jax.tree_util.tree_map_with_path(shape, expected)


@jax.jit
def _cut(stacked: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(stacked[i] for i in range(stacked.shape[0]))


def together(params: Params) -> Params:
    """The inverse of `apart` and of `in_strips`, as host arrays."""
    if not isinstance(params["layers"], tuple):
        return params

    def plain(path: tuple, weight: jax.Array) -> jax.Array:
        strips = weight.ndim == 3 and _may_lie_in_strips(path)
        return native_products.out_of_strips(weight) if strips else weight

    params = jax.tree_util.tree_map_with_path(plain, params)
    return {**params, "layers": jax.tree.map(lambda *w: np.stack(w), *params["layers"])}


def check_shapes(params: Params, expected: Params) -> None:
    """Compares two parameter trees by name and shape.

    Raises:
      ValueError: names what is missing, unknown or of another shape.
    """
    have, want = _flat(params), _flat(expected)
    missing, unknown = sorted(set(want) - set(have)), sorted(set(have) - set(want))
    if missing or unknown:
        raise ValueError(f"parameters do not fit: missing {missing[:5]}, unknown {unknown[:5]}")
    for name, leaf in want.items():
        if have[name].shape != leaf.shape:
            raise ValueError(f"parameter {name} is {have[name].shape}, expected {leaf.shape}")


def _flat(tree: Params) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: tuple) -> str:
    return "/".join(str(key.key) for key in path)
