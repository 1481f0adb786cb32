"""ADMIRE-BayesOpt: the search over mixtures, and over mixtures and budgets (arXiv 2508.11551)."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special
import threadpoolctl
from jaxtyping import Float

from mixjax.search import multifidelity
from mixjax.search.acquire import rate_candidates
from mixjax.search.multifidelity import Coordinates, MultiFidelity, shares_of
from mixjax.search.observations import Observations, matches
from mixjax.search.policies import Recommendation, check_enough, pool_of, random_unseen
from mixjax.search.space import Key, Space, generator

# Mixtures among which a possible maximum is drawn: those most likely to hold it.
MAXIMUM_AMONG = 512

# Gauss-Hermite nodes and weights of an expectation over a standard normal.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(48)
WEIGHTS = WEIGHTS / np.sqrt(2 * np.pi)


@dataclasses.dataclass(frozen=True)
class Admire:
  """One fidelity: log expected improvement over what is left of the pool; needs one.

  `fidelity` is what a run costs as a share of the target. Of the observations, those of the highest
  fidelity count, whatever its unit, and are taken to be such runs. The recommendation is the pool's
  highest posterior mean at the target; below 1 the published kernel has nothing to learn the way
  there from, and the answer leans on the priors. The first `seeds` runs are random (published:
  one); batches are ours: a chosen run is believed to come out as predicted. Improvement is over the
  best observed score, as published: with much noise, a lucky run raises the bar.
  """

  space: Space
  fidelity: float = 1.0
  seeds: int = 1
  coordinates: Coordinates = "raw"

  def __post_init__(self):
    if not 0 < self.fidelity <= 1:
      raise ValueError(f"fidelity is a share of the target's cost in (0, 1], not {self.fidelity}")

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    runs = self._runs(observations)
    known = runs.known()
    pool = pool_of(self.space)
    check_enough(np.sum(~matches(pool, known)), count)
    random = _random_share(self.seeds, runs, count)
    design = random_unseen(self.space, known, random, key) if random else known[:0]
    if random == count:
      return design
    unseen = pool[~matches(pool, np.concatenate([known, design]))]
    told = np.concatenate([known[len(runs) :], design])
    process = multifidelity.fit(runs, self.space, coordinates=self.coordinates)
    shares = np.full(len(unseen) + len(told), self.fidelity)
    belief = _Belief(process, np.concatenate([unseen, told]), shares)
    for index in range(len(unseen), len(shares)):
      belief.tell(index)
    best = max(runs.scores.max(), belief.mean[len(unseen) :].max(initial=-np.inf))
    free, chosen = np.ones(len(unseen), bool), []
    while True:
      mean, sd = belief.mean[: len(unseen)], np.sqrt(belief.variance[: len(unseen)])
      value = rate_candidates("log_ei", mean, sd, best)
      chosen.append(int(np.argmax(np.where(free, value, -np.inf))))
      if len(chosen) == count - random:
        return np.concatenate([design, unseen[chosen]])
      free[chosen[-1]] = False
      belief.tell(chosen[-1])
      best = max(best, mean[chosen[-1]])

  def recommend(self, observations: Observations) -> Recommendation:
    runs = self._runs(observations)
    process = multifidelity.fit(runs, self.space, coordinates=self.coordinates)
    return _recommend(process, self.space, runs)

  def _runs(self, observations: Observations) -> Observations:
    runs = observations.at_target()
    return dataclasses.replace(runs, fidelity=np.full(len(runs), self.fidelity))


@dataclasses.dataclass(frozen=True)
class AdmireMultiFidelity:
  """Several fidelities `{share of the target's cost: cost}`, 1 among them.

  `ask_with_fidelity` takes the runs that tell most about the maximum at the target per cost
  (max-value entropy search). `ask` is for a caller who only runs the target: the same choice among
  target runs, learning from cheap ones where observed. Observations need a fidelity in the same
  shares; without any they are target runs. `pools`, `{share: float[m, d]}`, are the candidates of a
  fidelity where they differ from the space's, as in a recorded table. The first `seeds` runs are
  random at the cheapest fidelity. A pending mixture, whose fidelity is not known, is believed to
  run at the cheapest that is asked for, and is proposed at none.

  The recommendation is the target pool's highest posterior mean; the published script takes the
  highest acquisition value instead, which is where to learn and not what to use. The maximum is
  drawn `draws` times over the target pool; published: once, over the points seen so far.
  """

  space: Space
  fidelities: Mapping[float, float]
  pools: Mapping[float, Float[np.ndarray, "m d"]] | None = None
  seeds: int = 1
  draws: int = 16
  coordinates: Coordinates = "raw"

  def __post_init__(self):
    if 1.0 not in self.fidelities or not all(0 < share <= 1 for share in self.fidelities):
      raise ValueError(
        f"fidelities are shares of the target's cost in (0, 1], with 1, not {list(self.fidelities)}"
      )
    if not all(np.isfinite(cost) and cost > 0 for cost in self.fidelities.values()):
      raise ValueError(f"costs are above 0, not {dict(self.fidelities)}")
    if unknown := sorted(set(self.pools or ()) - set(self.fidelities)):
      raise ValueError(f"pools at {unknown}, which are none of {list(self.fidelities)}")

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    return self._choose(observations, count, key, (1.0,))[0]

  def ask_with_fidelity(
    self, observations: Observations, count: int, key: Key
  ) -> tuple[Float[np.ndarray, "count d"], Float[np.ndarray, " count"]]:
    """The next `count` mixtures and the fidelity to run each at. Use one `key` for a search."""
    return self._choose(observations, count, key, tuple(self.fidelities))

  def recommend(self, observations: Observations) -> Recommendation:
    process = multifidelity.fit(observations, self.space, coordinates=self.coordinates)
    return _recommend(process, self._space_at(1.0), _runs_at(observations, 1.0))

  def _choose(self, runs: Observations, count: int, key: Key, allowed: Sequence[float]):
    cheapest = min(allowed, key=self.fidelities.__getitem__)
    pools = {share: self._space_at(share) for share in allowed}
    known = {share: _runs_at(runs, share).known() for share in allowed}
    left = {s: np.sum(~matches(pool_of(pools[s]), known[s])) for s in allowed}
    check_enough(sum(left.values()), count)
    random = _random_share(self.seeds, runs, count)
    told = pending = runs.known()[len(runs) :]
    design = pending[:0]
    if random:
      design = random_unseen(pools[cheapest], known[cheapest], random, key)
      known[cheapest] = np.concatenate([known[cheapest], design])
      told = np.concatenate([pending, design])
    if random == count:
      return design, np.full(count, cheapest)
    unseen = [pool_of(pools[s])[~matches(pool_of(pools[s]), known[s])] for s in allowed]
    mixtures = np.concatenate(unseen)
    shares = np.repeat(np.array(allowed), [len(part) for part in unseen])
    process = multifidelity.fit(runs, self.space, coordinates=self.coordinates)
    maxima = draw_joint_maxima(process, pool_of(self._space_at(1.0)), self.draws, key)
    chosen = self._most_telling(process, mixtures, shares, told, cheapest, maxima, count - random)
    fidelity = np.concatenate([np.full(random, cheapest), shares[chosen]])
    return np.concatenate([design, mixtures[chosen]]), fidelity

  def _most_telling(self, process, mixtures, shares, told, told_at, maxima, count) -> list[int]:
    """Indices of the `count` rows that tell most about `maxima` per cost, best first."""
    size = len(mixtures)
    cost = np.array([self.fidelities[share] for share in shares.tolist()])
    # Rows: the candidates, the same mixtures at the target, and what is under way.
    rows_shares = np.concatenate([shares, np.ones(size), np.full(len(told), told_at)])
    belief = _Belief(process, np.concatenate([mixtures, mixtures, told]), rows_shares)
    covariance = process.covariance_with_target(mixtures, shares)
    at_target = slice(size, 2 * size)

    def tell(index: int) -> None:
      nonlocal covariance
      update = belief.tell(index)
      covariance = covariance - update[:size] * update[at_target]

    for index in range(2 * size, len(rows_shares)):
      tell(index)
    free, chosen = np.ones(size, bool), []
    while True:
      sd = np.sqrt(np.maximum(belief.variance[at_target], 1e-12 * process.scale**2))
      run_sd = np.sqrt(belief.variance[:size] + process.noise_sd**2)
      gamma = (maxima - belief.mean[at_target, None]) / sd[:, None]
      gain = max_value_gain(gamma, (covariance / (sd * run_sd))[:, None]).mean(axis=1)
      chosen.append(int(np.argmax(np.where(free, gain / cost, -np.inf))))
      if len(chosen) == count:
        return chosen
      free[chosen[-1]] = False
      tell(chosen[-1])

  def _space_at(self, share: float) -> Space:
    pool = (self.pools or {}).get(share)
    return self.space if pool is None else self.space.with_pool(pool)


def max_value_gain(gamma, correlation) -> Float[np.ndarray, "..."]:
  """What a run y tells about f, in nats: H[y] - H[y | f <= maximum], for y and f jointly normal.

  `gamma` is (maximum - mean of f) / sd of f, `correlation` that of y and f; they broadcast. The
  density of y becomes that of an extended skew normal; turned so that its two squares separate, its
  entropy is a smooth function's expectation over one standard normal, by quadrature.
  """
  gamma, rho = np.broadcast_arrays(np.clip(gamma, -30, 30), np.clip(correlation, -1, 1))
  rest = np.sqrt(1 - rho**2)
  log_below = scipy.special.log_ndtr(gamma)
  hazard = np.exp(-0.5 * gamma**2 - 0.5 * np.log(2 * np.pi) - log_below)
  expected = np.zeros(gamma.shape)
  for node, weight in zip(NODES, WEIGHTS, strict=True):
    # Phi log Phi / phi; both factors underflow on their own far from 0.
    z = np.minimum(rest * gamma - rho * node, 35)
    log_cdf = scipy.special.log_ndtr(z)
    expected += weight * log_cdf * np.exp(log_cdf + 0.5 * z**2 + 0.5 * np.log(2 * np.pi))
  gain = 0.5 * rho**2 * gamma * hazard + rest * hazard * expected - log_below
  return np.maximum(gain, 0)


def draw_joint_maxima(
  process: MultiFidelity, pool: Float[np.ndarray, "m d"], count: int, key: Key
) -> Float[np.ndarray, " count"]:
  """`count` draws of the highest score at the target over the pool's most promising mixtures."""
  mean, sd = process.predict(pool, 1.0)
  promising = np.argsort(-(mean + 3 * sd), kind="stable")[:MAXIMUM_AMONG]
  mean, covariance = process.joint(pool[promising], 1.0)
  # On one thread, as all algebra of a search: waiting threads cost more than they bring.
  with threadpoolctl.threadpool_limits(1, user_api="blas"):
    values, vectors = np.linalg.eigh(covariance)
  normals = generator(key).normal(size=(count, len(mean)))
  return np.max(mean + (normals * np.sqrt(np.maximum(values, 0))) @ vectors.T, axis=1)


