"""Questions about pictures as a LLaVA-NeXT is asked them: in the chat template of its folder."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import jinja2
import numpy as np
from etils import epath

from mixjax.corpus import pixels
from mixjax.data.encode import (
  CHAT_TEMPLATE,
  END,
  IMAGE,
  SPECIAL_TOKENS,
  Tokenizer,
  check_tokenizer,
  tokens_of,
)
from mixjax.evals.benchmarks import Question
from mixjax.models.anyres import Anyres, Size

NAMED = 20  # wrong questions that an error names


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question up to its answer: ids int32[t], of them as many <image> as `size` takes."""

  ids: np.ndarray
  picture: epath.Path
  size: Size


@dataclasses.dataclass(frozen=True)
class Asker:
  """Questions as tokens. Raises ValueError for a tokenizer that lacks `encode.SPECIAL_TOKENS`."""

  tokenizer: Tokenizer
  geometry: Anyres
  template: str = CHAT_TEMPLATE

  def __post_init__(self):
    check_tokenizer(self.tokenizer)

  def ask(self, questions: Sequence[Question], folder: epath.PathLike) -> list[Asked]:
    """Each question, about a picture in `folder`; all pictures are read to their ends.

    Raises ValueError that names the questions whose picture cannot be read, or whose texts hold
    what is reserved for the conversation's frame.
    """
    paths = [epath.Path(folder) / question.image for question in questions]
    with concurrent.futures.ThreadPoolExecutor() as pool:
      once = list(dict.fromkeys(paths))
      sizes = dict(zip(once, pool.map(_size, once), strict=True))
    wrong = []
    for question, path in zip(questions, paths, strict=True):
      texts = (question.prompt, question.answer, *question.choices)
      if isinstance(sizes[path], str):
        wrong.append(f"{question.id}: {path}: {sizes[path]}")
      elif held := [token for token in SPECIAL_TOKENS if any(token in text for text in texts)]:
        wrong.append(f"{question.id}: a text holds {', '.join(held)}, which is reserved: remove it")
    if wrong:
      more = [f"and {len(wrong) - NAMED} more"] if len(wrong) > NAMED else []
      raise ValueError("questions that cannot be asked:\n  " + "\n  ".join(wrong[:NAMED] + more))
    image = self.tokenizer.convert_tokens_to_ids(IMAGE)
    asked = []
    texts = [self.framed(question.prompt) for question in questions]
    for ids, path in zip(tokens_of(self.tokenizer, texts), paths, strict=True):
      at, size = ids.index(image), sizes[path]
      ids = ids[:at] + [image] * self.geometry.num_tokens(size) + ids[at + 1 :]
      asked.append(Asked(np.array(ids, np.int32), path, size))
    return asked

  def answers(self, texts: Sequence[str]) -> list[list[int]]:
    """Each answer's tokens and <|im_end|>, as training teaches them."""
    end = self.tokenizer.convert_tokens_to_ids(END)
    return [[*found, end] for found in tokens_of(self.tokenizer, texts)]

  def framed(self, prompt: str) -> str:
    """A picture and a prompt as text up to the answer.

    Raises ValueError for a template that has no one place for the picture.
    """
    parts = [{"type": "image"}, {"type": "text", "text": prompt}]
    for content in (parts, f"{IMAGE}\n{prompt}"):  # some templates take texts alone
      try:
        framed = self.tokenizer.apply_chat_template(
          [{"role": "user", "content": content}],
          chat_template=self.template,
          tokenize=False,
          add_generation_prompt=True,
        )
      except (TypeError, jinja2.TemplateError):
        continue
      if framed.count(IMAGE) == 1 and prompt.strip() in framed:
        return framed
    raise ValueError(
      f"the chat template of the model's folder does not place {IMAGE} once before the prompt "
      f"{prompt!r}: mend chat_template.jinja, or remove it to ask as mixjax trains"
    )

  def decode(self, ids: Sequence[int]) -> str:
    """What was said, without special tokens."""
    return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def template_of(folder: str | os.PathLike, tokenizer: Tokenizer) -> str:
  """The chat template that a folder brings, its processor's before its tokenizer's, or ours."""
  older = pathlib.Path(folder) / "chat_template.json"
  if older.exists() and not (pathlib.Path(folder) / "chat_template.jinja").exists():
    return json.loads(older.read_text())["chat_template"]
  return tokenizer.chat_template or CHAT_TEMPLATE


def ends_of(folder: str | os.PathLike, tokenizer: Tokenizer) -> tuple[int, ...]:
  """The tokens that end an answer: <|im_end|>, and those of the folder's generation_config.json."""
  ends = [tokenizer.convert_tokens_to_ids(END)]
  path = pathlib.Path(folder) / "generation_config.json"
  if path.exists():
    said = json.loads(path.read_text()).get("eos_token_id")
    ends += said if isinstance(said, list) else [] if said is None else [said]
  return tuple(dict.fromkeys(ends))


def _size(path: epath.Path) -> Size | str:
  """(height, width) of a picture that can be read to its end, or why it cannot."""
  try:
    return pixels.measure(path.read_bytes(), pixels.LIMITS, decode=True)
  except pixels.BadPicture as error:
    return str(error)
  except OSError as error:
    return error.strerror or type(error).__name__
