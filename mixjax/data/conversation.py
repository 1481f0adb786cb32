"""Conversations about pictures as tokens in ChatML, cut to fit a row.

    <|im_start|>user\\n <image> x p \\n prompt <|im_end|>\\n
    <|im_start|>assistant\\n answer <|im_end|>\\n
    <|im_start|>user\\n prompt <|im_end|>\\n ...

The frame is `data.encode`'s. A picture takes as many <image> tokens as `Anyres` counts for its
size. The loss falls on every answer and its <|im_end|>. Texts are tokenised apart from the frame:
ids equal those of the chat template read whole, unless a text begins with white space, which a
tokenizer may join to the line break before it.

A conversation that is too long loses whole turns from its end; if the first turn alone is too long,
its answer is cut, and then lacks its <|im_end|>.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence

import numpy as np

from mixjax.corpus.example import IMAGE, Example
from mixjax.data.bad_records import BadRecord
from mixjax.data.encode import (
  ASSISTANT,
  END,
  PAD,
  SPECIAL_TOKENS,
  USER,
  Tokenizer,
  check_tokenizer,
  tokens_of,
)
from mixjax.data.packed import PackedShape
from mixjax.models.anyres import Anyres, Size

# Four numbers or more, with commas between them; those with an n in them are not finite.
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|nan|inf(?:inity)?)"
_COMMA = r"\s*[)\]]*\s*,\s*[(\[]*\s*"
_BOXES = re.compile(rf"(?i)(?<![\w.]){_NUMBER}(?:{_COMMA}{_NUMBER}){{3,}}(?!\w)")


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Tokens of an example: ids int32[l], loss_mask bool[l], and the sizes of the pictures shown.

  `turns` are the turns kept; `cut` is how many tokens the only answer left lost.
  """

  ids: np.ndarray
  loss_mask: np.ndarray
  sizes: tuple[Size, ...]
  turns: int
  cut: int


