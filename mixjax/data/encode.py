"""Rows as fixed-size token arrays in ChatML, and the gallery's own tokenizer.

    <|im_start|>user\\n <image> x p \\n prompt <|im_end|>\\n
    <|im_start|>assistant\\n answer <|im_end|>

`loss_mask[t]` is true where `ids[t]` is to be predicted, from the state at t - 1: on the answer and
its <|im_end|>. `mask[t]` is true where `ids[t]` is a token of the row rather than padding.

A row without an image is padded on the left by as many places as an image takes, so that answers
never begin before `image_tokens + 1`; causal attention with rotary positions sees no difference.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
import transformers
from jaxtyping import Int

from mixjax.corpus.example import Turn
from mixjax.corpus.tasks import BOX_TOKENS

PAD, START, END, IMAGE = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
USER = f"{START}user\n"
ASSISTANT = f"{END}\n{START}assistant\n"

CHAT_TEMPLATE = (
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
  "{% if message['content'] is string %}{{ message['content'] }}"
  "{% else %}{% for part in message['content'] %}"
  "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
  "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Tokenizer = transformers.PreTrainedTokenizerBase


class _Frame(NamedTuple):
  """The tokens before the image, between prompt and answer, and between turns."""

  user: list[int]
  assistant: list[int]
  between: list[int]


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Turns prompts and answers into arrays of `image_tokens + text_length` tokens.

  `truncate` cuts first answers that are too long (they then lack their <|im_end|>) and leaves out
  later turns that do not fit, where the default is to raise. The tokenizer must have the four
  SPECIAL_TOKENS.
  """

  tokenizer: Tokenizer
  image_tokens: int = 36
  text_length: int = 48
  truncate: bool = False

  def __post_init__(self):
    check_tokenizer(self.tokenizer)

  @property
  def length(self) -> int:
    return self.image_tokens + self.text_length

  @functools.cached_property
  def image_id(self) -> int:
    return self.tokenizer.convert_tokens_to_ids(IMAGE)

  @functools.cached_property
  def end_id(self) -> int:
    return self.tokenizer.convert_tokens_to_ids(END)

  @functools.cached_property
  def pad_id(self) -> int:
    return self.tokenizer.convert_tokens_to_ids(PAD)

  @functools.cached_property
  def _control_ids(self) -> frozenset[int]:
    return frozenset(self.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))

  @functools.cached_property
  def _frame(self) -> _Frame:
    return _Frame(*self._tokens([USER, ASSISTANT, f"\n{USER}"]))

  def count(self, text: str) -> int:
    """How many tokens a text has."""
    return len(self._tokens([text])[0])

  def encode(
    self, prompt: str, answer: str, with_image: bool = True, key: str = ""
  ) -> dict[str, np.ndarray]:
    """{ids int32[t], loss_mask bool[t], mask bool[t]} of one row; `key` names it in errors.

    Raises:
      ValueError: the row is too long (and `truncate` is off, or the prompt alone is), or the
        prompt or the answer contains one of SPECIAL_TOKENS.
    """
    arrays = self.encode_many([prompt], [answer], [with_image], [key])
    return {name: arrays[name][0] for name in ("ids", "loss_mask", "mask")}

  def encode_many(
    self,
    prompts: Sequence[str],
    answers: Sequence[str],
    with_image: Sequence[bool],
    keys: Sequence[str],
    later: Sequence[Sequence[Turn]] | None = None,
    problems: dict[int, str] | None = None,
  ) -> dict[str, np.ndarray]:
    """`encode` of n rows: ids int32[n, t], loss_mask and mask bool[n, t], truncated bool[n].

    `later` has each row's turns after the first. Where `truncate` is on, those that do not fit are
    left out, and the row counts as truncated. With `problems`, a row that cannot be encoded is
    entered there with the reason instead of raising, and is left empty.
    """
    n = len(prompts)
    later = later or [()] * n
    arrays = {
      "ids": np.full((n, self.length), self.pad_id, np.int32),
      "loss_mask": np.zeros((n, self.length), bool),
      "mask": np.zeros((n, self.length), bool),
      "truncated": np.zeros(n, bool),
    }
    said = self._tokens(answers)
    follow = iter(self._tokens([text for turns in later for turn in turns for text in turn]))
    for i, asked in enumerate(self._prompt_tokens(prompts, with_image)):
      more = [(next(follow), next(follow)) for _ in later[i]]
      first = 0 if with_image[i] else self.image_tokens
      try:
        self._check(asked, keys[i], "prompt")
        asked = self._framed(asked, with_image[i])
        row, spans, cut = self._row(asked, said[i], more, first, keys[i])
      except ValueError as error:
        if problems is None:
          raise
        problems[i] = str(error)
        continue
      end = first + len(row)
      arrays["ids"][i, first:end] = row
      arrays["mask"][i, first:end] = True
      for begin, stop in spans:
        arrays["loss_mask"][i, begin:stop] = True
      arrays["truncated"][i] = cut
    return arrays

  def _row(
    self,
    asked: list[int],
    said: list[int],
    more: Sequence[tuple[list[int], list[int]]],
    first: int,
    key: str,
  ) -> tuple[list[int], list[tuple[int, int]], bool]:
    """(tokens, where answers begin and end, whether anything was cut) of a row from `first` on."""
    self._check(said, key, "answer")
    begin, cut = first + len(asked), False
    row = [*asked, *said, self.end_id]
    if first + len(row) > self.length:
      if not self.truncate or begin >= self.length:
        raise ValueError(
          f"row {key!r} has {len(said) + 1} tokens of answer after {begin} of prompt, and "
          f"{self.length} fit: raise text_length"
          + ("" if self.truncate else ", or set truncate=True")
        )
      row, cut = row[: self.length - first], True
    spans = [(begin, first + len(row))]
    for prompt, answer in more:
      self._check(prompt, key, "prompt")
      self._check(answer, key, "answer")
      turn = self._frame.between + prompt + self._frame.assistant
      begin = first + len(row) + len(turn)
      end = begin + len(answer) + 1
      if end > self.length or cut:
        if not self.truncate:
          raise ValueError(
            f"row {key!r} has {len(more) + 1} turns, which do not fit in {self.length} "
            "tokens: raise text_length, or set truncate=True"
          )
        cut = True
        break
      row += [*turn, *answer, self.end_id]
      spans.append((begin, end))
    return row, spans, cut

  def prompt(self, prompt: str, with_image: bool = True) -> dict[str, np.ndarray]:
    """{ids int32[t], mask bool[t]} for generation: padded on the left, the answer comes next."""
    (asked,) = self._prompt_tokens([prompt], [with_image])
    self._check(asked, prompt, "prompt")
    asked = self._framed(asked, with_image)
    if len(asked) > self.length:
      raise ValueError(
        f"prompt {prompt!r} has {len(asked)} tokens and {self.length} fit: raise text_length"
      )
    ids = np.full(self.length, self.pad_id, np.int32)
    ids[self.length - len(asked) :] = asked
    return {"ids": ids, "mask": np.arange(self.length) >= self.length - len(asked)}

  def decode(self, ids: Int[np.ndarray, "b t"]) -> list[str]:
    """Generated tokens as text, each row up to its first <|im_end|>."""
    rows = [row[: row.index(self.end_id)] if self.end_id in row else row for row in ids.tolist()]
    return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

  def _prompt_tokens(self, prompts, with_image) -> list[list[int]]:
    """Each prompt's own tokens, with the line break that parts it from a picture."""
    return self._tokens(
      [f"\n{p}" if seen else p for p, seen in zip(prompts, with_image, strict=True)]
    )

  def _framed(self, prompt: list[int], with_image: bool) -> list[int]:
    """Everything before the answer."""
    picture = [self.image_id] * self.image_tokens if with_image else []
    return self._frame.user + picture + prompt + self._frame.assistant

  def _check(self, tokens: list[int], key: str, part: str):
    if not self._control_ids.isdisjoint(tokens):
      found = next(t for t in tokens if t in self._control_ids)
      raise ValueError(
        f"the {part} of row {key!r} contains {self.tokenizer.convert_ids_to_tokens(found)!r}, "
        "which is reserved for the conversation's frame: remove it from the text"
      )

  def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
    return tokens_of(self.tokenizer, texts)


