"""`launch.compile_check`: what it says of programs that a TPU compiler made, without a TPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from launch import common, compile_check
from process_gen.aot import topology
from process_gen.aot.account import wanted_bytes
from process_gen.aot.chips import CHIPS
from process_gen.aot.placement import memory_spaces
from process_gen.core.configs import Config, from_mapping
from process_gen.core.encoder_sizes import VitSizes

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--config=configs/strokes_tiny.py:debug",
    "--config.optimizer.name=adamw",
    "--config.model.layers=scan",
    "--config.mesh.data=1",
)
BAGEL = ("--config=configs/bagel_7b.py", "--config.mesh.fsdp=-1")


def call(*words: str) -> None:
    command = ["compile_check", *words]
    common.run(compile_check.main, compile_check.define_flags, compile_check.__doc__ or "", command)


def report(capsys: pytest.CaptureFixture, *words: str) -> dict:
    call(*words)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_chips_are_complete():
    for name, chip in CHIPS.items():
        assert chip.name == name and chip.source.startswith("https://")
        assert 1e10 < chip.interconnect < chip.bandwidth < chip.flops < 1e16
        assert chip.memory % 2 ** (30 if chip.platform == "tpu" else 20) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--topology=v9:2x2",), "chips: v5e, v5p, v6e"),
        (("--topology=v5e:3x7x9",), "unknown to the TPU compiler"),
        (("--topology=v5e:2x2", "--program=paint"), "train, denoise, decode"),
        (("--topology=v5e:2x2", "--config.mesh.tensor=3"), "does not fit 4 device"),
        (("--topology=v5e:2x2", "--config.mesh.fsdp=4", "--config.data.rows=6"), "data.rows=6"),
        (
            ("--topology=v5e:2x2", "--program=decode", "--config.mesh.tensor=4"),
            "model.num_heads=2 cannot be dealt to mesh.tensor = 4",
        ),
        ((), "--topology is missing"),
    ],
)
def test_what_a_user_can_mend_is_one_line(words, said, capsys):
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
    with pytest.raises(SystemExit) as ended:
        call(*TINY, *words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--topology=h100:2x2x2",), "h100:HOSTSxGPUS of each"),
        (("--topology=h200:8", "--slices=2"), "h200:GPUS of one host"),
        (("--topology=h100:8",), "GPU compiler is not installed"),
        (("--topology=v5e:2x2",), "TPU compiler is not installed"),
    ],
)
def test_what_compiles_for_gpus_is_asked_for(words, said, capsys, monkeypatch):
    def version(name: str) -> str:
        raise topology.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(topology.importlib.metadata, "version", version)
    with pytest.raises(SystemExit) as ended:
        call(*TINY, *words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def _on_gpus(*words: str) -> dict:
    """In a process of its own: jax looks for drivers once."""
    pytest.importorskip("jax_cuda12_plugin", reason="the GPU compiler comes with the extra [cuda]")
    command = [sys.executable, "-m", "launch.compile_check", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_tiny_step_is_compiled_for_gpus(tmp_path):
    file = tmp_path / "step.hlo"
    mesh = ("--config.mesh.fsdp=4", "--config.data.rows=4", "--config.model.attention=auto")
    found = _on_gpus(*TINY, *mesh, "--topology=h100:4", f"--hlo={file}")
    assert found["compiled"] is True and found["effort"] == 0
    _holds(found, "jax-cuda12-plugin")
    assert "__gpu$xla.gpu.triton" in file.read_text()  # the kernels, by `attention="auto"`


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_7b_model_is_compiled_for_gpus():
    eight = _on_gpus(*BAGEL, "--topology=h100:8", "--config.data.rows=8")
    assert eight["fits"] and eight["bytes"]["total"] < 60 * 2**30
    weights = eight["bytes"]["parameters"] * 8
    assert weights == pytest.approx(14.6e9 * 4, rel=0.02)
    # Gradients are summed and cut in bfloat16, in which the products are made.
    sent = eight["collectives"]["reduce-scatter"]["bytes"]
    assert sent == pytest.approx(weights / 2 * 7 / 8, rel=0.1)
    adapters = ("--config.model.lora.rank=16", "--config.model.param_dtype=bfloat16")
    one = _on_gpus(*BAGEL, *adapters, "--topology=h100:1", "--config.data.rows=1")
    assert one["fits"] and one["bytes"]["total"] < 48 * 2**30


def _holds(found: dict, compiler: str = "libtpu") -> None:
    assert found["fits"] is True and found["chips"] == 4 and found["rows"] == 4
    sizes = found["bytes"]
    parts = [sizes[n] for n in ("parameters", "optimizer", "ema", "batch", "activations")]
    assert all(size > 0 for size in parts) and sum(parts) == sizes["total"] < sizes["memory"]
    # Two moments a weight, and the average as large as the weights.
    assert sizes["ema"] == sizes["parameters"] <= sizes["optimizer"] / 2
    assert found["model_flops"] > 0 == found["recomputed_flops"]
    assert 0 < found["mfu_ceiling"] <= 1 and found["roofline"]["seconds"] > 0
    assert found["collectives"]["all-gather"]["count"] > 0
    assert set(found["versions"]) == {"jax", "jaxlib", compiler}


FOUR = (*TINY, "--config.mesh.fsdp=4", "--config.data.rows=4", "--topology=v5e:2x2", "--json")


def test_a_tiny_step_is_placed(tmp_path):
    """All that is printed, without machine code; it ends although the compiler does not."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
    file = tmp_path / "step.hlo"
    command = [sys.executable, "-m", "launch.compile_check", *FOUR, "--nocodegen", f"--hlo={file}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["compiled"] is False and "not compiled" in done.stdout
    _holds(found)
    assert "ENTRY" in file.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_step_is_compiled(capsys):
    """Its memory is what it was placed in, but for the program's code."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
    found = report(capsys, *FOUR, "--effort=0")
    assert found["compiled"] is True and found["effort"] == 0
    _holds(found)
    config = common.parse(compile_check.define_flags, ["compile_check", *FOUR])
    placed, _ = compile_check.check(common.read_config(config), "v5e:2x2", 1, "train", False)
    sizes, others = found["bytes"], placed["bytes"]
    code = sizes.pop("total") - others.pop("total")
    assert abs(code) < 20 * 2**20
    assert sizes["parameters"] == others["parameters"]
    assert placed["collectives"] == found["collectives"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_code_that_no_run_executes_is_called_that(capsys):
    """The least effort of the compiler, which is what it takes unless told otherwise."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
    call(*FOUR)
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found["compiled"] is True and found["effort"] == -1
    assert "what a run executes is other code" in printed
    _holds(found)


def test_a_program_that_does_not_fit_says_so(capsys, monkeypatch):
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
    found = {
        "topology": "v5e:2x2", "slices": 1, "chips": 4, "mesh": {"data": 4}, "program": "train",
        "attention": "auto", "remat": "full", "rows": 4, "tokens": 9, "fits": False,
        "compiled": False,
        "bytes": {"parameters": 2**30, "total": 20 * 2**30, "memory": 16 * 2**30, "host": 0},
        "model_flops": 1, "recomputed_flops": 0, "roofline": None, "mfu_ceiling": None,
        "collectives": {}, "lower_seconds": 1.0, "compile_seconds": 1.0, "versions": {},
    }  # fmt: skip
    monkeypatch.setattr(compile_check, "check", lambda *_: (found, ""))
    with pytest.raises(SystemExit) as ended:
        call(*TINY, "--topology=v5e:2x2", "--json")
    printed = capsys.readouterr().out
    assert ended.value.code == 1
    assert "DOES NOT FIT" in printed and json.loads(printed.splitlines()[-1])["fits"] is False


def test_the_compilers_report_is_read():
    text = "Memory Space: default (color=0)\nTotal bytes: 12 (12B)\n 5\n\n"
    host = "Memory Space: host (color=4)\nTotal bytes: 4096 (4.0KiB)\n"
    assert memory_spaces(text + host) == {"default": 12, "host": 4096}
    with pytest.raises(ValueError, match="another form"):
        memory_spaces(host)


def test_the_compilers_refusal_is_read():

    for text in (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.31G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (25.31G) exceeds available HBM (15.75G).",
    ):
        assert math.isclose(wanted_bytes(text), 25.31 * 2**30, rel_tol=1e-3)
    assert wanted_bytes("Mosaic failed to compile TPU kernel") == 0


SLICES = ["v5p:4x4x4", "v5p:2x4x4", "v5e:16x16", "v6e:8x8"]
GROUPS = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]


