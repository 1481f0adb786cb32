"""The search's surrogate, fitted again to a made-up workdir."""

import json

import numpy as np
import pytest
from etils import epath
from made_up_workdir import build

from mixjax.evals.benchmarks import BENCHMARKS
from mixjax.recipes import caution, report
from mixjax.recipes.evidence import Evidence, Missing
from mixjax.search import total
from mixjax.search.observations import matches
from mixjax.search.space import candidates


def test_the_surrogate_is_that_of_the_runs_and_the_pool_of_the_search(tmp_path):
  found, _ = build(tmp_path, targets=False, pool=100)
  evidence = Evidence(epath.Path(tmp_path))
  seen = caution.rebuild(evidence, "product")
  side = found["axes"]["product"]
  runs = [h for h in side["history"] if h["purpose"] != "random"]
  np.testing.assert_allclose(seen.runs.scores, side["leave_one_out"]["observed"])
  vectors = np.array([h["vector"] for h in runs])
  np.testing.assert_allclose(seen.runs.parts[4:], vectors / len(BENCHMARKS))
  assert matches(seen.runs.mixtures[:4], seen.space.uniform()[None]).all()
  assert seen.trials == (0, 1, 2, 3, *(h["trial"] for h in runs))
  # The task axis was the first of the search, the product axis the second.
  for place, name in enumerate(("task", "product")):
    space = caution.rebuild(evidence, name).space
    np.testing.assert_allclose(space.pool, candidates(space, 100, (7, place)), rtol=1e-12)


@pytest.mark.parametrize(
  "atlas", [{"corpus": "gallery"}, {"corpus": "train.json", "questions": "left/behind"}]
)
def test_a_search_for_some_benchmarks_is_judged_by_them(tmp_path, atlas):
  """Also in a workdir that was moved, without the questions that the search was asked."""
  found, _ = build(tmp_path, targets=False, axes=["product"], pool=50)
  weights = dict(zip(BENCHMARKS, (3.0, 1.0), strict=False))
  config = json.loads((tmp_path / "config.search.json").read_text())
  config |= {"objective": weights, "atlas": atlas}
  (tmp_path / "config.search.json").write_text(json.dumps(config))
  with pytest.raises(Missing, match="disagree on the scores of the 15 runs"):
    caution.rebuild(Evidence(epath.Path(tmp_path)), "product")
  assert "disagree on the scores" in report.write(tmp_path).read_text()
  evidence = Evidence(epath.Path(tmp_path))
  vectors = [*evidence.uniform_vectors[:, :2]]
  side = found["axes"]["product"]
  vectors += [h["vector"][:2] for h in side["history"] if h["purpose"] != "random"]
  scores = np.array(vectors) @ [0.75, 0.25]
  side["leave_one_out"]["observed"] = scores.tolist()
  (tmp_path / "search.json").write_text(json.dumps(found))
  observed = caution.rebuild(Evidence(epath.Path(tmp_path)), "product").runs
  np.testing.assert_allclose(observed.scores, scores)
  np.testing.assert_allclose(observed.parts, np.array(vectors) * [0.75, 0.25])
  (tmp_path / "config.search.json").write_text(json.dumps(config | {"objective": {"chrats": 1}}))
  with pytest.raises(Missing, match=r"weighs \['chrats'\], which are no benchmarks"):
    caution.rebuild(Evidence(epath.Path(tmp_path)), "product")


def with_diverged(workdir, place, purposes=("mixatlas", "random")):
  """Beside a finished workdir's runs, proxies that diverged there and on the mixtures after it."""
  found, _ = build(workdir, targets=False, axes=["product"], pool=50)
  space = caution.rebuild(Evidence(epath.Path(workdir)), "product").space
  found["axes"]["product"]["diverged"] = [
    {"purpose": purpose, "trial": 99 + n, "point": space.as_dict(space.pool[place + n])}
    for n, purpose in enumerate(purposes)
  ]
  (workdir / "search.json").write_text(json.dumps(found))
  return Evidence(epath.Path(workdir)), space


def test_what_diverged_is_no_run_and_is_not_proposed_again(tmp_path):
  evidence, space = with_diverged(tmp_path, 7)
  seen = caution.rebuild(evidence, "product")
  # The search did not see what diverged of the baselines' design.
  np.testing.assert_allclose(seen.runs.infeasible, space.pool[[7]], rtol=1e-12)
  assert len(seen.runs) == 15 and len(seen.trials) == 16 and seen.trials[-1] == 99
  assert matches(space.pool[[7]], seen.runs.known()).all()


def test_what_diverged_counts_as_the_worst_run_did(tmp_path, monkeypatch):
  evidence, _ = with_diverged(tmp_path, 7)
  runs, told = caution.rebuild(evidence, "product").runs, []
  fit = total.fit
  monkeypatch.setattr(total, "fit", lambda runs, space: told.append(runs) or fit(runs, space))
  found = caution.caution(evidence, "product")
  (seen,) = told
  assert seen.scores[-1] == runs.scores.min() and len(seen) == 16
  np.testing.assert_array_equal(seen.mixtures[-1:], runs.infeasible)
  assert (found.runs, found.card.runs, found.diverged) == (15, 16, (99, 100))
