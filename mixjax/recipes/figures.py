"""Lines, dots and bars of the report. Each function draws numbers of the tables and returns SVG."""

from collections.abc import Mapping, Sequence

import numpy as np

from mixjax.recipes import search_tables, tables
from mixjax.recipes.svg import Drawing, draw
from mixjax.recipes.tables import LABELS, RECIPE
from mixjax.search.effects import Effect

WIDTH, HEIGHT = 4.6, 3.1  # inches: two abreast on a desk, one on a phone

# Okabe and Ito's colours; lines differ in dash and dots in shape as well.
COLOURS = {
  "uniform": "#767676", "natural": "#0072B2", "random": "#E69F00", "regmix": "#009E73",
  "mixatlas": "#D55E00", "matched": "#000000",
}  # fmt: skip
DASHES = {"uniform": (4, 1.5), "natural": (6, 2, 1.5, 2), "random": (2, 1.5), "matched": (1, 2)}
OTHER = "#CC79A7"


def marginals(name: str, title: str, recipe, natural, uniform) -> Drawing:
  """Bars of the recipe's weights, with ticks where natural and uniform proportions are."""
  names = list(uniform)
  mine = [100 * recipe.get(n, 0.0) for n in names]
  at = np.arange(len(names))
  alt = f"Bars, {title}: " + ", ".join(
    f"{n} {m:.0f}% (natural {100 * natural.get(n, 0.0):.0f}%)"
    for n, m in zip(names, mine, strict=True)
  )

  def plot(axes):
    axes.barh(at, mine, height=0.62, color=COLOURS[RECIPE], label="recipe")
    for other, key, width in ((natural, "natural", 2.4), (uniform, "uniform", 1.4)):
      axes.vlines(
        [100 * other.get(n, 0.0) for n in names],
        at - 0.42,
        at + 0.42,
        color=COLOURS[key],
        lw=width,
        label=key,
      )
    axes.set_yticks(at, names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("percent of samples")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_title(title)
    axes.figure.legend(loc="outside lower center", ncols=3)

  return draw(name, alt + ".", WIDTH, 1.15 + 0.26 * len(names), plot)


def averages(name: str, scores: Mapping[str, tables.Estimate]) -> Drawing:
  """One dot a recipe with its interval; those set apart are hollow."""
  at = np.arange(len(scores))
  alt = "Average over the benchmarks: " + ", ".join(
    f"{LABELS.get(n, n)} {e.mean:.1f} ± {e.half:.1f}" for n, e in scores.items()
  )

  def plot(axes):
    for i, (recipe, e) in enumerate(scores.items()):
      colour = COLOURS.get(recipe, OTHER)
      axes.errorbar(
        e.mean, i, xerr=[[e.mean - e.low], [e.high - e.mean]], color=colour, marker="o", ms=6,
        mfc=colour if recipe in tables.RECIPES else "white", lw=1.8,
      )  # fmt: skip
    axes.set_yticks(at, [LABELS.get(n, n) for n in scores])
    axes.invert_yaxis()
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel("average over the benchmarks")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")

  return draw(name, alt + ".", WIDTH, 0.75 + 0.28 * len(scores), plot)


def progress(name: str, axis: str, side: dict, found: dict) -> Drawing:
  """Every proxy of an axis in order, and the best so far, against the random design's."""
  runs = search_tables.history(side)
  mine, theirs = runs["mixatlas"], runs["random"]
  noise = np.array(found["noise"]["uniform"])
  centre, sd = float(noise.mean()), found["noise"]["sd"]
  alt = (
    f"Search on the {axis} axis, score against run: best after {len(mine.scores)} runs "
    f"{mine.scores.max():.2f}, best of {len(theirs.scores)} random {theirs.scores.max():.2f}, "
    f"uniform {centre:.2f} with sd {sd:.2f}."
  )

  def plot(axes):
    axes.axhspan(centre - 2 * sd, centre + 2 * sd, color="#e9e9e9", lw=0, label="uniform ± 2 sd")
    for key, entry in found["baselines"].items():
      if key != "uniform":
        axes.axhline(
          entry["score"], color=COLOURS[key], lw=1, dashes=DASHES[key], label=LABELS[key]
        )
    for key, run, marker in (("random", theirs, "s"), ("mixatlas", mine, "o")):
      x = np.arange(1, len(run.scores) + 1)
      axes.plot(x, run.scores, marker, ms=3.4, color=COLOURS[key], alpha=0.55, mew=0)
      axes.plot(
        x, run.best, color=COLOURS[key], drawstyle="steps-post", label=f"{LABELS[key]}, best so far"
      )
    asked = sum(p == "seed" for p in mine.purposes)
    again = [i for i, p in enumerate(mine.purposes) if p == "replicate"]
    axes.plot(
      [i + 1 for i in again],
      mine.scores[again],
      "o",
      ms=5.5,
      mfc="none",
      color=COLOURS[RECIPE],
      mew=0.9,
    )
    if 0 < asked < len(mine.purposes):
      axes.axvline(asked + 0.5, color="#bbbbbb", lw=0.8)
    advice = side["recommended"][RECIPE]
    axes.errorbar(
      len(mine.scores) + 1.5, advice["mean"], advice["sd"], color="black", marker="D", ms=4, lw=1.4,
      label="recommended, mean ± sd",
    )  # fmt: skip
    axes.set_xlabel("proxy run")
    axes.set_ylabel("answer likelihood, 0–100")
    axes.set_title(f"{axis} axis")
    axes.grid(axis="y")
    axes.figure.legend(loc="outside lower center", ncols=2)

  return draw(name, alt, WIDTH, HEIGHT + 0.85, plot)


def leave_one_out(name: str, axis: str, fit: search_tables.Fit, uniform: int) -> Drawing:
  """Predicted against observed; the first `uniform` runs are the uniform mixture's seeds."""
  alt = (
    f"Predicted against observed score on the {axis} axis, each run left out in turn: "
    f"{100 * fit.coverage:.0f}% within 1.96 sd, Spearman {fit.spearman:.2f}."
  )

  def plot(axes):
    lowest = min(fit.observed.min(), fit.mean.min())
    highest = max(fit.observed.max(), fit.mean.max())
    axes.plot([lowest, highest], [lowest, highest], color="#bbbbbb", lw=1)
    for part, key, said in (
      (slice(0, uniform), "uniform", "uniform seeds"),
      (slice(uniform, None), RECIPE, "search runs"),
    ):  # fmt: skip
      axes.errorbar(
        fit.mean[part], fit.observed[part], xerr=fit.sd[part], fmt="o", ms=4, lw=0.8,
        color=COLOURS[key], alpha=0.8, label=said,
      )  # fmt: skip
    axes.set_xlabel("predicted from the other runs, ± sd")
    axes.set_ylabel("observed")
    axes.set_title(f"{axis} axis")
    axes.grid()
    axes.legend(loc="upper left")

  return draw(name, alt, WIDTH, HEIGHT, plot)


def effects(name: str, axis: str, found: Sequence[Effect]) -> Drawing:
  """One dot a weight with its 95% interval; hollow where the interval holds nil."""
  at = np.arange(len(found))
  alt = f"Effect of each weight of the {axis} axis on the score, in points: " + ", ".join(
    f"{e.names[0]} {e.mean:+.2f} ({e.interval[0]:+.2f} to {e.interval[1]:+.2f})" for e in found
  )

  def plot(axes):
    axes.axvline(0, color="#999999", lw=0.9, zorder=0)
    for i, e in enumerate(found):
      colour = COLOURS[RECIPE] if e.mean > 0 else COLOURS["natural"]
      told = e.interval[0] > 0 or e.interval[1] < 0
      axes.errorbar(
        e.mean, i, xerr=[[e.mean - e.interval[0]], [e.interval[1] - e.mean]], color=colour,
        marker="o", ms=5.5, mfc=colour if told else "white", lw=1.6,
      )  # fmt: skip
    labels = [
      f"{e.names[0]}  {100 * e.low[e.names[0]]:.0f} → {100 * e.high[e.names[0]]:.0f}%"
      for e in found
    ]
    axes.set_yticks(at, labels)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("change in score, points")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")

  return draw(name, alt + ".", 1.15 * WIDTH, 0.6 + 0.24 * len(found), plot)


def loss_curves(
  name: str, curves: Mapping[str, tables.Curve], mark: tables.Reached | None
) -> Drawing:
  """Validation loss of each recipe on the target, with the recipe's step at the marked loss."""
  alt = "Validation loss against step on the target; final losses: " + ", ".join(
    f"{LABELS.get(n, n)} {c.loss[-1]:.3f}" for n, c in curves.items()
  )

  def plot(axes):
    for recipe, curve in curves.items():
      axes.plot(
        curve.steps, curve.loss, marker="o", ms=3, color=COLOURS.get(recipe, OTHER),
        dashes=DASHES.get(recipe, ()), label=LABELS.get(recipe, recipe),
        lw=2.2 if recipe == RECIPE else 1.5,
      )  # fmt: skip
    if mark:
      axes.axhline(mark.loss, color="#999999", lw=0.8, zorder=0)
      if mark.steps is not None:
        low, high = axes.get_ylim()
        axes.vlines(mark.steps, low, mark.loss, color=COLOURS[RECIPE], lw=0.9)
        axes.set_ylim(low, high)
        axes.annotate(
          f"step {mark.steps:.0f}", (mark.steps, low), (-4, 5), textcoords="offset points",
          ha="right", color=COLOURS[RECIPE], size=8.5,
        )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats a token")
    axes.grid()
    axes.legend()

  return draw(name, alt + ".", 6.4, 3.6, plot)


def sights(name: str, model: str, seen: Mapping[str, Mapping[str, float]], prior) -> Drawing:
  """Sighted, blind, trained blind and constant guess, a line a benchmark."""
  names = list(next(iter(seen.values())))
  looks = {
    "sighted": ("o", "#0072B2", "#0072B2"), "blind": ("o", "#0072B2", "white"),
    "trained blind": ("s", "#D55E00", "white"),
  }  # fmt: skip
  alt = f"What the {model} scores with and without its eyes: " + ", ".join(
    f"{sight} {scores[tables.AVERAGE]:.1f} on average" for sight, scores in seen.items()
  )

  def plot(axes):
    at = np.arange(len(names))
    if {"sighted", "blind"} <= seen.keys():
      axes.hlines(
        at,
        [seen["blind"][n] for n in names],
        [seen["sighted"][n] for n in names],
        color="#cccccc",
        lw=2,
      )
    if told := [i for i, n in enumerate(names) if prior and prior[n] is not None]:
      guesses = [prior[names[i]] for i in told]
      axes.plot(guesses, told, "|", ms=11, mew=1.8, color="#222222", label="constant guess")
    for sight, scores in seen.items():
      marker, edge, face = looks[sight]
      axes.plot(
        [scores[n] for n in names], at, marker, ms=6, mec=edge, mfc=face, mew=1.4, label=sight
      )
    axes.set_yticks(at, names)
    axes.invert_yaxis()
    axes.set_xlim(left=-2)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("benchmark's own metric, 0–100")
    axes.set_title(model)
    axes.grid(axis="x")
    axes.figure.legend(loc="outside lower center", ncols=4, columnspacing=0.9, handletextpad=0.2)

  return draw(name, alt + ".", WIDTH, 1.3 + 0.24 * len(names), plot)


def transfer(name: str, pairs: Sequence[search_tables.Ranked], rho: float | None) -> Drawing:
  """Proxy score against target score of the same mixtures."""
  said = "" if rho is None else f", Spearman {rho:.2f}"
  alt = f"Scores of {len(pairs)} mixtures on the target against those on the proxy{said}."

  def plot(axes):
    axes.plot(
      [p.proxy for p in pairs], [p.target for p in pairs], "o", color=COLOURS["natural"], ms=6
    )
    for pair in pairs[:3]:
      axes.annotate(
        f"#{pair.proxy_rank} of the proxy", (pair.proxy, pair.target), (-6, 6),
        textcoords="offset points", size=8, ha="right", color="#444444",
      )  # fmt: skip
    axes.margins(0.12)
    axes.set_xlabel("proxy: answer likelihood, 0–100")
    axes.set_ylabel("target: answer likelihood")
    axes.grid()

  return draw(name, alt, WIDTH, HEIGHT, plot)
