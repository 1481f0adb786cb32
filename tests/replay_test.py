import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from configs.replay import get_config
from mixjax.jobs import replay as job
from mixjax.search import replay
from mixjax.search.policies.uniform import Uniform
from mixjax.search.replay import Objective

DOMAINS = ("code", "web", "maths", "books")


def make(count=60, minimize=False, replicates=1, noise=0.0, test=None, seed=0):
  """Runs of a smooth function of the mixture with its best inside the simplex."""
  rng = np.random.default_rng(seed)
  mixtures = np.repeat(rng.dirichlet(np.ones(4), count), replicates, axis=0)
  values = 3 - np.sum((np.sqrt(mixtures) - np.sqrt([0.4, 0.3, 0.2, 0.1])) ** 2, axis=1)
  values = values + noise * rng.normal(size=len(values))
  runs = tuple(f"run{i}" for i in range(len(values)))
  return Objective("y", minimize, DOMAINS, runs, mixtures, -values if minimize else values, test)


def same(rows, others):
  """Equal in everything but the time they took."""

  def timeless(row):
    return {k: v for k, v in row.items() if not k.startswith("seconds")}

  return [timeless(row) for row in rows] == [timeless(row) for row in others]


@pytest.mark.parametrize("policy", replay.POLICIES)
def test_every_policy_searches_a_table(policy):
  objective = make(40)
  row = replay.search_row(objective, policy, 0, 12)
  assert row["evaluations"] == len(row["regret"]) == 12
  assert row["regret"] == sorted(row["regret"], reverse=True) and row["regret"][-1] >= 0
  assert sum(row["recommended"]["mixture"].values()) == pytest.approx(1)
  best = objective.values.max()
  near = objective.runs.index(row["recommended"]["run"])
  assert row["recommended"]["regret"] == pytest.approx(best - objective.values[near], abs=1e-12)
  json.dumps(row, allow_nan=False)
  assert same([row], [replay.search_row(objective, policy, 0, 12)])
  other = replay.search_row(objective, policy, 1, 12)
  assert other["regret"] != row["regret"]


def test_regret_counts_from_the_first_evaluation_to_the_one_that_found_the_best():
  objective = make(20)
  row = replay.search_row(objective, "random", 3, 100)
  assert row["evaluations"] == 20  # the pool has no more
  at = row["found_at"]
  assert row["regret"][at - 1] == 0 and (at == 1 or row["regret"][at - 2] > 0)
  short = replay.search_row(objective, "random", 3, at - 1)
  assert short["found_at"] is None and short["regret"] == row["regret"][: at - 1]


def test_losses_are_minimised_and_stated_in_their_own_units():
  up, down = (replay.search_row(make(40, minimize), "mixatlas", 0, 14) for minimize in (0, 1))
  assert down["regret"] == up["regret"] and down["recommended"] == up["recommended"]
  assert down["mean"] == pytest.approx(-up["mean"]) and down["sd"] == pytest.approx(up["sd"])
  assert down["mean"] < 0


def test_a_search_learns_and_beats_chance():
  objective = make(200)
  last = {
    policy: [replay.search_row(objective, policy, seed, 20)["regret"][-1] for seed in range(2)]
    for policy in ("mixatlas", "random")
  }
  assert np.mean(last["mixatlas"]) < 0.3 * np.mean(last["random"])


