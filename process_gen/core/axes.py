"""The legend of shape suffixes, and the logical axis names of weights and activations.

An array's name ends in its shape, one letter a dimension: ``x_BxSxD`` has a batch, a sequence and a
model dimension. The letters are the same in every file of the project:

    B  rows of a batch (packs while training, paintings while sampling)
    T  text part of the und stream, boundary tokens of images included
    V  understanding (ViT) patches of the und stream
    U  the und stream, T + V
    G  image-latent tokens, the gen stream
    S  tokens of both streams, und then gen
    C  slots of a KV cache
    D  model width            F  MLP width            L  layers
    H  query heads            K  key-value heads      Dh width of a head
    P  features of one latent token (patch)           Q  features of one understanding patch
    W  vocabulary             N  any other count, said where it is used

The logical names below are the only ones a weight or an activation may carry. `sharding.rules` maps
them to mesh axes; a name missing there raises.
"""

LAYERS = "layers"
EMBED = "embed"
EMBED_OUT = "embed_out"  # the second width of a square weight
HEADS = "heads"
KV_HEADS = "kv_heads"
HEAD_DIM = "head_dim"
MLP = "mlp"
VOCAB = "vocab"
PATCH = "patch"
RANK = "rank"  # of an adapter
BATCH = "batch"
SEQUENCE = "sequence"
RESIDUAL = "residual"  # the sequence of a residual stream, between the blocks
LOOKUP = "lookup"  # the batch of a table lookup

LOGICAL_AXES = (
    LAYERS, EMBED, EMBED_OUT, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB, PATCH, RANK, BATCH,
    SEQUENCE, RESIDUAL, LOOKUP,
)  # fmt: skip
