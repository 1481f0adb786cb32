"""Other libraries' searches as policies of mixjax: same pool, same first runs, same budget.

BoTorch scores every candidate of the pool that has not been run. Optuna has no finite pools: it
proposes anywhere on the simplex, and the candidate nearest to its proposal is run. Its parameters
are u_i in (0, 1], with weights -log u_i, normalised: evenly drawn u are evenly drawn mixtures. It
is told the mixture that was run, not the one it proposed. What is measured for Optuna is therefore
its sampler on these parameters behind a nearest neighbour, not Optuna as such.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from mixjax.search import coordinates, flat
from mixjax.search.acquire import KAPPA
from mixjax.search.observations import Observations, matches
from mixjax.search.policies import Policy, Recommendation, check_enough, pool_of, random_unseen
from mixjax.search.process import JITTER
from mixjax.search.replay import design_size
from mixjax.search.space import Key, Space, generator

if TYPE_CHECKING:
  import optuna
  from botorch.acquisition import AcquisitionFunction
  from botorch.models import SingleTaskGP

# The least u_i: no exponential is above -log of it.
SMALLEST = 1e-12


@dataclasses.dataclass(frozen=True)
class Rival(abc.ABC):
  """Draws the `seeds` first runs as `MixAtlas` does with the same key, then asks `choose`."""

  space: Space
  seeds: int

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    runs = observations.at_target()
    known = runs.known()
    pool = pool_of(self.space)
    check_enough(np.sum(~matches(pool, known)), count)
    random = min(max(self.seeds - len(known), 0), count) if len(runs) else count
    design = random_unseen(self.space, known, random, key) if random else known[:0]
    if random == count:
      return design
    pending = np.concatenate([known[len(runs) :], design])
    unseen = pool[~matches(pool, np.concatenate([known, design]))]
    seed = int(np.random.default_rng([*generator(key).bytes(8), len(known)]).integers(2**30))
    chosen = self.choose(runs, pending, unseen, count - random, seed)
    return np.concatenate([design, unseen[chosen]])

  @abc.abstractmethod
  def choose(
    self,
    runs: Observations,
    pending: Float[np.ndarray, "p d"],
    unseen: Float[np.ndarray, "m d"],
    count: int,
    seed: int,
  ) -> Int[np.ndarray, " count"]:
    """Which `count` of the `unseen` candidates to run."""


@dataclasses.dataclass(frozen=True)
class BoTorchLogEI(Rival):
  """`SingleTaskGP` with its own kernel and priors, and (q)LogEI; recommends by posterior mean."""

  def choose(self, runs, pending, unseen, count, seed):
    import botorch_parts

    model = self.model(runs)
    acquisition = self.acquisition(model, runs, self.features(pending), count, seed)
    return botorch_parts.choose_discrete(acquisition, self.features(unseen), count)

  def recommend(self, observations: Observations) -> Recommendation:
    import botorch_parts

    runs = observations.at_target()
    pool = pool_of(self.space)
    mean, sd = botorch_parts.marginals(self.model(runs), self.features(pool))
    best = int(np.argmax(mean))
    return Recommendation(
      pool[best], float(mean[best]), float(sd[best]), observed=runs.mean_at(pool[best])[0]
    )

  def features(self, mixtures: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Mixtures as the model takes them."""
    return mixtures

  def model(self, runs: Observations) -> "SingleTaskGP":
    import botorch_parts

    return botorch_parts.stock_model(self.features(runs.mixtures), runs.scores)

  def acquisition(self, model, runs, pending, count, seed) -> "AcquisitionFunction":
    import botorch_parts

    return botorch_parts.log_improvement(model, runs.scores, pending, count, seed)


