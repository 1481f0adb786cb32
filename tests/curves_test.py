"""Curves with a known truth: what is learnt of them, forecast from them, and stopped by them."""

import dataclasses
import functools

import numpy as np
import pytest

from mixjax.search import coordinates, surrogate
from mixjax.search.benchmarks import Benchmarks, fit_benchmarks
from mixjax.search.chain import LEAST_INFORMATION, Chain, Link, fit_curves
from mixjax.search.curves import Curves
from mixjax.search.halting import cheapest, correlation, hopeless
from mixjax.search.objective import Objective, ScoreVectors
from mixjax.search.observations import Observations
from mixjax.search.slopes import Noisy, slopes_on
from mixjax.search.space import Space, candidates
from mixjax.search.study import Study
from mixjax.search.surrogate import Hyperparameters
from mixjax.search.trial import Trial

SPACE = Space.simplex("domain", ["a", "b", "c", "d"])
SPACE = SPACE.with_pool(candidates(SPACE, 200, 0))
RHOS = (0.99, 0.6, 0.0, -0.7)
NAMES = ("near", "half", "none", "against")
STEPS = (100.0, 1000.0)
NEAR = Objective({"near": 1.0})


def landscapes(seed):
  """Two functions of all pool mixtures, with falling returns, mean 0, sd 1 and uncorrelated."""
  raw = np.log(SPACE.pool + 0.05) @ np.random.default_rng(seed).normal(size=(SPACE.dim, 2))
  raw -= raw.mean(axis=0)
  return np.linalg.solve(np.linalg.cholesky(np.cov(raw.T, bias=True)), raw.T)


def scores(seed, rhos=RHOS, noise=0.3, shared=0.5):
  """Early and final scores of the pool, `float[200, 2, b]`: mixtures and noise go along alike."""
  rng, found = np.random.default_rng(seed), []
  for place, rho in enumerate(rhos):
    final, other = landscapes([seed, place])
    errors = rng.normal(size=(2, len(final)))
    errors[0] = np.sign(rho) * shared * errors[1] + np.sqrt(1 - shared**2) * errors[0]
    early = rho * final + np.sqrt(1 - rho**2) * other
    found.append(np.stack([early, final]) + noise * errors)
  return np.moveaxis(found, (0, 1, 2), (2, 1, 0))


def some(table, rows, finished=None, names=NAMES, steps=STEPS):
  """Curves of these rows of the pool, of which only the `finished` (by default all) did so."""
  table = table[rows].copy()
  if finished is not None:
    table[~finished, -1] = np.nan
  return Curves(names, steps, SPACE.pool[rows], table)


def running(table, rows, names=NAMES):
  return some(table, rows, np.zeros(len(rows), bool), names)


def split(seed):
  """32 rows of the pool, 24 of which finish, and 100 others."""
  order = np.random.default_rng(seed).permutation(len(SPACE.pool))
  return order[:32], np.arange(32) < 24, order[32:132]


@pytest.fixture(scope="module")
def chains():
  """Chains of four studies, each with its table of scores and 100 rows it has not seen."""
  found = []
  for seed in range(4):
    rows, finished, others = split(seed)
    table = scores(seed)
    found.append((fit_curves(some(table, rows, finished), SPACE), table, others))
  return found


def normal_curves(rng, rhos, count=30):
  early, other = rng.normal(size=(2, count, len(rhos)))
  final = np.array(rhos) * early + np.sqrt(1 - np.square(rhos)) * other
  return np.stack([early, final], axis=1)


@pytest.mark.parametrize("stopped", [0, 15])
def test_intervals_hold_the_true_correlation(stopped):
  """Also where the worse half of the runs was stopped for its early scores."""
  rng, inside, estimates, naive = np.random.default_rng(0), [], [], []
  for _ in range(200):
    for rho in RHOS:
      table = normal_curves(rng, [rho])
      table[np.argsort(table[:, 0, 0])[:stopped], 1] = np.nan
      found = correlation(Curves(("one",), STEPS, np.full((30, 4), 0.25), table))
      assert found.runs == 30 - stopped
      inside.append(found.low[0, 0] <= rho <= found.high[0, 0])
      estimates.append(found.estimate[0, 0])
      naive.append(np.corrcoef(table[~np.isnan(table[:, 1, 0]), :, 0].T)[0, 1])
  inside, estimates, naive = (np.reshape(a, (200, 4)) for a in (inside, estimates, naive))
  assert (np.mean(inside, axis=0) > 0.9).all()
  assert np.abs(estimates.mean(axis=0) - RHOS).max() < 0.06
  if stopped:
    assert np.abs(naive.mean(axis=0) - RHOS).max() > 0.12


