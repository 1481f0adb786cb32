"""The target's scores from runs of the target and what cheaper runs are found to say of them.

A score at the target is a sum of the cheaper fidelities' scores, each times a slope, plus a process
over mixtures (Kennedy and O'Hagan, 2000). Slopes are learnt for each part of a score beside that
process (`slopes.py`), as correlations of fidelities range from 0.99 down to 0 and belong to a
benchmark: where the runs do not show one, cheap runs are left out, and the answer is that of the
target's runs alone to the bit. Given the slopes, runs of all fidelities condition one process, so
it does not matter whether they are on the same mixtures. `multifidelity.py` is ADMIRE's way, whose
bias of a cheaper fidelity has no slope or offset of its own, and no evidence to pass.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import tinygp
from jaxtyping import Array, Float

from mixjax.search import coordinates as coordinates_lib
from mixjax.search import posterior, total
from mixjax.search import process as process_lib
from mixjax.search.observations import Observations
from mixjax.search.process import CHUNK, Data, Matern52, Points
from mixjax.search.slopes import LEAST_RUNS, fit_linear, slopes_on
from mixjax.search.space import Space
from mixjax.search.surrogate import Surrogate
from mixjax.search.total import Total

# At which slopes are told from 0. Stricter than along one run's curve: from 12 runs of the target
# and 40 unrelated cheap ones, on other mixtures, a slope was found by chance one time in twenty
# at 0.95, and then doubled the error. At a correlation of 0.9 nine in ten are sure beyond 0.999.
LEVEL = 0.99

# A cheap fidelity is asked only where its process predicts this share of the variance of its own
# runs, each left out: what is fitted to noise can go along with a few runs of the target by chance,
# with any slope.
SKILL = 0.3


class Term(eqx.Module):
  """One process of the sum, as a kernel on mixtures. `shares` tells how much of it, in its units of
  standardised scores, is in a score at each fidelity, the target's last."""

  matern: Matern52
  exponent: Float[Array, ""]
  offset: Float[Array, ""]
  middle: Float[Array, " d"]
  spread: Float[Array, " d"]
  shares: Float[Array, " levels"]

  @classmethod
  def of(cls, fitted: Surrogate, shares: Float[np.ndarray, " levels"]) -> "Term":
    hyper = fitted.hyper
    exponent, offset = dataclasses.astuple(hyper.coordinates)
    reference = coordinates_lib.reference(fitted.space)
    middle, spread = coordinates_lib.spread(reference, exponent, offset)
    matern = Matern52(jnp.array(hyper.lengths), jnp.array(hyper.amplitude))
    return cls(matern, jnp.array(exponent), jnp.array(offset), middle, spread, jnp.array(shares))

  def see(self, points: Points) -> tuple[Points, Array]:
    seen = coordinates_lib.transform(points.features[:, :-1], self.exponent, self.offset)
    level = points.features[:, -1].astype(int)
    return Points((seen - self.middle) / self.spread, points.real), self.shares[level]

  def __call__(self, a: Points, b: Points | None) -> Array:
    x, here = self.see(a)
    if b is None:
      return here**2 * self.matern(x)
    y, there = self.see(b)
    return here[:, None] * there * self.matern(x, y)


class Terms(tinygp.kernels.Kernel):
  """Their sum, on rows [mixture, number of the fidelity]."""

  terms: tuple[Term, ...]

  def evaluate(self, a: Points, b: Points) -> Float[Array, ""]:
    return self(*(Points(p.features[None], p.real[None]) for p in (a, b)))[0, 0]

  def __call__(self, a: Points, b: Points | None = None) -> Array:
    return sum(term(a, b) for term in self.terms)


