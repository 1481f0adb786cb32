"""How far a surrogate is to be believed: predictions of runs left out, a test for any effect at
all, and a second surrogate of another kind.

Where runs state the parts of their scores, what is fitted here has a process for each, as the
search's has. To judge the sum alone, and b times as fast, leave the parts out of the runs.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int
from scipy.stats import norm, spearmanr

from mixjax.search import structured, total
from mixjax.search import surrogate as surrogate_lib
from mixjax.search.coordinates import reference
from mixjax.search.observations import Observations
from mixjax.search.policies.regmix import fit_trees
from mixjax.search.predictors import Predict, fit_total
from mixjax.search.process import JITTER, Data
from mixjax.search.space import Key, Space, generator
from mixjax.search.surrogate import Surrogate
from mixjax.search.total import Total

# Probabilities of the central intervals whose coverage is counted.
LEVELS = {"50": 0.50, "80": 0.80, "95": 0.95}

# A run further than this many sds from its prediction is an outlier.
OUTLIER = 3.0

FOLDS = 5

# Shuffles of the scores: none of 19 reaching the real ones is a p of 1/20.
SHUFFLES = 19

# Two surrogates disagree if their ranks of the pool correlate less, or if the favourite of one is
# for the other nearer to an average candidate than to its own favourite.
AGREEMENT, NEARER_AVERAGE = 0.5, 0.5


@dataclasses.dataclass(frozen=True)
class Card:
  """Runs predicted without themselves: errors in score units, z = (score - mean) / sd.

  `rmse_ratio` divides by the sd of the scores and `r2` is 1 - ratio^2: 0 for a process that only
  knows their mean. `coverage` has, by nominal percent, how often the central interval (noise of a
  run included) holds the score; `outliers` are the places of runs with |z| > 3 among the
  observations. None where scores or predictions do not vary.
  """

  runs: int
  spearman: float | None
  rmse: float
  rmse_ratio: float | None
  r2: float | None
  coverage: dict[str, float]
  z_mean: float
  z_sd: float
  outliers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Evidence:
  """`gain` is the log marginal likelihood of the processes less that of constants, in nats; `p` the
  chance that scores without any relation to the mixtures give as much."""

  gain: float
  p: float


@dataclasses.dataclass(frozen=True)
class SecondOpinion:
  """Our process and RegMix's trees about the same pool; the keys are "process" and "trees".

  `regret[who]` is how much the other one thinks is missed by the `favourite` of `who`, in score
  units; `share[who]` divides it by what that other one thinks an average candidate misses. `skill`
  is each one's Spearman on mixtures left out: whose opinion counts (None where they agree and it
  was not asked for). `spearman` is of their predictions; None where one is constant.
  """

  spearman: float | None
  favourite: dict[str, dict[str, float]]
  regret: dict[str, float]
  share: dict[str, float]
  skill: dict[str, float | None]
  disagree: bool


def calibration(surrogate: Surrogate | Total) -> Card:
  """Leave-one-out in closed form, at the hyper-parameters that all runs together made probable.

  So it flatters: on pure noise (15 weights, 80 runs) Spearman was 0.17 to 0.55. A mixture with
  replicates is predicted from them. `cross_validation` does neither, for some fits more.
  """
  data, count = surrogate.data, surrogate.count
  left_out = surrogate.leave_one_out()
  scores = data.center + data.scale * data.residuals[:count]
  return _card(scores, left_out.mean, left_out.sd)


def cross_validation(
  observations: Observations,
  space: Space,
  *,
  folds: int = FOLDS,
  key: Key = 0,
  fit: Callable[[Observations, Space], Predict] = fit_total,
) -> Card:
  """Each run predicted by a surrogate fitted anew to the other folds; replicates share a fold.

  `fit` is the search's own, or another of `predictors.py` that states sds. As many fits as folds
  (1.3 s each for 64 runs of 15 weights and ten parts on one core, a tenth of it without parts).
  ValueError for fewer than two different mixtures, or a `fit` without sds.
  """
  assigned = _folds(observations, folds, key)
  mean, sd = _left_out(observations, space, fit, assigned)
  if np.isnan(sd).any():
    raise ValueError("a card needs the sds of predictions, which this fit does not state")
  if observations.stderr is not None:
    sd = np.hypot(sd, observations.stderr)
  return _card(observations.scores, mean, sd)


def effect_evidence(
  observations: Observations, space: Space, *, shuffles: int = SHUFFLES, key: Key = 0
) -> Evidence:
  """Does the mixture matter at all? The processes are fitted again to shuffled scores.

  Marginal likelihood alone cannot tell: with a length-scale a weight, pure noise gained up to 11
  nats over a constant (15 weights, 80 runs). Shuffles are of whole runs, so that their parts stay
  together, and the marginal likelihoods of parts add up. They end at the first that gains as much
  as the real scores; p is then one over how many it took, else 1 / (1 + shuffles) (Besag and
  Clifford, 1991). Runs chosen from earlier scores are not quite exchangeable, so p is a guide.

  With parts, the question is whether any of them depends on the mixture: what one gains another may
  lose. Up to 1 + shuffles fits of each part at the mode (0.06 s each for 64 runs of 15 weights on
  one core, so 12 s with ten parts); less where there is no effect. ValueError without a run.
  """
  rng = generator(key)
  real = _log_marginal(observations, space)
  gain = real - sum(_constant_log_marginal(part, space) for part in observations.by_part())
  for taken in range(1, shuffles + 1):
    order = rng.permutation(len(observations))
    shuffled = dataclasses.replace(observations.only(order), mixtures=observations.mixtures)
    # A hair of slack: a shuffle that changes nothing counts as reached.
    if _log_marginal(shuffled, space) >= real - 1e-6:
      return Evidence(float(gain), 1 / taken)
  return Evidence(float(gain), 1 / (1 + shuffles))


def second_opinion(
  observations: Observations,
  space: Space,
  pool: Float[np.ndarray, "m d"] | None = None,
  *,
  surrogate: Surrogate | Total | None = None,
  key: Key = 0,
) -> SecondOpinion:
  """Asks RegMix's boosted trees about the candidates (default: the space's) and compares.

  `surrogate` spares a fit of ours. Trees need no metric, make steps and never extrapolate: where
  both agree, the favourite does not hang on our kernel. Where they disagree, five more fits of each
  kind find the `skill`, as in `cross_validation`. ValueError without a run.
  """
  pool = pool_or_reference(space) if pool is None else space.check(pool)
  surrogate = total.fit(observations, space) if surrogate is None else surrogate
  says = {"process": surrogate.predict(pool)[0], "trees": fit_trees(observations)(pool)}
  favourite, regret, share = {}, {}, {}
  for who, judge in (("process", "trees"), ("trees", "process")):
    index = int(np.argmax(says[who]))
    favourite[who] = space.as_dict(pool[index])
    best, average = says[judge].max(), says[judge].mean()
    regret[who] = float(best - says[judge][index])
    share[who] = 0.0 if is_constant(says[judge]) else float(regret[who] / (best - average))
  agreement = rank_correlation(says["process"], says["trees"])
  apart = agreement is not None and agreement < AGREEMENT
  disagree = apart or max(share.values()) > NEARER_AVERAGE
  skill: dict[str, float | None] = {"process": None, "trees": None}
  if disagree and len(distinct(observations.mixtures)) > 2:
    assigned = _folds(observations, FOLDS, key)
    for who, fit in (("process", fit_total), ("trees", _fit_trees)):
      mean, _ = _left_out(observations, space, fit, assigned)
      skill[who] = rank_correlation(observations.scores, mean)
  return SecondOpinion(agreement, favourite, regret, share, skill, disagree)


def pool_or_reference(space: Space) -> Float[np.ndarray, "m d"]:
  """The candidates of `space`, or rows spread over it where it has none."""
  return reference(space) if space.pool is None else space.pool


def rank_correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float | None:
  """Spearman's rho; None if either does not vary by more than rounding."""
  return None if is_constant(a) or is_constant(b) else float(spearmanr(a, b)[0])