def test_slopes_have_the_sign_of_what_goes_along(chains):
  slopes = np.array([chain.slopes()[:, 1, 0] for chain, _, _ in chains])
  assert (slopes[:, 0] > 0.4).all()
  assert (slopes[:, 3] <= 0).all() and np.mean(slopes[:, 3] < -0.2) >= 0.75
  # At the level of 5%, one of four studies by chance; most show nothing where there is nothing.
  assert np.mean(slopes[:, 2] == 0) >= 0.75


def test_forecasts_are_calibrated_and_gain_from_prefixes(chains):
  inside, ratio = [], []
  for chain, table, others in chains:
    trials, truth = running(table, others), table[others, 1]
    none = Curves(NAMES, STEPS, trials.mixtures, np.full_like(trials.scores, np.nan))
    told, untold = chain.final(trials), chain.final(none)
    inside.append(np.abs(truth - told.mean) <= 1.96 * told.sd)
    errors = [np.mean((truth - one.mean) ** 2, axis=0) for one in (told, untold)]
    ratio.append(errors[0] / errors[1])
    flat = chain.slopes()[:, 1, 0] == 0
    np.testing.assert_array_equal(told.mean[:, flat], untold.mean[:, flat])
    np.testing.assert_array_equal(told.sd[:, flat], untold.sd[:, flat])
    assert told.sd.mean() < untold.sd.mean()
  assert 0.88 < np.mean(inside) < 0.99
  assert np.mean(inside, axis=(0, 1)).min() > 0.83
  assert np.mean(ratio, axis=0)[0] < 0.85


def test_stopping_the_worse_half_biases_no_forecast():
  """Processes fitted apart are off by half an sd of the scores here: finishers began well."""
  off = []
  for seed in range(4):
    rows, _, others = split(seed)
    table = scores(seed, rhos=(0.99,))
    finished = table[rows, 0, 0] > np.median(table[rows, 0, 0]) - 0.2
    chain = fit_curves(some(table, rows, finished, ("near",)), SPACE)
    forecast = chain.final(running(table, others, ("near",))).mean
    off.append(np.mean(table[others, 1] - forecast))
  assert abs(np.mean(off)) < 0.1


def test_objective_weighs_benchmarks_and_their_common_errors(chains):
  chain, table, others = chains[0]
  finals = chain.final(running(table, others))
  mean, sd = finals.of(Objective({"near": 1.0, "half": 3.0}, minimize=True))
  np.testing.assert_allclose(mean, -(finals.mean[:, 0] + 3 * finals.mean[:, 1]) / 4)
  shares = np.array([0.25, 0.75])
  expected = np.einsum("b,mbc,c->m", shares, finals.covariance[:, :2, :2], shares)
  np.testing.assert_allclose(sd**2, expected)


def test_finished_runs_keep_their_scores(chains):
  chain, table, others = chains[0]
  finals = chain.final(some(table, others[:3]))
  np.testing.assert_array_equal(finals.mean, table[others[:3], 1])
  assert (finals.sd == 0).all()


def test_later_checkpoints_leave_less_doubt():
  rng, (rows, finished, others) = np.random.default_rng(0), split(0)
  final = landscapes(0)[0] + 0.3 * rng.normal(size=len(SPACE.pool))
  late = final + 0.15 * rng.normal(size=len(final))
  early = late + 0.5 * rng.normal(size=len(final))
  table, steps = np.stack([early, late, final], axis=1)[:, :, None], (1.0, 2.0, 3.0)
  seen = table[rows].copy()
  seen[~finished, 2] = np.nan
  seen[-3:, 1] = np.nan
  chain = fit_curves(Curves(("one",), steps, SPACE.pool[rows], seen), SPACE)
  errors, sds = [], []
  for known in range(3):
    trials = table[others].copy()
    trials[:, known:] = np.nan
    found = chain.final(Curves(("one",), steps, SPACE.pool[others], trials))
    errors.append(np.sqrt(np.mean((found.mean - table[others, 2]) ** 2)))
    sds.append(found.sd.mean())
  assert errors[2] < 0.7 * errors[0] and sds[2] < sds[1] < sds[0]
  assert chain.reliance(2).shape == (2, 1) and chain.reliance(2)[1, 0] > 0.5


