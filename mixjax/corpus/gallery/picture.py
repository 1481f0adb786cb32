"""What a domain of the gallery produces: a picture with everything that is true of it."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mixjax.corpus import tasks

SIZE = 72  # pixels a side: twemoji's own size, and 6 x 6 patches of 12


@dataclasses.dataclass(frozen=True)
class Thing:
  """A named region: `box` is (ymin, xmin, ymax, xmax), shares of the image."""

  label: str
  box: tasks.Box


@dataclasses.dataclass(frozen=True)
class Probe:
  """A benchmark question. `choices`, where given, hold the answer among three distractors."""

  benchmark: str  # one of benchmarks.BENCHMARKS
  prompt: str
  answer: str
  choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image and its labels under all five tasks, known because we drew it or know its source."""

  source: str  # names the raw material: no two splits of the gallery share one
  image: np.ndarray  # uint8[SIZE, SIZE, 3]
  caption: str
  text: str  # what can be read in it, in raster order; "" when nothing can
  things: tuple[Thing, ...]
  questions: tuple[tuple[str, str], ...]  # (question, answer) for training alone
  probes: tuple[Probe, ...] = ()  # what the benchmarks ask

  @property
  def grounded(self) -> str:
    """The things one after another, each followed by its box."""
    return " and ".join(f"{t.label} {tasks.write_box(t.box)}" for t in self.things)

  @property
  def detection(self) -> str:
    """Pix2Seq order: each label followed by its box, from top left to bottom right."""
    things = sorted(self.things, key=lambda t: (t.box[0], t.box[1], t.label))
    return "; ".join(f"{t.label} {tasks.write_box(t.box)}" for t in things)


@dataclasses.dataclass(frozen=True)
class Domain:
  """One visual domain. `render(source, rng, held_out)` must be a pure function of its arguments.

  `sources()` lists raw material (an image file, a table, a text, a molecule, a position) in a fixed
  order; the gallery gives each to exactly one split. `held_out` asks for the styles and ranges kept
  for benchmarks: other fonts, layouts, composites, counts.
  """

  name: str
  sources: Callable[[], Sequence[str]]
  render: Callable[[str, np.random.Generator, bool], Picture]
