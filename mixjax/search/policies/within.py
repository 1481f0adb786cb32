"""Constraints for every policy: it chooses from what is within, and what leads out is moved in.

`AdmireMultiFidelity` needs no `Within`: it proposes and recommends candidates of its pools alone,
so `AdmireMultiFidelity(narrowed(space, constraints), ...)`, with any `pools` of its fidelities
narrowed too, never leads out. `Within` forwards `ask`, not `ask_with_fidelity`: a mixture that is
moved would have to be judged again at every fidelity before it is known which one is worth it.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from mixjax.search.constraints import Constraints
from mixjax.search.observations import SAME, Observations, matches
from mixjax.search.policies import Policy, Recommendation
from mixjax.search.space import Key, Space

# How often a policy is asked for others where what it proposed ends on what is known.
ROUNDS = 8


def narrowed(space: Space, constraints: Constraints) -> Space:
  """`space` with the lower bounds of `constraints`, and of its pool what is within.

  ValueError if they are for another space, or leave fewer candidates than weights: a search has
  then nothing to choose from. A pool that is all within is taken however small.
  """
  theirs = constraints.space
  alike = theirs.axes == space.axes and np.array_equal(theirs.base, space.base)
  if not alike or (constraints.lower < space.lower).any():
    raise ValueError(
      f"these constraints are for {theirs.name}, not for {space.name}: their axes, empty cells or "
      "floors differ; make both from one space"
    )
  lower, pool = constraints.polytope.lower, space.pool
  if pool is not None:
    kept = pool[constraints.within(pool)]
    if len(kept) < min(space.dim, len(pool)):
      raise ValueError(
        f"only {len(kept)} of {len(pool)} candidates are within the constraints: make the pool "
        "within them, space.with_pool(design.pool(space, 2000, key, constraints))"
      )
    kept.setflags(write=False)
    pool = kept
  return dataclasses.replace(space, lower=lower, pool=pool)


def allowed(points: Float[np.ndarray, "n d"], constraints: Constraints) -> Bool[np.ndarray, " n"]:
  """Which of `points` are within; all of them if none is."""
  inside = constraints.within(points)
  return inside | ~inside.any()


def runs_allowed(runs: Observations, constraints: Constraints) -> Observations:
  """The runs on mixtures within; all of them if there are none."""
  return runs.only(allowed(runs.mixtures, constraints))


@dataclasses.dataclass(frozen=True)
class Within:
  """The policy `make(space)` under constraints: `Within(space, constraints, RegMix)`.

  It gets the space with their lower bounds and what is within of the pool (`narrowed`), so a policy
  that chooses from the pool chooses the best that is allowed. It sees every run, also those that
  are not within. Whatever it answers that is not within is moved to the nearest mixture that is
  (`Constraints.project`); without a pool that crowds random designs at the limits, so give one
  (`design.pool`).

  A proposal that is then a known mixture, or another's of its batch, gives way to the policy's
  next; it stands only if the policy has no other, as a fixed mixture has none. A recommended run
  that is not within gives way to what the policy recommends from the runs that are. What is
  believed of a recommendation that was moved is what the policy says where it may choose that one
  alone; if it does not, the runs on it say.
  """

  space: Space
  constraints: Constraints
  make: Callable[[Space], Policy]

  def __post_init__(self):
    object.__setattr__(self, "space", narrowed(self.space, self.constraints))
    _ = self.policy

  @functools.cached_property
  def policy(self) -> Policy:
    return self.make(self.space)

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    asked = self.policy.ask(observations, count, key)
    if self.constraints.within(asked).all():
      return asked
    known = observations.at_target().known()
    pending = known[:0] if observations.pending is None else observations.pending
    batch = repeats = tried = known[:0]
    for _ in range(ROUNDS):
      points = self._moved(asked)
      new = _first(points, np.concatenate([known, batch]))
      batch, repeats = np.concatenate([batch, points[new]]), np.concatenate([repeats, points[~new]])
      tried = np.concatenate([tried, asked])
      if len(batch) >= count:
        break
      told = dataclasses.replace(observations, pending=np.concatenate([pending, tried, batch]))
      # Whatever is known may have been moved from what the policy proposes next.
      asked = self.policy.ask(told, count - len(batch) + len(known), key)
      asked = asked[~matches(asked, tried)]
      if not len(asked):
        break
    return np.concatenate([batch, repeats])[:count]

  def recommend(self, observations: Observations) -> Recommendation:
    advice = self.policy.recommend(observations)
    if self.constraints.within(advice.mixture[None])[0]:
      return advice
    runs = observations.at_target()
    if matches(advice.mixture[None], runs.mixtures)[0]:
      fewer = runs_allowed(runs, self.constraints)
      if len(fewer) < len(runs):
        return self.recommend(fewer)
    (mixture,) = self.constraints.project(advice.mixture[None])
    # Some policies cannot do with one candidate; all else they could do just before.
    with contextlib.suppress(ValueError):
      alone = self.make(dataclasses.replace(self.space, pool=mixture[None]))
      judged = alone.recommend(observations)
      if matches(judged.mixture[None], mixture[None])[0]:
        return dataclasses.replace(judged, mixture=mixture)
    return Recommendation.from_runs(mixture, runs)

  def _moved(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    off = ~self.constraints.within(points)
    moved = points.copy()
    moved[off] = self.constraints.project(points[off])
    return moved


def _first(
  points: Float[np.ndarray, "n d"], known: Float[np.ndarray, "m d"]
) -> Bool[np.ndarray, " n"]:
  """Which of `points` are neither `known` nor the same as one before."""
  alike = cKDTree(points).query_ball_point(points, SAME, p=np.inf)
  first = np.array([min(rows) == place for place, rows in enumerate(alike)])
  return first & ~matches(points, known)
