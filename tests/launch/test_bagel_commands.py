"""`import_bagel` and `export_bagel` as commands: tokenizers, notes, one-line errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch import common, export_bagel, import_bagel, import_qwen
from process_gen.checkpoint import manager
from process_gen.data import qwen_tokenizer
from process_gen.data.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "parity" / "fixtures" / "checkpoint"


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


def test_start_from_qwen_with_a_pixel_codec(tmp_path, capsys):
    source = tmp_path / "qwen"
    source.mkdir()
    tensors = load_file(CHECKPOINT / "ema.safetensors")
    named = {k.removeprefix("language_model."): v for k, v in tensors.items()}
    kept = {k: v for k, v in named.items() if k.startswith(("model.", "lm_head"))}
    kept = {k: v for k, v in kept.items() if "moe_gen" not in k}
    save_file(kept, source / "model.safetensors")
    stated = {"num_attention_heads": 4, "rope_theta": 1e4, "rms_norm_eps": 1e-6}
    (source / "config.json").write_text(json.dumps({"model_type": "qwen3", **stated}))
    ids = {"<|im_start|>": 256, "<|im_end|>": 257, "<|vision_start|>": 258, "<|vision_end|>": 259}
    (source / "tokenizer.json").write_text(qwen_tokenizer.bytes_json(ids, 320))
    printed = _run(
        import_qwen,
        f"--source={source}",
        f"--output={tmp_path / 'D'}",
        f"--config={ROOT / 'configs' / 'strokes_tiny.py'}",
        capsys=capsys,
    )
    assert "3 layers of width 64" in printed.out
    config, params, meta = manager.load_for_sampling(tmp_path / "D")
    assert config.model.codec == "pixel" and config.model.latent_features == 192
    norm = kept["model.layers.2.self_attn.q_norm.weight"]
    np.testing.assert_array_equal(params["layers"]["gen"]["attention"]["q_norm"]["scale"][2], norm)
    assert meta["tokenizer"] == load_tokenizer(config.data.tokenizer).fingerprint


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (import_bagel, ["--output=x"], "--source is missing"),
        (import_bagel, ["--source=gone", "--output=x"], "gone: no such file or folder"),
        (import_bagel, [f"--source={CHECKPOINT}", f"--output={CHECKPOINT / 'x'}"], "inside"),
        (export_bagel, ["--checkpoint=gone", "--output=x"], "gone"),
    ],
)
def test_wrong_arguments_end_in_one_line(command, arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = _run(command, *arguments, status=2, capsys=capsys)
    assert words in printed.err and printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
