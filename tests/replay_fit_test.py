"""Surrogates judged on recorded runs."""

import dataclasses
import json

import numpy as np
import pytest
from recorded import make, same
from scipy.stats import spearmanr

from configs.replay import get_config
from mixjax.jobs import replay as job
from mixjax.search import replay


@pytest.mark.parametrize("split", [True, False])
def test_subsets_are_nested_and_disjoint_from_what_is_judged(split):
  objective = make(80, test=np.arange(80) % 4 == 0 if split else None)
  for n in (8, 16, 32):
    fitted, judged = replay.subset(objective, n, 5)
    assert len(fitted) == n and not set(fitted) & set(judged)
    assert set(fitted) < set(replay.subset(objective, n + 8, 5)[0])
    assert set(fitted) != set(replay.subset(objective, n, 6)[0])
    assert len(judged) == (20 if split else 80 - n)
    assert not split or (objective.test[judged].all() and not objective.test[fitted].any())


def test_no_replicate_of_a_fitted_mixture_is_judged():
  objective = make(20, replicates=3)
  fitted, judged = replay.subset(objective, 31, 0)
  assert len(fitted) == 31 and len(judged) == 27
  assert not set(fitted // 3) & set(judged // 3)


def test_sizes_double_up_to_all():
  split = make(300, test=np.arange(300) >= 200)
  assert replay.fit_sizes([split]) == (32, 64, 128, 200)
  assert replay.fit_sizes([make(300)]) == (32, 64, 128, 240)
  assert replay.fit_sizes([make(20)]) == (16,)
  assert replay.fit_sizes([split], ("all", "64", "10")) == (10, 64, 200)
  assert replay.fit_sizes([split, make(150, test=np.arange(150) >= 100)]) == (32, 64, 100)
  with pytest.raises(ValueError, match="between 2 and 200 of 200"):
    replay.fit_sizes([split], ("201",))


@pytest.mark.parametrize("name", replay.SURROGATES)
@pytest.mark.parametrize("minimize", [False, True])
def test_every_surrogate_ranks_what_it_can_represent(name, minimize):
  objective = make(80, minimize, test=np.arange(80) >= 60)
  monotone = name in ("linear", "log-linear", "log-linear-parts")  # no peak inside the simplex
  if monotone:
    plane = objective.mixtures @ [3.0, 1.0, -1.0, 0.5]
    objective = dataclasses.replace(objective, values=objective.sign * plane)
  row = replay.fit_row(objective, name, 60, 0)
  assert row["spearman"] > (0.99 if monotone else 0.75)
  assert row["mse"] < np.var(objective.values) and row["judged_on"] == 20
  assert (row["coverage95"] is not None) == ("gp" in name and "parts" not in name)
  assert same([row], [replay.fit_row(objective, name, 60, 0)])


def test_errors_are_in_the_units_of_the_metric():
  small = make(60, noise=0.05)
  large = dataclasses.replace(small, values=10 * small.values)
  for name in ("gp", "linear", "lightgbm"):
    one, ten = (replay.fit_row(o, name, 30, 0) for o in (small, large))
    assert ten["mse"] == pytest.approx(100 * one["mse"], rel=1e-3)
    assert ten["spearman"] == pytest.approx(one["spearman"], abs=0.02)


def test_a_linear_fit_is_judged_as_by_hand():
  objective = make(60)
  fitted, judged = replay.subset(objective, 32, 0)
  predict = replay.SURROGATES["linear"](
    replay.Observations(objective.mixtures[fitted], objective.values[fitted]), None
  )
  mean, _ = predict(objective.mixtures[judged])
  row = replay.fit_row(objective, "linear", 32, 0)
  assert row["mse"] == np.mean((mean - objective.values[judged]) ** 2)
  assert row["spearman"] == spearmanr(mean, objective.values[judged]).statistic


def test_coverage_counts_the_noise():
  """Noise three times the signal: only with it is 95% of the runs covered."""
  objective = make(120, noise=0.3)
  assert replay.fit_row(objective, "gp", 60, 0)["coverage95"] > 0.85


def test_a_constant_prediction_ranks_nothing():
  row = replay.fit_row(make(60), "lightgbm-published", 30, 0)
  assert row["constant"] and row["spearman"] == 0 and row["mse"] > 0


def test_fits_are_averaged_with_their_spread():
  two = [make(60), dataclasses.replace(make(60, seed=1), name="z")]
  rows, single = replay.fit_rows(two, ["linear", "lightgbm"], (16, 32), 3)
  assert [(row["surrogate"], row["n"]) for row in rows] == [
    ("linear", 16), ("linear", 32), ("lightgbm", 16), ("lightgbm", 32),
  ]  # fmt: skip
  mine = [row["spearman"] for row in single if (row["surrogate"], row["n"]) == ("linear", 32)]
  assert len(mine) == rows[1]["fits"] == 6 and rows[1]["targets"] == 2 and rows[1]["seeds"] == 3
  assert rows[1]["spearman"] == pytest.approx(np.mean(mine))
  assert rows[1]["spearman_sd"] == pytest.approx(np.std(mine, ddof=1))
  assert rows[1]["coverage95"] is None and rows[1]["coverage95_sd"] is None


def test_the_whole_train_split_is_fitted_once():
  objective = make(60, test=np.arange(60) >= 40)
  rows, _ = replay.fit_rows([objective], ["linear"], (20, 40), 3)
  assert [row["fits"] for row in rows] == [3, 1]
  assert rows[1]["mse_sd"] is None


@pytest.mark.slow
def test_recorded_runs_give_the_known_figures(tmp_path, regmix):
  """RegMix's 1M-parameter runs on Pile-CC: a linear fit to all 512 of them, judged on 256."""
  table = f"table={regmix},objective=metric/the_pile_pile_cc_val_loss,workers=0"

  def rows(name, arg):
    job.main(get_config(f"{table},{arg}").to_dict(), str(tmp_path / name))
    return json.loads((tmp_path / name / "replay.json").read_text())["rows"]

  (row,) = rows("whole", "mode=fit,seeds=2,surrogate=linear,n=all")
  assert row["n"] == 512 and row["fits"] == 1
  assert row["spearman"] == pytest.approx(0.9018, abs=2e-4)
  assert row["mse"] == pytest.approx(0.0235, abs=1e-4)
  gp, trees, linear = rows("few", "mode=fit,seeds=2,surrogate=gp,lightgbm,linear,n=32")
  assert gp["spearman"] > trees["spearman"] > linear["spearman"]
  assert gp["mse"] < trees["mse"] and gp["coverage95"] > 0.85
  (row,) = rows("search", "policy=mixatlas,budget=48,seeds=1")
  assert row["found_at"] is not None and row["recommended"]["regret"] == 0


def test_the_mean_of_metrics_is_learnt_from_each():
  """Each of three metrics bends in a weight of its own; their mean alone is harder to learn."""
  objective = make(80, minimize=True, test=np.arange(80) >= 60)
  metrics = -10 * np.log(objective.mixtures[:, :3] + 0.02)
  mean = dataclasses.replace(objective, values=metrics.mean(axis=1), metrics=metrics)
  seen = mean.observations([3, 5])
  np.testing.assert_allclose(seen.parts, -metrics[[3, 5]] / 3)
  np.testing.assert_allclose(seen.scores, -mean.values[[3, 5]])
  parts, whole = (replay.fit_row(mean, name, 16, 0)["mse"] for name in ("gp", "gp-whole"))
  assert parts < 0.8 * whole