@dataclasses.dataclass(frozen=True)
class ConversationEncoder:
  """Examples as tokens, none longer than `length`, with no more image tokens and tiles than given.

  The tokenizer must have `encode.SPECIAL_TOKENS`.
  """

  tokenizer: Tokenizer
  geometry: Anyres
  length: int
  image_tokens: int
  tiles: int

  def __post_init__(self):
    check_tokenizer(self.tokenizer)

  @classmethod
  def of(cls, tokenizer: Tokenizer, geometry: Anyres, shape: PackedShape) -> "ConversationEncoder":
    """For rows of a packed shape. Raises ValueError if its tiles are not the geometry's."""
    if shape.side != geometry.tile:
      raise ValueError(
        f"tiles of {shape.side} pixels in the shape, {geometry.tile} in the geometry"
      )
    return cls(tokenizer, geometry, shape.length, shape.image_tokens, shape.row_tiles)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of all that decides how long a conversation is."""
    geometry = dataclasses.asdict(self.geometry)
    limits = (self.length, self.image_tokens, self.tiles)
    said = json.dumps([self.tokenizer.backend_tokenizer.to_str(), geometry, limits])
    return hashlib.sha256(said.encode()).hexdigest()

  @functools.cached_property
  def pad_id(self) -> int:
    return self.tokenizer.convert_tokens_to_ids(PAD)

  @functools.cached_property
  def _frame(self) -> tuple[list[int], list[int], list[int]]:
    """The tokens before the first prompt, before an answer, and between turns after <|im_end|>."""
    return tuple(tokens_of(self.tokenizer, [USER, ASSISTANT, f"\n{USER}"]))

  @functools.cached_property
  def _ids(self) -> tuple[int, int, frozenset[int]]:
    """<image>, <|im_end|>, and all that a text may not hold."""
    image, end = (self.tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, END))
    return image, end, frozenset(self.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))

  def encode(self, example: Example, sizes: Sequence[Size]) -> Conversation:
    """`encode_many` of one. Raises BadRecord."""
    (found,) = self.encode_many([example], [sizes])
    if isinstance(found, BadRecord):
      raise found
    return found

  def encode_many(
    self, examples: Sequence[Example], sizes: Sequence[Sequence[Size]]
  ) -> list[Conversation | BadRecord]:
    """Each example as tokens, or why it cannot be.

    sizes: (height, width) of each example's pictures.
    """
    parted = [_caught(_parted, example) for example in examples]
    turns = [turn for turns in parted if isinstance(turns, list) for turn in turns]
    texts = [text for prompt, answer in turns for text in (*prompt, answer)]
    tokens = iter(tokens_of(self.tokenizer, texts))
    found = []
    for turns, shown in zip(parted, sizes, strict=True):
      if isinstance(turns, list):
        turns = [([next(tokens) for _ in prompt], next(tokens)) for prompt, _ in turns]
        turns = _caught(self._fit, turns, shown)
      found.append(turns)
    return found

  def _fit(self, turns, sizes: Sequence[Size]) -> Conversation:
    """As many whole turns as there is room for; `turns` are tokens, parted where pictures stand."""
    image, end, reserved = self._ids
    first, assistant, later = self._frame
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    shown = image_tokens = tiles = kept = cut = 0
    for prompt, answer in turns:
      if any(not reserved.isdisjoint(part) for part in (*prompt, answer)):
        raise BadRecord("a text holds a token that is reserved for the conversation's frame")
      here = sizes[shown : shown + len(prompt) - 1]
      counts = [self.geometry.num_tokens(size) for size in here]
      asked = list(later if kept else first) + prompt[0]
      for count, part in zip(counts, prompt[1:], strict=True):
        asked += [image] * count + part
      asked += assistant
      begin = len(ids) + len(asked)
      image_tokens += sum(counts)
      tiles += sum(map(self.geometry.num_tiles, here))
      pictured = image_tokens <= self.image_tokens and tiles <= self.tiles
      over = max(begin + len(answer) + 1 - self.length, 0)
      if kept and (over or not pictured):
        break
      if begin >= self.length or not pictured:
        raise BadRecord(
          f"the first prompt alone is too long: {begin} tokens, {image_tokens} image tokens and "
          f"{tiles} tiles, with room for {self.length - 1}, {self.image_tokens} and {self.tiles}"
        )
      ids += asked + [*answer, end][: self.length - begin]
      spans.append((begin, len(ids)))
      shown += len(here)
      kept, cut = kept + 1, over
      if cut:
        break
    loss_mask = np.zeros(len(ids), bool)
    for begin, stop in spans:
      loss_mask[begin:stop] = True
    return Conversation(np.array(ids, np.int32), loss_mask, tuple(sizes[:shown]), kept, cut)


def _caught(function, *args):
  """What a function returns, or the BadRecord it raises."""
  try:
    return function(*args)
  except BadRecord as error:
    return error


def _parted(example: Example) -> list[tuple[list[str], str]]:
  """Each turn's prompt, parted where pictures stand, and its answer. Raises BadRecord."""
  prompts = [turn.prompt for turn in example.turns]
  missing = len(example.images) - sum(prompt.count(IMAGE) for prompt in prompts)
  if missing < 0:
    raise BadRecord(f"{len(example.images) - missing} places for {len(example.images)} pictures")
  # Pictures keep their order: those that no marker places are the first.
  prompts[0] = f"{IMAGE}\n" * missing + prompts[0]
  found = []
  for prompt, turn in zip(prompts, example.turns, strict=True):
    if not turn.answer.strip():
      raise BadRecord("empty answer")
    if not prompt.strip():
      raise BadRecord("empty prompt")
    for text in turn:
      _check(text, boxes=bool(example.images))
    found.append((prompt.split(IMAGE), turn.answer))
  return found


def _check(text: str, boxes: bool):
  """Raises BadRecord for what no tokenizer takes, and for boxes with a corner that is nowhere."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise BadRecord("a text is not Unicode") from error
  if boxes and any("n" in run.lower() for run in _BOXES.findall(text)):
    raise BadRecord("a box holds a number that is not finite")
