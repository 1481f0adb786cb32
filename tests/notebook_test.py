"""The notebook runs, top to bottom, on a finished workdir."""

import json
import pathlib

import nbformat
from nbclient import NotebookClient


def printed(cell) -> list[str]:
  """What a cell wrote to stdout, in one piece or several."""
  return [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]


def test_the_notebook_asks_for_the_next_mixtures(finished, monkeypatch):
  monkeypatch.setenv("MIXJAX_WORKDIR", str(finished))
  monkeypatch.delenv("XLA_FLAGS")
  monkeypatch.setenv("PYTHONPATH", str(pathlib.Path.cwd()))
  notebook = nbformat.read("notebooks/next_mixture.ipynb", as_version=4)
  NotebookClient(notebook, timeout=300).execute()
  said = ["".join(printed(cell)) for cell in notebook.cells if cell.cell_type == "code"]
  said = [text for text in said if text]
  recipe = json.loads((finished / "recipe.json").read_text())
  assert str(recipe["objective"]["mean"]) in said[0]
  assert said[1].count("{") == 3  # three suggestions, the leading weights of each
  assert "documents: expects" in said[2] and "counting: expects" in said[2]


def test_the_committed_notebook_holds_no_output():
  notebook = nbformat.read("notebooks/next_mixture.ipynb", as_version=4)
  assert all(not cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code")
