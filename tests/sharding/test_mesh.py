"""Meshes over described TPU slices: neighbours lie together, slices are joined by few axes."""

from __future__ import annotations

import pytest

from process_gen.core.configs import MeshConfig
from process_gen.core.errors import ConfigError
from process_gen.sharding.mesh import MESH_AXES, across_slices, make_mesh

GROUPS = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]


@pytest.fixture(scope="module")
def described():
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
    from process_gen.aot.topology import describe

    return describe


@pytest.mark.parametrize("topology", ["v5p:4x4x4", "v5p:2x4x4", "v5e:16x16", "v6e:8x8"])
@pytest.mark.parametrize(("tensor", "context"), GROUPS)
def test_a_group_is_made_of_neighbours(described, topology, tensor, context):
    devices = described(topology).devices
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=tensor, context=context), devices)
    assert mesh.shape["fsdp"] * tensor * context == len(devices)
    assert len({d.id for d in mesh.devices.flat}) == len(devices)
    for group in mesh.devices.reshape(-1, tensor * context):
        for one, other in zip(group, group[1:], strict=False):
            distance = sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))
            assert distance <= 2  # one step, or a corner of a square of four
    whole = mesh.devices.reshape(-1, tensor * context)
    far = [sum(abs(a - b) for a, b in zip(x.coords, whole[-1][0].coords, strict=True))
           for x in whole[0][:1]]  # fmt: skip
    assert max(far) > 2  # of all devices this does not hold


@pytest.mark.parametrize(
    ("sizes", "data", "fsdp"), [((2, 4), 2, 1), ((4, 2), 2, 1), ((1, 8), 1, 2)]
)
def test_slices_lie_along_data_first(described, sizes, data, fsdp):
    devices = described("v5e:4x4", slices=2).devices
    mesh = make_mesh(MeshConfig(*sizes, tensor=2, context=2), devices)
    slices = [[{d.slice_index for d in cell.flat} for cell in row] for row in mesh.devices]
    assert all(len(cell) == 1 for row in slices for cell in row)  # tensor and context stay inside
    along_data = {tuple(min(cell) for cell in row) for row in slices}
    along_fsdp = {min(cell) for cell in slices[0]}
    assert len(along_fsdp) == fsdp and (len(along_data) == 2) == (data == 2)


def test_slices_must_divide():
    sizes = dict(zip(MESH_AXES, (2, 3, 2, 1), strict=True))
    assert across_slices(sizes, 2) == dict(zip(MESH_AXES, (2, 1, 1, 1), strict=True))
    assert across_slices(sizes, 6) == dict(zip(MESH_AXES, (2, 3, 1, 1), strict=True))
    with pytest.raises(ConfigError, match=r"4 slices .* mesh.data=2 x mesh.fsdp=3"):
        across_slices(sizes, 4)
