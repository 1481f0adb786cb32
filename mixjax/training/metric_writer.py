"""Metrics of a run: `metrics.jsonl` always, and clu's own writers where TensorFlow is installed.

clu.metric_writers imports TensorFlow, which a run does not need; so its interface is kept
(write_scalars, flush, close) and its TensorBoard files come only when it can be imported.
"""

import importlib.util
import json
import os
from collections.abc import Mapping

import jax
from etils import epath


class MetricWriter:
  """One line a step in `folder/metrics.jsonl`; those after `resume_from` are dropped first.

  Of the processes of a pod the first one writes.
  """

  def __init__(self, folder: epath.Path, resume_from: int = 0):
    first = jax.process_index() == 0
    self._path = folder / "metrics.jsonl" if first else epath.Path(os.devnull)
    kept = []
    if resume_from and self._path.exists():
      kept = [line for line in self._path.read_text().splitlines() if _step(line) <= resume_from]
    if first:
      partial = folder / ".metrics.jsonl.partial"
      partial.write_text("".join(f"{line}\n" for line in kept))
      partial.replace(self._path)
    self._file = open(self._path, "a")  # noqa: SIM115  closed by close()
    self._clu = None
    if first and importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
      from clu import metric_writers

      self._clu = metric_writers.create_default_writer(str(folder / "tensorboard"))

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """One line `{"step": ..., **scalars}`; at once on disk, so that a kill loses none before it."""
    self._file.write(json.dumps({"step": step, **scalars}) + "\n")
    self._file.flush()
    if self._clu:
      self._clu.write_scalars(step, scalars)

  def close(self) -> None:
    self._file.close()
    if self._clu:
      self._clu.close()


def _step(line: str) -> float:
  try:
    return float(json.loads(line)["step"])
  except (json.JSONDecodeError, KeyError):  # torn by a kill
    return float("inf")
