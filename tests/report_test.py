"""The report on a made-up workdir in the formats that the jobs write."""

import re

import numpy as np
import pytest
from etils import epath
from made_up_workdir import LEVELS, build

from configs import report as report_config
from mixjax.evals.benchmarks import BENCHMARKS, GALLERY
from mixjax.jobs import report as report_job
from mixjax.recipes import caution, report, search_tables, tables
from mixjax.recipes.evidence import Evidence
from mixjax.search.study import Study
from mixjax.search.trial import Trial


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """(page, search.json, targets.json, workdir) of a complete workdir."""
  workdir = tmp_path_factory.mktemp("run")
  found, targets = build(workdir, pool=100)
  return report.write(workdir).read_text(), found, targets, workdir


def test_same_workdir_gives_the_same_bytes(written):
  page, _, _, workdir = written
  assert report.write(workdir).read_text() == page
  assert str(workdir) not in page


def test_page_loads_nothing_from_elsewhere(written):
  page = written[0]
  for target in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page):
    assert target.startswith(("#", "data:")), target
  assert "http" not in page
  assert "<script" not in page and "@import" not in page
  assert len(page) < 4_000_000


def test_everything_is_named(written):
  page = written[0]
  assert "missing" not in page.split("</style>")[1].replace("lib-missing", "")
  for name in [*BENCHMARKS, *(tables.LABELS[n] for n in tables.RECIPES), tables.LABELS["matched"]]:
    assert name in page
  assert "$ &amp; &lt;boards&gt;" in page and "<boards>" not in page
  ids = re.findall(r' id="([^"]+)"', page)
  assert len(ids) == len(set(ids))
  assert all(ref in ids for ref in re.findall(r'(?:url\(|href=")#([^")]+)', page))
  assert page.count("<svg") == page.count('role="img" aria-label="') > 10


def test_table_holds_the_means_and_intervals_of_the_runs(written):
  page, _, targets, _ = written
  table = page[page.index('id="benchmarks"') :]
  for benchmark in BENCHMARKS:
    line = re.search(rf'<tr><th scope="row">{benchmark}</th>.*?</tr>', table, re.DOTALL)[0]
    for name in (*tables.RECIPES, "matched"):
      values = [
        r["scores"]["benchmark"][benchmark]["metric"]
        for r in targets["runs"]
        if (r["group"], r["name"]) == ("target", name)
      ]
      half = 4.302653 * np.std(values, ddof=1) / 3**0.5
      assert f"{np.mean(values):.1f} <small>±{half:.1f}</small>" in line


def test_headline_compares_with_the_strongest_baseline_seed_by_seed(written):
  page, _, targets, _ = written

  def average(name):
    return np.array(
      [
        np.mean([s["metric"] for s in r["scores"]["benchmark"].values()])
        for r in targets["runs"]
        if (r["group"], r["name"]) == ("target", name)
      ]
    )

  best = max(tables.BASELINES, key=lambda n: average(n).mean())
  gap = average("mixatlas") - average(best)
  result = tables.headline(targets)
  assert result.baseline == best
  assert result.difference.mean == pytest.approx(gap.mean())
  assert result.relative == pytest.approx(gap.mean() / average(best).mean())
  half = 4.302653 * gap.std(ddof=1) / 3**0.5
  assert result.difference.low == pytest.approx(gap.mean() - half, abs=1e-5)
  # Loss falls by 1/200 a step and starts lower by 1/40 a level.
  assert result.reached.steps == pytest.approx(256 - 5 * (LEVELS["mixatlas"] - LEVELS[best]))
  assert f"{gap.mean():+.2f} points" in page and "95% interval over 3 seeds" in page


def test_bold_only_where_the_lead_exceeds_its_error(written):
  for row in tables.score_rows(written[2], GALLERY):
    ranked = sorted(tables.RECIPES, key=lambda n: -row.scores[n].mean)
    first, second = (row.scores[n] for n in ranked[:2])
    clear = first.mean - second.mean > np.hypot(first.stderr, second.stderr)
    assert row.best == (ranked[0] if clear else None)


def test_one_seed_is_said_and_uses_the_questions_error(tmp_path):
  _, targets = build(tmp_path, seeds=1, axes=["product"])
  page = report.write(tmp_path).read_text()
  mine, theirs = (
    next(r for r in targets["runs"] if (r["group"], r["name"]) == ("target", name))
    for name in ("mixatlas", tables.headline(targets).baseline)
  )
  errors = [s["metric_stderr"] for r in (mine, theirs) for s in r["scores"]["benchmark"].values()]
  said = float(np.sqrt(np.sum(np.square(errors)))) / len(BENCHMARKS)
  assert "one seed" in page and f"standard error over questions {said:.2f}" in page
  assert "target was not trained blind" in page


