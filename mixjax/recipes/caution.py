"""What the search's surrogate says against itself, fitted again to the runs that the search saw."""

import dataclasses

import numpy as np

from mixjax.jobs.search_config import parse, spaces
from mixjax.recipes import search_tables
from mixjax.recipes.evidence import Evidence, Missing
from mixjax.search import advice, surrogate, total
from mixjax.search.acquire import upper_confidence_bound
from mixjax.search.calibration import Card, calibration, effect_evidence
from mixjax.search.effects import Effect, main_effects
from mixjax.search.objective import observed
from mixjax.search.observations import Observations, matches
from mixjax.search.space import Space
from mixjax.search.stopping import Verdict, expected_gain, should_stop

# The fewest runs of which leaving one out says anything: with fewer, not even the scale of their
# scores is learnt.
LEAST_RUNS = surrogate.FEW

# Candidates that a batch is chosen from: those whose means plus two sds are the highest.
HOPEFUL = 500

# Scores of the runs and those that search.json says the surrogate was fitted to agree to this.
SAME_SCORE = 1e-6


@dataclasses.dataclass(frozen=True)
class Caution:
  """About one axis: `uniform` of its `runs` are seeds of the uniform mixture, counted first.

  `effects` are of single weights, the highest first; `verdict` is on another batch, None where the
  pool has no mixture left. `outliers` are those of `card`, and `diverged` the proxies without
  scores, the baselines' too, by their numbers in the study. The search's own count as the worst run
  did, as in the search: in all but `runs`.
  """

  axis: str
  runs: int
  uniform: int
  warnings: tuple[str, ...]
  card: Card
  verdict: Verdict | None
  effects: tuple[Effect, ...]
  outliers: tuple[int, ...]
  diverged: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
  """What the search saw of an axis at its end; `trials` are the study's numbers of the runs, then
  of what diverged, which is infeasible in `runs`.

  The seeds of the uniform mixture come first, then the axis's own runs in order. The random design
  is the baselines', and not among them. `batch` is how many runs the search asked for at a time.
  """

  space: Space
  runs: Observations
  trials: tuple[int, ...]
  uniform: int
  batch: int


def caution(evidence: Evidence, axis: str) -> Caution:
  """Fits the search's surrogate of `axis` again and asks it. `Missing` where that cannot be."""
  seen = rebuild(evidence, axis)
  space, runs = seen.space, seen.runs
  if len(runs) < LEAST_RUNS:
    raise Missing(f"{len(runs)} runs on the {axis} axis are too few to judge a surrogate by.")
  told = runs.as_worst()
  fitted = total.fit(told, space)
  card = calibration(fitted)
  # Shuffled by parts, the test alone would take a minute at 70 runs and ten benchmarks.
  whole = dataclasses.replace(told, parts=None)
  unseen = space.pool[~matches(space.pool, runs.known())]
  mean, sd = fitted.predict(unseen)
  hopeful = unseen[np.argsort(-upper_confidence_bound(mean, sd, 2), kind="stable")[:HOPEFUL]]
  count = min(seen.batch, len(hopeful))
  return Caution(
    axis=axis,
    runs=len(runs),
    uniform=seen.uniform,
    warnings=advice.warnings(told, fitted, evidence=effect_evidence(whole, space)),
    card=card,
    verdict=should_stop(expected_gain(fitted, hopeful, count)) if count else None,
    effects=tuple(sorted(main_effects(fitted), key=lambda effect: -effect.mean)),
    outliers=tuple(seen.trials[place] for place in card.outliers),
    diverged=tuple(run["trial"] for run in _diverged(evidence, axis)),
  )


def rebuild(evidence: Evidence, axis: str) -> Seen:
  """From the study, search.json and the config; `Missing` unless these tell of the same runs."""
  found = evidence.search
  side, names = found["axes"][axis], found["benchmarks"]
  try:
    config = parse(evidence.json("config.search.json"))
    # A config is written with its keys sorted, but the order of the axes is part of their pools.
    config = dataclasses.replace(config, axes={name: config.axes[name] for name in found["axes"]})
    # The names are the search's own: the questions may have stayed where it was made.
    weights = config.weights_over(names)
  except (KeyError, TypeError, ValueError) as error:
    raise Missing(f"config.search.json does not tell how this search was made: {error}.") from error
  space, _ = spaces(config, evidence.rows)[axis]
  if list(space.names) != side["coordinates"]:
    raise Missing(
      f"The cells in this workdir have other names than the {axis} axis of search.json had, so the "
      "search's surrogate cannot be fitted again."
    )
  uniform = evidence.uniform_seeds
  searched = [run for run in side["history"] if run["purpose"] != search_tables.RANDOM]
  vectors = [[trial.scores[name]["score"] for name in names] for trial in uniform]
  vectors += [run["vector"] for run in searched]
  points = [space.uniform()] * len(uniform)
  points += [[run["point"][name] for name in space.names] for run in searched]
  runs = observed(
    np.reshape(points, (len(points), space.dim)),
    np.reshape(vectors, (len(vectors), len(names))),
    weights,
  )
  told = np.array(side["leave_one_out"]["observed"])
  if len(told) != len(runs) or not np.allclose(runs.scores, told, rtol=SAME_SCORE, atol=0):
    raise Missing(
      f"The study, the config and search.json disagree on the scores of the {len(runs)} runs that "
      f"the {axis} axis saw, so the search's surrogate cannot be fitted again."
    )
  lost = [run for run in _diverged(evidence, axis) if run["purpose"] != search_tables.RANDOM]
  infeasible = np.reshape([space.from_dict(run["point"]) for run in lost], (len(lost), space.dim))
  return Seen(
    space,
    dataclasses.replace(runs, infeasible=infeasible),
    (*(trial.id for trial in uniform), *(run["trial"] for run in (*searched, *lost))),
    len(uniform),
    config.batch,
  )


def _diverged(evidence: Evidence, axis: str) -> list[dict]:
  return evidence.search["axes"][axis].get("diverged", [])