def test_the_pool_holds_a_replicated_mixture_once_and_its_truth_is_the_mean():
  objective = make(15, replicates=3, noise=0.3)
  assert len(objective.replicates) == 15
  truth = objective.values.reshape(15, 3).mean(axis=1)
  row = replay.search_row(objective, "random", 0, 45)
  assert row["evaluations"] == 15 and row["found_at"] is not None
  near = objective.runs.index(row["recommended"]["run"])
  assert near % 3 == 0  # the first of its replicates
  assert row["recommended"]["regret"] == pytest.approx(truth.max() - truth[near // 3])
  # What was told is one draw of the three, another one for another seed.
  means = {replay.search_row(objective, "random", seed, 15)["mean"] for seed in range(12)}
  assert len(means) > 1 and means <= set(objective.values)


def test_a_recommendation_off_the_pool_is_judged_by_its_nearest_run():
  objective = make(40)
  row = replay.search_row(objective, "regmix-top", 0, 12)["recommended"]
  mixture = np.array([row["mixture"][name] for name in DOMAINS])
  away = np.abs(objective.mixtures - mixture).sum(axis=1) / 2
  assert row["run"] == objective.runs[np.argmin(away)]
  assert row["distance"] == pytest.approx(away.min()) and row["distance"] > 0
  assert replay.search_row(objective, "random", 0, 12)["recommended"]["distance"] == 0


def test_only_the_train_split_is_searched():
  objective = make(40, test=np.arange(40) >= 10)
  row = replay.search_row(objective, "random", 0, 40)
  assert row["evaluations"] == 10 and row["regret"][-1] == 0
  assert row["recommended"]["run"] == objective.runs[np.argmax(objective.values[:10])]


def test_asking_off_the_table_is_an_error(monkeypatch):
  monkeypatch.setitem(replay.POLICIES, "uniform", lambda space, budget: Uniform(space))
  with pytest.raises(ValueError, match="uniform asked for a mixture that has no run"):
    replay.search_row(make(), "uniform", 0, 4)


def test_targets_are_averaged():
  two = [make(30), dataclasses.replace(make(20, seed=1), name="z")]
  rows, single = replay.search_rows(two, ["random"], 2, 25)
  assert [(row["target"], row["seed"]) for row in single] == [
    ("y", 0),
    ("z", 0),
    ("y", 1),
    ("z", 1),
  ]
  long, short = single[0], single[1]
  assert len(short["regret"]) == 20 and len(long["regret"]) == 25
  padded = short["regret"] + [short["regret"][-1]] * 5
  np.testing.assert_allclose(rows[0]["regret"], np.mean([long["regret"], padded], axis=0))
  assert rows[0]["targets"] == 2 and rows[0]["found"] == sum(
    bool(r["found_at"]) for r in single[:2]
  )
  assert (rows[0]["found_at"] is None) == (rows[0]["found"] < 2)
  (summary,) = replay.search_summary(single)
  assert summary["searches"] == 4
  assert summary["regret"] == pytest.approx(np.mean([row["regret"][-1] for row in single]))
  assert (summary["found_at_worst"] is None) == (summary["found"] < 4)


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


# The job.


def write_table(folder, losses=False, gaps=0):
  """The runs of `make` as files, with a second metric of which `gaps` values are missing."""
  folder.mkdir(parents=True, exist_ok=True)
  objective = make(60, losses)
  ratios, metrics = ("x_mixture.csv", "x_loss.csv") if losses else ("ratios.csv", "metrics.csv")
  key = "index" if losses else "run"
  lines = [f"{key}," + ",".join(DOMAINS)]
  scores = [f"{key},y,z"]
  for i, (mixture, value) in enumerate(zip(objective.mixtures, objective.values, strict=True)):
    lines.append(f"{i}," + ",".join(f"{w:.6f}" for w in mixture))
    scores.append(f"{i},{value!r},{'' if i < gaps else mixture[0]}")
  (folder / ratios).write_text("\n".join(lines))
  (folder / metrics).write_text("\n".join(scores).replace("np.float64(", "").replace(")", ""))
  return folder


def run(table, workdir, arg="", expect=0):
  """The job in this process; what it left in replay.json."""
  config = get_config(f"table={table},budget=6,seeds=2,workers=0,policy=random,regmix{arg}")
  job.main(config.to_dict(), str(workdir))
  return json.loads((workdir / "replay.json").read_text())


def test_a_search_leaves_what_scripts_read(tmp_path, capsys):
  table = write_table(tmp_path / "table", gaps=4)
  found = run(table, tmp_path / "out", ",objective=z")
  assert (found["table"], found["objective"], found["mode"]) == (str(table), "z", "search")
  assert found["minimize"] is False
  asked = [(row["policy"], row["seed"]) for row in found["rows"]]
  assert asked == [("random", 0), ("random", 1), ("regmix", 0), ("regmix", 1)]
  needed = {"policy", "seed", "evaluations", "regret", "found_at", "recommended", "mean", "sd"}
  assert all(needed | {"seconds"} <= row.keys() for row in found["rows"])
  said = capsys.readouterr().out
  assert "z: 4 of 60 runs lack it" in said and "higher is better (assumed" in said
  assert "stage=replay done=4/4" in said


def test_a_fit_leaves_what_scripts_read(tmp_path):
  table = write_table(tmp_path / "table", losses=True)
  found = run(table, tmp_path / "out", ",mode=fit,objective=each,surrogate=linear,gp,n=16,32")
  assert found["minimize"] is True and found["targets"] == 2
  asked = [(row["surrogate"], row["n"]) for row in found["rows"]]
  assert asked == [("linear", 16), ("linear", 32), ("gp", 16), ("gp", 32)]
  for row in found["rows"]:
    assert row["fits"] == 4 and row["targets"] == 2
    for key in ("spearman", "mse", "seconds"):
      assert np.isfinite(row[key]) and np.isfinite(row[f"{key}_sd"])
  assert 0 < found["rows"][2]["coverage95"] <= 1


def test_minimize_is_guessed_and_can_be_said(tmp_path):
  scores, losses = write_table(tmp_path / "scores"), write_table(tmp_path / "losses", True)
  found = {
    (folder.name, arg): run(folder, tmp_path / f"{folder.name}{i}", f",objective=y{arg}")
    for folder in (scores, losses)
    for i, arg in enumerate(("", ",minimize", ",minimize=true", ",minimize=false"))
  }
  said = [found[key]["minimize"] for key in found]
  assert said == [False, True, True, False, True, True, True, False]
  best = found["losses", ""]["rows"][0]["regret"]
  assert same(found["losses", ""]["rows"], found["losses", ",minimize=true"]["rows"])
  np.testing.assert_allclose(best, found["scores", ""]["rows"][0]["regret"])
  assert best != found["losses", ",minimize=false"]["rows"][0]["regret"]


def test_a_killed_replay_goes_on_from_its_finished_rows(tmp_path, monkeypatch):
  table, out = write_table(tmp_path / "table"), tmp_path / "out"
  whole = run(table, tmp_path / "whole")
  computed = []
  search_row = replay.search_row

  def until_killed(objective, policy, seed, *arguments):
    computed.append((policy, seed))
    if len(computed) == 3:
      raise KeyboardInterrupt
    return search_row(objective, policy, seed, *arguments)

  monkeypatch.setattr(replay, "search_row", until_killed)
  with pytest.raises(KeyboardInterrupt):
    run(table, out)
  assert not (out / "replay.json").exists()
  assert same(run(table, out)["rows"], whole["rows"])
  assert computed == [("random", 0), ("random", 1), ("regmix", 0), ("regmix", 0), ("regmix", 1)]


def test_a_workdir_keeps_to_its_table_and_config(tmp_path):
  table, out = write_table(tmp_path / "table"), tmp_path / "out"
  run(table, out)
  with pytest.raises(ValueError, match="budget: 6 there, 7 asked for"):
    run(table, out, ",budget=7")
  write_table(table, gaps=1)
  with pytest.raises(ValueError, match="table_sha256"):
    run(table, out)


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("objective=loss", "'loss'; choose mean, each or one of its metrics: y, z"),
    ("policy=mixatlas,regnix", "policy is all or some of mixatlas, .*, not 'regnix'"),
    ("mode=fit,surrogate=trees", "surrogate is all or some of gp, .*, not 'trees'"),
    ("mode=guess", "mode is search or fit"),
    ("budget=0", "budget is at least 1"),
    ("mode=fit,n=32,many", r"not \['many'\]"),
    ("mode=fit,n=58", "between 2 and 57 of 60 runs"),
    ("minimize=yes", "minimize is true or false, or guess"),
  ],
)
def test_a_mistake_is_named_before_the_workdir_is_taken(tmp_path, arg, message):
  table = write_table(tmp_path / "table")
  with pytest.raises(ValueError, match=message):
    job.main(get_config(f"table={table},workers=0,{arg}").to_dict(), str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def test_a_failing_row_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(replay.POLICIES, "random", lambda space, budget: Uniform(space))
  with pytest.raises(ValueError, match="search random 0 mean: random asked for"):
    run(write_table(tmp_path / "table"), tmp_path / "out")


def test_commas_within_a_value_stay_there():
  config = get_config("table=a,b,policy=mixatlas,random,minimize,n=32,64,all,objective=x,y")
  assert config.table == "a,b" and config.policy == "mixatlas,random" and config.n == "32,64,all"
  assert config.minimize == "true" and config.objective == "x,y" and config.job == "replay"
  assert get_config(None).minimize == "guess"
  with pytest.raises(ValueError, match="unknown config argument 'polcy'"):
    get_config("polcy=random")


@pytest.mark.slow
def test_the_front_door_gives_the_same_rows_from_two_processes(run_main, tmp_path):
  table = write_table(tmp_path / "table")
  config = f"table={table},objective=y,policy=mixatlas,regmix,budget=6,seeds=1"
  # Both as a user runs them: tests compile with other flags, which may change the last bit.
  run_main(f"configs/replay.py:{config},workers=0", tmp_path / "here")
  run_main(f"configs/replay.py:{config},workers=2", tmp_path / "there")
  here, there = (
    json.loads((tmp_path / name / "replay.json").read_text())["rows"] for name in ("here", "there")
  )
  assert len(there) == 2 and same(here, there)


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
