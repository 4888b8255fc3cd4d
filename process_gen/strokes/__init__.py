"""The embedded world: scenes of coloured shapes, prompts, pictures, paintings, and an oracle.

Numpy only. See `docs/strokes.md`.
"""
