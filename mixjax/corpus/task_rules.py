"""The task of a row from its words: the instruction's wording, boxes, and the answer's length.

The wordings are those of the corpora in use: LLaVA's lists of instructions for captions, VQAv2's
and GQA's questions, TextVQA's, RefCOCO's regions, and the paper's own four (section 3.2).
"""

import collections
import re
from collections.abc import Sequence

from mixjax.corpus import boxes, tasks
from mixjax.corpus.example import IMAGE, Turn

RULE, DEFAULT = "rule", "default"

_LONG = 50  # words: an answer that describes, whatever was asked
_SENTENCE = 8  # words: an answer that describes, where the question is open

_TASK_OF_PROMPT = {prompt.lower(): task for task, prompt in tasks.PROMPTS.items()}

# TextCaps and TextVQA list what an OCR engine read: that is no instruction to read.
_GIVEN = re.compile(r"\n?reference ocr tokens?:.*", re.IGNORECASE | re.DOTALL)

_BOXES = re.compile(
  r"\bbound|\bbox(es)?\b|\bcoordinate|\bdetect|\blocate|\blocali[sz]|\bregions?\b|\bground(ed|ing)\b|"
  r"\bwhere (is|are)\b",
  re.IGNORECASE,
)
_DETECT = re.compile(
  r"\bdetect|\blocali[sz]e\b|\blocate\b|\b(find|list|mark|point out) (all|every|each)\b|"
  r"\bbounding box",
  re.IGNORECASE,
)
_OCR = re.compile(
  r"\bocr\b|\btranscri(be|ption)|\bread (out )?(all |any |aloud )?(of )?(the |this |what )?"
  r"(text|words?|sign|label|letters|handwrit\w+|document|writing)|"
  r"\bwhat (text|words?) (is|are|appears?|can|do|does)|\b(text|words|letters|characters) "
  r"(in|on|from|of|within|visible in|shown in|present in) (the|this) "
  r"(image|picture|photo|document|sign|page|screenshot|figure)|"
  r"\b(extract|recogni[sz]e|convert|write out|type out) (all |any |every )?(of )?(the )?(visible )?"
  r"(text|words|characters|formula|equation|handwriting)|"
  r"\bwhat does (the|this) (sign|text|label|note|page|document) (say|read)|\bwhat is written\b|"
  r"\bwhat('s| is) the (text|writing)\b",
  re.IGNORECASE,
)
_CAPTION = re.compile(
  r"^(please |can you |could you )?(provide|give|write|share|create|compose|generate|render|"
  r"present|offer|produce|draft)\b.{0,40}\b(caption|descripti\w+|summary|overview|explanation|"
  r"narrative|account|rundown|portrayal|interpretation)|"
  r"^(please |can you |could you )?(describe|caption|summari[sz]e|narrate|portray|illustrate|"
  r"depict|characteri[sz]e|explain|clarify|analy[sz]e|break down|walk through|examine|express)"
  r"\b.{0,60}\b(image|picture|photo(graph)?|scene|visual|chart|figure|diagram|map|graph)|"
  r"^(please )?(describe|caption)( it| this| the following)?\W*$|"
  r"\b(image|picture|photo) (caption|description)\b",
  re.IGNORECASE | re.DOTALL,
)
# Asked so, an image may be named in a word or described.
_OPEN = re.compile(
  r"\bwhat (do you (see|think is going on)|is happening|is going on|is this (photo|picture|image)|"
  r"is (shown|depicted|the content))\b.{0,30}\b(image|picture|photo|scene|about)|"
  r"^what('s| is) (in|happening in|the content of) (the|this) (image|picture|photo|scene)\W*$",
  re.IGNORECASE | re.DOTALL,
)
_QUESTION = re.compile(
  r"\?|^(what|which|who|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|would|has|"
  r"have)\b|\banswer\b|\bquestion\b|\bchoose\b|\boptions?\b|\bsolve\b|\bcalculate\b|\bcount\b",
  re.IGNORECASE,
)


def label(turns: Sequence[Turn], has_images: bool) -> tuple[str, str]:
  """(task, RULE), or ("vqa", DEFAULT) where nothing tells the task.

  Of several turns the task of most; of equals, the first.
  """
  found = [of_turn(turn, has_images) for turn in turns]
  told = collections.Counter(task for task in found if task)
  return (told.most_common(1)[0][0], RULE) if told else (tasks.VQA, DEFAULT)


def of_turn(turn: Turn, has_images: bool) -> str:
  """The task of one turn; empty where nothing tells it."""
  prompt = _GIVEN.sub("", turn.prompt.replace(IMAGE, " ")).strip()
  if task := _TASK_OF_PROMPT.get(prompt.lower()):
    return task
  if not has_images:
    return tasks.VQA if _QUESTION.search(prompt) else ""
  if _true_boxes(turn.answer, prompt):
    return _boxed(prompt, turn.answer)
  if _true_boxes(prompt, prompt):
    return tasks.GROUNDED
  if _OCR.search(prompt):
    return tasks.OCR
  words = len(turn.answer.split())
  if not prompt or _CAPTION.search(prompt) or (_OPEN.search(prompt) and words >= _SENTENCE):
    return tasks.CAPTION
  if _QUESTION.search(prompt):
    return tasks.VQA
  return tasks.CAPTION if words >= _LONG else ""


def _true_boxes(text: str, prompt: str) -> bool:
  """Whether a text holds boxes: four whole numbers in brackets may be anything unless asked for."""
  found = boxes.find(text)
  plain = (boxes.BRACKETS, boxes.CORNERS)
  return any(box.form not in plain or any(n % 1 for n in box.numbers) for box in found) or bool(
    found and _BOXES.search(prompt)
  )


def _boxed(prompt: str, answer: str) -> str:
  """A list of labels with boxes is a detection; boxes in running text are a grounded caption. Where
  one thing is, is a question.
  """
  if prompt.endswith("?") and len(boxes.find(answer)) == 1:
    return tasks.VQA
  if _DETECT.search(prompt):
    return tasks.DETECTION
  if re.search(r"\bdescri|\bcaption|\bground", prompt, re.IGNORECASE):
    return tasks.GROUNDED
  around = boxes.without(answer)
  running = re.search(r"\b(and|with|is|are|on|in|of|the|an?)\b", " ".join(around).lower())
  lengths = [len(part.split()) for part in around]
  return tasks.GROUNDED if running or max(lengths) > 4 else tasks.DETECTION
