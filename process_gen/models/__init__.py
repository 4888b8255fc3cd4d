"""The unified transformer. flax.nnx is known in this package only; outside, parameters are dicts."""