def _held(fsdp: int, context: int) -> float:
    """Weights of the 7B model, those of the vision transformer as often as `context` holds them.

    Weights are cut by `fsdp` and then by `context` where both divide their width.
    """
    vit = VitSizes()
    encoder = vit.num_layers * (4 * vit.width**2 + 2 * vit.width * vit.mlp_width)
    return 14.6e9 + (context - 1) * encoder * (vit.width % (fsdp * context) > 0)


def _of_bagel(topology: str, tensor: int, context: int, *more: str) -> dict:
    """One full pack of 33k tokens a group of chips; float32 weights, AdamW, the average."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
    chips = math.prod(map(int, topology.split(":")[1].split("x")))
    groups = chips // (tensor * context)
    copies = 2 if groups == 256 else 1  # the vision transformer's width does not divide by 256
    sizes = {"data": copies, "tensor": tensor, "context": context}
    mesh = (f"--config.mesh.{name}={size}" for name, size in sizes.items())
    words = (*BAGEL, *mesh, f"--config.data.rows={groups}", f"--topology={topology}", "--json")
    command = [sys.executable, "-m", "launch.compile_check", *words, *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] and found["rows"] == groups and found["tokens"] > 33_000
    shard = 4 * copies * _held(groups // copies, context) / chips
    assert found["bytes"]["parameters"] == pytest.approx(shard, rel=0.02)
    assert found["bytes"]["ema"] == pytest.approx(shard, rel=0.02)
    assert found["bytes"]["optimizer"] == pytest.approx(2 * shard, rel=0.02)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("topology", SLICES)
@pytest.mark.parametrize(("tensor", "context"), GROUPS)
def test_the_7b_model_is_placed_on(topology, tensor, context):
    assert not _of_bagel(topology, tensor, context, "--nocodegen")["compiled"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("topology", SLICES)
def test_the_7b_model_is_compiled_for(topology):
    group = (1, 1) if topology.startswith("v5p") else (2, 2)
    assert _of_bagel(topology, *group)["compiled"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("program", ["denoise", "decode"])
@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x2"])
def test_the_7b_model_paints_on(topology, program, capsys):
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
    words = (f"--topology={topology}", f"--program={program}", "--config.mesh.tensor=4")
    found = report(capsys, "--json", *BAGEL, *words)
    assert found["fits"] and found["compiled"]
    # Weights that the program does not read lie in the memory too.
    assert found["bytes"]["activations"] > 0


def test_bagel_keeps_float32_weights():
    from configs import bagel_7b

    config: Config = from_mapping(bagel_7b.get_config().to_dict())
    assert config.model.param_dtype == "float32" and config.optimizer.name == "adamw"
    assert config.optimizer.ema_decay > 0 and config.optimizer.ema_memory == "device"
    assert config.optimizer.moment_dtype == config.optimizer.ema_dtype == "float32"