def given_chain(rows, finished, slope=0.8):
  """A chain with given hyper-parameters: no fit hides what follows from the model itself."""
  table = scores(7, rhos=(0.9,))
  curves = some(table, rows, finished, ("one",))
  links = []
  hypers = (
    Hyperparameters((2.0, 3.0, 4.0, 5.0), 1.1, 0.3, coordinates.LOG),
    Hyperparameters((6.0, 4.0, 3.0, 5.0), 0.9, 0.5, coordinates.LOG),
  )
  left = (table[:, 0, 0], table[:, 1, 0] - slope * table[:, 0, 0])
  for place, (hyper, values) in enumerate(zip(hypers, left, strict=True)):
    there = rows[curves.reached > place]
    runs = ScoreVectors(("one",), SPACE.pool[there], values[there, None])
    process = surrogate.condition(runs.observations(Objective()), SPACE, hyper, Noisy())
    innovations = Benchmarks(runs, (process,), np.eye(1))
    links.append(Link(np.full((place, 1), slope), np.zeros((1, place, place)), innovations, ((),)))
  return Chain(curves, tuple(links)), table


def joint_posterior(chain, slope, points, left_out=None):
  """Mean and variance of the noise-free final scores, by one process over both checkpoints."""
  first, second = (link.innovations.processes[0] for link in chain.links)

  def kernel(process, a, b):
    hyper, reference = process.hyper, coordinates.reference(SPACE)
    at = (hyper.coordinates.exponent, hyper.coordinates.offset)
    mean, sd = coordinates.spread(reference, *at)
    a, b = ((coordinates.transform(x, *at) - mean) / sd / np.array(hyper.lengths) for x in (a, b))
    r = np.sqrt(5 * np.sum((np.asarray(a)[:, None] - np.asarray(b)[None]) ** 2, axis=2))
    return (process.data.scale * hyper.amplitude) ** 2 * (1 + r + r**2 / 3) * np.exp(-r)

  curves = chain.curves
  keep = np.arange(len(curves)) != (-1 if left_out is None else left_out)
  early = np.flatnonzero(keep)
  late = np.flatnonzero(keep & curves.finished)
  x, y = curves.mixtures[early], curves.mixtures[late]
  same = (early[:, None] == late).astype(float)
  noises = [one.noise_sd**2 for one in (first, second)]
  kxx = kernel(first, x, x) + noises[0] * np.eye(len(x))
  kxy = slope * (kernel(first, x, y) + noises[0] * same)
  kyy = slope**2 * (kernel(first, y, y) + noises[0] * np.eye(len(y))) + kernel(second, y, y)
  kyy += noises[1] * np.eye(len(y))
  center = slope * first.data.center + second.data.center
  data = np.concatenate(
    [curves.scores[early, 0, 0] - first.data.center, curves.scores[late, 1, 0] - center]
  )
  cross = np.hstack(
    [
      slope * kernel(first, points, x),
      slope**2 * kernel(first, points, y) + kernel(second, points, y),
    ]
  )
  solved = np.linalg.solve(np.block([[kxx, kxy], [kxy.T, kyy]]), cross.T)
  prior = slope**2 * np.diag(kernel(first, points, points))
  prior = prior + np.diag(kernel(second, points, points))
  return center + solved.T @ data, prior - np.sum(cross.T * solved, axis=0)


def test_links_together_are_the_joint_process_of_all_checkpoints():
  rows, finished, others = split(7)
  chain, _ = given_chain(rows, finished)
  mean, sd = chain.predict(SPACE.pool[others], Objective())
  expected, variance = joint_posterior(chain, 0.8, SPACE.pool[others])
  np.testing.assert_allclose(mean, expected, atol=1e-5)
  np.testing.assert_allclose(sd, np.sqrt(variance), rtol=1e-4)


def test_a_stopped_run_counts_once():
  """What stands for it takes the belief without it to the belief with it, and is no forecast."""
  rows, finished, _ = split(7)
  chain, table = given_chain(rows, finished)
  seen = chain.observations(Objective())
  assert len(seen) == 32 and not len(seen.pending)
  np.testing.assert_allclose(seen.scores[finished], table[rows[finished], 1, 0])
  for run in np.flatnonzero(~finished):
    here = chain.curves.mixtures[run][None]
    (before,), (prior,) = joint_posterior(chain, 0.8, here, left_out=run)
    (after,), (left,) = joint_posterior(chain, 0.8, here)
    score, error = seen.scores[run], seen.stderr[run]
    np.testing.assert_allclose(1 / left, 1 / prior + 1 / error**2, rtol=1e-4)
    combined = left * (before / prior + score / error**2)
    if 1 - left / prior > LEAST_INFORMATION:
      np.testing.assert_allclose(combined, after, atol=1e-4)
    else:
      assert min(before, after) <= combined <= max(before, after)