@dataclasses.dataclass(frozen=True, eq=False)
class Linked:
  """The target's noise-free score, conditioned on the runs of all fidelities; in its own units.

  `slopes` are in score units, one for each of the k cheaper fidelities, `error` their covariance.
  They are measured from what the runs around a mixture scored at cheaper fidelities, `expected`: a
  mixture of which `cheap` believes something else is in more doubt. `rest` was fitted to what the
  slopes leave of the scores.
  """

  space: Space
  slopes: Float[np.ndarray, " k"]
  error: Float[np.ndarray, "k k"]
  cheap: tuple[Surrogate, ...]
  expected: tuple[Surrogate, ...]
  rest: Surrogate
  process: tinygp.GaussianProcess
  weights: Float[np.ndarray, " filled"]
  center: float
  scale: float

  @property
  def noise_sd(self) -> float:
    """The fitted noise of one run of the target, over and above its stated standard error."""
    return self.rest.noise_sd

  def predict(self, points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Posterior mean and sd of the target's score at `points: float[m, d]`."""
    points = self.space.check(points)
    parts = [
      self._run(posterior.predict, points[start : start + CHUNK], CHUNK)
      for start in range(0, max(len(points), 1), CHUNK)
    ]
    mean, variance = (np.concatenate(column) for column in zip(*parts, strict=True))
    apart = self._apart(points)
    doubt = np.einsum("km,kl,lm->m", apart, self.error, apart)
    variance = self.scale**2 * np.maximum(variance, 0) + doubt
    return self.center + self.scale * mean, np.sqrt(variance)

  def joint(self, points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m m"]]:
    """Posterior mean and covariance of the target's scores at `points: float[m, d]` together."""
    points, count = self.space.check(points), len(points)
    size = max(64, 1 << (count - 1).bit_length())
    mean, covariance = self._run(posterior.joint, points, size)
    apart = self._apart(points)
    covariance = self.scale**2 * covariance[:, :count] + apart.T @ self.error @ apart
    return self.center + self.scale * mean, covariance

  def _run(self, program, points: Float[np.ndarray, "m d"], size: int) -> list[np.ndarray]:
    rows = _rows(points, len(self.cheap), size)
    with process_lib.exact():
      answer = program(self.process, rows, self.weights)
      return [np.asarray(a)[: len(points)] for a in answer]

  def _apart(self, points) -> Float[np.ndarray, "k m"]:
    both = zip(self.cheap, self.expected, strict=True)
    return np.stack([here.predict(points)[0] - runs.predict(points)[0] for here, runs in both])


def fit(observations: Observations, space: Space) -> Surrogate | Total | Linked:
  """The surrogate of the scores at the highest fidelity. ValueError without a run.

  With one fidelity that of `total.fit`. From 9 runs of the target on, a part of the score of which
  cheaper runs are found to say something is `Linked` to them: three fits more for each part, and
  one for each of its cheaper fidelities. Linked processes do not know the concepts and tasks of
  cells.
  """
  target = observations.at_target()
  fitted = total.fit(target, space)
  if len(target) == len(observations) or len(target) < LEAST_RUNS:
    return fitted
  parts = [_linked(one, space) for one in observations.by_part()]
  if all(part is None for part in parts):
    return fitted
  if not isinstance(fitted, Total):
    return parts[0]
  either = zip(parts, fitted.processes, strict=True)
  return dataclasses.replace(fitted, processes=tuple(part or alone for part, alone in either))


def _linked(runs: Observations, space: Space) -> Linked | None:
  """The process of runs scored by one number; None where cheap ones say nothing of the target."""
  *levels, highest = np.unique(runs.fidelity)
  target = runs.only(runs.fidelity == highest)
  told, cheap = [], []
  for level in levels:
    some = runs.only(runs.fidelity == level)
    fitted = fit_linear(some, space, draws=1)
    missed = some.scores - fitted.leave_one_out().mean
    if np.mean(missed**2) < (1 - SKILL) * some.scores.var():
      told.append(some)
      cheap.append(fitted)
  if not cheap:
    return None
  early, unsure = np.stack([one.predict(target.mixtures) for one in cheap], axis=1)
  slopes, error, expected = slopes_on(target.mixtures, early, target.scores, space, LEVEL)
  if not slopes.any():
    return None
  stated = np.zeros(len(target)) if target.stderr is None else target.stderr
  left = Observations(
    target.mixtures, target.scores - slopes @ early, np.hypot(stated, np.abs(slopes) @ unsure)
  )
  rest = fit_linear(left, space, draws=1)
  datas = [*(one.data for one in cheap), Data.of(target, space)]
  scale = datas[-1].scale
  center = float(slopes @ [one.center for one in datas[:-1]]) + rest.data.center
  # Rows of all fidelities, each in sds of its own scores.
  counts = [len(one) for one in (*told, target)]
  size = sum(counts)
  rows = [_rows(one.mixtures, place, len(one)) for place, one in enumerate((*told, target))]
  residuals = [data.residuals[:count] for data, count in zip(datas, counts, strict=True)]
  residuals[-1] = residuals[-1] + (datas[-1].center - center) / scale
  variance = [
    data.variance[:count] + (one.noise_sd / data.scale) ** 2
    for data, count, one in zip(datas, counts, (*cheap, rest), strict=True)
  ]
  filled = -(-size // 64) * 64
  points = Points(
    process_lib.fill(np.concatenate([one.features for one in rows]), filled),
    process_lib.fill(np.ones(size), filled),
  )
  with process_lib.exact():
    terms = [
      Term.of(one, np.append(np.eye(len(cheap))[place], slopes[place] * one.data.scale / scale))
      for place, one in enumerate(cheap)
    ]
    terms.append(Term.of(rest, np.append(np.zeros(len(cheap)), rest.data.scale / scale)))
    process = process_lib.gaussian_process(
      Terms(tuple(terms)), points, 0.0, process_lib.fill(np.concatenate(variance), filled)
    )
    weights, _ = posterior.condition(process, process_lib.fill(np.concatenate(residuals), filled))
  weights = np.asarray(weights)
  return Linked(space, slopes, error, tuple(cheap), expected, rest, process, weights, center, scale)


def _rows(points: Float[np.ndarray, "m d"], level: int, size: int) -> Points:
  features = np.concatenate([points, np.full((len(points), 1), level)], axis=1)
  return Points(process_lib.fill(features, size), process_lib.fill(np.ones(len(points)), size))
