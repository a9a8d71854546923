import json
import os
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "walkthrough.ipynb"


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_the_notebook_runs_from_the_first_cell_to_the_last(tmp_path, monkeypatch):
    monkeypatch.setenv("WALKTHROUGH_FOLDER", str(tmp_path / "walk"))
    monkeypatch.setenv("WALKTHROUGH_EPOCHS", "2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute(env=dict(os.environ))
    last = "".join(output.text for output in notebook.cells[-1].outputs if output.output_type == "stream")
    assert "unlabeled images right" in last
    metrics = json.loads((tmp_path / "walk" / "runs" / "base_run" / "metrics.json").read_text())
    assert metrics["data"]["images"] > 100
    assert (tmp_path / "walk" / "runs" / "comparison.html").stat().st_size > 10_000
