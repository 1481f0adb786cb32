"""The one record that a corpus is made of: a conversation about pictures, of one kind."""

import dataclasses
from typing import NamedTuple

IMAGE = "<image>"  # where a picture stands in a prompt


class Turn(NamedTuple):
  """What is asked and what is to be answered."""

  prompt: str
  answer: str


@dataclasses.dataclass(frozen=True)
class Example:
  """A row: pictures, a conversation about them, and its kind of supervision (paper, section 3.2).

  `key` is unique within a corpus. Rows that share a picture share its key in `image_keys`: it is
  embedded once, and every row whose first picture it is falls under the same concept. A prompt
  holds IMAGE where a picture stands; pictures that no marker places stand before the first prompt.
  A row without pictures is text alone.
  """

  key: str
  task: str  # one of tasks.TASKS
  turns: tuple[Turn, ...]
  image_keys: tuple[str, ...] = ()
  images: tuple[bytes, ...] = ()  # encoded (PNG, JPEG, ...), one for each key
  domain: str = ""  # the true visual domain where it is known, for agreement figures only
  label: str = "data"  # who gave the row its task: the data, a rule, a classifier, a labeller

  def __post_init__(self):
    if len(self.images) != len(self.image_keys):
      raise ValueError(
        f"row {self.key!r} has {len(self.images)} pictures under {len(self.image_keys)} names"
      )
    if not self.turns:
      raise ValueError(f"row {self.key!r} has no turns: give it one prompt and answer at least")

  @classmethod
  def single(
    cls,
    key: str,
    image_key: str,
    image: bytes,
    task: str,
    prompt: str,
    answer: str,
    domain: str = "",
  ) -> "Example":
    """One question about one picture, or about none where `image_key` is empty."""
    pictures = ((image_key,), (image,)) if image_key else ((), ())
    return cls(key, task, (Turn(prompt, answer),), *pictures, domain)

  @property
  def image_key(self) -> str:
    """The picture that decides the concept: the first; "" for text alone."""
    return self.image_keys[0] if self.image_keys else ""

  @property
  def image(self) -> bytes:
    """The first picture; nothing for text alone."""
    return self.images[0] if self.images else b""

  @property
  def prompt(self) -> str:
    """What the first turn asks."""
    return self.turns[0].prompt

  @property
  def answer(self) -> str:
    """The first turn's answer."""
    return self.turns[0].answer
