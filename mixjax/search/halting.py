"""When a running trial is hopeless, and which checkpoint is worth evaluating.

Both rest on what a study's own curves show: in recorded studies the correlation between early and
final scores ranges from 0.99 down to about 0.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy.stats import norm, t

from mixjax.search.calibration import is_constant
from mixjax.search.chain import Chain
from mixjax.search.curves import Curves
from mixjax.search.objective import Objective
from mixjax.search.slopes import LEAST_RUNS
from mixjax.search.stopping import Verdict

# The probability of reaching the best below which a run is stopped.
HOPELESS = 0.03

# The correlation that a cheaper checkpoint must be shown to have.
ENOUGH = 0.8


@dataclasses.dataclass(frozen=True, eq=False)
class Correlation:
  """Of the scores at each checkpoint with the final ones, over mixtures, with a 95% interval.

  `runs` have finished; with fewer than four nothing is known, and the interval is all of [-1, 1].
  """

  names: tuple[str, ...]
  steps: Float[np.ndarray, " t"]
  estimate: Float[np.ndarray, "t b"]
  low: Float[np.ndarray, "t b"]
  high: Float[np.ndarray, "t b"]
  runs: int


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """The checkpoint to evaluate: its step, its share of the cost, and the numbers that say so."""

  step: float
  share: float
  reason: str


@dataclasses.dataclass(frozen=True)
class Outlook(Verdict):
  """Whether to stop a run, whose final score has `chance` to exceed `bar`; it is forecast as
  `mean`, with `sd`, in units of the objective (higher is better)."""

  chance: float
  bar: float
  mean: float
  sd: float


def correlation(curves: Curves) -> Correlation:
  """What the finished of `curves` show; that of an objective is `correlation(curves.of(...))`.

  Fisher's interval. Runs stopped for their early scores make those of the finished ones vary less,
  and correlate less; this is undone for the spread of all that reached the checkpoint (Thorndike,
  1949, case 2), the interval with it. So it is over mixtures such as reached it.
  """
  finished = curves.scores[curves.finished]
  shape = curves.scores.shape[1:]
  estimate, low, high = np.ones((3, *shape))
  for k, b in np.ndindex(shape[0] - 1, shape[1]):
    everyone = curves.scores[curves.reached > k, k, b]
    numbers = _correlation(finished[:, k, b], finished[:, -1, b], everyone)
    estimate[k, b], low[k, b], high[k, b] = numbers
  return Correlation(curves.names, curves.steps, estimate, low, high, len(finished))


def cheapest(found: Correlation, level: float = ENOUGH) -> Fidelity:
  """The first checkpoint whose correlation with the final score surely exceeds `level`.

  On every benchmark: the lower ends of the intervals count, so with few finished runs it is the
  final checkpoint itself. Costs are taken to grow with steps. ValueError for a level not below 1.
  """
  if not -1 <= level < 1:
    raise ValueError(f"level is a correlation below 1, not {level}")
  enough = (found.low > level).all(axis=1)
  enough[-1] = True
  place = int(np.argmax(enough))
  step, last = float(found.steps[place]), float(found.steps[-1])

  def state(at: int) -> str:
    worst = int(np.argmin(found.low[at]))
    return (
      f"at step {found.steps[at]:g} the correlation with the final score of "
      f"{found.names[worst]!r}, the least sure, is {found.estimate[at, worst]:.2f} (95% interval "
      f"{found.low[at, worst]:.2f} to {found.high[at, worst]:.2f}, {found.runs} finished runs)"
    )

  if place < len(found.steps) - 1:
    reason = f"Evaluate at {step / last:.0%} of the cost: {state(place)}, surely above {level:g}."
  else:
    best = int(np.argmax(found.low[:-1].min(axis=1)))
    reason = f"Evaluate at the end: even {state(best)}, not surely above {level:g}."
  return Fidelity(step, step / last, reason)


def hopeless(
  chain: Chain,
  running: Curves,
  objective: Objective,
  *,
  rank: int = 1,
  level: float = HOPELESS,
) -> list[Outlook]:
  """For each of `running`, whether its final score will hardly be among the `rank` best.

  It is hopeless if the probability that it exceeds the `rank`-th best finished one is below
  `level`: Student's t around the forecast, with as many degrees of freedom as runs finished, less
  one. Asking again at each checkpoint does not add up, as a run is stopped once; but of n stopped
  runs, up to the sum of their chances are lost on average.

  No run is stopped while fewer than nine are finished (with eight, even a correlation of 0.7 may be
  0), or where theirs do not show that its part of the curve says anything: that its mixture is a
  bad one was known before it began. ValueError if a rank or level is none, or a run is finished.
  """
  if rank < 1 or not 0 < level < 1:
    raise ValueError(f"rank counts from 1, level is a probability: not {rank} and {level}")
  if running.finished.any():
    raise ValueError(f"run {int(np.argmax(running.finished))} of those running is finished")
  weights = objective.over(chain.curves.names)
  finals = np.sort(chain.curves.scores[chain.curves.finished, -1] @ weights)[::-1]
  bar = float(finals[rank - 1]) if rank <= len(finals) else -np.inf
  forecasts = zip(*chain.final(running).of(objective), running.reached, strict=True)
  outlooks = []
  for mean, sd, reached in forecasts:
    with np.errstate(over="ignore"):
      gap = (mean - bar) / max(sd, np.finfo(float).tiny)
    chance = float(t.cdf(gap, max(len(finals) - 1, 1)))
    told = bool((chain.reliance(int(reached)) * weights).any())
    enough = len(finals) >= max(LEAST_RUNS, rank)
    stop = enough and told and chance < level
    if not enough:
      needed = max(LEAST_RUNS, rank)
      why = (
        f"{len(finals)} finished runs are too few to know what curves say; {needed} are the least"
      )
    elif not told:
      step = f"step {running.steps[reached - 1]:g}" if reached else "its first checkpoint"
      why = f"the {len(finals)} finished runs do not show that curves up to {step} say anything"
    else:
      why = (
        f"after {running.steps[reached - 1]:g} of {running.steps[-1]:g} steps the final score is "
        f"forecast as {mean:.4g} (sd {sd:.2g}), and exceeds that of number {rank} of {len(finals)} "
        f"finished runs, {bar:.4g}, with a probability of {chance:.2g}, "
        f"{'less' if stop else 'no less'} than {level:g}"
      )
    verdict = f"{'Stop' if stop else 'Go on'}: {why}."
    outlooks.append(Outlook(stop, verdict, chance, bar, float(mean), float(sd)))
  return outlooks


def _correlation(early, final, everyone) -> tuple[float, float, float]:
  """Estimate, lower and upper end."""
  if len(early) < 2 or is_constant(early) or is_constant(final):
    return 0.0, -1.0, 1.0
  found = np.corrcoef(early / np.abs(early).max(), final / np.abs(final).max())[0, 1]
  ends = np.array([-1.0, 1.0])
  if len(early) > 3:
    # Short of 1, whose transform is infinite.
    error = norm.ppf(0.975) / np.sqrt(len(early) - 3)
    ends = np.tanh(np.arctanh(np.clip(found, -1 + 1e-12, 1 - 1e-12)) + error * np.array([-1, 1]))
  values = np.array([found, *ends])
  largest = np.abs(everyone).max()
  wider = np.std(everyone / largest) / np.std(early / largest)
  corrected = values * wider / np.sqrt(1 - values**2 + (values * wider) ** 2)
  return tuple(corrected.tolist())
