"""The tokenizer of a BAGEL or Qwen2 checkpoint folder, as the text of one `tokenizer.json`.

Whatever form a folder has, `data.tokenizer` reads the result, so that there is one encoder, one
fingerprint and one rule: special strings inside user text stay text (the reference parses them).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from process_gen.core.errors import DataError
from process_gen.data.tokenizer import (
    BOS,
    END_OF_TEXT,
    EOS,
    IMAGE_END,
    IMAGE_START,
    SPECIALS,
    BpeTokenizer,
)

# How Qwen2 cuts text before merging: contractions, words with the mark before them, single digits,
# other characters, line ends, spaces.
PRE_TOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def from_folder(folder: epath.Path) -> str:
    """The `tokenizer.json` text of a folder that has one, or `vocab.json` and `merges.txt`.

    Raises:
      DataError: the folder has neither, a file is damaged, or a special token has no id. The
        reference would then add it and resize the embeddings, which breaks a released checkpoint.
    """
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return _read(whole)
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    if not (vocab_file.is_file() and merges_file.is_file()):
        raise DataError(
            f"{folder}: has no tokenizer.json, and no vocab.json with merges.txt; "
            "--tokenizer=bytes makes one of bytes"
        )
    vocab, added = _json(vocab_file), _added_tokens(folder)
    missing = [name for name in SPECIALS if name not in added and name not in vocab]
    if missing:
        raise DataError(
            f"{folder}: no file gives an id to {', '.join(missing)}; tokenizer_config.json or "
            "added_tokens.json of the checkpoint does"
        )
    added.update({name: vocab.pop(name) for name in SPECIALS if name in vocab})
    merges = []
    for line in _read(merges_file).split("\n"):
        if line and not line.startswith("#version"):
            left, _, right = line.partition(" ")
            merges.append((left, right))
    return _bpe_json(vocab, merges, added, str(folder), normalise=True)


def bytes_json(specials: Mapping[str, int], vocab_rows: int) -> str:
    """A tokenizer for folders without one: ids 0 to 255 are bytes, specials as the config has them.

    Args:
      specials: ids of `tokenizer.BOS`, `EOS`, `IMAGE_START` and `IMAGE_END`.
      vocab_rows: rows of the embedding; `END_OF_TEXT` takes the smallest free id above the bytes.

    Raises:
      DataError: an id is missing, taken by a byte or used twice, or no id is free.
    """
    names = (BOS, EOS, IMAGE_START, IMAGE_END)
    absent = [name for name in names if name not in specials]
    if absent:
        raise DataError(f"config.json gives no id for {', '.join(absent)}")
    ids = {name: int(specials[name]) for name in names}
    if len(set(ids.values())) < len(ids) or not all(256 <= i < vocab_rows for i in ids.values()):
        raise DataError(f"special ids must differ and lie in [256, {vocab_rows}), got {ids}")
    free = [i for i in range(256, vocab_rows) if i not in ids.values()]
    if not free:
        raise DataError(f"{vocab_rows} rows leave no id for {END_OF_TEXT}")
    # The byte-level alphabet writes every byte as one printable character: the printable bytes
    # stand for themselves, the others follow from U+0100 on (GPT-2).
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable}
    vocab |= {chr(256 + i): byte for i, byte in enumerate(others)}
    return _bpe_json(vocab, [], {**ids, END_OF_TEXT: free[0]}, "bytes", normalise=False)


def check_ids(tokenizer: BpeTokenizer, stated: Mapping[str, int], vocab_rows: int) -> None:
    """Compares the ids that a tokenizer gives with what a checkpoint states.

    Args:
      tokenizer: of the same folder.
      stated: ids by the names of `config.json` (`bos_token_id`, `eos_token_id`, `start_of_image`,
        `end_of_image`); may be empty.
      vocab_rows: rows of the embedding.

    Raises:
      DataError: they differ, or an id has no row.
    """
    derived = {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "start_of_image": tokenizer.image_start,
        "end_of_image": tokenizer.image_end,
    }
    for name, value in stated.items():
        if name in derived and derived[name] != value:
            raise DataError(
                f"config.json says {name} = {value}, the tokenizer's files say {derived[name]}"
            )
    if tokenizer.vocab_size > vocab_rows:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the embedding {vocab_rows} rows"
        )


def _read(file: epath.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _json(file: epath.Path) -> Any:
    try:
        return json.loads(_read(file))
    except ValueError as error:
        raise DataError(f"{file}: is no JSON ({error})") from error


def _added_tokens(folder: epath.Path) -> dict[str, int]:
    """Ids of the tokens beside `vocab.json`, from whichever file states them."""
    added: dict[str, int] = {}
    if (folder / "tokenizer_config.json").is_file():
        config = _json(folder / "tokenizer_config.json")
        for number, token in config.get("added_tokens_decoder", {}).items():
            added[token["content"]] = int(number)
    if (folder / "added_tokens.json").is_file():
        for name, number in _json(folder / "added_tokens.json").items():
            if added.setdefault(name, int(number)) != int(number):
                raise DataError(f"{folder}: two files give {name} different ids")
    return added


def _bpe_json(
    vocab: dict[str, int],
    merges: Sequence[tuple[str, str]],
    added: Mapping[str, int],
    where: str,
    *,
    normalise: bool,
) -> str:
    try:
        bpe = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    except Exception as error:  # The Rust side raises bare Exception.
        raise DataError(f"{where}: vocabulary and merges do not fit ({error})") from error
    if normalise:
        bpe.normalizer = normalizers.NFC()  # type: ignore[assignment]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(PRE_TOKENS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    spec = json.loads(bpe.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"] = [
        {"id": number, "content": name, **flags, "special": True}
        for name, number in sorted(added.items(), key=lambda item: item[1])
    ]
    return json.dumps(spec, ensure_ascii=False)
