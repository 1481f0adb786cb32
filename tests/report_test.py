"""The report on a made-up workdir in the formats that the jobs write."""

import io
import json
import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

from configs import report as report_config
from mixjax.corpus.tasks import TASKS
from mixjax.evals.benchmarks import BENCHMARKS, CHOICE, GALLERY
from mixjax.jobs import report as report_job
from mixjax.recipes import caution, report, search_tables, tables
from mixjax.recipes.evidence import Evidence, Missing
from mixjax.search.observations import matches
from mixjax.search.space import candidates
from mixjax.search.study import Study
from mixjax.search.trial import Trial

CONCEPTS = ("forests", "bar charts", "$ & <boards>")
DOMAINS = ("photos", "charts", "chess")
CELLS = [f"{c}/{t}" for c in CONCEPTS for t in TASKS]
ROWS = {cell: 0 if cell == "forests/ocr" else 20 + 7 * i for i, cell in enumerate(CELLS)}
COORDINATES = [*CONCEPTS, *TASKS]
LEVELS = {
  "uniform": 40, "natural": 42, "random": 41, "regmix": 43, "mixatlas": 47, "matched": 55,
}  # fmt: skip


def mix(point):
  """Cells of a product point, empty ones left out."""
  weights = {c: point[c.split("/")[0]] * point[c.split("/")[1]] * (ROWS[c] > 0) for c in CELLS}
  total = sum(weights.values())
  return {cell: w / total for cell, w in weights.items()}


def random_point(rng):
  values = [*rng.dirichlet(np.ones(len(CONCEPTS))), *rng.dirichlet(np.ones(len(TASKS)))]
  return dict(zip(COORDINATES, map(float, values), strict=True))


def vector(rng, point):
  """Charts and OCR help; the rest is noise."""
  return [30 + 12 * point["bar charts"] + 8 * point["ocr"] + rng.normal() for _ in BENCHMARKS]


# fmt: off
def full_scores(rng, level):
  return {
    name: {
      "score": level + rng.normal(), "stderr": 1.0, "n": 90, "nll": 1.0, "exact": level,
      "metric": level + 3 * rng.normal(), "metric_stderr": 2 + rng.uniform(),
    }
    for name in BENCHMARKS
  }


def target_run(rng, group, name, seed, level, weights):
  steps, splits = [64, 128, 192, 256], ("validation", "benchmark", "benchmark_blind")
  return {
    "group": group, "name": name, "seed": seed, "parameters": 5_000_000,
    "seconds": {"train": 30.0, "score": 4.0},
    "curve": [
      {"step": s, "loss": 2.0, "validation_nll": 4 - level / 40 - s / 200 + 0.01 * seed}
      for s in steps
    ],
    "scores": {k: full_scores(rng, level / (1 + ("blind" in k))) for k in splits},
    "counts": {
      cell: {
        "requested": 8192 * w, "realised": round(8192 * w), "loss_tokens": round(99_000 * w),
        "epochs": 8192 * w / max(ROWS[cell], 1),
      }
      for cell, w in weights.items()
    },
  }


def axis(rng, coordinates, noise):
  """One axis of search.json."""
  purposes = ["seed"] * 4 + ["mixatlas"] * 5 + ["replicate"] * 2 + ["random"] * 12
  points = [random_point(rng) for _ in purposes]
  vectors = [vector(rng, p) for p in points]
  scores = [float(np.mean(v)) for v in vectors]
  observed = [*noise, *scores[:11]]
  choice = {
    "point": points[5], "weights": mix(points[5]), "mean": 36.5, "sd": 0.8, "observed": 37.9,
  }
  return {
    "coordinates": list(coordinates), "blocks": ["concept", "task"],
    "history": [
      {
        "purpose": p, "trial": i, "score": s, "vector": v,
        "point": {k: x[k] for k in coordinates},
      }
      for i, (p, s, v, x) in enumerate(zip(purposes, scores, vectors, points, strict=True))
    ],
    "leave_one_out": {
      "observed": observed, "mean": [o + 0.5 * rng.normal() for o in observed],
      "sd": [0.6] * len(observed),
    },
    "recommended": {
      "mixatlas": choice, "mixatlas-observed": choice, "random": choice | {"sd": None},
      "regmix": choice | {"sd": None, "observed": None},
    },
    "uniform_posterior": [33.1, 0.3],
  }


