"""Optimiser, state, metrics and the training loop."""
