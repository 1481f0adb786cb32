"""The one record that a corpus is made of: an image under one kind of supervision."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Example:
  """A row: one image, one instruction, one response (paper, section 3.2).

  `key` is unique within a corpus. Rows that share an image share `image_key`: the image is embedded
  once and every row of it falls under the same concept.
  """

  key: str
  image_key: str
  image: bytes  # an encoded picture (PNG, JPEG, ...)
  task: str  # one of tasks.TASKS
  prompt: str
  answer: str
  domain: str = (
    ""  # the true visual domain where it is known (the gallery), for agreement figures only
  )
