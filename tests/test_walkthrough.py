import json
import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "walkthrough.ipynb"
_MAX_BYTES = 500_000
_FOREIGN = re.compile(r"/(?!content/fakereal\b)(?:home|root|tmp|work|Users|content)/")


def read():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def commands(notebook) -> list[str]:
    return [line for cell in code_cells(notebook) for line in printed(cell).splitlines() if line.startswith("$ ")]


def test_the_notebook_is_kept_with_the_outputs_of_one_run_from_top_to_bottom():
    cells = code_cells(read())
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs) >= 4
    assert NOTEBOOK.stat().st_size < _MAX_BYTES
    assert not _FOREIGN.search("".join(map(printed, cells))), "an output names a folder of the machine that made it"


def test_the_first_cell_is_for_colab_and_says_what_is_missing():
    first = code_cells(read())[0]
    assert "google.colab" in first.source
    assert "git clone" in first.source
    assert first.outputs == []


@pytest.mark.slow
def test_the_notebook_runs_from_the_first_cell_to_the_last(tmp_path, monkeypatch):
    monkeypatch.setenv("WALKTHROUGH_FOLDER", str(tmp_path / "walk"))
    monkeypatch.setenv("WALKTHROUGH_EPOCHS", "2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read()
    kept = commands(notebook)
    client = nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute(env=dict(os.environ))
    assert "unlabeled images right" in "".join(map(printed, code_cells(notebook)))
    metrics = json.loads((tmp_path / "walk" / "runs" / "base_run" / "metrics.json").read_text())
    assert metrics["data"]["images"] > 100
    assert (tmp_path / "walk" / "runs" / "comparison.html").stat().st_size > 10_000
    assert len(list((tmp_path / "walk" / "why").glob("*.jpg"))) == 3
    now = [_without_run(line.replace(str(tmp_path / "walk"), "walkthrough")) for line in commands(notebook)]
    assert [_without_run(line) for line in kept] == now  # or the kept outputs are of another notebook


def _without_run(command: str) -> str:
    """Leave out what differs from run to run: the number of epochs, and which configuration was best."""
    return re.sub(r" --set training\.epochs=\d+|runs/\w+\.h5", "", command)
