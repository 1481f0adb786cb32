"""The five kinds of supervision, their instructions, and boxes as text (paper, section 3.2)."""

import re
from collections.abc import Sequence

CAPTION, OCR, GROUNDED, DETECTION, VQA = TASKS = ("caption", "ocr", "grounded", "detection", "vqa")

PROMPTS = {
  CAPTION: "Describe this image in detail.",
  OCR: "What text appears in this image?",
  GROUNDED: "Describe this image with grounded regions.",
  DETECTION: "Detect all objects.",
}

NO_TEXT = "no text"

# Coordinates are quantised to this many bins; each bin is one token of the gallery's tokenizer.
BINS = 16
BOX_TOKENS = tuple(f"<{i}>" for i in range(BINS))

Box = tuple[
  float, float, float, float
]  # ymin, xmin, ymax, xmax, each a share of the image in [0, 1]


def write_box(box: Sequence[float]) -> str:
  """`<ymin><xmin><ymax><xmax>`, the bin of each coordinate (Pix2Seq; paper, section 3.2)."""
  ymin, xmin, ymax, xmax = box
  if not (0 <= ymin < ymax <= 1 and 0 <= xmin < xmax <= 1):
    raise ValueError(f"box {tuple(box)} is not ymin < ymax, xmin < xmax within [0, 1]")
  return "".join(BOX_TOKENS[min(int(c * BINS), BINS - 1)] for c in box)


def read_boxes(text: str) -> list[Box]:
  """Every well-formed box in `text`, widened to whole bins; malformed ones are left out."""
  boxes = []
  for match in re.finditer(r"((?:<\d+>){4})", text):
    ymin, xmin, ymax, xmax = (int(c) for c in re.findall(r"\d+", match.group(1)))
    if ymin <= ymax < BINS and xmin <= xmax < BINS:
      boxes.append((ymin / BINS, xmin / BINS, (ymax + 1) / BINS, (xmax + 1) / BINS))
  return boxes
