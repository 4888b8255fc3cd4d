from __future__ import annotations

import dataclasses
import json

import pytest

from process_gen.core.configs import Config, GrammarConfig, MeshConfig, from_mapping, to_mapping
from process_gen.core.errors import ConfigError

CHANGED = {
    "model": {"width": 32, "codec": "pixel", "vit": {"num_layers": 2}, "vae": {"multipliers": [1]}},
    "data": {
        "sources": [
            {
                "kind": "strokes",
                "weight": 3,
                "options": {"conflict": 0.1, "weights": {"colors": 1}},
            },
            {"kind": "folder", "path": "somewhere"},
        ],
        "grammar": {"context_images": "vit", "noise_copies": 3},
    },
    "loss": {"stage_scales": {"plan": 2.0}, "ce_weight_late": 0.5},
    "optimizer": {"name": "muon"},
    "mesh": {"data": 2, "fsdp": -1},
    "sampler": {"guidance_interval": [0.1, 0.9]},
}


def test_an_empty_mapping_gives_the_defaults():
    assert from_mapping({}) == Config()
    assert from_mapping({"model": {}, "data": {"sources": [{"kind": "strokes"}]}}) == Config()


def test_round_trip_through_json():
    config = from_mapping(CHANGED)
    again = from_mapping(json.loads(json.dumps(to_mapping(config))))
    assert again == config
    assert config != Config() and again.data.sources[1].path == "somewhere"
    assert config.model.vae.multipliers == (1,) and config.sampler.guidance_interval == (0.1, 0.9)
    assert from_mapping(to_mapping(Config())) == Config()