class _Belief:
  """Mean and variance of some (mixture, fidelity) rows while a batch is chosen from them."""

  def __init__(self, process: MultiFidelity, mixtures: np.ndarray, shares: np.ndarray):
    self._process, self._mixtures, self._shares = process, mixtures, shares
    self._updates: list[np.ndarray] = []
    self.mean, sd = process.predict(mixtures, shares)
    self.variance = sd**2

  def tell(self, index: int) -> Float[np.ndarray, " rows"]:
    """Row `index` is run and comes out as predicted: the mean stays, the variance loses u^2."""
    row, share = self._mixtures[index], self._shares[index]
    covariance = self._process.covariance(self._mixtures, self._shares, row, share)
    covariance = covariance - sum(update * update[index] for update in self._updates)
    update = covariance / np.sqrt(self.variance[index] + self._process.noise_sd**2)
    self._updates.append(update)
    self.variance = np.maximum(self.variance - update**2, 0)
    return update


def _random_share(seeds: int, runs: Observations, count: int) -> int:
  """How many of the next `count` are random; all of them while there is nothing to learn from."""
  if count < 1 or not len(runs):
    return count
  return min(max(seeds - len(runs.known()), 0), count)


def _runs_at(runs: Observations, share: float) -> Observations:
  keep = np.isclose(shares_of(runs), share)
  stderr = None if runs.stderr is None else runs.stderr[keep]
  return Observations(
    runs.mixtures[keep], runs.scores[keep], stderr, np.full(keep.sum(), share), runs.pending
  )


def _recommend(process: MultiFidelity, space: Space, runs: Observations) -> Recommendation:
  options = space.raise_to_floor(pool_of(space))
  mean, sd = process.predict(options, 1.0)
  best = int(np.argmax(mean))
  observed = runs.mean_at(options[best])[0]
  return Recommendation(options[best], float(mean[best]), float(sd[best]), observed)
