"""Next-token cross-entropy, one value a token."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.core import axes
from process_gen.sharding import rules


def cross_entropy(logits_BxTxW: jax.Array, label_BxT: jax.Array) -> jax.Array:
    """``float32[B, T]``: softmax cross-entropy in float32, no label smoothing, no z-loss.

    Negative labels carry no loss: 0.
    """
    logits = logits_BxTxW.astype(jnp.float32)
    safe_BxT = jnp.maximum(label_BxT, 0)
    picked_BxT = jnp.take_along_axis(logits, safe_BxT[..., None], -1)[..., 0]
    loss_BxT = jax.nn.logsumexp(logits, -1) - picked_BxT
    return jnp.where(label_BxT >= 0, loss_BxT, 0.0)


def item_weights(label_BxT: jax.Array, special_BxT: jax.Array) -> jax.Array:
    """``float32[B, T]``: 1 / sqrt(n) for each of the n labels of a text, as BAGEL's trainer weighs
    them with `ce_loss_reweighting`; 1 for special labels, 0 without a label.

    A text's labels lie side by side and end before its closing token, whose label is special.

    Args:
      label_BxT: int32; negative where there is no loss.
      special_BxT: bool, labels of closing tokens.
    """
    own_BxT = (label_BxT >= 0) & ~special_BxT
    first_BxT = own_BxT & ~jnp.pad(own_BxT, ((0, 0), (1, 0)))[:, :-1]
    text_BxT = jnp.cumsum(first_BxT, 1)
    row_Bx1 = jnp.arange(label_BxT.shape[0])[:, None]
    labels_BxN = jnp.zeros((label_BxT.shape[0], label_BxT.shape[1] + 1), jnp.float32)
    labels_BxN = labels_BxN.at[row_Bx1, text_BxT].add(own_BxT.astype(jnp.float32))
    own_weight_BxT = jax.lax.rsqrt(jnp.maximum(labels_BxN[row_Bx1, text_BxT], 1.0))
    return jnp.where(own_BxT, own_weight_BxT, jnp.where(label_BxT >= 0, 1.0, 0.0))


def head_cross_entropy(
    hidden_BxTxD: jax.Array, kernel_DxW: jax.Array, label_BxT: jax.Array, chunk: int
) -> jax.Array:
    """`cross_entropy` of the logits ``hidden @ kernel``, which never exist as a whole.

    The head is walked over in blocks of columns with a running softmax (Milakov & Gimelshein
    1805.02867), forward and backward. Walking over the vocabulary and not over tokens lets every
    block's gradient be complete when it is written: nothing is added up in a low precision, each
    block of a head that is cut over `fsdp` is gathered once a pass, and no gathered copy of the
    whole head or of its gradient is held. Where `tensor` cuts the vocabulary, every device walks
    over its own columns, and one sum a token at the end is all that they exchange.

    Args:
      hidden_BxTxD: normed text states.
      kernel_DxW: of the head, in the type in which the product is computed; sums are float32.
      label_BxT: int32; negative where there is no loss.
      chunk: columns of the whole vocabulary at a time; the logits held are ``[B, T, chunk]``.
    """
    pieces = rules.pieces(axes.VOCAB)
    width_D, width_W = kernel_DxW.shape
    if width_W % pieces:
        pieces = 1
    own = width_W // pieces
    count = -(-width_W // chunk)
    step = -(-own // count)
    if count > 1 and chunk // pieces >= 128:
        step = min(own, -(-step // 128) * 128)  # whole lanes of an accelerator
    kernel_DxKxN = rules.constrain(
        kernel_DxW.reshape(width_D, pieces, own), (axes.EMBED, axes.VOCAB, None)
    )
    return _chunked(hidden_BxTxD, kernel_DxKxN, label_BxT, step)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(hidden: jax.Array, kernel: jax.Array, label: jax.Array, step: int) -> jax.Array:
    """The loss with the vocabulary cut in K pieces of N columns, `step` columns of each a time."""
    return _forward(hidden, kernel, label, step)[0]


def _block(
    hidden: jax.Array, kernel: jax.Array, label: jax.Array, step: int, number: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """One block of columns.

    The last block is moved back to end where the head ends; what it shares with the one before
    does not count a second time.

    Returns:
      Its first column, which columns count ``[c]``, its part of the head ``[D, K, c]``, logits
      ``float32[B, T, K, c]`` (-inf where a column does not count), and where the label is.
    """
    _, pieces, own = kernel.shape
    start = jnp.minimum(number * step, own - step)
    part = jax.lax.dynamic_slice_in_dim(kernel, start, step, 2)
    # Cut out while it is spread, then gathered: the compiler would do it the other way round.
    part = rules.constrain(part, (axes.EMBED, axes.VOCAB, None))
    part = rules.constrain(part, (None, axes.VOCAB, None))
    logits = jnp.einsum("btd,dkc->btkc", hidden, part, preferred_element_type=jnp.float32)
    logits = rules.constrain(logits, (axes.BATCH, axes.SEQUENCE, axes.VOCAB, None))
    column = start + jnp.arange(step)
    counts = column >= number * step
    logits = jnp.where(counts[None, None, None], logits, -jnp.inf)
    token = jnp.arange(pieces)[:, None] * own + column[None]
    hit = (label[..., None, None] == token[None, None]) & counts[None, None, None]
    return start, counts, part, logits, hit


def _forward(
    hidden: jax.Array, kernel: jax.Array, label: jax.Array, step: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    _, pieces, own = kernel.shape

    def visit(
        carry: tuple[jax.Array, ...], number: jax.Array
    ) -> tuple[tuple[jax.Array, ...], None]:
        highest, total, picked = carry
        _, _, _, logits, hit = _block(hidden, kernel, label, step, number)
        higher = jnp.maximum(highest, logits.max(-1))
        total = total * jnp.exp(highest - higher)
        total = total + jnp.exp(logits - higher[..., None]).sum(-1)
        return (higher, total, picked + jnp.where(hit, logits, 0.0).sum(-1)), None

    zero = jnp.zeros((*label.shape, pieces), jnp.float32)
    numbers = jnp.arange(-(-own // step))
    start = (jnp.full_like(zero, -jnp.inf), zero, zero)
    (highest, total, picked), _ = jax.lax.scan(visit, start, numbers)
    norm = jax.nn.logsumexp(highest + jnp.log(total), -1)
    loss = jnp.where(label >= 0, norm - picked.sum(-1), 0.0)
    return loss, (hidden, kernel, label, norm)


def _backward(
    step: int, kept: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[Any, Any, None]:
    hidden, kernel, label, norm = kept
    _, pieces, own = kernel.shape
    weight = jnp.where(label >= 0, cotangent, 0.0)[..., None, None]

    def visit(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple, None]:
        to_hidden, to_kernel = carry
        start, counts, part, logits, hit = _block(hidden, kernel, label, step, number)
        error = weight * (jnp.exp(logits - norm[..., None, None]) - hit)
        error = error.astype(kernel.dtype)
        # A sum for each piece of the vocabulary: they meet once, after the last block.
        to_hidden = to_hidden + jnp.einsum(
            "btkc,dkc->btkd", error, part, preferred_element_type=jnp.float32
        )
        new = jnp.einsum("btd,btkc->dkc", hidden, error, preferred_element_type=jnp.float32)
        new = rules.constrain(new.astype(kernel.dtype), (axes.EMBED, axes.VOCAB, None))
        old = jax.lax.dynamic_slice_in_dim(to_kernel, start, step, 2)
        new = jnp.where(counts[None, None], new, old)
        return (to_hidden, jax.lax.dynamic_update_slice_in_dim(to_kernel, new, start, 2)), None

    zero = jnp.zeros((*label.shape, pieces, hidden.shape[-1]), jnp.float32)
    zero = rules.constrain(zero, (axes.BATCH, axes.SEQUENCE, axes.VOCAB, None))
    numbers = jnp.arange(-(-own // step))
    (to_hidden, to_kernel), _ = jax.lax.scan(visit, (zero, jnp.zeros_like(kernel)), numbers)
    return to_hidden.sum(2).astype(hidden.dtype), to_kernel, None


_chunked.defvjp(_forward, _backward)
