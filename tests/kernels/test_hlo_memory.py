"""No array of all pairs is stored: read off the compiled programs, for this machine and for TPUs.

Lengths are primes, so that no other array has two such dimensions by accident.
"""

from __future__ import annotations

import pytest

from process_gen.aot.hlo_shapes import has_dims, largest_buffers
from tests.kernels.programs import Sizes, compiled, tpu_devices

SMALL = Sizes(length=1031, heads=4, kv_heads=2, width=8, dtype="float32")
LAYER = Sizes(length=4099)


@pytest.mark.parametrize("implementation", ["chunked", "rows"])
@pytest.mark.parametrize("backward", [False, True])
def test_blocks_store_no_array_of_all_pairs(backward, implementation):
    pairs = SMALL.length**2
    text = compiled(implementation, SMALL, backward=backward).as_text()
    assert not has_dims(text, SMALL.length, SMALL.length)
    assert largest_buffers(text)[0].bytes <= 4 * 4 * 512 * 512 < 4 * pairs
    dense = compiled("dense", SMALL, backward=backward).as_text()
    assert has_dims(dense, SMALL.length, SMALL.length)
    assert largest_buffers(dense)[0].bytes >= 4 * 4 * pairs


@pytest.fixture(scope="module")
def tpu():
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
    return tpu_devices


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
@pytest.mark.parametrize("implementation", ["pallas", "chunked"])
def test_a_layer_compiles_for_a_tpu_without_such_an_array(tpu, chip, implementation):
    """One layer of the 7B model, forward and backward."""
    program = compiled(implementation, LAYER, tpu(chip))
    text = program.as_text()
    assert not has_dims(text, LAYER.length, LAYER.length)
    assert ("tpu_custom_call" in text) == (implementation == "pallas")
    # Nothing larger than the scores of a pair of blocks, or the queries in float32.
    queries = LAYER.length * LAYER.heads * LAYER.width * 4
    assert largest_buffers(text)[0].bytes < 1.2 * max(queries, LAYER.heads * 512 * 512 * 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dense_does_store_one(tpu):
    text = compiled("dense", LAYER, tpu("v5p")).as_text()
    assert has_dims(text, LAYER.length, LAYER.length)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(2500, heads=16, kv_heads=16, width=72),  # the vision transformer
        Sizes(416, heads=4, kv_heads=2, width=24, dtype="float32", rows=3),  # the miniature
        Sizes(2048, heads=28, kv_heads=4, dtype="float32"),
    ],
)
def test_other_sizes_compile_too(tpu, sizes):
    assert "tpu_custom_call" in compiled("pallas", sizes, tpu("v5e")).as_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mesh", [(1, 4, 1, 1), (1, 1, 4, 1), (1, 1, 1, 4), (1, 1, 2, 2)])
def test_each_device_gets_its_share(tpu, mesh):
    """fsdp, tensor, context and a mix: rows, heads and queries of a device, and nothing more."""
    sizes = Sizes(length=4 * 1031, rows=4)
    text = compiled("pallas", sizes, tpu("v5p"), mesh).as_text()
    _, fsdp, tensor, context = mesh
    own = [sizes.rows // fsdp, sizes.length // context, sizes.heads // tensor, sizes.width]
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    assert len(calls) == 3
    filled = own[1] + -own[1] % 512
    shape = f"bf16[{own[0]},{filled},{own[2] * own[3]}]"
    assert all(shape in line for line in calls), (shape, calls)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("implementation", ["pallas", "chunked"])
def test_temporary_memory_grows_with_the_length_alone(tpu, implementation):
    bytes_at = [
        compiled(implementation, Sizes(length), tpu("v5e")).memory_analysis().temp_size_in_bytes
        for length in (32_768, 65_536)
    ]
    # Shorter ones keep part of their arrays in a core's own memory, which does not count.
    assert bytes_at[1] < 2.1 * bytes_at[0]