def build_atlas(workdir, put, rng):
  (workdir / "atlas" / "sheets").mkdir(parents=True)
  for i in range(len(CONCEPTS)):
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (72, 144, 3), dtype=np.uint8)).save(out, "PNG")
    (workdir / "atlas" / "sheets" / f"{i:02d}.png").write_bytes(out.getvalue())
  put("atlas/atlas.json", {"names": CONCEPTS})
  put("atlas/card.json", {
    "concepts": {name: 100 + i for i, name in enumerate(CONCEPTS)},
    "nmi_with_true_domains": 0.81,
    "domains": {c: {DOMAINS[i]: 90, DOMAINS[i - 1]: 10 + i} for i, c in enumerate(CONCEPTS)},
    "unreadable_images": 1,
    "useless": ["photos/ocr"], "mislabelled": {"chess/caption": 1.0, "photos/vqa": 0.5},
  })
  put("atlas/cells/manifest.json", {"cells": {c: {"rows": n} for c, n in ROWS.items()}})
  put("atlas/questions/benchmark.json", [
    {"id": f"{b.name}{i}", "benchmark": b.name, "image": "x.png", "prompt": "?",
     "answer": "ab"[i % 2], "choices": ["a", "b"] if b.metric == CHOICE else [], "domain": ""}
    for b in BENCHMARKS.values() for i in range(4)
  ])


def build_study(workdir, rng, uniform, even):
  """Four seeds of the uniform mixture; returns their mean scores."""
  study, noise = Study(workdir / "study", config={"seed": 0}), []
  for seed in range(4):
    scores = vector(rng, even)
    trial = study.attach(Trial(None, "uniform", "baseline", uniform, {}, seed))
    study.tell(trial, {
      b: {"score": s, "stderr": 1.0, "n": 40} for b, s in zip(BENCHMARKS, scores, strict=True)
    })
    (study.path / "trials" / f"{trial.id:05d}" / "result.json").write_text(
      json.dumps({"seconds": {"train": 5.0, "score": 1.5}})
    )
    noise.append(float(np.mean(scores)))
  return noise


