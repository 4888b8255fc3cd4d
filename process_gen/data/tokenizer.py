"""Text to token ids and back: the interface, and byte-level BPE behind it.

The committed vocabularies (`COMMITTED`, written by `launch.train_tokenizer`) have one token for
every word and tag of a Strokes world each and fall back to bytes for the rest, so any UTF-8 text
survives ``decode(encode(text))``. The same class loads a Qwen2 ``tokenizer.json``.

User text is data: ``<|im_start|>`` and its like inside a text are encoded as ordinary characters.
The special ids exist only as attributes, for the code that lays out packs and feeds the sampler.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, trainers

from process_gen.core.batch import TokenIds
from process_gen.core.errors import DataError

BOS = "<|im_start|>"
EOS = "<|im_end|>"
IMAGE_START = "<|vision_start|>"
IMAGE_END = "<|vision_end|>"
END_OF_TEXT = "<|endoftext|>"
SPECIALS = (END_OF_TEXT, BOS, EOS, IMAGE_START, IMAGE_END)

DEFAULT_PATH = Path(__file__).parent / "assets" / "strokes_tokenizer.json"
# By name, so that configs and checkpoints mean the same file on every machine.
COMMITTED = {
    "strokes": DEFAULT_PATH,
    "strokes_hard": DEFAULT_PATH.with_name("strokes_hard_tokenizer.json"),
}

# Fixed phrases of the Strokes world become one token each: sequence length is what an inspection
# costs, and a verdict is then one decision. They are ordinary BPE tokens, not special ones.
PHRASES = (
    "Please create the image step-by-step:",
    "seen:",
    " the instruction fits the prompt.",
    " the instruction does not fit the prompt:",
    " the sketch fits the instruction.",
    " the sketch does not fit the instruction:",
    " the picture is complete.",
    " not yet painted, no fault:",
    " not yet removed, no fault:",
    " as a placeholder",
    " should be",
    " it is",
    " at top",
    " at middle",
    " at bottom",
    "</ins><des>",
)
_ANY_PHRASE = "|".join(re.escape(phrase).replace(r"\ ", " ") for phrase in PHRASES)
# A phrase, a tag, a word (hyphens belong to it), a digit, any other character; a space joins what
# follows it.
PRE_TOKENS = _ANY_PHRASE + r"| ?</?\p{L}+>| ?\p{L}+(?:-\p{L}+)*|\p{N}|[^\s\p{L}\p{N}]|\s+"
_PIECES = re.compile(_ANY_PHRASE + r"| ?[^ ]+")
_KEPT_WORDS = 1 << 14


class Tokenizer(Protocol):
    """What the project needs of a tokenizer.

    Attributes:
      vocab_size: one more than the largest id, specials included.
      bos, eos: ``<|im_start|>`` and ``<|im_end|>``, around every text.
      image_start, image_end: ``<|vision_start|>`` and ``<|vision_end|>``, around every image copy.
      end_of_text: ``<|endoftext|>``, the decision to stop.
      specials: ids of these and of all other special tokens.
      fingerprint: hash of everything that decides the ids.
    """

    vocab_size: int
    bos: int
    eos: int
    image_start: int
    image_end: int
    end_of_text: int
    specials: frozenset[int]
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never a special one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special ids are left out, bytes that are no UTF-8 become U+FFFD."""
        ...


def _pre_tokenizer() -> pre_tokenizers.Sequence:
    split = pre_tokenizers.Split(tokenizers.Regex(PRE_TOKENS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, to_bytes])


