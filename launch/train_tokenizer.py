"""Train the Strokes tokenizer, a byte-level BPE in which every word of that world is one token.

    python -m launch.train_tokenizer --out=process_gen/data/assets/strokes_tokenizer.json

The same code gives the same bytes. Takes about two seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from process_gen.core.configs import GrammarConfig
from process_gen.core.grammar import Kind, prompt_text, to_segments
from process_gen.data.tokenizer import DEFAULT_PATH, BpeTokenizer, train_bpe
from process_gen.strokes.plans import StrokesOptions, outline_at

TRAJECTORIES = 3000
VOCAB_SIZE = 640


def strokes_texts(count: int = TRAJECTORIES) -> Iterator[str]:
    """Every text of the first `count` trajectories of seed 0, both forms of the prompt included."""
    options = StrokesOptions()
    for index in range(count):
        trajectory = outline_at(0, index, options)
        yield prompt_text(trajectory.prompt, "one_shot")
        for segment in to_segments(trajectory, GrammarConfig()):
            if segment.kind is Kind.TEXT:
                yield segment.text


def train() -> str:
    """The contents of the committed file."""
    return train_bpe(strokes_texts(), VOCAB_SIZE)


def main(argv: list[str]) -> None:
    """Writes the file and says what is in it."""
    del argv
    out = Path(flags.FLAGS.out)
    text = train()
    out.write_text(text)
    tokenizer = BpeTokenizer(text, str(out))
    print(f"{out}: {tokenizer.vocab_size} ids, {len(text)} bytes, {tokenizer.fingerprint}")


if __name__ == "__main__":
    flags.DEFINE_string("out", str(DEFAULT_PATH), "File to write.")
    app.run(main)
