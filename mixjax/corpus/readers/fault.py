"""Why a row cannot be used, and the words for it."""

import dataclasses

MALFORMED, NO_TEXT, BAD_UTF8 = "malformed row", "missing text", "bad UTF-8"
BAD_MARKERS, BAD_TASK = "more markers than images", "unknown task"


class BadRow(ValueError):
  """A row that cannot be used; `kind` is one of this module's reasons."""

  def __init__(self, kind: str, detail: str):
    super().__init__(f"{kind}: {detail}")
    self.kind, self.detail = kind, detail


@dataclasses.dataclass(frozen=True)
class Fault:
  """A row that is not there: where it should have been, and why it is not."""

  where: str
  kind: str
  detail: str
