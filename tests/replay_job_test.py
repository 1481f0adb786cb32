"""The replay job: what it leaves, goes on from, and refuses."""

import json

import numpy as np
import pytest
from recorded import DOMAINS, make, same

from configs.replay import get_config
from mixjax.jobs import replay as job
from mixjax.search import replay
from mixjax.search.policies.uniform import Uniform


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