def test_round_trip_notices_every_number():
    """Changing any one number of the JSON gives another config, or an error; never the same one."""
    text = to_mapping(Config())
    changed = 0
    for section, fields in text.items():
        for name, value in fields.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            other = {**text, section: {**fields, name: value * 2 + 4}}
            try:
                assert from_mapping(other) != Config(), (section, name)
            except ConfigError:
                pass
            changed += 1
    assert changed > 60


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({"modle": {}}, "unknown config key 'modle'; did you mean 'model'?"),
        ({"model": {"widht": 3}}, "unknown config key 'model.widht'; did you mean 'width'?"),
        ({"data": {"grammar": {"noise": 3}}}, "unknown config key 'data.grammar.noise'"),
        ({"data": {"sources": [{"kind": "strokes", "sise": 3}]}}, r"'data.sources\[0\].sise'"),
        ({"data": {"sources": [{"weight": 1.0}]}}, r"data.sources\[0\].*'kind'"),
        ({"model": 3}, "model must be a mapping, got int"),
        ({"model": {"width": "96"}}, "model.width must be int, got '96'"),
        ({"model": {"width": 96.0}}, "model.width must be int, got 96.0"),
        ({"model": {"width": None}}, "model.width must be int, got None"),
        ({"model": {"freeze_und": 1}}, "model.freeze_und must be bool, got 1"),
        ({"optimizer": {"name": "adam"}}, "optimizer.name must be one of 'adamw', 'muon', "),
        ({"model": {"width": -8}}, "model.width must be positive, got -8"),
        ({"model": {"rope_theta": 0.0}}, "model.rope_theta must be positive, got 0.0"),
        ({"model": {"width": 98}}, "model.width must be a multiple of 4"),
        ({"model": {"head_dim": 3}}, "model.head_dim must be even"),
        ({"model": {"time_features": 3}}, "model.time_features must be even"),
        ({"model": {"num_heads": 3}}, r"model.num_heads \(3\) must be a multiple"),
        ({"model": {"codec": "flux"}}, "model.codec_channels"),
        ({"data": {"text_len": -1}}, "data.text_len must be positive, got -1"),
        ({"data": {"rows": 0}}, "data.rows must be positive"),
        ({"data": {"gen_len": -1}}, "data.gen_len must be >= 0"),
        ({"data": {"seed": -1}}, "data.seed must be >= 0, got -1"),
        ({"data": {"eval_rows": -1}}, "data.eval_rows must be >= 0, got -1"),
        ({"data": {"prefetch": -1}}, "data.prefetch must be >= 0, got -1"),
        ({"data": {"sources": []}}, "data.sources is empty"),
        ({"data": {"sources": [{"kind": "strokes", "weight": -1}]}}, "data.sources.weight must be"),
        ({"data": {"grammar": {"noise_copies": 0}}}, "data.grammar.noise_copies must be positive"),
        ({"data": {"grammar": {"text_dropout": 1.5}}}, r"text_dropout must lie in \[0, 1\]"),
        (
            {"data": {"grammar": {"text_dropout": 0.7, "prompt_dropout": 0.7}}},
            "text_dropout \\+ prompt_dropout exceed 1",
        ),
        (
            {"data": {"grammar": {"context_images": "vae", "rejected_context": "vit_only"}}},
            "'vit_only' needs 'vit'",
        ),
        ({"loss": {"stage_scales": {"sketches": 1.0}}}, "unknown stage 'sketches'"),
        ({"loss": {"stage_scales": {"sketch": -1.0}}}, "loss.stage_scales.sketch must be >= 0"),
        ({"loss": {"stage_scales": {"sketch": "x"}}}, "loss: "),
        ({"loss": {"mse_weight": -1}}, "loss weights must be >= 0"),
        ({"loss": {"ce_weight_late": -1}}, "loss weights must be >= 0"),
        ({"loss": {"t_std": 0}}, "loss.t_std must be positive"),
        ({"loss": {"t_std": float("nan")}}, "loss.t_std must be positive"),
        ({"optimizer": {"learning_rate": -1}}, "optimizer.learning_rate must be positive"),
        ({"optimizer": {"ema_decay": 2}}, "optimizer.ema_decay must lie in"),
        ({"optimizer": {"warmup_steps": -1}}, "optimizer.warmup_steps must be >= 0"),
        ({"train": {"steps": 0}}, "train.steps must be positive"),
        ({"train": {"save_every": -1}}, "train.save_every .* must be >= 0"),
        ({"mesh": {"tensor": 0}}, "mesh.tensor must be positive or -1"),
        ({"mesh": {"tensor": -1}}, "only one mesh axis may be -1"),
        ({"sampler": {"batch": -4}}, "sampler.batch must be positive, got -4"),
        ({"sampler": {"temperature": -0.1}}, "sampler.temperature must be >= 0"),
        ({"sampler": {"top_p": 1.2}}, "sampler.top_p must lie in"),
        ({"sampler": {"max_text": 2}}, "sampler.max_text must be at least 3"),
        ({"sampler": {"guidance_interval": [0.1]}}, "guidance_interval must have 2 items"),
        ({"sampler": {"guidance_interval": [0.9, 0.1]}}, "guidance_interval must be low, high"),
        ({"optimizer": {"weight_decay": -0.1}}, "optimizer.weight_decay must be >= 0"),
        ({"optimizer": {"eps": 0.0}}, "optimizer.eps must be positive"),
    ],
)
def test_what_is_refused(mapping, reason):
    with pytest.raises(ConfigError, match=reason):
        from_mapping(mapping)


def test_what_lies_next_to_the_refused_is_taken():
    from_mapping({"data": {"eval_rows": 0, "prefetch": 0, "gen_len": 0, "und_len": 0}})
    from_mapping({"sampler": {"max_text": 3, "top_p": 1}, "mesh": {"data": 1, "tensor": -1}})
    GrammarConfig(text_dropout=0.5, prompt_dropout=0.5)
    assert MeshConfig().data == -1


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.width = 3


def test_derived_sizes():
    model = from_mapping({"model": {"patch": 4, "und_patch": 2}}).model
    assert (model.latent_features, model.und_features) == (48, 12)
    assert Config().model.vae.downsample == 8
