"""Which candidates to run next, many at once: by an acquisition over what a surrogate believes.

The paper's is the upper confidence bound (section 3.4); the others need no kappa.
"""

from typing import Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jax.scipy.special import erfcx, log_ndtr
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int

from mixjax.search import process
from mixjax.search.space import Key, Space, generator

Acquisition = Literal["ucb", "log_ei", "max_value_entropy", "thompson"]

# The paper names no kappa. In RegMix's table, nearly without noise, 1 found the optimum of three
# losses in 60 of 60 searches of 48 runs, after a median of 19.5; 2 in 59, after 26. On four made
# functions of ten weights with noise of 0.1, 0.3 and 1 sd of the function they were alike within
# the error.
KAPPA = 1.0

# Candidates whose covariances are looked at first; more only where the choice could need them.
SHORTLIST = 128

# Draws of the maximum whose entropy is to shrink.
MAXIMA = 64

# Thompson's draws leave out candidates that in all are chosen with a probability below MISSED, and
# hold at most LIMIT: their covariance, once for each draw of the hyper-parameters, is 0.5 GiB.
MISSED, LIMIT = 1e-3, 2048

# Gaps of this many sds are as good as infinite, and their squares do not overflow.
CERTAIN = 1e100


class Belief(Protocol):
  """As much of a surrogate as a choice needs: one process, or a sum of several."""

  @property
  def space(self) -> Space: ...

  @property
  def noise_sd(self) -> float:
    """The noise of one run."""

  def predict(self, points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Posterior mean and sd of the noise-free scores."""

  def joint(self, points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m m"]]:
    """Posterior mean and covariance of the noise-free scores together."""


def upper_confidence_bound(
  mean: Float[np.ndarray, " m"], sd: Float[np.ndarray, " m"], kappa: float = KAPPA
) -> Float[np.ndarray, " m"]:
  """The paper's acquisition a(h) = mu(h) + kappa sigma(h)."""
  return mean + kappa * sd


def log_expected_improvement(
  mean: Float[Array, " m"], sd: Float[Array, " m"], best: float
) -> Float[Array, " m"]:
  """Log of E[max(score - best, 0)], finite and with a gradient however hopeless (Ament, 2023).

  With noise, `best` is the highest posterior mean of a known mixture. For `process.exact()`.
  """
  gap = mean - best
  sd = _nonzero(sd, gap)
  z = gap / sd
  # pdf(z) + z cdf(z) = pdf(z) (1 - t R(t)) for t = -z and the ratio of Mills R; where t R(t) is
  # nearly 1, by its series. All three have gradients, so each is given only what it can bear.
  near, middle, far = jnp.maximum(z, -2), jnp.clip(-z, 0.5, 2e3), jnp.maximum(-z, 5e2)
  mills = np.sqrt(np.pi / 2) * erfcx(middle / np.sqrt(2))
  series = jnp.log1p(-3 / far**2 + 15 / far**4) - 2 * jnp.log(far)
  tail = jnp.where(z > -1e3, jnp.log1p(-middle * mills), series) + norm.logpdf(jnp.minimum(z, 0))
  return jnp.log(sd) + jnp.where(z > -1, jnp.log(norm.pdf(near) + near * norm.cdf(near)), tail)


def max_value_entropy(
  mean: Float[Array, " m"], sd: Float[Array, " m"], maxima: Float[Array, " k"]
) -> Float[Array, " m"]:
  """What a run without noise tells of the maximum, in nats (Wang & Jegelka, 2017, equation 6).

  `maxima` are draws of it (`draw_maxima`). For `process.exact()`.
  """
  gap = maxima - mean[:, None]
  z = gap / _nonzero(sd[:, None], gap)
  below = log_ndtr(z)
  return jnp.mean(z * jnp.exp(norm.logpdf(z) - below) / 2 - below, axis=1)


def draw_maxima(
  mean: Float[np.ndarray, " m"], sd: Float[np.ndarray, " m"], count: int, key: Key
) -> Float[np.ndarray, " count"]:
  """Draws of the highest of m scores, none below the highest mean (Wang & Jegelka, section 3.1).

  From the Gumbel law with the quartiles that the highest has if the scores are independent.
  """
  sd = np.maximum(sd, np.finfo(float).tiny)
  levels = np.array([0.25, 0.5, 0.75])
  low, high = np.full(3, np.min(mean - 6 * sd)), np.full(3, np.max(mean + 9 * sd))
  for _ in range(60):
    middle = (low + high) / 2
    with np.errstate(over="ignore"):
      chance = scipy.special.log_ndtr((middle[:, None] - mean) / sd).sum(axis=1)
    low = np.where(chance < np.log(levels), middle, low)
    high = np.where(chance < np.log(levels), high, middle)
  standard = -np.log(-np.log(levels))
  spread = (high[2] - high[0]) / (standard[2] - standard[0])
  drawn = high[1] + spread * (generator(key).gumbel(size=count) - standard[1])
  return np.maximum(drawn, mean.max())


def rate(acquisition: Acquisition, mean, sd, parameter) -> Float[Array, " m"]:
  """How good points with these means and sds are; `parameter` is the kappa, best or maxima.

  Differentiable, rising with the sd, and falling with the best. For `process.exact()`. Thompson's
  rates draws, and is none of these.
  """
  functions = {
    "ucb": upper_confidence_bound,
    "log_ei": log_expected_improvement,
    "max_value_entropy": max_value_entropy,
  }
  return functions[acquisition](mean, sd, parameter)


_rate = jax.jit(rate, static_argnums=0)


def rate_candidates(
  acquisition: Acquisition, mean: Float[np.ndarray, " m"], sd: Float[np.ndarray, " m"], parameter
) -> Float[np.ndarray, " m"]:
  """`rate` by one compiled program for many m, in float64."""
  if acquisition == "ucb":
    return upper_confidence_bound(mean, sd, parameter)
  size = max(64, 1 << (len(mean) - 1).bit_length())
  with process.exact():
    filled = process.fill(mean, size), process.fill(sd, size)
    return np.asarray(_rate(acquisition, *filled, np.asarray(parameter)))[: len(mean)]


def choose_batch(
  surrogate: Belief,
  candidates: Float[np.ndarray, "m d"],
  count: int,
  *,
  acquisition: Acquisition = "ucb",
  kappa: float = KAPPA,
  observed: Float[np.ndarray, "n d"] | None = None,
  pending: Float[np.ndarray, "p d"] | None = None,
  key: Key = 0,
) -> Int[np.ndarray, " count"]:
  """Indices of `count` different candidates, best first (GP-BUCB; Desautels et al., 2014).

  After each choice the process is told that the run came out exactly as predicted: the mean stays,
  the uncertainty around the choice shrinks, and the next choice goes elsewhere. `pending` mixtures,
  whose runs are under way, are told first. The first choice without any is the paper's own.

  `acquisition` is "ucb", mean + `kappa` sds; "log_ei", over the highest posterior mean of what is
  `observed`, pending or chosen; "max_value_entropy", with maxima drawn once for the batch; or
  "thompson", which is told nothing, but takes the best of another joint draw for each choice.
  `key` and the number of mixtures known fix what is drawn: one key serves a whole search.
  ValueError for a count that cannot be, an unknown acquisition, or "log_ei" with none `observed`.
  """
  if not 1 <= count <= len(candidates):
    raise ValueError(f"cannot choose {count} of {len(candidates)} candidates")
  check_acquisition(acquisition)
  none = np.zeros((0, candidates.shape[1]))
  told = none if pending is None else np.asarray(pending)
  known = told if observed is None else np.concatenate([observed, told])
  if acquisition == "thompson":
    return _thompson(surrogate, candidates, count, key, len(known))
  mean, sd = surrogate.predict(candidates)
  parameter = kappa
  if acquisition == "log_ei":
    if observed is None or not len(observed):
      raise ValueError("log_ei improves on mixtures already run: give them as observed")
    parameter = surrogate.predict(known)[0].max()
  elif acquisition == "max_value_entropy":
    everything = surrogate.predict(np.concatenate([candidates, known]))
    parameter = draw_maxima(*everything, MAXIMA, numbered(key, len(known)))
  values = rate_candidates(acquisition, mean, sd, parameter)
  order = np.argsort(-values, kind="stable")
  size = max(SHORTLIST, 2 * count)
  while True:
    short = order[:size]
    chosen, lowest = _greedy(surrogate, candidates[short], told, count, acquisition, parameter)
    # What is told only lowers values: a candidate left out can be no better than it was at first.
    if size >= len(order) or lowest >= values[order[size]]:
      return short[chosen]
    size *= 4


def check_acquisition(acquisition: str) -> None:
  if acquisition not in get_args(Acquisition):
    raise ValueError(f"acquisition is one of {get_args(Acquisition)}, not {acquisition!r}")


def numbered(key: Key, number: int) -> tuple[int, int]:
  """Another key for each number."""
  return int(generator(key).integers(2**63)), number


def _greedy(surrogate, candidates, told, count, acquisition, parameter) -> tuple[np.ndarray, float]:
  """Positions of the choices, and the lowest value at which one was made."""
  mean, covariance = surrogate.joint(np.concatenate([candidates, told]))
  noise = surrogate.noise_sd**2

  def tell(index: int) -> None:
    nonlocal covariance
    column = covariance[:, index]
    covariance = covariance - np.outer(column, column) / (column[index] + noise)

  for index in range(len(candidates), len(mean)):
    tell(index)
  chosen: list[int] = []
  lowest = np.inf
  free = np.ones(len(candidates), bool)
  while True:
    sd = np.sqrt(np.maximum(np.diag(covariance), 0))
    value = rate_candidates(acquisition, mean, sd, parameter)[: len(candidates)]
    chosen.append(int(np.argmax(np.where(free, value, -np.inf))))
    lowest = min(lowest, value[chosen[-1]])
    if len(chosen) == count:
      return np.array(chosen), lowest
    free[chosen[-1]] = False
    tell(chosen[-1])
    if acquisition == "log_ei":
      parameter = max(parameter, mean[chosen[-1]])


def _thompson(surrogate, candidates, count, key, known: int) -> np.ndarray:
  """Each choice is the best candidate, not chosen before, of a joint draw of its own."""
  short = _contenders(*surrogate.predict(candidates), count)
  mean, covariance = surrogate.joint(candidates[short])
  root = _root(covariance)
  chosen: list[int] = []
  for number in range(known, known + count):
    draw = mean + root @ generator(numbered(key, number)).standard_normal(len(short))
    draw[chosen] = -np.inf
    chosen.append(int(np.argmax(draw)))
  return short[np.array(chosen)]


def _contenders(mean: np.ndarray, sd: np.ndarray, count: int) -> np.ndarray:
  """Places of the candidates that can be among the `count` best of a draw."""
  leaders = np.argsort(-mean, kind="stable")[:count]
  # To get there one must beat a leader; two scores differ by the sum of their sds at most.
  apart = np.maximum(sd[:, None] + sd[leaders], np.finfo(float).tiny)
  with np.errstate(over="ignore"):
    chance = scipy.special.ndtr((mean[:, None] - mean[leaders]) / apart).sum(axis=1)
  chance[leaders] = np.inf
  order = np.argsort(chance, kind="stable")
  kept = order[np.cumsum(chance[order]) > MISSED]
  return np.sort(kept[-max(LIMIT, count) :])


def _root(covariance: np.ndarray) -> np.ndarray:
  """A matrix whose product with its transpose is `covariance`, which may be singular."""
  with process.exact():
    factor, places, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=1)
  root = np.zeros_like(covariance)
  root[places - 1, :rank] = np.tril(factor)[:, :rank]
  return root


def _nonzero(sd: Array, gap: Array) -> Array:
  return jnp.maximum(sd, jnp.abs(gap) / CERTAIN + jnp.finfo(sd.dtype).tiny)
