"""OCR by an engine off the shelf: RapidOCR, whose PP-OCRv6 models come in its wheel.

It needs requirements-labellers.txt, runs on a CPU through ONNX, and looks nothing up.
"""

import hashlib
import importlib.metadata
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from mixjax.corpus import tasks
from mixjax.corpus.labellers.labeller import Answer, Refusal, opened
from mixjax.corpus.pixels import rgb

PACKAGES = ("rapidocr", "onnxruntime")
SLIMMEST = 4  # longer side over shorter


class Ocr:
  """Reads a picture's text in raster order; a picture without any gets tasks.NO_TEXT.

  Snippets of which the engine is less than `confidence` sure are left out. `threads` is how many
  cores it takes, -1 for all.
  """

  task = tasks.OCR
  prompt = tasks.PROMPTS[tasks.OCR]

  def __init__(self, confidence: float = 0.5, threads: int = -1):
    """Raises ImportError naming the packages where they are not installed."""
    try:
      import rapidocr
      import rapidocr.main
    except ImportError as error:
      raise ImportError(
        "the OCR labeller needs RapidOCR: pip install -r requirements-labellers.txt"
      ) from error
    self._engine = rapidocr.RapidOCR(
      params={
        "Global.log_level": "error",
        "Global.text_score": confidence,
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
      }
    )
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    self.name = f"rapidocr {versions['rapidocr']}"
    models = pathlib.Path(rapidocr.main.__file__).parent / "models"
    self.provenance = {
      "labeller": self.name,
      "task": self.task,
      "prompt": self.prompt,
      "confidence": confidence,
      "versions": versions,
      "models": {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(models.glob("*.onnx"))
      },
    }

  def label(self, images: Sequence[bytes]) -> list[Answer | Refusal]:
    """The text of each picture; see the class."""
    return [self._read(data) for data in images]

  def _read(self, data: bytes) -> Answer | Refusal:
    image = opened(data)
    if isinstance(image, Refusal):
      return image
    found = self._engine(np.asarray(padded(rgb(image)))[:, :, ::-1])  # it takes BGR
    if found.txts is None:
      return Answer(tasks.NO_TEXT)
    order = raster_order(np.asarray(found.boxes, np.float64))
    snippets = [found.txts[i].strip() for i in order]
    return Answer(" ".join(filter(None, snippets)) or tasks.NO_TEXT)


def padded(image: Image.Image) -> Image.Image:
  """A strip in the middle of a picture SLIMMEST times as long as wide, in its first pixel's colour.

  The engine enlarges the shorter side to hundreds of pixels: a strip would take minutes, or raise.
  """
  least = -(-max(image.size) // SLIMMEST)
  if min(image.size) >= least:
    return image
  width, height = (max(side, least) for side in image.size)
  canvas = Image.new(image.mode, (width, height), image.getpixel((0, 0)))
  canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
  return canvas


def raster_order(corners: Float[np.ndarray, "n 4 2"]) -> list[int]:
  """Snippets line by line from the top, and each line from the left; corners are (x, y).

  A snippet is on a line if its middle lies within the height of the line's first one.
  """
  top, bottom = corners[:, :, 1].min(1), corners[:, :, 1].max(1)
  middle, left = (top + bottom) / 2, corners[:, :, 0].min(1)
  lines: list[list[int]] = []
  for i in np.argsort(middle, kind="stable").tolist():
    if lines and top[lines[-1][0]] <= middle[i] <= bottom[lines[-1][0]]:
      lines[-1].append(i)
    else:
      lines.append([i])
  return [i for line in lines for i in sorted(line, key=lambda i: left[i])]
