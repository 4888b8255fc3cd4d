"""Draws what was painted and learned: HTML report, PNG strips, loss curves, terminal summary."""