def test_a_search_on_observations_believes_what_the_curves_say(chains):
  """Hyper-parameters of its own and the parts that stopped runs lack hardly move it."""
  search_fit = functools.partial(surrogate.fit, warp=0.0)
  for chain, _, others in chains[:2]:
    points = SPACE.pool[others]
    mean, sd = chain.predict(points, NEAR)
    seen = chain.observations(NEAR)
    runs = ScoreVectors(("early", "late"), seen.mixtures, seen.parts, seen.part_stderr)
    both = fit_benchmarks(runs, SPACE, search_fit).forecast(points)
    assert np.sqrt(np.mean(((both.mean.sum(axis=1) - mean) / sd) ** 2)) < 0.1
    assert 0.9 < np.mean(np.sqrt(both.covariance.sum(axis=(1, 2))) / sd) < 1.1
    # Without the parts, nearly.
    whole = Observations(seen.mixtures, seen.scores, seen.stderr)
    alone, error = search_fit(whole, SPACE).predict(points)
    assert np.sqrt(np.mean(((alone - mean) / sd) ** 2)) < 0.6
    assert 0.8 < np.mean(error / sd) < 1.3


def test_runs_whose_curves_say_nothing_are_pending(chains):
  chain = next(chain for chain, _, _ in chains if not chain.slopes()[2].any())
  seen = chain.observations(Objective({"none": 1.0}))
  assert len(seen) == 24 and len(seen.pending) == 8 and seen.parts.shape == (24, 1)


def search(seed, rho):
  """Two batches of seven after 18 finished runs, stopped early where hopeless: the share of their
  steps saved, and whether a run was stopped that would have been the best."""
  order = np.random.default_rng(seed).permutation(len(SPACE.pool))[:32]
  table = scores(seed + 50, rhos=(rho,))[order]
  told = np.arange(32) < 18
  saved, lost = 0.0, False
  for start in (18, 25):
    known = np.arange(32) < start
    rows = order[known]
    seen = table[known].copy()
    seen[~told[known], 1] = np.nan
    chain = fit_curves(Curves(("one",), STEPS, SPACE.pool[rows], seen), SPACE)
    batch = np.arange(start, start + 7)
    trials = table[batch].copy()
    trials[:, 1] = np.nan
    looks = hopeless(chain, Curves(("one",), STEPS, SPACE.pool[order[batch]], trials), Objective())
    for run, look in zip(batch, looks, strict=True):
      told[run] = not look.stop
      lost |= look.stop and table[run, 1, 0] > table[told, 1, 0].max()
      saved += look.stop * (1 - STEPS[0] / STEPS[1])
  return saved / 14, lost


def test_stopping_saves_steps_and_keeps_the_best():
  saved, lost = zip(*(search(seed, 0.99) for seed in range(4)), strict=True)
  assert np.mean(saved) > 0.4 and not any(lost)


def test_prefixes_that_say_nothing_stop_nothing():
  saved, lost = zip(*(search(seed, 0.0) for seed in range(4)), strict=True)
  assert np.mean(saved) < 0.1 and not any(lost)


def test_verdicts_state_their_numbers(chains):
  chain, table, others = chains[0]
  looks = hopeless(chain, running(table, others), NEAR)
  stopped = np.array([look.stop for look in looks])
  bar = np.nanmax(chain.curves.scores[:, 1, 0])
  wins = table[others, 1, 0] > bar
  assert stopped.sum() > 30
  assert np.sum(wins & stopped) <= 1 + sum(look.chance for look in looks if look.stop)
  one = looks[int(np.argmax(stopped))]
  assert one.reason.startswith("Stop: after 100 of 1000 steps") and "24 finished runs" in one.reason
  assert one.bar == bar and one.chance < 0.03
  # Ten best are easier to be among than the one best.
  tenth = hopeless(chain, running(table, others), NEAR, rank=10)
  assert sum(look.stop for look in tenth) < stopped.sum()
  assert not any(look.stop for look in hopeless(chain, running(table, others), NEAR, rank=25))


def test_nothing_is_stopped_before_correlations_can_be_known(chains):
  chain, table, others = chains[0]
  few = dataclasses.replace(chain, curves=some(table, split(0)[0], np.arange(32) < 8))
  looks = hopeless(few, running(table, others[:20]), NEAR)
  assert not any(look.stop for look in looks)
  assert "8 finished runs are too few" in looks[0].reason
  # Not even where they lie on a line.
  early = np.arange(8.0)
  slopes, error, _ = slopes_on(SPACE.pool[:8], early[None], early, SPACE)
  assert (slopes == 0).all() and (error == 0).all()


