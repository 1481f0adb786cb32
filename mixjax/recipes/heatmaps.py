"""Grids of numbers: weights over the cells, correlations, interactions."""

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.patches import Rectangle

from mixjax.recipes.svg import Drawing, draw

EMPTY = "#f0f0f0"  # a cell that holds nothing
LABEL = 0.072  # inches a character of a label takes


def heat_map(
  name: str,
  title: str,
  alt: str,
  values: Float[np.ndarray, "r c"],
  rows: Sequence[str],
  columns: Sequence[str],
  say: Callable[[float], str],
  *,
  limits: tuple[float, float],
  colours: str = "cividis",
  marked: Bool[np.ndarray, "r c"] | None = None,
  cell: float = 0.42,
  wide: bool = False,
  empty: str = "–",
) -> Drawing:
  """Every value is written in its cell, `empty` in those that are NaN; `marked` get an outline."""
  palette = mpl.colormaps[colours].with_extremes(bad=EMPTY if empty else "white")
  scaled = (np.clip(values, *limits) - limits[0]) / (limits[1] - limits[0])

  def plot(axes):
    axes.pcolormesh(scaled, cmap=palette, vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
    for (r, c), value in np.ndenumerate(values):
      if np.isnan(value):
        axes.text(c + 0.5, r + 0.5, empty, ha="center", va="center", color="#999999")
        continue
      red, green, blue, _ = palette(float(scaled[r, c]))
      ink = "#222222" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
      axes.text(c + 0.5, r + 0.5, say(value), ha="center", va="center", color=ink, size=7.5)
      if marked is not None and marked[r, c]:
        axes.add_patch(
          Rectangle((c + 0.05, r + 0.05), 0.9, 0.9, fill=False, edgecolor="black", lw=1.5)
        )
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    slanted = max(map(len, columns)) > 7
    axes.set_xticks(
      np.arange(len(columns)) + 0.5, columns, rotation=35 if slanted else 0,
      ha="left" if slanted else "center", rotation_mode="anchor",
    )  # fmt: skip
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    for spine in axes.spines.values():
      spine.set_visible(False)
    if title:
      axes.set_title(title, pad=8)

  width = 0.3 + LABEL * max(map(len, rows)) + max(cell, 0.42) * len(columns)
  height = 0.5 + 0.045 * max(map(len, columns)) + 0.24 * len(rows)
  return draw(name, alt, width, height, plot, wide)


def percent(value: float) -> str:
  """A share, to the tenth of a percent."""
  return "0" if value == 0 else f"{100 * value:.1f}"


def weights(name: str, title: str, table, concepts, tasks, top: float) -> Drawing:
  """Shares of samples in percent; `top` is the share of the strongest colour."""
  r, c = np.unravel_index(np.nanargmax(table), table.shape)
  alt = (
    f"Heat map, {title}: percent of samples by concept and task. "
    f"Largest: {concepts[r]}/{tasks[c]} with {100 * table[r, c]:.1f}%."
  )
  return heat_map(name, title, alt, table, concepts, tasks, percent, limits=(0, top))


def ratios(name: str, title: str, chosen, natural, concepts, tasks) -> Drawing:
  """Chosen over natural weight on a logarithmic scale from an eighth to eight times."""
  with np.errstate(divide="ignore", invalid="ignore"):
    logs = np.log2(chosen / natural)

  def say(log: float) -> str:
    times = 2.0**log
    return "0" if times == 0 else f"{times:.1f}" if times >= 0.095 else f"{times:.2f}"

  r, c = np.unravel_index(np.nanargmax(logs), logs.shape)
  alt = (
    f"Heat map, {title}: weight over natural proportion by concept and task. "
    f"Most raised: {concepts[r]}/{tasks[c]}, {2.0 ** logs[r, c]:.1f} times."
  )
  return heat_map(name, title, alt, logs, concepts, tasks, say, limits=(-3, 3), colours="PuOr_r")


def spearman(name: str, found) -> Drawing:
  """`found: sensitivity.Correlations`; outlines: pure noise is as large in 1 map of 20."""
  strong = found.p_map < 0.05
  r, c = np.unravel_index(np.argmax(np.abs(found.rho)), found.rho.shape)
  alt = (
    f"Heat map of Spearman correlations, weights by benchmarks; {int(strong.sum())} of "
    f"{strong.size} pass the permutation null. Largest: {found.coordinates[r]} with "
    f"{found.benchmarks[c]}, {found.rho[r, c]:+.2f}."
  )
  return heat_map(
    name, "", alt, found.rho, found.coordinates, found.benchmarks, correlation,
    limits=(-1, 1), colours="RdBu_r", marked=strong, cell=0.55, wide=True,
  )  # fmt: skip


def correlation(value: float) -> str:
  return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−").replace("0.", ".", 1)


def interactions(name: str, found) -> Drawing:
  """`found: search_tables.SecondOrder`; the lower triangle, in points of the average score."""
  lower = np.where(np.tri(len(found.coordinates), k=-1, dtype=bool), found.effects, np.nan)
  table = lower[1:, :-1]
  top = float(np.nanmax(np.abs(table))) or 1.0
  digits = 1 if top >= 1 else 2
  first, second, effect = found.strongest(1)[0]
  alt = (
    f"Heat map of pairwise effects on the average. Largest: {first} with {second}, {effect:+.2f}."
  )
  return heat_map(
    name, "", alt, table, found.coordinates[1:], found.coordinates[:-1],
    lambda v: f"{round(v, digits) + 0.0:+.{digits}f}".replace("-", "−"), limits=(-top, top),
    colours="RdBu_r", wide=True, empty="",
  )  # fmt: skip
