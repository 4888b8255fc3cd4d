"""The notebook of the docs runs from start to end, and is stored without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def run(notebook: nbformat.NotebookNode) -> list[list[nbformat.NotebookNode]]:
    """Outputs of the code cells."""
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    client = NotebookClient(notebook, timeout=600, iopub_timeout=60, resources=folder)
    client.execute(env={**os.environ, "PYTHONPATH": str(NOTEBOOK.parents[1])})
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.timeout(900)  # it paints three times
def test_it_runs_from_start_to_end():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
    outputs = run(notebook)
    first, *_ = outputs
    assert "'finished'" in first[-1]["data"]["text/plain"]
    pictures = [one for cell in outputs for one in cell if "image/png" in one.get("data", {})]
    assert len(pictures) == 4
    said = "".join(one.get("text", "") for cell in outputs for one in cell)
    assert "1. plan:       <ins>" in said and "red" in said


def test_a_broken_cell_is_found():
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(broken)
