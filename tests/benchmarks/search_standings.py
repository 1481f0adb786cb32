"""What rows of search_bench.py come to: regret curves with intervals, and who is ahead."""

import csv
import itertools
import pathlib
from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from scipy import stats

from mixjax.search import replay

# What all others are compared with.
OURS = "mixatlas"
COLOURS = list(plt.get_cmap("tab10").colors)


def curves(
  rows: Sequence[dict], problems: Collection[str]
) -> tuple[Float[np.ndarray, "seeds evaluations"], list[int]]:
  """Regret as a share of the typical one, and the seeds.

  `rows` are one policy's. A seed's curve is the mean over the problems; seeds that lack one are
  left out, so that all are means over the same.
  """
  by_seed: dict[int, list[dict]] = {}
  for row in rows:
    by_seed.setdefault(row["seed"], []).append(row)
  whole = sorted(seed for seed, mine in by_seed.items() if len(mine) == len(problems))
  longest = max(row["evaluations"] for row in rows)
  # A search that has run its whole pool stays where it is.
  filled = {
    row["label"]: np.array(row["regret"] + row["regret"][-1:] * (longest - row["evaluations"]))
    for row in rows
  }
  table = [
    np.mean([filled[row["label"]] / row["typical"] for row in by_seed[seed]], axis=0)
    for seed in whole
  ]
  return np.array(table).reshape(len(whole), longest), whole


def interval(
  values: Float[np.ndarray, " seeds *e"],
) -> tuple[Float[np.ndarray, "*e"], Float[np.ndarray, "*e"]]:
  """Mean over the first axis, and half the width of its 95% interval (NaN for a single value)."""
  values = np.asarray(values, np.float64)
  count = len(values)
  if count < 2:
    return values.mean(0), np.full(values.shape[1:], np.nan)
  half = stats.t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
  return values.mean(0), half


def standings(rows: Sequence[dict]) -> list[dict]:
  """A line for each policy that has finished a seed of a group, the least regret first.

  `ahead` is MixAtlas's lead in regret at the budget, over the seeds that both have finished.
  """
  problems = {row["problem"] for row in rows}
  found = {s["policy"]: s for s in replay.search_summary(rows)}
  by_policy = {name: [row for row in rows if row["policy"] == name] for name in found}
  ours, our_seeds = curves(by_policy[OURS], problems) if OURS in by_policy else (None, [])
  at = {seed: curve[-1] for seed, curve in zip(our_seeds, ours, strict=True)} if our_seeds else {}
  lines = []
  for policy, mine in by_policy.items():
    curve, seeds = curves(mine, problems)
    if not seeds:
      continue
    ahead = [last - at[s] for s, last in zip(seeds, curve[:, -1], strict=True) if s in at]
    recommended = [row["recommended"]["regret"] / row["typical"] for row in mine]
    asks = [second for row in mine for second in row["ask_seconds"]]
    lines.append({
      "policy": policy,
      "seeds": len(seeds),
      "found": f"{found[policy]['found']}/{found[policy]['searches']}",
      "median": found[policy]["found_at_median"],
      "worst": found[policy]["found_at_worst"],
      "regret": interval(curve[:, -1]),
      "halfway": interval(curve[:, curve.shape[1] // 2 - 1]),
      "recommended": float(np.mean(recommended)),
      "ahead": interval(ahead) if len(ahead) and policy != OURS else None,
      "seconds": float(np.median(asks)) if asks else float("nan"),
    })  # fmt: skip
  return sorted(lines, key=lambda line: line["regret"][0])


def show(group: str, lines: Sequence[dict]) -> None:
  print(f"\n{group}: {max((line['seeds'] for line in lines), default=0)} seeds")
  print(
    f"  {'policy':16}{'found':>9}{'median':>8}{'worst':>7}{'regret halfway':>18}{'at budget':>18}"
    f"{'over mixatlas':>20}{'recommended':>13}{'s/ask':>8}"
  )
  for line in lines:
    at = "".join(
      f"{'never' if line[key] is None else format(line[key], 'g'):>{width}}"
      for key, width in (("median", 8), ("worst", 7))
    )
    half, last = (f"{line[key][0]:.3f} ± {line[key][1]:.3f}" for key in ("halfway", "regret"))
    ahead = "" if line["ahead"] is None else f"{line['ahead'][0]:+.3f} ± {line['ahead'][1]:.3f}"
    print(
      f"  {line['policy']:16}{line['found']:>9}{at}{half:>18}{last:>18}{ahead:>20}"
      f"{line['recommended']:13.3f}{line['seconds']:8.3f}"
    )


def curve_intervals(
  rows: Sequence[dict],
) -> dict[str, tuple[int, Float[np.ndarray, " evaluations"], Float[np.ndarray, " evaluations"]]]:
  """By policy: how many seeds it has finished, their mean regret and half of its 95% interval."""
  problems = {row["problem"] for row in rows}
  found = {}
  for policy in dict.fromkeys(row["policy"] for row in rows):
    curve, seeds = curves([row for row in rows if row["policy"] == policy], problems)
    if seeds:
      found[policy] = len(seeds), *interval(curve)
  return found


def write_curves(path: pathlib.Path, groups: Mapping[str, Sequence[dict]]) -> None:
  """Columns group, policy, evaluations, seeds, regret, half (of the 95% interval)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["group", "policy", "evaluations", "seeds", "regret", "half"])
    for group, rows in groups.items():
      for policy, (seeds, means, halves) in curve_intervals(rows).items():
        for at, (mean, half) in enumerate(zip(means, halves, strict=True), 1):
          writer.writerow([group, policy, at, seeds, f"{mean:.6g}", f"{half:.6g}"])


def draw_curves(path: pathlib.Path, groups: Mapping[str, Sequence[dict]], least: float) -> None:
  """Mean regret after each evaluation with its 95% interval, a panel a group.

  Regret is drawn on a logarithmic axis that ends at `least`: a curve that leaves the panel has come
  nearer to the pool's best.
  """
  figure, panels = plt.subplots(
    1, len(groups), figsize=(3.2 * max(len(groups), 2), 4), sharey=True, squeeze=False
  )
  names = dict.fromkeys(row["policy"] for rows in groups.values() for row in rows)
  colours = dict(zip(names, itertools.cycle(COLOURS)))
  for panel, (group, rows) in zip(panels[0], groups.items(), strict=True):
    found = curve_intervals(rows)
    for policy, (_, mean, half) in found.items():
      at, style = np.arange(1, len(mean) + 1), {"color": colours[policy]}
      panel.plot(at, mean, lw=2.4 if policy == OURS else 1.2, label=policy, **style)
      panel.fill_between(at, np.maximum(mean - half, least / 10), mean + half, alpha=0.1, **style)
    panel.set(yscale="log", ylim=(least, 1.2), title=group, xlabel="runs")
    panel.grid(alpha=0.3)
  panels[0, 0].set_ylabel("regret (1: the pool's median mixture)")
  figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8)
  figure.tight_layout(rect=(0, 0.04 + 0.05 * np.ceil(len(names) / 4), 1, 1))
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=90)
