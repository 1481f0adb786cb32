"""Matplotlib figures as small inline SVG: text stays text, same numbers give same bytes."""

import dataclasses
import io
import re
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.figure import Figure

STYLE = {
  "svg.fonttype": "none",
  "text.parse_math": False,  # a concept may be called "$"
  "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine lays out alike
  "font.size": 9.0,
  "axes.titlesize": 9.5,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": "#999999",
  "axes.labelcolor": "#444444",
  "axes.axisbelow": True,
  "grid.color": "#e8e8e8",
  "grid.linewidth": 0.8,
  "xtick.color": "#666666",
  "ytick.color": "#666666",
  "xtick.labelcolor": "#333333",
  "ytick.labelcolor": "#333333",
  "legend.frameon": False,
  "legend.fontsize": 8.5,
  "lines.linewidth": 1.6,
}

PIXELS = 104  # of a page to an inch of a figure

_FONT = re.compile(r"font: (?:(\d+) )?([\d.]+)px [^;\"]*")
_NUMBER = re.compile(r"(\d+\.\d{2})\d+")
_USED = re.compile(r"(?:url\(#|href=\"#)([\w-]+)")


@dataclasses.dataclass(frozen=True)
class Drawing:
  """Markup for a page, and the sentence that stands for it where it cannot be seen."""

  svg: str
  alt: str
  width: int  # pixels at which its text is as large as the page's small print
  wide: bool = False  # too much text to be shrunk to a phone's width: it scrolls instead


def draw(
  name: str, alt: str, width: float, height: float, plot: Callable, wide: bool = False
) -> Drawing:
  """Calls `plot(axes)` on an empty figure of `width` x `height` inches.

  `name` is unique on the page: it keeps the ids of one figure apart from those of another.
  """
  with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    plot(figure.add_subplot())
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
  return Drawing(_clean(out.getvalue(), name, alt), alt, round(PIXELS * width), wide)


def _clean(svg: str, name: str, alt: str) -> str:
  """Only what a browser needs: no prolog, namespaces, metadata, unused ids or font lists."""
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
  svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
  svg = re.sub(r"\n\s*", "\n", svg).replace("xlink:href", "href")
  used = set(_USED.findall(svg))
  svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
  svg = re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", svg)
  svg = _FONT.sub(lambda m: f"font-size:{m[2]}px" + (f";font-weight:{m[1]}" if m[1] else ""), svg)
  svg = _NUMBER.sub(r"\1", svg)
  view = re.search(r'viewBox="[^"]*"', svg)[0]
  opening = f'<svg {view} role="img" aria-label="{_attribute(alt)}">'
  return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1).replace("\n\n", "\n").strip()


def _attribute(text: str) -> str:
  for raw, safe in (("&", "&amp;"), ('"', "&quot;"), ("<", "&lt;"), (">", "&gt;")):
    text = text.replace(raw, safe)
  return text
