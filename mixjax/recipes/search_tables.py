"""The numbers of the search: what the mixture spends, how the proxies went, what can be told apart.

`found` is everywhere the content of search.json, `side` that of one of its axes
(mixjax/jobs/search.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import norm, spearmanr

from mixjax.recipes import sensitivity
from mixjax.recipes.tables import AVERAGE

RANDOM = "random"


def split_cell(cell: str) -> tuple[str, str]:
  """`concept/task` -> (concept, task)."""
  concept, _, task = cell.rpartition("/")
  return concept, task


def grid(weights: Mapping[str, float], rows: Mapping[str, int]) -> Float[np.ndarray, "k t"]:
  """Weights as concepts x tasks, in the manifest's order; NaN where a cell has no rows."""
  concepts, tasks = names(rows)
  table = np.full((len(concepts), len(tasks)), np.nan)
  for cell, count in rows.items():
    concept, task = split_cell(cell)
    if count:
      table[concepts.index(concept), tasks.index(task)] = weights.get(cell, 0.0)
  return table


def names(rows: Mapping[str, int]) -> tuple[list[str], list[str]]:
  """(concepts, tasks) in the manifest's order."""
  pairs = [split_cell(cell) for cell in rows]
  return list(dict.fromkeys(c for c, _ in pairs)), list(dict.fromkeys(t for _, t in pairs))


def marginal(weights: Mapping[str, float], part: int) -> dict[str, float]:
  """Summed weights by concept (part 0) or by task (part 1)."""
  total: dict[str, float] = {}
  for cell, weight in weights.items():
    name = split_cell(cell)[part]
    total[name] = total.get(name, 0.0) + weight
  return total


@dataclasses.dataclass(frozen=True)
class CellRow:
  """What the recipe spends on a cell; the last three are None where no target run tells."""

  cell: str
  rows: int
  weight: float
  natural: float
  samples: float | None
  tokens: float | None
  epochs: float | None

  @property
  def ratio(self) -> float | None:
    return self.weight / self.natural if self.natural else None


def cell_rows(recipe, natural, rows, counts=None) -> list[CellRow]:
  """Cells with rows, heaviest first; `samples` and `tokens` are shares of all that the run drew."""
  whole = {
    k: sum(entry[k] for entry in (counts or {}).values()) for k in ("realised", "loss_tokens")
  }
  table = []
  for cell, count in rows.items():
    spent = (counts or {}).get(cell)
    if count:
      table.append(
        CellRow(
          cell, count, recipe.get(cell, 0.0), natural.get(cell, 0.0),
          spent and spent["realised"] / max(whole["realised"], 1),
          spent and spent["loss_tokens"] / max(whole["loss_tokens"], 1),
          spent and spent["epochs"],
        )
      )  # fmt: skip
  return sorted(table, key=lambda row: (-row.weight, row.cell))


@dataclasses.dataclass(frozen=True)
class JunkRow:
  """Rows that teach nothing or the wrong thing, and how much of each mixture falls on them."""

  cell: str  # true domain / task
  kind: str
  share: float  # of the cell's rows that are bad
  natural: float
  recipe: float


def junk_rows(card: dict, concepts: Sequence[str], recipe, natural) -> list[JunkRow]:
  """Estimates: a domain's part of a cell is taken to be its part of the concept's images."""
  bad = {cell: ("useless", 1.0) for cell in card.get("useless", [])}
  bad |= {cell: ("mislabelled", share) for cell, share in card.get("mislabelled", {}).items()}
  table = []
  for cell, (kind, share) in bad.items():
    domain, task = split_cell(cell)
    spent = []
    for weights in (natural, recipe):
      parts = [
        weights.get(f"{concept}/{task}", 0.0) * counts.get(domain, 0) / max(sum(counts.values()), 1)
        for concept, counts in zip(concepts, card["domains"].values(), strict=True)
      ]
      spent.append(share * sum(parts))
    table.append(JunkRow(cell, kind, share, *spent))
  return table


@dataclasses.dataclass(frozen=True)
class History:
  """Runs of one method in order; `best` is the best score so far."""

  purposes: list[str]
  scores: Float[np.ndarray, " n"]
  best: Float[np.ndarray, " n"]


def history(side: dict) -> dict[str, History]:
  """Of "mixatlas" (seeds, proposals, replicates) and of the random design."""
  found = {}
  for method, wanted in (("mixatlas", False), (RANDOM, True)):
    runs = [h for h in side["history"] if (h["purpose"] == RANDOM) == wanted]
    scores = np.array([h["score"] for h in runs])
    best = np.maximum.accumulate(scores) if len(scores) else scores
    found[method] = History([h["purpose"] for h in runs], scores, best)
  return found


@dataclasses.dataclass(frozen=True)
class Fit:
  """Each run predicted from the others; `coverage` is how often 1.96 sd hold the observed score."""

  observed: Float[np.ndarray, " n"]
  mean: Float[np.ndarray, " n"]
  sd: Float[np.ndarray, " n"]
  coverage: float
  spearman: float
  error: float  # root mean square