class BpeTokenizer:
    """Byte-level BPE read from the text of a Hugging Face ``tokenizer.json``."""

    def __init__(self, text: str, where: str = "tokenizer"):
        """Reads a tokenizer.

        Args:
          text: contents of a ``tokenizer.json``.
          where: its name, for error messages.

        Raises:
          DataError: not such a file, or one of `SPECIALS` is missing.
        """
        try:
            spec = json.loads(text)
            special = {item["content"]: int(item["id"]) for item in spec["added_tokens"]}
            # Added tokens would be matched inside ordinary text: the encoder never hears of them.
            self._bpe = tokenizers.Tokenizer.from_str(
                json.dumps({**spec, "added_tokens": [], "post_processor": None})
            )
        except Exception as error:  # The Rust side raises bare Exception.
            raise DataError(f"{where} is not a tokenizer.json: {error}") from error
        missing = [name for name in SPECIALS if name not in special]
        if missing:
            raise DataError(f"{where} lacks the special token(s) {', '.join(missing)}")
        self.specials = frozenset(special.values())
        ordinary = set(self._bpe.get_vocab(with_added_tokens=False).values())
        clash = sorted(self.specials & ordinary)
        if clash:
            raise DataError(f"{where}: special id(s) {clash} are also ordinary tokens")
        self.vocab_size = max(ordinary | self.specials) + 1  # ids may leave holes
        self.bos = special[BOS]
        self.eos = special[EOS]
        self.image_start = special[IMAGE_START]
        self.image_end = special[IMAGE_END]
        self.end_of_text = special[END_OF_TEXT]
        canonical = json.dumps(spec, sort_keys=True, ensure_ascii=True)
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()[:16]
        # With our own splitting rule, phrases and words that single spaces part are encoded
        # independently. The Strokes world has about two hundred; remembering them is several times
        # faster than BPE.
        own, ours = self._bpe.pre_tokenizer, _pre_tokenizer()
        self._by_piece = own is not None and own.__getstate__() == ours.__getstate__()
        self._known: dict[str, list[int]] = {}

    def _pieces(self, text: str) -> list[list[int]] | None:
        """Ids of each phrase or word; None when the text has other gaps than single spaces."""
        if not self._by_piece or text.split(" ") != text.split():
            return None
        if text.find(PHRASES[0], 1) > 0:  # could begin inside a word, which `_PIECES` does not see
            return None
        out = []
        for piece in _PIECES.findall(text):
            ids = self._known.get(piece)
            if ids is None:
                ids = self._bpe_ids(piece)
                if len(self._known) < _KEPT_WORDS:
                    self._known[piece] = ids
            out.append(ids)
        return out

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never a special one.

        Raises:
          DataError: the text holds a lone surrogate, which UTF-8 cannot write.
        """
        pieces = self._pieces(text)
        if pieces is None:
            return self._bpe_ids(text)
        return list(itertools.chain.from_iterable(pieces))

    def _bpe_ids(self, text: str) -> list[int]:
        try:
            return self._bpe.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError("text is not valid Unicode (a lone surrogate?)") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special ids are left out, bytes that are no UTF-8 become U+FFFD."""
        plain = [int(i) for i in ids if int(i) not in self.specials]
        return self._bpe.decode(plain, skip_special_tokens=False)


@functools.lru_cache(maxsize=8)
def _load(path: str) -> BpeTokenizer:
    file = epath.Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(COMMITTED)
        raise DataError(
            f"cannot read the tokenizer {file}: {error}; wanted a file, a folder, or one of {known}"
        ) from error
    return BpeTokenizer(text, where=str(file))


def load_tokenizer(path: str = "") -> BpeTokenizer:
    """Loads a ``tokenizer.json``.

    Args:
      path: the file, a folder that holds one, or a name of `COMMITTED`; empty is `DEFAULT_PATH`.

    Raises:
      DataError: it cannot be read.
    """
    return _load(str(COMMITTED.get(path, path or DEFAULT_PATH)))


def token_ids(tokenizer: Tokenizer) -> TokenIds:
    """What `core.batch` needs of a tokenizer."""
    return TokenIds(
        encode=tokenizer.encode,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        image_start=tokenizer.image_start,
        image_end=tokenizer.image_end,
        end_of_text=tokenizer.end_of_text,
        specials=tokenizer.specials,
    )


def train_bpe(texts: Iterable[str], vocab_size: int = 640) -> str:
    """Trains a byte-level BPE; the same texts give the same bytes.

    Args:
      texts: training material.
      vocab_size: largest number of ids: 256 bytes, merges, and `SPECIALS` as the last ones. Fewer
        when the texts run out of merges.

    Returns:
      The contents of a ``tokenizer.json``.
    """
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = _pre_tokenizer()  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    spec: dict[str, Any] = json.loads(bpe.to_str())
    first = bpe.get_vocab_size()
    spec["added_tokens"] = [
        {
            "id": first + i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, name in enumerate(SPECIALS)
    ]
    return json.dumps(spec, indent=1, ensure_ascii=True) + "\n"
