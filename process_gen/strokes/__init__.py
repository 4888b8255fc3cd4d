"""The embedded world: scenes of coloured shapes, prompts, pictures, paintings, and an oracle.

NumPy and Pillow only. See `docs/strokes.md`.
"""
