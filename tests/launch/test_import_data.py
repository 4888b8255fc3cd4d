from __future__ import annotations

import json

import pytest

from launch import common, export_data, import_data
from process_gen.core.configs import SourceConfig
from process_gen.core.trajectory import same
from process_gen.data.builders import TrajectoryFolder, read_manifest, write_folder
from process_gen.data.sources import build_source
from tests.data import foreign


def command(module, *arguments):
    common.run(module.main, module.define_flags, module.__doc__, ["x", *arguments])


def take_in(*arguments):
    command(import_data, *arguments)


def give_out(*arguments):
    command(export_data, *arguments)


def test_there_and_back_again(tmp_path, capsys):
    foreign.write_edits(tmp_path / "in.parquet", foreign.edit_rows(7))
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "out.parquet"
    take_in(
        "--format=bagel_edit", f"--source={tmp_path}/in.parquet", f"--out={first}", "--shards=2",
        "--show=2", "--json",
    )  # fmt: skip
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["count"] == 7
    assert "edit 0.0" in (first / "samples.html").read_text()
    give_out(f"--data={first}", f"--out={file}", "--format=bagel_edit", "--row_group=3", "--json")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["rows"], found["row_groups"]) == (7, 3)
    take_in("--format=bagel_edit", f"--source={file}", f"--out={second}")
    a, b = TrajectoryFolder(str(first)), TrajectoryFolder(str(second))
    assert len(a) == len(b) == 7 and all(same(a[i], b[i]) for i in range(7))
    assert not same(a[0], b[1])


def test_what_was_left_out_stands_in_the_manifest(tmp_path, capsys):
    rows = foreign.edit_rows(4)
    rows[1]["image_list"][0] = b"no picture"
    foreign.write_edits(tmp_path / "in.parquet", rows)
    arguments = ("--format=bagel_edit", f"--source={tmp_path}/in.parquet")
    take_in(*arguments, f"--out={tmp_path}/data", "--limit=2")
    printed = capsys.readouterr().out
    assert "2 trajectories" in printed and "left out: 1 picture" in printed
    manifest = read_manifest(str(tmp_path / "data"))
    assert manifest["imported"] == "bagel_edit" and manifest["supervise"] == "all"
    assert manifest["skipped"]["counts"] == {"picture": 1}
    assert "in.parquet, row 1" in manifest["skipped"]["examples"][0]
    with pytest.raises(SystemExit) as stopped:
        take_in(*arguments, f"--out={tmp_path}/strict", "--strict")
    assert stopped.value.code == 2
    assert "in.parquet, row 1" in capsys.readouterr().err
    assert not (tmp_path / "strict" / "manifest.json").exists()


def test_pairs_are_supervised_from_their_last_inspection_on(tmp_path):
    foreign.write_tar(tmp_path / "x.tar", [(str(i), foreign.pair(i)) for i in range(2)])
    arguments = ("--format=genref", f"--source={tmp_path}/x.tar", f"--out={tmp_path}/data")
    take_in(*arguments, "--positives=1")
    source = build_source(SourceConfig("folder", path=str(tmp_path / "data")), 0)
    assert source.supervise == "last_repair" and len(source) == 4


def test_a_mixed_folder_gives_what_the_layout_can_say(tmp_path, capsys):
    strokes = build_source(SourceConfig("strokes"), 0)
    one_shot = build_source(SourceConfig("strokes_one_shot"), 0)
    mixed = [strokes[0], one_shot[0], strokes[1], one_shot[1]]
    write_folder(str(tmp_path / "data"), mixed)
    give_out(f"--data={tmp_path}/data", f"--out={tmp_path}/t2i.parquet", "--format=t2i")
    assert "2 rows" in (printed := capsys.readouterr().out) and "left out: 2 form" in printed
    with pytest.raises(SystemExit):
        give_out(f"--data={tmp_path}/data", f"--out={tmp_path}/x.parquet", "--format=bagel_edit")
    assert "nothing that bagel_edit can express" in capsys.readouterr().err
    assert not list(tmp_path.glob("*x.parquet*"))
    with pytest.raises(SystemExit):
        give_out(f"--data={tmp_path}/data", f"--out={tmp_path}/t2i.parquet", "--format=t2i")
    assert "exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        arguments = (f"--data={tmp_path}/data", f"--out={tmp_path}/y.parquet", "--format=t2i")
        give_out(*arguments, "--strict")
    assert "record 0" in capsys.readouterr().err and not (tmp_path / "y.parquet").exists()


@pytest.mark.parametrize(
    ("module", "arguments", "what"),
    [
        (import_data, ["--source=x", "--out=y"], "--format"),
        (import_data, ["--format=t2i", "--out=y"], "--source"),
        (import_data, ["--format=laion", "--source=x", "--out=y"], "format"),
        (import_data, ["--format=t2i", "--source=/nowhere.parquet", "--out=y"], "no such file"),
        (export_data, ["--data=/nowhere", "--out=y", "--format=t2i"], "not a trajectory folder"),
        (export_data, ["--data=x", "--format=t2i"], "--out"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(module, arguments, what, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(module, *arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert what in line


@pytest.mark.parametrize("module", [import_data, export_data])
def test_help_fits_a_screen(module, capsys):
    command(module, "--help")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and any("python -m launch." in line for line in lines)
