"""How numbers and pictures are written on the page."""

import base64
import io
import math
import re
from typing import Any

import jinja2
import markupsafe
from etils import epath
from PIL import Image

from mixjax.recipes import tables

TEMPLATE = epath.Path(__file__).parent / "report.html.jinja"
QUALITIES = (85, 75, 60, 45, 30)  # of a JPEG, tried in turn


def render(content: dict[str, Any], template: epath.Path = TEMPLATE) -> str:
  """The template filled in; jinja2.UndefinedError for anything that `content` lacks."""
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
  environment.filters |= {
    "num": number,
    "signed": signed,
    "percent": percent,
    "label": lambda name: tables.LABELS.get(name, name),
    "svg": lambda drawing: markupsafe.Markup(drawing.svg),
  }
  page = environment.from_string(template.read_text()).render(content)
  return re.sub(r"\n\s*\n", "\n", page.strip()) + "\n"


def number(value: float | None, digits: int = 1) -> str:
  """With a true minus sign; a dash for what is not known or not finite."""
  if value is None or not math.isfinite(value):
    return "–"
  return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
  return number(value, digits) if value < 0 else f"+{number(value, digits)}"


def percent(share: float | None, digits: int = 1) -> str:
  return "–" if share is None else f"{number(100 * share, digits)}%"


def jpeg_uri(png: bytes, budget: int) -> str:
  """The picture as JPEG in a data URI, as good as fits `budget` bytes."""
  with Image.open(io.BytesIO(png)) as opened:
    picture = opened.convert("RGB")
  for quality in QUALITIES:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, optimize=True)
    if out.tell() <= budget:
      break
  return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
