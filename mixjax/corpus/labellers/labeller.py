"""What a labeller is: it carries out one instruction on pictures, or says why it does not.

The paper trains on five kinds of supervision of the same picture (section 3.2); four of them are
made, not found. Who makes them is anybody's choice:

    class Labeller(Protocol): name, task, prompt, provenance, label(images)

`ocr.Ocr` and `vlm.Vlm` are two of them. An answer is kept only if it is one: text that was read,
boxes that are boxes, an end that was reached. What is refused stays out, with its reason.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from mixjax.corpus import pixels


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a row is to answer for a picture."""

  text: str


@dataclasses.dataclass(frozen=True)
class Refusal:
  """Why a picture gets no row of a task."""

  reason: str


class Labeller(Protocol):
  """`name` says who it is and in what version: what `Example.label` holds of its rows.

  `task` is one of tasks.TASKS and `prompt` what a row asks. `provenance` is all that its answers
  depend on (versions, digests, settings) as JSON: equal provenance, equal answers. It holds no time
  and no path.
  """

  name: str
  task: str
  prompt: str
  provenance: Mapping[str, Any]

  def label(self, images: Sequence[bytes]) -> list[Answer | Refusal]:
    """One of the two for each encoded picture, in order; it raises for none of them."""
    ...


def opened(data: bytes) -> Image.Image | Refusal:
  """An encoded picture, decoded whole, or what is wrong with it."""
  try:
    return pixels.read(data)
  except pixels.BadPicture as error:
    return Refusal(f"the picture cannot be read: {error}")
