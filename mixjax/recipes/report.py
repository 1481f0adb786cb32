"""One self-contained HTML page on a workdir: what was recommended, how sure, and does it hold.

Every number comes from the workdir's files. A section whose input is not there says so in one line.
The same workdir gives the same bytes: no clock, no path, no network.
"""

import json
from collections.abc import Callable

import numpy as np
from etils import epath

from mixjax.evals.benchmarks import BENCHMARKS, GALLERY
from mixjax.recipes import figures, heatmaps, page, search_tables, sensitivity, tables
from mixjax.recipes.caution import caution
from mixjax.recipes.evidence import LEAST_ASKED, Evidence, Missing

LEAST_SKILL = 0.1  # of the quadratic fit, under which its pairs are not shown
SHEET_BYTES = 1_500_000  # all contact sheets together, before base64 adds a third


def write(workdir: epath.PathLike) -> epath.Path:
  """Writes `workdir/report.html` and returns its path."""
  evidence = Evidence(epath.Path(workdir))
  sections = {name: _attempt(build, evidence) for name, build in SECTIONS.items()}
  fixed = {"average": tables.AVERAGE}
  text = page.render(fixed | sections)
  path = evidence.workdir / "report.html"
  partial = evidence.workdir / ".report.html.partial"
  partial.write_text(text)
  partial.replace(path)
  return path


def _attempt(build: Callable, *inputs):
  """What `build` returns, or {"missing": one line} where its input is not there."""
  try:
    return build(*inputs)
  except Missing as absent:
    return {"missing": str(absent)}


def _headline(evidence: Evidence) -> dict:
  expected = evidence.recipe["objective"] if evidence.has("recipe.json") else None
  result = tables.headline(evidence.targets) if evidence.has("targets.json") else None
  if not expected and not result:
    raise Missing(
      "Neither recipe.json nor targets.json is in this workdir: the search has not finished."
    )
  return {"expected": expected, "result": result}


def _recipe(evidence: Evidence) -> dict:
  recipe, rows = evidence.recipe, evidence.rows
  weights = recipe["weights"]
  known = {k: v["weights"] for k, v in evidence.search["baselines"].items()}
  concepts, tasks = search_tables.names(rows)
  chosen, natural = (search_tables.grid(w, rows) for w in (weights, known["natural"]))
  top = float(np.nanmax([np.nanmax(chosen), np.nanmax(natural)]))
  counts = None
  if evidence.has("targets.json"):
    counts = tables.runs_of(evidence.targets, tables.RECIPE)[0]["counts"]
  by_concept, by_task = (
    [search_tables.marginal(w, part) for w in (weights, known["natural"], known["uniform"])]
    for part in (0, 1)
  )
  return {
    "recipe": recipe,
    "figures": [
      heatmaps.weights("map-recipe", "Recipe, % of samples", chosen, concepts, tasks, top),
      heatmaps.weights("map-natural", "Natural proportions, %", natural, concepts, tasks, top),
      heatmaps.ratios("map-ratio", "Recipe ÷ natural", chosen, natural, concepts, tasks),
      figures.marginals("bars-concept", "By concept", *by_concept),
      figures.marginals("bars-task", "By task", *by_task),
    ],
    "cells": search_tables.cell_rows(weights, known["natural"], rows, counts),
    "counted": counts is not None,
    "largest_gap": counts and max(abs(c["realised"] - c["requested"]) for c in counts.values()),
  }


def _table(evidence: Evidence) -> dict:
  metrics = evidence.metrics
  rows = tables.score_rows(evidence.targets, metrics)
  names = tables.names_of(evidence.targets)
  return {
    "rows": rows,
    "names": [n for n in names if n in tables.RECIPES],
    "apart": [n for n in names if n not in tables.RECIPES],
    "seeds": rows[-1].scores[tables.RECIPE].n,
    "figure": figures.averages("averages", rows[-1].scores),
    "known": list(BENCHMARKS.values()) if metrics == GALLERY else [],
  }


def _axes(evidence: Evidence) -> list[tuple[str, dict]]:
  """The searched axes, the recipe's own first."""
  axes = evidence.search["axes"]
  first = evidence.recipe["axis"] if evidence.has("recipe.json") else next(iter(axes))
  return sorted(axes.items(), key=lambda item: item[0] != first)


def _search(evidence: Evidence) -> dict:
  found = evidence.search
  axes = []
  for name, side in _axes(evidence):
    runs = search_tables.history(side)
    axes.append({
      "name": name,
      "figure": figures.progress(f"progress-{name}", name, side, found),
      "runs": len(runs["mixatlas"].scores),
      "random_runs": len(runs["random"].scores),
      "uniform": side["uniform_posterior"],
      "recommended": side["recommended"],
    })  # fmt: skip
  noise = found["noise"]
  return {
    "axes": axes,
    "noise": noise,
    "uniform": float(np.mean(noise["uniform"])),
    "fair": all(axis["runs"] == axis["random_runs"] for axis in axes),
  }


def _predicted(evidence: Evidence) -> dict:
  uniform = len(evidence.search["noise"]["uniform"])
  fits = [(name, search_tables.fit(side)) for name, side in _axes(evidence)]
  return {
    "fits": fits,
    "figures": [figures.leave_one_out(f"loo-{name}", name, fit, uniform) for name, fit in fits],
  }


def _beware(evidence: Evidence) -> dict:
  name, _ = _axes(evidence)[0]
  found = caution(evidence, name)
  return {"found": found, "figure": figures.effects("effects", name, found.effects)}