def fit(side: dict) -> Fit:
  left_out = side["leave_one_out"]
  observed, mean, sd = (np.array(left_out[k], float) for k in ("observed", "mean", "sd"))
  inside = np.abs(observed - mean) <= 1.96 * sd
  rank = float(spearmanr(observed, mean).statistic) if np.ptp(mean) and np.ptp(observed) else 0.0
  return Fit(
    observed, mean, sd, float(inside.mean()), rank, float(np.sqrt(np.mean((observed - mean) ** 2)))
  )


def random_runs(side: dict) -> tuple[np.ndarray, np.ndarray]:
  """(points float[n, d], scores float[n, b + 1], the average last) of the random design alone.

  Adaptive runs crowd where scores are high, which biases correlations.
  """
  runs = [run for run in side["history"] if run["purpose"] == RANDOM]
  points = np.array([[run["point"][name] for name in side["coordinates"]] for run in runs])
  vectors = np.array([run["vector"] for run in runs])
  return points, np.concatenate([vectors, vectors.mean(axis=1, keepdims=True)], axis=1)


def correlations(found: dict, side: dict) -> sensitivity.Correlations:
  points, scores = random_runs(side)
  return sensitivity.correlate(points, scores, side["coordinates"], [*found["benchmarks"], AVERAGE])


@dataclasses.dataclass(frozen=True)
class SecondOrder:
  """Effects on the average score, in points, of moving both weights one sd of the design.

  `skill` is that of the whole fit, leave-one-out, on the average; `by_benchmark` on each.
  """

  coordinates: tuple[str, ...]
  effects: Float[np.ndarray, "d d"]
  skill: float
  by_benchmark: dict[str, float]
  runs: int

  def strongest(self, count: int) -> list[tuple[str, str, float]]:
    """Pairs by size of effect."""
    first, second = np.triu_indices(len(self.coordinates), k=1)
    values = self.effects[first, second]
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    return [
      (self.coordinates[first[i]], self.coordinates[second[i]], float(values[i])) for i in order
    ]


def second_order(found: dict, side: dict) -> SecondOrder:
  points, scores = random_runs(side)
  fitted = sensitivity.quadratic(
    points, scores, side["coordinates"], [*found["benchmarks"], AVERAGE]
  )
  spread = points.std(axis=0)
  effects = fitted.interactions[..., -1] * np.outer(spread, spread)
  skills = dict(zip(found["benchmarks"], fitted.skill.tolist(), strict=False))
  return SecondOrder(fitted.coordinates, effects, float(fitted.skill[-1]), skills, len(points))


@dataclasses.dataclass(frozen=True)
class SignalRow:
  """Proxies on one benchmark: does the mixture matter more than the seed does?"""

  benchmark: str
  random_sd: float
  noise_sd: float
  ratio: float
  headroom: float  # (best random run - mean of uniform) / noise sd


def signal_rows(found: dict, side: dict, uniform: Float[np.ndarray, "n b"]) -> list[SignalRow]:
  """Benchmarks, then the average. `uniform` holds one row a seed."""
  _, scores = random_runs(side)
  base = np.concatenate([uniform, uniform.mean(axis=1, keepdims=True)], axis=1)
  rows = []
  for i, name in enumerate([*found["benchmarks"], AVERAGE]):
    spread, noise = float(scores[:, i].std(ddof=1)), float(base[:, i].std(ddof=1))
    gain = float(scores[:, i].max() - base[:, i].mean())
    rows.append(SignalRow(name, spread, noise, _over(spread, noise), _over(gain, noise)))
  return rows


def _over(value: float, noise: float) -> float:
  return value / noise if noise > 0 else float("nan")


def luck(runs: int) -> float:
  """What the best of `runs` equal mixtures gains by luck, in noise sd (after Blom)."""
  return float(norm.ppf((runs - 0.375) / (runs + 0.25)))


@dataclasses.dataclass(frozen=True)
class Ranked:
  """One mixture scored by the proxy and by the target (answer likelihood on the same questions)."""

  name: str
  proxy: float
  target: float
  proxy_rank: int
  target_rank: int


def ranked(targets: dict) -> list[Ranked]:
  """The mixtures that were run on both, the proxy's favourite first; ranks count from 1."""
  scores = {
    run["name"]: float(np.mean([s["score"] for s in run["scores"]["validation"].values()]))
    for run in targets["runs"]
    if run["group"] == "rank"
  }
  pairs = [(name, targets["proxy_scores"][name], score) for name, score in scores.items()]
  return sorted(
    (
      Ranked(
        name,
        proxy,
        target,
        1 + sum(p > proxy for _, p, _ in pairs),
        1 + sum(t > target for *_, t in pairs),
      )
      for name, proxy, target in pairs
    ),
    key=lambda r: (r.proxy_rank, r.name),
  )
