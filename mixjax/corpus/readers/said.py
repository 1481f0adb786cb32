"""What is said in a row, under the names that the corpora in use give it: SHAPES lists them all."""

import collections
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from mixjax.corpus import tasks
from mixjax.corpus.example import IMAGE, Turn
from mixjax.corpus.readers.fault import BAD_MARKERS, BAD_UTF8, MALFORMED, NO_TEXT, BadRow

Said = list[tuple[str, str]]  # (prompt, answer), one a turn

_HUMAN, _MODEL, _SYSTEM = ("human", "user"), ("gpt", "assistant", "model"), ("system",)


def conversation(fields: Mapping[str, Any]) -> tuple[Said, str]:
  """(prompt, answer) of each turn, and the task where the fields' names alone tell it.

  Raises BadRow for a row without texts, or with texts that are no conversation.
  """
  for names, read, task in SHAPES:
    if all(fields.get(name) is not None for name in names):
      said = read(*(fields[name] for name in names))
      for prompt, answer in said:
        _check_text(prompt)
        _check_text(answer)
        if not answer.strip():
          raise BadRow(NO_TEXT, f"the answer to {prompt[:60]!r} is empty")
      if not said:
        raise BadRow(NO_TEXT, f"{names[0]!r} holds nothing")
      return said, task
  known = "; ".join(" + ".join(names) for names, _, _ in SHAPES)
  raise BadRow(MALFORMED, f"fields {sorted(fields)}; a row is known by one of: {known}")


def _check_text(text: str) -> None:
  try:
    text.encode()
  except UnicodeEncodeError as error:
    around = text[max(0, error.start - 20) : error.start]
    raise BadRow(BAD_UTF8, f"after {around!r}") from error


def rows_of(value: Any) -> list[Mapping[str, Any]]:
  """A list of mappings, which some corpora store as a mapping of lists. Raises BadRow."""
  if isinstance(value, Mapping):
    columns = {name: column for name, column in value.items() if isinstance(column, list)}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) == 1:
      value = [{n: c[i] for n, c in columns.items()} for i in range(lengths.pop())]
  if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
    raise BadRow(MALFORMED, f"a conversation is a list of mappings, not {str(value)[:80]!r}")
  return value


def _dialogue(value: Any) -> Said:
  """`from` and `value`, or `role` and `content`, or `user` and `assistant` a turn."""
  messages = rows_of(value)
  if messages and "user" in messages[0]:
    return [(_text(m.get("user")), _text(m.get("assistant"))) for m in messages]
  said: list[list[list[str]]] = []
  system: list[str] = []
  for message in messages:
    who = message.get("from", message.get("role"))
    text = _text(message.get("value", message.get("content")))
    if who in _SYSTEM:
      system.append(text)
    elif who in _HUMAN:
      if not said or said[-1][1]:
        said.append([[], []])
      said[-1][0].append(text)
    elif who in _MODEL:
      if not said:
        said.append([[], []])
      said[-1][1].append(text)
    else:
      raise BadRow(MALFORMED, f"{who!r} speaks; known: {', '.join(_HUMAN + _MODEL + _SYSTEM)}")
  if said:
    said[0][0][:0] = system
  if said and not said[-1][1]:
    raise BadRow(NO_TEXT, "the last prompt has no answer")
  return [("\n".join(prompts), "\n".join(answers)) for prompts, answers in said]


def _text(value: Any) -> str:
  """A string, a number, or a list of {"type": "text" or "image", ...} parts."""
  if isinstance(value, str):
    return value
  if isinstance(value, int | float) and math.isfinite(value):  # a numeric column of answers
    return str(value)
  if isinstance(value, list):
    parts = [
      IMAGE if part.get("type") == "image" else part.get("text") or ""
      for part in value
      if isinstance(part, Mapping)
    ]
    return "\n".join(part for part in parts if part)
  raise BadRow(NO_TEXT, f"text is {value!r:.40}")


def _asked(prompt: Any, answers: Any) -> Said:
  return [(_text(prompt), _one(answers))]


def _one(answers: Any) -> str:
  """Of several answers to one question the most frequent, and of equals the first."""
  if not isinstance(answers, list):
    return _text(answers)
  texts = [_text(a.get("answer") if isinstance(a, Mapping) else a) for a in answers]
  if not texts:
    raise BadRow(NO_TEXT, "no answer")
  return collections.Counter(texts).most_common(1)[0][0]


def _chosen(prompt: Any, choices: Any, index: Any) -> Said:
  """A question of several choices: their letters in the prompt, one of them for an answer."""
  known = isinstance(choices, list) and isinstance(index, int | float | str)
  if not (known and re.fullmatch(r"\d+(\.0)?", str(index)) and float(index) < len(choices)):
    raise BadRow(MALFORMED, f"choice {index} of {str(choices)[:60]}")
  index = int(float(index))
  letters = [chr(ord("A") + i) for i in range(len(choices))]
  lines = [f"{letter}. {_text(c)}" for letter, c in zip(letters, choices, strict=True)]
  return [("\n".join([_text(prompt), *lines]), letters[index])]


def _captioned(captions: Any) -> Said:
  """A turn a caption, each asked for in the words of the task."""
  if isinstance(captions, Mapping):
    captions = rows_of(captions)
  if isinstance(captions, list):
    texts = [_text(c.get("text") if isinstance(c, Mapping) else c) for c in captions]
  else:
    texts = [_text(captions)]
  return [(tasks.PROMPTS[tasks.CAPTION], text) for text in texts]


def _plain(text: Any) -> Said:
  return [("", _text(text))]


def _read_out(text: Any, _words: Any) -> Said:
  return [(tasks.PROMPTS[tasks.OCR], _text(text))]


# The names under which a row says something, most telling first, and the task that they imply.
SHAPES: tuple[tuple[tuple[str, ...], Callable[..., Said], str], ...] = (
  (("conversations",), _dialogue, ""),
  (("messages",), _dialogue, ""),
  (("texts",), _dialogue, ""),
  (
    ("turns",),
    lambda value: [(_text(t.get("prompt")), _text(t.get("answer"))) for t in rows_of(value)],
    "",
  ),
  (("context", "choices", "correct_choice_idx"), _chosen, tasks.VQA),
  (("prompt", "answer"), _asked, ""),
  (("question", "answer"), _asked, ""),
  (("question", "answers"), _asked, ""),
  (("context", "answers"), _asked, ""),
  (("instruction", "response"), _asked, ""),
  (("instruction", "output"), _asked, ""),
  (("caption",), _captioned, tasks.CAPTION),
  (("captions",), _captioned, tasks.CAPTION),
  (("text", "words_boxes"), _read_out, tasks.OCR),
  (("text",), _plain, ""),
)


def normalised(said: Said, images: int) -> tuple[Turn, ...]:
  """Turns whose markers say no more than they must: none where all pictures come first.

  Raises BadRow where there are more markers than images, or a marker in an answer.
  """
  marked = sum(prompt.count(IMAGE) for prompt, _ in said)
  spoken = sum(answer.count(IMAGE) for _, answer in said)
  if marked > images or spoken:
    raise BadRow(BAD_MARKERS, f"{marked + spoken} markers ({spoken} in answers), {images} images")
  prompts = [prompt.strip() for prompt, _ in said]
  leading = re.match(rf"(?:\s*{IMAGE})*\s*", prompts[0])[0]
  if marked and leading.count(IMAGE) == marked:
    prompts[0] = prompts[0][len(leading) :]
  return tuple(Turn(p, answer.strip()) for p, (_, answer) in zip(prompts, said, strict=True))
