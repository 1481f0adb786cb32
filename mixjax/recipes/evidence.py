"""What a workdir holds for a report, read once; parts that are not there are named, not guessed."""

import dataclasses
import functools
import json

import numpy as np
from etils import epath
from jaxtyping import Float

from mixjax.evals import benchmarks
from mixjax.evals.evaluate import answer_prior
from mixjax.search.study import Study
from mixjax.search.trial import Trial

# Two mixtures whose weights agree to this are the same one.
SAME = 1e-9

# A benchmark's prompts must be asked this often on average for a constant guess to be told.
LEAST_ASKED = 3

_WRITTEN_BY = {
  "atlas/card.json": "the atlas has not been built",
  "atlas/atlas.json": "the atlas has not been built",
  "atlas/cells/manifest.json": "the cells have not been written",
  "atlas/questions/benchmark.json": "the questions have not been read",
  "search.json": "the search has not finished",
  "recipe.json": "the search has not finished",
  "targets.json": "the target runs have not finished, or none were asked for",
  "config.search.json": "the workdir is not one of the search job",
  "study": "no proxy has been run",
}


class Missing(Exception):
  """A section's input is not in the workdir; says what and why in one line."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
  """Reads a workdir lazily. Everything raises `Missing` where its file is not there."""

  workdir: epath.Path

  @functools.lru_cache(maxsize=16)  # noqa: B019  lives as long as the report is written
  def json(self, name: str) -> dict:
    path = self._existing(name)
    return json.loads(path.read_text())

  def has(self, name: str) -> bool:
    return (self.workdir / name).exists()

  def _existing(self, name: str) -> epath.Path:
    path = self.workdir / name
    if not path.exists():
      raise Missing(f"{name} is not in this workdir: {_WRITTEN_BY.get(name, 'nothing wrote it')}.")
    return path

  @property
  def search(self) -> dict:
    return self.json("search.json")

  @property
  def recipe(self) -> dict:
    return self.json("recipe.json")

  @property
  def targets(self) -> dict:
    return self.json("targets.json")

  @property
  def card(self) -> dict:
    return self.json("atlas/card.json")

  @property
  def rows(self) -> dict[str, int]:
    """Cell -> rows, empty cells included, and those of whose rows proxies could use none."""
    name = "atlas/encoded/cells.json"
    cells = self.json(name if self.has(name) else "atlas/cells/manifest.json")["cells"]
    return {cell: entry["rows"] for cell, entry in cells.items()}

  @property
  def concepts(self) -> list[str]:
    """Names as the cells have them: those of atlas.json, which a person may have edited."""
    return list(self.json("atlas/atlas.json")["names"])

  @property
  def sheets(self) -> list[bytes | None]:
    """The contact sheet of each concept as PNG, in the order of `concepts`."""
    paths = [self.workdir / "atlas" / "sheets" / f"{c:02d}.png" for c in range(len(self.concepts))]
    return [path.read_bytes() if path.exists() else None for path in paths]

  @functools.cached_property
  def questions(self) -> list[benchmarks.Question]:
    """What the final table asks."""
    return benchmarks.read(self._existing("atlas/questions/benchmark.json"))

  @property
  def metrics(self) -> dict[str, str]:
    """Benchmark -> metric; the gallery's where the questions are not there."""
    if self.has("atlas/questions/benchmark.json"):
      return benchmarks.metrics_of(self.questions)
    return dict(benchmarks.GALLERY)

  @functools.cached_property
  def prior(self) -> dict[str, float | None]:
    """What the best constant guess to each prompt scores on a benchmark, 0-100.

    None where prompts hardly repeat: a guess fitted to each single question tells nothing.
    """
    found = {}
    for name, score in answer_prior(self.questions).items():
      prompts = [q.prompt for q in self.questions if q.benchmark == name]
      found[name] = score if len(prompts) >= LEAST_ASKED * len(set(prompts)) else None
    return found

  @functools.cached_property
  def trials(self) -> list[Trial]:
    return Study(self._existing("study")).trials()

  @property
  def uniform_seeds(self) -> list[Trial]:
    """The proxies asked for to learn the noise: the uniform mixture under several seeds."""
    asked = [trial for trial in self.trials if trial.purpose == "uniform" and trial.scores]
    return sorted(asked, key=lambda trial: trial.seed)

  @property
  def uniform_vectors(self) -> Float[np.ndarray, "n b"]:
    """Scores of the proxies on the uniform mixture, one row a seed."""
    uniform = self.search["baselines"]["uniform"]["weights"]
    runs = {}  # by seed: the same run under two purposes is one run
    for trial in self.trials:
      if trial.scores and _alike(trial.mixture, uniform):
        runs[trial.seed] = [trial.scores[b]["score"] for b in self.search["benchmarks"]]
    return np.array([runs[seed] for seed in sorted(runs)])

  @property
  def proxy_seconds(self) -> list[float]:
    """Seconds of each proxy: training plus scoring."""
    folder = self._existing("study") / "trials"
    results = sorted(folder.glob("*/result.json"))
    return [sum(json.loads(path.read_text())["seconds"].values()) for path in results]


def _alike(a: dict[str, float], b: dict[str, float]) -> bool:
  return all(abs(a.get(k, 0.0) - b.get(k, 0.0)) <= SAME for k in a.keys() | b.keys())