def test_without_targets_the_page_says_so(tmp_path):
  build(tmp_path, targets=False, axes=["product"])
  page = report.write(tmp_path).read_text()
  assert "targets.json is not in this workdir" in page
  assert "36.50 ± 0.80" in page and "not been tried on the target" in page


def test_an_empty_workdir_gives_a_page_of_what_is_missing(tmp_path):
  page = report.write(tmp_path).read_text()
  for name in ("search.json", "recipe.json", "targets.json", "atlas/card.json"):
    assert name in page
  assert page.count('class="missing"') >= 11


def test_job_needs_a_workdir(tmp_path):
  assert report_config.get_config().job == "report"
  with pytest.raises(FileNotFoundError, match="nowhere"):
    report_job.main({}, str(tmp_path / "nowhere"))
  report_job.main({}, str(tmp_path))
  assert (tmp_path / "report.html").exists()


def test_noise_counts_a_seed_once(tmp_path):
  found, _ = build(tmp_path, targets=False, axes=["product"])
  study = Study(tmp_path / "study")
  again = study.trials()[0]
  twin = Trial(None, "seed", "product", again.mixture, {"ocr": 1.0}, again.seed)
  study.tell(study.attach(twin), again.scores)
  vectors = Evidence(epath.Path(tmp_path)).uniform_vectors
  np.testing.assert_allclose(vectors.mean(axis=1), found["noise"]["uniform"])


def test_ranks_of_proxy_and_target():
  scores = {"a": 3.0, "b": 5.0, "c": 4.0}
  runs = [
    {"group": "rank", "name": n, "scores": {"validation": {"x": {"score": s}, "y": {"score": s}}}}
    for n, s in scores.items()
  ]
  pairs = search_tables.ranked({"runs": runs, "proxy_scores": {"a": 1.0, "b": 2.0, "c": 9.0}})
  assert [(p.name, p.proxy_rank, p.target_rank) for p in pairs] == [
    ("c", 1, 2), ("b", 2, 1), ("a", 3, 3),
  ]  # fmt: skip


def test_sensitivity_uses_the_random_design_alone(written):
  _, found, _, _ = written
  side = found["axes"]["product"]
  points, scores = search_tables.random_runs(side)
  runs = [h for h in side["history"] if h["purpose"] == "random"]
  assert len(points) == len(runs) == 12
  np.testing.assert_allclose(scores[:, -1], [h["score"] for h in runs])
  np.testing.assert_allclose(points, [[h["point"][c] for c in side["coordinates"]] for h in runs])


def test_what_to_beware_of(written):
  page, _, _, workdir = written
  section = page[page.index('<section id="beware">') : page.index('<section id="sensitivity">')]
  found = caution.caution(Evidence(workdir), "product")
  assert "12 different mixtures are too few for 8 weights: run 4 more" in section
  assert section.count("<li>") == len(found.warnings) >= 1
  assert "Go on: 12 different mixtures of 8 weights are too few" in section
  assert found.card.runs == 15 and f"<td>{found.card.spearman:.2f}</td>" in section
  assert all(f"<td>{100 * share:.0f}%</td>" in section for share in found.card.coverage.values())
  assert {found.effects[0].names[0], found.effects[1].names[0]} == {"bar charts", "ocr"}
  means = [effect.mean for effect in found.effects]
  assert means == sorted(means, reverse=True) and len(means) == 8
  assert f"{found.effects[0].names[0]} {means[0]:+.2f} (" in section


def test_junk_is_the_share_of_samples_on_bad_rows():
  card = {
    "domains": {"a": {"photos": 3, "chess": 1}, "b": {"chess": 4}},
    "useless": ["photos/ocr"],
    "mislabelled": {"chess/vqa": 0.5},
  }
  recipe = {"a/ocr": 0.2, "b/ocr": 0.3, "a/vqa": 0.4, "b/vqa": 0.1}
  rows = search_tables.junk_rows(card, ["a", "b"], recipe, recipe)
  assert [r.recipe for r in rows] == pytest.approx([0.2 * 0.75, 0.5 * (0.4 * 0.25 + 0.1)])


def test_curve_that_never_gets_there():
  curve = tables.Curve(np.array([10.0, 20.0, 30.0]), np.array([3.0, 2.0, 1.5]))
  assert curve.reaches(1.0) is None
  assert curve.reaches(3.5) == 10
  assert curve.reaches(2.5) == pytest.approx(15)