def test_the_cheapest_checkpoint_that_is_surely_near_the_final_one():
  rng = np.random.default_rng(0)
  final = rng.normal(size=(30, 1))
  table = np.stack([final + scale * rng.normal(size=(30, 1)) for scale in (1, 0.1, 0.01, 0)], 1)
  curves = Curves(("one",), (1, 2, 5, 10), np.full((30, 4), 0.25), table)
  found = cheapest(correlation(curves), 0.9)
  assert (found.step, found.share) == (2, 0.2) and "20% of the cost" in found.reason
  few = Curves(("one",), (1, 2, 5, 10), np.full((3, 4), 0.25), table[:3])
  assert cheapest(correlation(few), 0.9).share == 1
  assert correlation(few).low[0, 0] == -1
  with pytest.raises(ValueError, match="below 1"):
    cheapest(correlation(curves), 1.0)


def test_hostile_curves_get_sane_answers():
  table, (rows, finished, others) = scores(0, rhos=(0.6,)), split(0)
  trials = running(table, others[:4], ("one",))
  constant = np.ones_like(table)
  exact = np.stack([table[:, 1], 2 * table[:, 1] + 1], axis=1)
  for given, kept in ((table, rows[:1]), (constant, rows), (exact, rows), (1e90 * table, rows)):
    done = np.ones(1, bool) if len(kept) == 1 else finished
    seen = some(given, kept, done, ("one",))
    chain = fit_curves(seen, SPACE)
    finals = chain.final(trials)
    assert np.isfinite(finals.mean).all() and np.isfinite(finals.sd).all()
    found = correlation(seen)
    assert np.isfinite([found.estimate, found.low, found.high]).all()
    assert np.isfinite([look.chance for look in hopeless(chain, trials, Objective())]).all()
    assert np.isfinite(chain.observations(Objective()).stderr).all()


def test_a_study_holds_curves(tmp_path):
  study, table = Study(tmp_path, {}), scores(0)
  rows, finished, _ = split(0)
  for row, whole in zip(rows, finished, strict=True):
    point = SPACE.as_dict(SPACE.pool[row])
    trial = study.attach(Trial(None, "seed", "domain", point, point, seed=0))
    for step, values in list(zip(STEPS, table[row], strict=True))[: 1 + whole]:
      told = {name: {"score": value} for name, value in zip(NAMES, values, strict=True)}
      study.report(trial, step, told)
  study.attach(Trial(None, "other", "task", {"a": 1.0}, {"a": 1.0}, seed=0))
  found, wanted = Curves.of_trials(study.trials(), SPACE), some(table, rows, finished)
  assert found.names == wanted.names
  np.testing.assert_array_equal(found.steps, wanted.steps)
  np.testing.assert_array_equal(found.scores, wanted.scores)
  np.testing.assert_allclose(found.mixtures, wanted.mixtures, rtol=1e-15)
  with pytest.raises(ValueError, match="no trial on the task axis reported"):
    Curves.of_trials(study.trials(), Space.simplex("task", ["a"]))
  study.report(3, STEPS[0], {"near": {"score": 0.0}})
  with pytest.raises(ValueError, match=r"trial 3 reports \['near'\] at step 100, others"):
    Curves.of_trials(study.trials(), SPACE)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(steps=(1000, 100, 2000)), "rise"),
    (dict(steps=(100,)), "shape"),
    (dict(names=("a", "b")), "shape"),
    (dict(at=(2, 1), value=np.nan), "run 2 has no score on 'one' at step 200"),
    (dict(at=(1, 0), value=np.inf), "run 1 scores inf"),
    (dict(at=(1, 0), value=-1e200), "run 1 scores -1e\\+200"),
  ],
)
def test_broken_curves_are_named(change, message):
  table = np.ones((4, 3, 1))
  if "at" in change:
    table[change["at"]] = change["value"]
  names, steps = change.get("names", ("one",)), change.get("steps", (100, 200, 300))
  with pytest.raises(ValueError, match=message):
    Curves(names, steps, np.full((4, 4), 0.25), table)


def test_what_cannot_be_asked_is_named(chains):
  chain, table, others = chains[0]
  trials = running(table, others)
  for options, message in ((dict(rank=0), "rank"), (dict(level=1.5), "level")):
    with pytest.raises(ValueError, match=message):
      hopeless(chain, trials, NEAR, **options)
  with pytest.raises(ValueError, match="run 0 of those running is finished"):
    hopeless(chain, some(table, others[:2]), NEAR)
  with pytest.raises(ValueError, match="not such as were learnt from"):
    chain.final(Curves(NAMES, (1, 2), trials.mixtures, trials.scores))
  with pytest.raises(ValueError, match="none of 100 runs reached the final checkpoint"):
    fit_curves(trials, SPACE)
