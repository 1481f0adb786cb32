"""The notebook runs, top to bottom, on a finished workdir."""

import json
import pathlib

import nbformat
from nbclient import NotebookClient


def test_the_notebook_asks_for_the_next_mixtures(finished, monkeypatch):
  monkeypatch.setenv("MIXJAX_WORKDIR", str(finished))
  monkeypatch.delenv("XLA_FLAGS")
  monkeypatch.setenv("PYTHONPATH", str(pathlib.Path.cwd()))
  notebook = nbformat.read("notebooks/next_mixture.ipynb", as_version=4)
  NotebookClient(notebook, timeout=300).execute()
  said = [
    output.text
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
    if output.output_type == "stream" and output.name == "stdout"
  ]
  recipe = json.loads((finished / "recipe.json").read_text())
  assert str(recipe["objective"]["mean"]) in said[0]
  assert said[1].count("{") == 3  # three suggestions, the leading weights of each
  assert "documents: expects" in said[2] and "counting: expects" in said[2]


def test_the_committed_notebook_holds_no_output():
  notebook = nbformat.read("notebooks/next_mixture.ipynb", as_version=4)
  assert all(not cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code")
