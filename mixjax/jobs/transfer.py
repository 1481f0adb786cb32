"""Does the recipe hold on the target? Target runs on the recipe and on every baseline, same seeds.

Also: the blind controls (the same models with features zeroed, and models trained blind), and,
where asked for, enough further mixtures on the target to compare the ranks that proxy and target
give.
"""

import dataclasses
import json

import numpy as np
from etils import epath

from mixjax.jobs.pool import LocalPool
from mixjax.jobs.trial import TrialSpec
from mixjax.jobs.workdir import write_whole
from mixjax.progress import Reporter


def contenders(found: dict, known: dict, headline: str) -> dict[str, dict[str, float]]:
  """Recipe name -> weights: the table's columns, the paper's single axes, the upper bound."""
  chosen = found["axes"][headline]["recommended"]
  columns = {
    "uniform": known["uniform"],
    "natural": known["natural"],
    "random": chosen["random"]["weights"],
    "regmix": chosen["regmix"]["weights"],
    "mixatlas": chosen["mixatlas"]["weights"],
  }
  if "matched" in known:
    columns["matched"] = known["matched"]
  return columns


def single_axes(found: dict, headline: str) -> dict[str, dict[str, float]]:
  """MixAtlas on the other axes, as the paper searches them."""
  return {
    f"mixatlas-{axis}": side["recommended"]["mixatlas"]["weights"]
    for axis, side in found["axes"].items()
    if axis != headline
  }


def correlation_set(found: dict, headline: str, count: int) -> dict[str, dict]:
  """`count` random proxies of the headline axis, evenly over the ranks of their scores."""
  runs = [h for h in found["axes"][headline]["history"] if h["purpose"] == "random"]
  ranked = sorted(runs, key=lambda h: (h["score"], h["trial"]))
  picks = np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))
  return {f"rank-{i}": ranked[i] for i in picks}


def run(config, workdir: epath.Path, pool: LocalPool, found, known, reporter: Reporter) -> dict:
  """Trains every target; writes and returns targets.json."""
  columns = contenders(found, known, config.headline)
  full = config.target_seeds > 1
  extra = single_axes(found, config.headline) if full else {}
  ranked = correlation_set(found, config.headline, config.correlation_mixtures)
  specs: list[TrialSpec] = []
  labels: list[tuple[str, str, int, TrialSpec]] = []

  def want(group: str, name: str, weights, seed: int, budget, **options) -> None:
    folder = workdir / "targets" / f"{group}-{name}-{seed}"
    spec = TrialSpec(str(folder), weights, seed, budget, **options)
    # Two methods may choose the same mixture: it is trained once and stands under both names.
    twin = next((s for s in specs if s.full >= spec.full and _same_run(s, spec)), None)
    if twin is None:
      specs.append(spec)
    labels.append((group, name, seed, twin or spec))

  seeds = [1000 * (config.seed + 1) + i for i in range(config.target_seeds)]
  for name, weights in (columns | extra).items():
    for seed in seeds:
      want("target", name, weights, seed, config.target, full=True)
  want("proxy", "uniform", known["uniform"], seeds[0], config.proxy, full=True)
  want("proxy", "mixatlas", columns["mixatlas"], seeds[0], config.proxy, full=True)
  want("proxy-blind", "uniform", known["uniform"], seeds[0], config.proxy, full=True, blind=True)
  if full:
    want(
      "target-blind", "uniform", known["uniform"], seeds[0], config.target, full=True, blind=True
    )
  headline = found["axes"][config.headline]
  random_weights = _weights_of_trials(workdir, [r["trial"] for r in ranked.values()])
  for name, entry in ranked.items():
    want("rank", name, random_weights[entry["trial"]], seeds[0], config.target)

  reporter.stage("targets", len(specs))

  def on_done(spec: TrialSpec, result: dict) -> None:
    scores = result["scores"].get("benchmark", result["scores"]["validation"])
    figure = np.mean([s.get("metric", s["score"]) for s in scores.values()])
    if not np.isfinite(figure):
      raise FloatingPointError(f"a score of {spec.folder} is not finite: lower the learning rate")
    reporter.advance(note=f"run={epath.Path(spec.folder).name} score={figure:.2f}")

  done = dict(zip((s.folder for s in specs), pool.run(specs, on_done), strict=True))
  runs = []
  for group, name, seed, spec in labels:
    lines = (epath.Path(spec.folder) / "metrics.jsonl").read_text().splitlines()
    curve = [entry for entry in map(json.loads, lines) if "validation_nll" in entry]
    runs.append({"group": group, "name": name, "seed": seed, "curve": curve, **done[spec.folder]})
  targets = {
    "runs": runs,
    "proxy_scores": {name: entry["score"] for name, entry in ranked.items()},
    "recommended": {name: r["mean"] for name, r in headline["recommended"].items()},
    "parameters": {g: r["parameters"] for g, r in ((run["group"], run) for run in runs)},
    "samples": {"proxy": config.proxy.samples, "target": config.target.samples},
  }
  write_whole(workdir / "targets.json", json.dumps(targets, indent=1))
  for name in columns | extra:
    mine = [table_score(r) for r in runs if (r["group"], r["name"]) == ("target", name)]
    spread = f" +- {np.std(mine, ddof=1):.2f}" if len(mine) > 1 else ""
    reporter.say(f"  target on {name:18} {np.mean(mine):6.2f}{spread}   ({len(mine)} seeds)")
  return targets


def _same_run(a: TrialSpec, b: TrialSpec) -> bool:
  return dataclasses.replace(a, folder=b.folder, full=b.full) == b


def table_score(run: dict) -> float:
  """Average of the benchmarks' own metrics, 0-100."""
  return float(np.mean([s["metric"] for s in run["scores"]["benchmark"].values()]))


def _weights_of_trials(workdir: epath.Path, trials: list[int]) -> dict[int, dict[str, float]]:
  folder = workdir / "study" / "trials"
  return {
    t: json.loads((folder / f"{t:05d}" / "mixture.json").read_text())["mixture"] for t in trials
  }