def _sensitivity(evidence: Evidence) -> dict:
  axes = []
  for name, side in _axes(evidence):
    runs = len(search_tables.history(side)["random"].scores)
    if runs < 3:
      axes.append({"name": name, "runs": runs, "figure": None})
      continue
    found = search_tables.correlations(evidence.search, side)
    second = search_tables.second_order(evidence.search, side)
    telling = second.skill >= LEAST_SKILL
    axes.append({
      "name": name,
      "runs": runs,
      "figure": heatmaps.spearman(f"rho-{name}", found),
      "passed": int((found.p_map < 0.05).sum()),
      "entries": found.rho.size,
      "second": second,
      "pairs": heatmaps.interactions(f"pairs-{name}", second) if telling else None,
    })  # fmt: skip
  return {"axes": axes, "least_skill": LEAST_SKILL}


def _curves(evidence: Evidence) -> dict:
  found = tables.curves(evidence.targets)
  if tables.RECIPE not in found:
    raise Missing("The target runs kept no validation curve: target.curve_points is 0.")
  best = tables.headline(evidence.targets).baseline
  lines = tables.reached(evidence.targets)
  mark = next((line for line in lines if line.baseline == best), None)
  return {
    "figure": figures.loss_curves("curves", found, mark),
    "lines": lines,
    "strongest": best,
    "points": len(found[tables.RECIPE].steps),
  }


def _sight(evidence: Evidence) -> dict:
  targets = evidence.targets
  models = [m for m in ("proxy", "target") if tables.runs_of(targets, "uniform", m)]
  if not models:
    raise Missing("targets.json has no runs on the uniform mixture to be blinded.")
  prior = _attempt(lambda: evidence.prior)
  known = None if "missing" in prior else dict(prior)
  seen = {model: tables.seeing(targets, model) for model in models}
  names = [n for n in next(iter(seen[models[0]].values())) if n != tables.AVERAGE]
  if known:
    told = None not in known.values()
    known[tables.AVERAGE] = float(np.mean([known[n] for n in names])) if told else None
  return {
    "seen": seen,
    "prior": known,
    "least_asked": LEAST_ASKED,
    "names": [*names, tables.AVERAGE],
    "figures": [figures.sights(f"sight-{m}", m, scores, known) for m, scores in seen.items()],
    "apart": {m: "trained blind" in scores for m, scores in seen.items()},
  }


def _signal(evidence: Evidence) -> dict:
  uniform = evidence.uniform_vectors
  name, side = _axes(evidence)[0]
  count = len(search_tables.history(side)["random"].scores)
  if len(uniform) < 2 or count < 2:
    raise Missing("Signal over noise needs two proxies on the uniform mixture and two random ones.")
  gain = side["recommended"][tables.RECIPE]["mean"] - side["uniform_posterior"][0]
  return {
    "axis": name,
    "rows": search_tables.signal_rows(evidence.search, side, uniform),
    "seeds": len(uniform),
    "runs": count,
    "luck": search_tables.luck(count),
    "gain": gain,
    "gain_in_noise": gain / evidence.search["noise"]["sd"]
    if evidence.search["noise"]["sd"]
    else None,
  }


def _transfer(evidence: Evidence) -> dict:
  pairs = search_tables.ranked(evidence.targets)
  if len(pairs) < 3:
    raise Missing("Proxy and target were not compared: correlation_mixtures is under 3.")
  agreement = sensitivity.rank_agreement(
    np.array([p.proxy for p in pairs]), np.array([p.target for p in pairs])
  )
  return {
    "pairs": pairs,
    "agreement": agreement,
    "figure": figures.transfer("transfer", pairs, agreement.rho),
  }


def _atlas(evidence: Evidence) -> dict:
  card, names = evidence.card, evidence.concepts
  sheets = evidence.sheets
  budget = SHEET_BYTES // max(len(sheets), 1)
  domains = list((card["domains"] or {}).values())
  concepts = [
    {
      "name": name,
      "images": count,
      "sheet": sheets[i] and page.jpeg_uri(sheets[i], budget),
      "domains": sorted(domains[i].items(), key=lambda d: (-d[1], d[0])) if domains else [],
    }
    for i, (name, count) in enumerate(zip(names, card["concepts"].values(), strict=True))
  ]
  junk = []
  if evidence.has("recipe.json") and evidence.has("search.json") and domains:
    natural = evidence.search["baselines"]["natural"]["weights"]
    junk = search_tables.junk_rows(card, names, evidence.recipe["weights"], natural)
  return {"card": card, "concepts": concepts, "junk": junk}


def _made(evidence: Evidence) -> dict:
  config = evidence.json("config.search.json")
  targets = evidence.targets if evidence.has("targets.json") else None
  groups: dict[str, list[float]] = {}
  for run in targets["runs"] if targets else []:
    groups.setdefault(run["group"], []).append(sum(run["seconds"].values()))
  seconds = _attempt(lambda: evidence.proxy_seconds)
  if seconds and "missing" not in seconds:
    groups = {"search proxies": seconds} | groups
  return {
    "config": config,
    "text": json.dumps(config, indent=1, sort_keys=True),
    "models": {m: config[m] for m in ("proxy", "target")},
    "parameters": targets["parameters"] if targets else {},
    "seconds": {group: (len(spent), sum(spent)) for group, spent in groups.items()},
    "provenance": evidence.recipe["provenance"] if evidence.has("recipe.json") else None,
  }


SECTIONS = {
  "headline": _headline, "recipe": _recipe, "table": _table, "search": _search,
  "predicted": _predicted, "beware": _beware, "sensitivity": _sensitivity, "curves": _curves,
  "sight": _sight, "transfer": _transfer, "signal": _signal, "atlas": _atlas, "made": _made,
}  # fmt: skip
