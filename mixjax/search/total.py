"""The surrogate of a score with parts: one process for each, added up (`benchmarks.py` says why).

It answers what a `Surrogate` answers. Between points, a total is correlated as its parts are on
average: each part's own correlations weighted by its share would not add up to the same variances.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

from mixjax.search import structured, surrogate
from mixjax.search.benchmarks import fit_benchmarks
from mixjax.search.objective import ScoreVectors
from mixjax.search.observations import Observations
from mixjax.search.process import Data
from mixjax.search.space import Space
from mixjax.search.surrogate import LeaveOneOut, Surrogate


@dataclasses.dataclass(frozen=True, eq=False)
class Total:
  """The sum of `processes`, whose errors are correlated alike at every mixture.

  `data` are the summed scores.
  """

  processes: tuple[Surrogate, ...]
  correlation: Float[np.ndarray, "b b"]
  data: Data
  count: int

  @property
  def space(self) -> Space:
    return self.processes[0].space

  @functools.cached_property
  def noise_sd(self) -> float:
    """The fitted noise of one run's total, over and above its stated standard error."""
    return float(self._together([one.noise_sd for one in self.processes]))

  def predict(self, points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Posterior mean and sd of the latent (noise-free) total at `points: float[m, d]`."""
    mean, sd = np.stack([one.predict(points) for one in self.processes], axis=2)
    return mean.sum(axis=1), self._together(sd)

  def joint(self, points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m m"]]:
    """Posterior mean and covariance of the latent totals at `points: float[m, d]` together."""
    means, sds = [], []
    correlation = np.zeros((len(points), len(points)))
    for one in self.processes:
      mean, covariance = one.joint(points)
      sd = np.sqrt(np.maximum(np.diag(covariance), np.finfo(float).tiny))
      correlation += covariance / np.outer(sd, sd) / len(self.processes)
      means.append(mean)
      sds.append(sd)
    sds = np.stack(sds, axis=1)
    # The product of two positive semi-definite matrices, entry by entry, is one too (Schur).
    return np.sum(means, axis=0), (sds @ self.correlation @ sds.T) * correlation

  def leave_one_out(self) -> LeaveOneOut:
    """Every run's total predicted from the others at the same hyper-parameters."""
    each = [one.leave_one_out() for one in self.processes]
    mean = np.sum([part.mean for part in each], axis=0)
    sd = self._together(np.stack([part.sd for part in each], axis=1))
    data = self.data
    scores = data.center + data.scale * data.residuals[: self.count]
    return LeaveOneOut(mean, sd, float(np.mean(np.abs(scores - mean) <= 1.96 * sd)))

  def _together(self, sd: Float[np.ndarray, "*m b"]) -> Float[np.ndarray, "*m"]:
    """The sd of a sum from those of its parts."""
    sd = np.asarray(sd)
    return np.sqrt(np.maximum(np.sum(sd @ self.correlation * sd, axis=-1), 0))


def fit(observations: Observations, space: Space) -> Surrogate | Total:
  """The surrogate of the scores: of their parts where they state any. ValueError without a run.

  Where the space is of cells, its kernel knows their concepts and tasks (`structured.py`).
  """
  fit_one = functools.partial(surrogate.fit, form=structured.form_of(space))
  if observations.parts is None or observations.parts.shape[1] == 1:
    return fit_one(observations, space)
  names = tuple(str(place) for place in range(observations.parts.shape[1]))
  runs = ScoreVectors(names, observations.mixtures, observations.parts, observations.part_stderr)
  fitted = fit_benchmarks(runs, space, fit_one)
  data = Data.of(observations, space)
  return Total(fitted.processes, fitted.correlation, data, len(observations))
