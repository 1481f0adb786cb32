"""What to beware of before believing a search: sentences that name the thing and a remedy."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from scipy.stats import binomtest

from mixjax.search import calibration
from mixjax.search.calibration import Card, Evidence, SecondOpinion, distinct, pool_or_reference
from mixjax.search.observations import SAME, Observations
from mixjax.search.space import Space
from mixjax.search.stopping import RUNS_PER_WEIGHT, run_noise
from mixjax.search.surrogate import Surrogate
from mixjax.search.total import Total

# A weight below this share of the uniform one is at the edge of the simplex; one this near to the
# pool's largest or smallest, as a share of the range between, is at the edge of the pool.
EDGE = 0.01

# Warnings of what could be chance are given where chance does it less often than this.
EFFECT_P, COVERAGE_P = 0.05, 0.01


def warnings(
  observations: Observations,
  surrogate: Surrogate | Total,
  *,
  evidence: Evidence | None = None,
  opinion: SecondOpinion | None = None,
) -> tuple[str, ...]:
  """What to beware of before believing the `surrogate` of these runs: sentences, with remedies.

  `evidence` (`effect_evidence`) and `opinion` (`second_opinion`) take seconds, with ten parts up to
  20, and are found here unless given. Where no effect is found, what the surrogate says of its
  optimum is not discussed. ValueError if the surrogate was fitted to other runs.
  """
  runs, space = observations.at_target(), surrogate.space
  known = surrogate.data.rows[: surrogate.count]
  if known.shape != runs.mixtures.shape or np.abs(known - runs.mixtures).max() > 10 * SAME:
    raise ValueError(
      f"the surrogate was fitted to other runs ({surrogate.count}) than these {len(runs)} at the "
      "highest fidelity: fit it to observations.at_target()"
    )
  found = [*_about_design(runs, surrogate)]
  if len(runs) > 1 and calibration.is_constant(runs.scores):
    found.append(
      f"All {len(runs)} runs have the same score, {runs.scores[0]:.4g}: check that the benchmark "
      "is neither at its floor nor its ceiling, and that each run wrote its own scores."
    )
    return tuple(found)
  found.extend(_about_scores(runs))
  if len(runs) < 3:
    return tuple(found)
  if evidence is None:
    evidence = calibration.effect_evidence(runs, space)
  if evidence.p > EFFECT_P:
    found.append(
      "No effect of the mixture on the score was found: the surrogate gains "
      f"{evidence.gain:.1f} nats over a constant, and shuffled scores gain as much "
      f"(p = {evidence.p:.2g}). Take no mixture for better than another; run longer proxies, "
      "evaluate on more items, or try more extreme mixtures."
    )
  else:
    if opinion is None:
      opinion = calibration.second_opinion(runs, space, surrogate=surrogate)
    found.extend(_about_optimum(surrogate))
    found.extend(_about_opinion(opinion))
  places = np.arange(len(observations))
  if observations.fidelity is not None:
    places = np.flatnonzero(observations.fidelity == observations.fidelity.max())
  found.extend(_about_calibration(calibration.calibration(surrogate), places))
  return tuple(found)


def _about_design(runs: Observations, surrogate: Surrogate | Total) -> Iterator[str]:
  space = surrogate.space
  different, needed = len(distinct(runs.mixtures)), RUNS_PER_WEIGHT * space.dim
  if different < needed:
    yield (
      f"{different} different mixtures are too few for {space.dim} weights: run "
      f"{needed - different} more ({RUNS_PER_WEIGHT} a weight), or search fewer weights at once, "
      "such as one axis or merged cells."
    )
  alone = np.bincount(space.block)[space.block] == 1
  still = (np.ptp(runs.mixtures, axis=0) <= SAME) & ~alone
  if different > 1 and still.any():
    yield (
      f"{_list(space, still)} had the same weight in every run, so nothing is known of what "
      "changing it does: add runs that vary it, or leave it out of the space."
    )
  if different == len(runs):
    yield (
      "No mixture was run twice: the noise between training seeds "
      f"(fitted sd {surrogate.noise_sd:.2g}) is a guess. Repeat the best mixture and the uniform "
      "one with two other seeds each."
    )


def _about_scores(runs: Observations) -> Iterator[str]:
  values = len(np.unique(runs.scores))
  first = distinct(runs.mixtures)
  if len(first) >= 8 and values <= len(first) / 2:
    yield (
      f"{len(runs)} runs have only {values} different scores: the benchmark is too coarse to rank "
      "them; evaluate on more items or on a smoother score, such as the loss of the answers."
    )
  copies = len(np.unique(np.column_stack([np.round(runs.mixtures, 6), runs.scores]), axis=0))
  if copies == len(first) < len(runs):
    yield (
      f"Each of the {len(runs) - len(first)} repeated runs has exactly the score of the first run "
      "on its mixture: check that repeats change the training seed, or the noise looks like zero."
    )


def _about_optimum(surrogate: Surrogate | Total) -> Iterator[str]:
  space, pool = surrogate.space, pool_or_reference(surrogate.space)
  mean, _ = surrogate.predict(pool)
  if (spread := mean.std()) < (noise := run_noise(surrogate)):
    yield (
      f"Noise dominates: one run's sd is {noise:.2g}, while the expected score varies by an sd of "
      f"{spread:.2g} over the candidates; repeat the leaders, train longer, or evaluate on more "
      "items before comparing single runs."
    )
  best, low, high = pool[np.argmax(mean)], pool.min(axis=0), pool.max(axis=0)
  near, varies = EDGE * (high - low), high - low > SAME
  floor = space.lower + EDGE * space.uniform()
  ceiling = 1 - (np.bincount(space.block, space.lower)[space.block] - space.lower) - EDGE
  at_floor = varies & (best <= floor)
  if (bounded := at_floor & (space.lower > 0)).any():
    yield (
      f"The best candidate has {_list(space, bounded)} at the lower bound: lower the floor if less "
      "is allowed."
    )
  if (dropped := at_floor & (space.lower == 0)).any():
    yield (
      f"The best candidate is at the edge of the space, almost without {_list(space, dropped)}: "
      "confirm with a run that has a little, or set a floor, for a larger model may miss what a "
      "proxy does not."
    )
  least = varies & (best <= low + near) & (low > floor)
  most = varies & (best >= high - near) & (high < ceiling)
  for which, what in ((least, "least"), (most, "most")):
    if which.any():
      yield (
        f"The best candidate has the {what} {_list(space, which)} of the pool: better mixtures may "
        "lie beyond; draw a wider pool."
      )


def _about_opinion(opinion: SecondOpinion) -> Iterator[str]:
  if opinion.disagree:
    skill = {who: _number(value) for who, value in opinion.skill.items()}
    yield (
      "Boosted trees disagree with the process about the candidates (rank correlation "
      f"{_number(opinion.spearman)}; to each, the other's favourite misses "
      f"{opinion.regret['trees']:.2g} (process) and {opinion.regret['process']:.2g} (trees)). On "
      f"mixtures left out the process ranks with {skill['process']}, the trees with "
      f"{skill['trees']}: run both favourites before choosing."
    )


def _about_calibration(card: Card, places: Int[np.ndarray, " n"]) -> Iterator[str]:
  for percent, share in card.coverage.items():
    inside = round(share * card.runs)
    if binomtest(inside, card.runs, float(percent) / 100).pvalue < COVERAGE_P:
      narrow = share < float(percent) / 100
      yield (
        f"Intervals are too {'narrow' if narrow else 'wide'}: those meant to hold {percent}% of "
        f"the left-out runs hold {inside} of {card.runs}; "
        + (
          "look for runs that went wrong and trust no small difference."
          if narrow
          else "compare stated standard errors, if any, with the spread of replicates."
        )
      )
      break
  if card.outliers:
    yield (
      f"Runs {', '.join(str(places[run]) for run in card.outliers)} (counted from 0) are more than "
      f"{calibration.OUTLIER:.0f} sds from what the others predict: check their logs and repeat "
      "them."
    )


def _list(space: Space, which: Sequence[bool]) -> str:
  names = [repr(name) for name, chosen in zip(space.names, which, strict=True) if chosen]
  return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _number(value: float | None) -> str:
  return "undefined" if value is None else f"{value:.2f}"