def build(workdir, seeds=3, targets=True, axes=("task", "product"), pool=0):
  """Writes a whole workdir; returns (search.json, targets.json) as objects.

  Without a pool the config does not say how to fit the search's surrogate again, which takes long.
  """
  rng = np.random.default_rng(0)

  def put(name, content):
    path = workdir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))

  build_atlas(workdir, put, rng)
  even = dict.fromkeys(CONCEPTS, 1 / len(CONCEPTS)) | dict.fromkeys(TASKS, 1 / len(TASKS))
  uniform, natural = mix(even), {c: n / sum(ROWS.values()) for c, n in ROWS.items()}
  noise = build_study(workdir, rng, uniform, even)
  found = {
    "benchmarks": list(BENCHMARKS),
    "noise": {"uniform": noise, "sd": float(np.std(noise, ddof=1))},
    "baselines": {
      "uniform": {"weights": uniform, "score": float(np.mean(noise))},
      "natural": {"weights": natural, "score": 32.0},
      "matched": {"weights": uniform, "score": 39.0},
    },
    "axes": {a: axis(rng, TASKS if a == "task" else COORDINATES, noise) for a in axes},
  }
  put("search.json", found)
  chosen = found["axes"]["product"]["recommended"]["mixatlas"]["weights"]
  put("recipe.json", {
    "format": 1, "axis": "product", "weights": chosen, "point": {},
    "objective": {
      "name": "mean answer likelihood", "mean": 36.5, "sd": 0.8,
      "uniform": {"mean": 33.1, "sd": 0.3},
    },
    "evidence": {"policy": "mixatlas", "proxy_runs": 11, "noise_sd": 0.3, "best_observed": 38.2},
    "provenance": {"corpus_sha256": "ab" * 32, "versions": {"jax": "1.2.3"}},
  })
  budget = {"batch_size": 32, "learning_rate": 0.003}
  budgets = {name: {"seeds": 4, "runs": 11, "replicates": 2} for name in sorted(axes)}
  put("config.search.json", {
    "job": "search", "axes": budgets,
    "proxy": budget | {"model": "standins/proxy", "samples": 2048},
    "target": budget | {"model": "standins/target", "samples": 8192},
  } | ({"pool": pool, "seed": 7, "atlas": {"corpus": "gallery"}} if pool else {}))
  if not targets:
    return found, None
  runs = [
    target_run(rng, "target", name, seed, level, chosen)
    for name, level in LEVELS.items() for seed in range(seeds)
  ]
  for group in ("proxy", "proxy-blind", *(["target-blind"] if seeds > 1 else [])):
    runs.append(target_run(rng, group, "uniform", 0, 20 if "blind" in group else 33, uniform))
  runs += [target_run(rng, "rank", f"rank-{i}", 0, 30 + 2 * i, uniform) for i in range(5)]
  content = {
    "runs": runs,
    "proxy_scores": {f"rank-{i}": 30.0 + i for i in range(5)},
    "parameters": {"proxy": 900_000, "target": 5_000_000},
  }
  put("targets.json", content)
  return found, content
# fmt: on


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


def test_the_surrogate_is_that_of_the_runs_and_the_pool_of_the_search(written):
  _, found, _, workdir = written
  seen = caution.rebuild(Evidence(workdir), "product")
  side = found["axes"]["product"]
  runs = [h for h in side["history"] if h["purpose"] != "random"]
  np.testing.assert_allclose(seen.runs.scores, side["leave_one_out"]["observed"])
  vectors = np.array([h["vector"] for h in runs])
  np.testing.assert_allclose(seen.runs.parts[4:], vectors / len(BENCHMARKS))
  assert matches(seen.runs.mixtures[:4], seen.space.uniform()[None]).all()
  assert seen.trials == (0, 1, 2, 3, *(h["trial"] for h in runs))
  # The task axis was the first of the search, the product axis the second.
  for place, name in enumerate(("task", "product")):
    space = caution.rebuild(Evidence(workdir), name).space
    np.testing.assert_allclose(space.pool, candidates(space, 100, (7, place)), rtol=1e-12)


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


def test_a_search_for_some_benchmarks_is_judged_by_them(tmp_path):
  found, _ = build(tmp_path, targets=False, axes=["product"], pool=50)
  weights = dict(zip(BENCHMARKS, (3.0, 1.0), strict=False))
  config = json.loads((tmp_path / "config.search.json").read_text())
  (tmp_path / "config.search.json").write_text(json.dumps(config | {"objective": weights}))
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


def test_what_diverged_is_no_run_and_is_not_proposed_again(tmp_path):
  found, _ = build(tmp_path, targets=False, axes=["product"], pool=50)
  before = caution.rebuild(Evidence(epath.Path(tmp_path)), "product")
  lost = before.space.pool[7]
  one = {"purpose": "mixatlas", "trial": 99, "point": before.space.as_dict(lost)}
  found["axes"]["product"]["diverged"] = [one]
  (tmp_path / "search.json").write_text(json.dumps(found))
  seen = caution.rebuild(Evidence(epath.Path(tmp_path)), "product")
  np.testing.assert_allclose(seen.runs.pending, [lost], rtol=1e-12)
  assert len(seen.runs) == len(before.runs) == 15


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
