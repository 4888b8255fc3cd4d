"""`import_bagel` and `export_bagel` as commands: tokenizers, notes, one-line errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launch import common, export_bagel, import_bagel
from process_gen.data.tokenizer import load_tokenizer

CHECKPOINT = Path(__file__).parents[1] / "parity" / "fixtures" / "checkpoint"


def _run(command, *arguments, status=0, capsys):
    try:
        common.run(command.main, command.define_flags, command.__doc__, ["command", *arguments])
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert code == status, printed.err
    return printed


def test_round_trip_with_a_byte_tokenizer(tmp_path, capsys):
    source, imported, out = tmp_path / "source", tmp_path / "D", tmp_path / "out"
    shutil.copytree(CHECKPOINT, source)
    stated = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**stated, "max_latent_size": 32}))
    arguments = [f"--source={source}", f"--output={imported}"]
    printed = _run(import_bagel, *arguments, status=2, capsys=capsys)
    assert printed.err.count("\n") == 1 and "--tokenizer=bytes" in printed.err
    assert not imported.exists()
    printed = _run(import_bagel, *arguments, "--tokenizer=bytes", "--json", capsys=capsys)
    assert "note: config.json: max_latent_size says 32" in printed.out
    assert json.loads(printed.out.splitlines()[-1])["layers"] == 3
    tokenizer = load_tokenizer(str(imported / "tokenizer.json"))
    assert (tokenizer.bos, tokenizer.image_end, tokenizer.end_of_text) == (300, 309, 256)
    assert tokenizer.encode("hi<|im_end|>") == list(b"hi<|im_end|>")
    printed = _run(export_bagel, f"--checkpoint={imported}", f"--output={out}", capsys=capsys)
    assert "139 tensors" in printed.out
    for name in ("ema.safetensors", "ae.safetensors", "config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_ids_that_contradict_the_config(tmp_path, capsys):
    shutil.copytree(CHECKPOINT, tmp_path / "source")
    ids = (("<|endoftext|>", 310), ("<|im_start|>", 311), ("<|im_end|>", 301))
    ids += (("<|vision_start|>", 308), ("<|vision_end|>", 309))
    (tmp_path / "source" / "vocab.json").write_text(json.dumps({"a": 0}))
    (tmp_path / "source" / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "source" / "added_tokens.json").write_text(json.dumps(dict(ids)))
    arguments = [f"--source={tmp_path / 'source'}", f"--output={tmp_path / 'D'}"]
    printed = _run(import_bagel, *arguments, status=2, capsys=capsys)
    assert "says bos_token_id = 300, the tokenizer's files say 311" in printed.err


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (import_bagel, ["--output=x"], "--source is missing"),
        (import_bagel, ["--source=gone", "--output=x"], "gone: no such file or folder"),
        (import_bagel, [f"--source={CHECKPOINT}", f"--output={CHECKPOINT / 'x'}"], "inside"),
        (export_bagel, ["--checkpoint=gone", "--output=x"], "no checkpoint in gone"),
    ],
)
def test_wrong_arguments_end_in_one_line(command, arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = _run(command, *arguments, status=2, capsys=capsys)
    assert words in printed.err and printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