def check_tokenizer(tokenizer: Tokenizer):
  """Raises ValueError for a tokenizer that lacks one of SPECIAL_TOKENS."""
  vocabulary = tokenizer.get_vocab()
  missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
  if missing:
    raise ValueError(
      f"the tokenizer lacks {', '.join(missing)}: add it with "
      "tokenizer.add_special_tokens and resize the model's embedding"
    )


def tokens_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
  """Each text's tokens, without any frame."""
  # The Rust tokenizer underneath, in one call: a tenth of the cost of one Python call a text.
  batch = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
  return [found.ids for found in batch]


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | os.PathLike) -> Tokenizer:
  """Trains a byte-level BPE of at most `vocab_size` tokens and saves it under `folder`.

  Digits stand alone, each box token of `corpus.tasks` is one token of ordinary text, and the files
  are Hugging Face's, chat template included. Equal texts give equal bytes.

  Raises ValueError where `vocab_size` has no room for the bytes and the added tokens.
  """
  smallest = 256 + len(SPECIAL_TOKENS) + len(BOX_TOKENS)
  if vocab_size < smallest:
    raise ValueError(f"vocab_size is {vocab_size}: bytes and added tokens alone are {smallest}")
  boxes = re.compile("|".join(map(re.escape, BOX_TOKENS)))
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size - len(BOX_TOKENS),
    special_tokens=list(SPECIAL_TOKENS),
    initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  # Each text with its frame, whose words then become tokens; the control tokens split it as here.
  words = [part for frame in (USER, ASSISTANT) for part in re.split(r"<\|\w+\|>", frame) if part]
  framed = itertools.chain.from_iterable([boxes.sub(" ", text), *words] for text in texts)
  model.train_from_iterator(framed, trainer)
  # Not special: decoding keeps them, and a box in a text is read as its four tokens.
  model.add_tokens(
    [tokenizers.AddedToken(token, normalized=False, special=False) for token in BOX_TOKENS]
  )
  return save_tokenizer(model, folder)


def save_tokenizer(model: tokenizers.Tokenizer, folder: str | os.PathLike) -> Tokenizer:
  """Writes `model` with our control tokens and chat template; returns it as read from `folder`."""
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=model,
    eos_token=END,
    pad_token=PAD,
    extra_special_tokens=[START, IMAGE],
    clean_up_tokenization_spaces=False,
  )
  tokenizer.chat_template = CHAT_TEMPLATE
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  tokenizer.save_pretrained(folder)
  return load_tokenizer(folder)


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
  """A tokenizer from a local folder in Hugging Face's format; nothing is looked up elsewhere."""
  if not pathlib.Path(folder).is_dir():
    raise FileNotFoundError(f"no tokenizer folder at {folder}")
  # Without them transformers makes an empty tokenizer of config.json alone, and says nothing.
  files = ("tokenizer.json", "vocab.json", "tokenizer.model")
  if not any((pathlib.Path(folder) / name).exists() for name in files):
    raise FileNotFoundError(f"{folder} holds no tokenizer: none of {', '.join(files)} is there")
  return transformers.AutoTokenizer.from_pretrained(os.fspath(folder), local_files_only=True)
