"""Real handwritten digits (the UCI set of scikit-learn) in coloured ink on coloured paper.

A source is a set of six digits of six classes, so no two splits share a piece of handwriting.
Training writes two or three digits in a row or a column; held-out pictures place two to five
anywhere, with ink and paper in pairs of colours that training does not use.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image
from sklearn import datasets

from mixjax.corpus import tasks
from mixjax.corpus.gallery import ask, canvas
from mixjax.corpus.gallery.picture import SIZE, Domain, Picture, Probe, Thing

SETS = 299  # more than any class has digits, so dealing by class never gives a set two of one
PER_SET = 6
DARK_INKS = ("blue", "green", "purple", "red")
PAPERS = ("white", "yellow", "gray", "orange")


@functools.cache
def _digits() -> tuple[Float[np.ndarray, "1797 8 8"], np.ndarray]:
  """Strokes in [0, 1] and classes, ordered by class."""
  data = datasets.load_digits()
  order = np.argsort(data.target, kind="stable")
  return data.images[order] / 16.0, data.target[order]


def sources() -> Sequence[str]:
  return [str(i) for i in range(SETS)]


@functools.lru_cache(maxsize=8192)
def _stroke(index: int, height: int) -> Float[np.ndarray, "h w"]:
  """Coverage of the ink, trimmed to the digit and enlarged to `height` pixels."""
  pixels = _digits()[0][index]
  rows, cols = (np.flatnonzero(pixels.max(axis) > 0.2) for axis in (1, 0))
  pixels = pixels[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
  width = max(4, round(height * pixels.shape[1] / 8))
  image = Image.fromarray(np.float32(pixels)).resize((width, height), Image.Resampling.BICUBIC)
  return np.clip((np.asarray(image, np.float64) - 0.25) / 0.4, 0, 1)


def _in_line(
  sizes: Sequence[tuple[int, int]], rng: np.random.Generator
) -> list[tuple[int, int]] | None:
  """Corners in one row or one column, in reading order, the gaps drawn at random."""
  axis = int(rng.integers(2))  # 1: a row
  room = SIZE - sum(s[axis] for s in sizes) - 2 * (len(sizes) - 1)
  if room < 0:
    return None
  gaps = np.diff(np.sort(rng.integers(0, room + 1, len(sizes))), prepend=0)
  across = int(rng.integers(0, SIZE - max(s[1 - axis] for s in sizes) - 3))
  corners, along = [], 0
  for size, gap in zip(sizes, gaps, strict=True):
    along += int(gap)
    drift = int(across + rng.integers(0, 4))
    corners.append((drift, along) if axis else (along, drift))
    along += size[axis] + 2
  return corners


def _colors(rng: np.random.Generator, held_out: bool) -> tuple[str, str]:
  """(ink, paper): an ink meets half of the papers in training and the other half when held out."""
  ink = int(rng.integers(len(DARK_INKS)))
  paper = (ink + int(rng.integers(2)) + (2 if held_out else 0)) % len(PAPERS)
  return DARK_INKS[ink], PAPERS[paper]


def _written(
  count: int, members: Sequence[int], rng: np.random.Generator, held_out: bool
) -> list[tuple[int, tuple[int, int], Float[np.ndarray, "h w"]]]:
  """(index, corner, coverage) of `count` of the members, placed without touching."""
  low, high = {2: (26, 40), 3: (20, 27), 4: (20, 28), 5: (19, 25)}[count]
  while True:
    chosen = [members[i] for i in rng.permutation(len(members))[:count]]
    strokes = [_stroke(i, int(rng.integers(low, high + 1))) for i in chosen]
    sizes = [s.shape for s in strokes]
    corners = canvas.scatter(sizes, rng) if held_out else _in_line(sizes, rng)
    if corners is not None:
      return list(zip(chosen, corners, strokes, strict=True))


def _caption(things: Sequence[Thing], ink: str, paper: str) -> str:
  content = ask.listing([t.label for t in things])
  if len(things) == 2:
    content = f"{things[0].label} {_relation(*things)} {things[1].label}"
  return f"handwriting: {content} in {ink} on {paper}"


def _middle(thing: Thing) -> tuple[float, float]:
  ymin, xmin, ymax, xmax = thing.box
  return (ymin + ymax) / 2, (xmin + xmax) / 2


def _relation(first: Thing, second: Thing) -> str:
  """Where `first` lies from `second`, by the larger offset of the centres."""
  down, right = (b - a for a, b in zip(_middle(first), _middle(second), strict=True))
  if abs(right) >= abs(down):
    return "left of" if right > 0 else "right of"
  return "above" if down > 0 else "below"


def _other_captions(
  things: Sequence[Thing], ink: str, paper: str, rng: np.random.Generator
) -> list[str]:
  """One wrong ink, two wrong digits."""
  inks = [i for i in DARK_INKS if i != ink]
  absent = [str(d) for d in range(10) if str(d) not in {t.label for t in things}]
  changed = things[rng.integers(len(things))].label
  others = [_caption(things, inks[rng.integers(3)], paper)]
  for i in rng.permutation(len(absent))[:2]:
    swapped = [Thing(absent[i] if t.label == changed else t.label, t.box) for t in things]
    others.append(_caption(swapped, ink, paper))
  return others


def _questions(
  things: Sequence[Thing], paper: str, rng: np.random.Generator, in_line: bool
) -> tuple[tuple[str, str], ...]:
  """Of digits in a line also its ends; then `things` come from the left or from the top."""
  names = [t.label for t in things]
  questions = [
    ("Which digit is the biggest?", max(names)),
    (ask.what_color("background"), paper),
  ]
  if not in_line:
    return tuple(questions)
  end = "first" if rng.integers(2) else "last"
  questions.append((f"What is the {end} digit?", names[0] if end == "first" else names[-1]))
  if _relation(*things[:2]) == "above":
    i = int(rng.integers(len(things) - 1))
    if rng.integers(2):
      questions.append((ask.what_is("above", names[i + 1]), names[i]))
    else:
      questions.append((ask.what_is("below", names[i]), names[i + 1]))
  elif rng.integers(4) == 0:
    questions.append((ask.KIND_QUESTION, "handwriting"))
  return tuple(questions)


def _probes(
  things: Sequence[Thing], ink: str, paper: str, rng: np.random.Generator
) -> tuple[Probe, ...]:
  names = [t.label for t in things]
  target = things[rng.integers(len(things))]
  probes = [Probe("grounding", ask.where_is(target.label), tasks.write_box(target.box))]
  if len(things) == 2:
    total = str(sum(int(n) for n in names))
    probes = [Probe("maths", "What is the sum of the digits?", total)]
    answer, anchor = things if rng.integers(2) else things[::-1]
    if (relation := _relation(answer, anchor)) in ("left of", "right of"):
      offered = [str(d) for d in range(10) if str(d) != anchor.label]
      options = ask.choices(answer.label, offered, rng)
      prompt = ask.what_is(relation, anchor.label)
      probes.append(Probe("relations", prompt, answer.label, options))
  else:
    probes.append(Probe("counting", ask.how_many("digit"), str(len(things))))
  caption = _caption(things, ink, paper)
  options = ask.choices(caption, _other_captions(things, ink, paper, rng), rng)
  return (*probes, Probe("breadth", ask.CAPTION_QUESTION, caption, options))


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """Some digits of the set; see the module's docstring for the two styles."""
  members = range(int(source), SETS * PER_SET, SETS)
  count = (2, 2, 3, 4, 5)[rng.integers(5)] if held_out else int(rng.integers(2, 4))
  ink, paper = _colors(rng, held_out)
  page = canvas.sheet(canvas.color_shade(paper, rng), rng)
  shade = 0.62 * canvas.color_shade(ink, rng)
  things = []
  for index, corner, stroke in _written(count, members, rng, held_out):
    canvas.blend(page, shade, stroke, corner)
    label = str(_digits()[1][index])
    things.append(Thing(label, canvas.share_box(corner, stroke.shape)))
  # Held-out digits lie anywhere, so raster order is all there is; a line keeps its own order.
  if held_out:
    things.sort(key=lambda t: (t.box[0], t.box[1]))
  return Picture(
    source=source,
    image=canvas.finish(page),
    caption=_caption(things, ink, paper),
    text=" ".join(t.label for t in things),
    things=tuple(things[:3]),
    questions=_questions(things, paper, rng, in_line=not held_out),
    probes=_probes(things, ink, paper, rng),
  )


DOMAIN = Domain("handwriting", sources, render)
