"""How far a score goes along with earlier or cheaper ones, beside a process over mixtures.

Nothing is assumed: few runs, or scores that go their own way, leave every slope at 0.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float
from scipy.stats import f as fisher

from mixjax.search import flat, surrogate
from mixjax.search.calibration import is_constant
from mixjax.search.observations import Observations
from mixjax.search.space import Space
from mixjax.search.surrogate import Surrogate

# Runs at a checkpoint below which nothing is taken from earlier ones: with 8, the 95% interval
# around a correlation of 0.7 still holds 0.
LEAST_RUNS = 9

# Median and log-sd of the prior of a checkpoint's noise, in sds of what earlier scores leave of it.
# With the surrogate's own, 0.1 and 1.5, noise as large as the rest was thought smaller than it is
# (24 runs of four weights: 95% intervals held 90% of new scores, with these 91%).
NOISE, NOISE_SPREAD = 0.5, 1.0

# At which slopes are told from 0.
LEVEL = 0.95

# Rounds of fitting slopes to a process and the process to what they leave.
ROUNDS = 2


@dataclasses.dataclass(frozen=True)
class Noisy(flat.Flat):
  """The surrogate's kernel, with the prior of noise above."""

  def unpack(self, z):
    lengths, amplitude, noise = super().unpack(z)
    from_median = (noise / flat.NOISE) ** (NOISE_SPREAD / flat.NOISE_SPREAD)
    return lengths, amplitude, NOISE * from_median


# Slopes are linear in scores: so is the scale of what they leave.
fit_linear = functools.partial(surrogate.fit, form=Noisy(), warp=0.0)


def slopes_on(
  mixtures: Float[np.ndarray, "n d"],
  earlier: Float[np.ndarray, "k n"],
  scores: Float[np.ndarray, " n"],
  space: Space,
  level: float = LEVEL,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k k"], tuple[Surrogate, ...]]:
  """Slopes of `scores` on `earlier` ones beside a process over mixtures, their covariance, and that
  process conditioned on the earlier scores instead.

  In sds of the scores they are normal around 0 with sd 1 beforehand: few runs leave them small, and
  all that could be 0 at this `level` leave them 0.
  """
  size, count = earlier.shape
  none = np.zeros(size), np.zeros((size, size)), ()
  varies = np.array([not is_constant(column) for column in earlier], bool)
  if count < LEAST_RUNS or not varies.any() or is_constant(scores):
    return none
  spread = np.where(varies, earlier.std(axis=1), 1.0)[:, None]
  inputs = varies[:, None] * (earlier - earlier.mean(axis=1, keepdims=True)) / spread
  unit = scores.std()
  output = (scores - scores.mean()) / unit
  weights = np.linalg.solve(inputs @ inputs.T + np.eye(size), inputs @ output)
  for _ in range(ROUNDS):
    fitted = fit_linear(Observations(mixtures, output - weights @ inputs), space, draws=1)
    expected = tuple(
      surrogate.condition(Observations(mixtures, early), space, fitted.hyper, fitted.form)
      for early in earlier
    )
    # What leave-one-out misses, over its variance, is the inverse covariance times the scores.
    left_out = [one.leave_one_out() for one in expected]
    solved = [(e - o.mean) / o.sd**2 for e, o in zip(earlier, left_out, strict=True)]
    solved = np.stack(solved) * spread * varies[:, None] / fitted.data.scale**2
    precision = solved @ inputs.T + np.eye(size)
    weights = np.linalg.solve(precision, solved @ output)
  evidence = weights @ precision @ weights / size
  if evidence < fisher.ppf(level, size, max(count - size - 1, 1)):
    return none
  scale = varies * unit / spread[:, 0]
  return weights * scale, np.linalg.inv(precision) * np.outer(scale, scale), expected
