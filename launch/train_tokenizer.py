"""Train the Strokes tokenizer, a byte-level BPE in which that world's words and fixed
phrases are one token each.

    python -m launch.train_tokenizer --out=/tmp/tokenizer.json

--out=FILE     file to write
--world=hard   another world's texts (easy)

The same code gives the same bytes; Strokes texts of another version give other ids. The committed
files in `process_gen/data/assets`, one a world, therefore stay as they are while they cover the
words of their worlds: checkpoints mean their ids and refuse another file. Takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

from absl import flags
from etils import epath

from launch import common
from process_gen.core.configs import GrammarConfig
from process_gen.core.errors import DataError
from process_gen.core.grammar import Kind, prompt_text, to_segments
from process_gen.data.tokenizer import BpeTokenizer, train_bpe
from process_gen.strokes.plans import StrokesOptions, outline_at
from process_gen.strokes.scene import EASY, WORLDS

TRAJECTORIES = 3000
VOCAB_SIZE = 640


def strokes_texts(count: int = TRAJECTORIES, world: str = EASY.name) -> Iterator[str]:
    """Every text of the first `count` trajectories of seed 0, both forms of the prompt included."""
    options = StrokesOptions(world=world)
    for index in range(count):
        trajectory = outline_at(0, index, options)
        yield prompt_text(trajectory.prompt, "one_shot")
        for segment in to_segments(trajectory, GrammarConfig()):
            if segment.kind is Kind.TEXT:
                yield segment.text


def train(world: str = EASY.name) -> str:
    """The contents of a tokenizer file for today's Strokes texts."""
    return train_bpe(strokes_texts(world=world), VOCAB_SIZE)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("out", "", "file to write", flag_values=values)
    flags.DEFINE_enum("world", EASY.name, list(WORLDS), "whose texts", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Writes the file and says what is in it."""
    out = common.required(values, "out")
    text = train(values.world)
    try:
        epath.Path(out).write_text(text)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error}") from error
    tokenizer = BpeTokenizer(text, out)
    print(f"{out}: {tokenizer.vocab_size} ids, {len(text)} bytes, {tokenizer.fingerprint}")


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
