"""lint.json as one page that a browser opens from disk."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mixjax.corpus.lint.survey import Shown, printable
from mixjax.recipes import page, svg

TEMPLATE = epath.Path(__file__).parent / "lint.html.jinja"
_BAR = "#b34700"


def render(found: Mapping[str, Any], shown: Mapping[str, Sequence[Shown]]) -> str:
  """The page: `found` is what lint.json holds, `shown` the rows of each task's contact sheet."""
  sheets = {
    task: [
      {
        "key": printable(row.key),
        "image": "data:image/jpeg;base64," + base64.b64encode(row.thumbnail).decode()
        if row.thumbnail
        else "",
        "prompt": printable(row.prompt),
        "answer": printable(row.answer),
      }
      for row in rows
    ]
    for task, rows in sorted(shown.items())
  }
  return page.render({"found": found, "sheets": sheets, "sides": _sides(found)}, TEMPLATE)


def _sides(found: Mapping[str, Any]) -> svg.Drawing:
  """Pictures by the length of their longer side."""
  counts = found["pictures"]["longer_side"]
  largest = max(counts, key=lambda name: counts[name])

  def plot(axes):
    axes.bar(range(len(counts)), list(counts.values()), color=_BAR, width=0.8)
    axes.set_xticks(range(len(counts)), list(counts), rotation=45, ha="right")
    axes.set_title("Pictures by their longer side, in pixels")
    axes.grid(axis="y")

  alt = f"Pictures by their longer side; most ({counts[largest]}) have {largest} pixels."
  return svg.draw("sides", alt, 6.2, 2.6, plot)