@dataclasses.dataclass(frozen=True)
class BoTorchMatched(BoTorchLogEI):
  """BoTorch with MixAtlas's kernel, priors and UCB, on square roots of the weights.

  What is left between the two: coordinates and a scale of scores that are not learnt, the most
  probable hyper-parameters instead of an average over draws, one start of their fit, and for
  batches qUCB instead of GP-BUCB.
  """

  kappa: float = KAPPA

  def features(self, mixtures):
    rows = np.sqrt(coordinates.reference(self.space))
    spread = rows.std(axis=0)
    return (np.sqrt(mixtures) - rows.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)

  def model(self, runs):
    import botorch_parts

    return botorch_parts.matched_model(
      self.features(runs.mixtures),
      runs.scores,
      lengths=(flat.LENGTH * self.space.dim**0.5, flat.LENGTH_SPREAD),
      amplitude=(flat.AMPLITUDE, flat.AMPLITUDE_SPREAD),
      noise=(flat.NOISE, flat.NOISE_SPREAD),
      least_noise=JITTER,
    )

  def acquisition(self, model, runs, pending, count, seed):
    import botorch_parts

    return botorch_parts.upper_bound(model, self.kappa, pending, count, seed)


@dataclasses.dataclass(frozen=True)
class Optuna(Rival):
  """A sampler of Optuna's, `sampler(seed)`; recommends the best observed mixture, as Optuna does.

  Each answer starts a study anew from all runs. Nearest is by Hellinger distance.
  """

  sampler: Callable[[int], "optuna.samplers.BaseSampler"]

  def choose(self, runs, pending, unseen, count, seed):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    unit = optuna.distributions.FloatDistribution(SMALLEST, 1.0)
    distributions = {f"u{i}": unit for i in range(self.space.dim)}
    study = optuna.create_study(direction="maximize", sampler=self.sampler(seed))
    state = optuna.trial.TrialState
    scores = runs.scores.tolist() + [None] * len(pending)
    for mixture, score in zip([*runs.mixtures, *pending], scores, strict=True):
      study.add_trial(
        optuna.trial.create_trial(
          state=state.RUNNING if score is None else state.COMPLETE,
          value=score,
          params=dict(zip(distributions, to_parameters(mixture).tolist(), strict=True)),
          distributions=distributions,
        )
      )
    free = np.ones(len(unseen), bool)
    chosen = []
    for _ in range(count):
      proposal = to_mixture(np.array([*study.ask(distributions).params.values()]))
      away = np.sum((np.sqrt(unseen) - np.sqrt(proposal)) ** 2, axis=1)
      chosen.append(int(np.argmin(np.where(free, away, np.inf))))
      free[chosen[-1]] = False
    return np.array(chosen)

  def recommend(self, observations: Observations) -> Recommendation:
    runs = observations.at_target()
    return Recommendation.from_runs(runs.best(self.space), runs)


def to_mixture(parameters: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
  """Weights from u_i in (0, 1]; all u_i = 1 is the uniform mixture."""
  exponentials = -np.log(parameters)
  total = exponentials.sum()
  return exponentials / total if total > 0 else np.full(len(parameters), 1 / len(parameters))


def to_parameters(mixture: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
  """The u_i of a mixture whose exponentials sum to d, their expectation, or less if one is too big.

  `to_mixture` gives the mixture back.
  """
  scale = min(len(mixture), -np.log(SMALLEST) / mixture.max())
  return np.clip(np.exp(-mixture * scale), SMALLEST, 1.0)


def _gp_sampler(seed: int) -> "optuna.samplers.BaseSampler":
  import optuna

  return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)


def _tpe_sampler(seed: int) -> "optuna.samplers.BaseSampler":
  import optuna

  return optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)


RIVALS: Mapping[str, Callable[[Space, int], Policy]] = {
  "botorch-logei": lambda space, budget: BoTorchLogEI(space, design_size(space, budget)),
  "botorch-matched": lambda space, budget: BoTorchMatched(space, design_size(space, budget)),
  # The random first runs take the place of the samplers' own.
  "optuna-gp": lambda space, budget: Optuna(space, design_size(space, budget), _gp_sampler),
  "optuna-tpe": lambda space, budget: Optuna(space, design_size(space, budget), _tpe_sampler),
}