def is_constant(values: Float[np.ndarray, " n"]) -> bool:
  return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def distinct(mixtures: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " k"]:
  """The first run on each mixture, replicates (equal to six decimals) left out."""
  return np.sort(np.unique(np.round(mixtures, 6), axis=0, return_index=True)[1])


def _card(scores, mean, sd) -> Card:
  errors = scores - mean
  z = errors / sd
  spread, rmse = _root_mean_square(scores - scores.mean()), _root_mean_square(errors)
  ratio = None if is_constant(scores) else rmse / spread
  return Card(
    runs=len(scores),
    spearman=rank_correlation(scores, mean),
    rmse=rmse,
    rmse_ratio=ratio,
    r2=None if ratio is None else 1 - ratio**2,
    coverage={
      percent: float(np.mean(np.abs(z) <= norm.ppf(0.5 + level / 2)))
      for percent, level in LEVELS.items()
    },
    z_mean=float(z.mean()),
    z_sd=float(z.std()),
    outliers=tuple(np.flatnonzero(np.abs(z) > OUTLIER).tolist()),
  )


def _root_mean_square(values) -> float:
  # Dividing by the largest first keeps scores of any magnitude from overflowing.
  largest = float(np.abs(values).max()) or 1.0
  return largest * float(np.sqrt(np.mean((values / largest) ** 2)))


def _log_marginal(observations: Observations, space: Space) -> float:
  """Of the standardised scores, at the mode; summed over the parts."""
  form = structured.form_of(space)
  fits = (surrogate_lib.fit(p, space, draws=1, form=form) for p in observations.by_part())
  return sum(one.log_marginal for one in fits)


def _constant_log_marginal(observations: Observations, space: Space) -> float:
  """Of the standardised scores, for the most probable noise around their mean."""
  data, count = Data.of(observations, space), len(observations)
  residuals, stated = data.residuals[:count], data.variance[:count]

  def loss(log_variance):
    variance = stated + np.exp(log_variance) + JITTER
    return 0.5 * np.sum(np.log(2 * np.pi * variance) + residuals**2 / variance)

  bounds = (np.log(JITTER), 1.0)
  return -scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded").fun


def _folds(observations: Observations, folds: int, key: Key) -> Int[np.ndarray, " n"]:
  """The fold of each run."""
  rounded = np.round(observations.mixtures, 6)
  _, group = np.unique(rounded, axis=0, return_inverse=True)
  groups = int(group.max(initial=-1)) + 1
  if groups < 2 or folds < 2:
    raise ValueError(f"{groups} different mixtures in {folds} folds: there is none to leave out")
  return (generator(key).permutation(groups) % folds)[group.ravel()]


def _left_out(
  observations: Observations,
  space: Space,
  fit: Callable[[Observations, Space], Predict],
  assigned: Int[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  """Mean and sd of each run (sd NaN where the method states none) by a fit to the other folds."""
  mean, sd = np.full((2, len(observations)), np.nan)
  for fold in np.unique(assigned):
    here, rest = assigned == fold, assigned != fold
    mean[here], sds = fit(observations.only(rest), space)(observations.mixtures[here])
    if sds is not None:
      sd[here] = sds
  return mean, sd


def _fit_trees(observations: Observations, space: Space) -> Predict:
  predict = fit_trees(observations)
  return lambda points: (predict(points), None)
