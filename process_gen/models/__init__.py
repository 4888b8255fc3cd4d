"""The unified transformer. flax.nnx is known here only; outside, parameters are plain dicts."""
