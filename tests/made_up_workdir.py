"""A workdir in the formats that the jobs write, made up."""

import io
import json

import numpy as np
from PIL import Image

from mixjax.corpus.tasks import TASKS
from mixjax.evals.benchmarks import BENCHMARKS, CHOICE, IOU
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
     "answer": "<1><1><5><5>" if b.metric == IOU else "ab"[i % 2],
     "choices": ["a", "b"] if b.metric == CHOICE else [], "domain": ""}
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
