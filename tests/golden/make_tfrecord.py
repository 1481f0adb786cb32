"""Writes tests/golden/tfrecord: a builder's folder in TFRecord, which TFDS writes with TensorFlow.

  pip install tensorflow-cpu==2.21.0 tensorflow-datasets==4.9.10 importlib_resources==7.1.0 pillow
  python tests/golden/make_tfrecord.py

Run anywhere but in this project's environment, which has no TensorFlow.
"""

import io
import pathlib
import shutil
import tempfile

import tensorflow_datasets as tfds
from PIL import Image

FOLDER = pathlib.Path(__file__).parent / "tfrecord"


def png(gray: int) -> io.BytesIO:
  out = io.BytesIO()
  Image.new("L", (6, 4), gray).convert("RGB").save(out, "PNG")
  return io.BytesIO(out.getvalue())


def rows():
  """Row i has i turns and i pictures."""
  for i in (1, 2):
    said = [{"from": "human", "value": f"Wo ist München {t}?"} for t in range(i)]
    answered = [{"from": "gpt", "value": f"dort {t}"} for t in range(i)]
    conversation = [m for pair in zip(said, answered, strict=True) for m in pair]
    yield (
      i,
      {"id": f"row{i}", "conversations": conversation, "images": [png(9 * t) for t in range(i)]},
    )


class Talk(tfds.core.GeneratorBasedBuilder):
  """Conversations about pictures."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    text = tfds.features.Text()
    features = {
      "id": text,
      "conversations": tfds.features.Sequence({"from": text, "value": text}),
      "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": rows()}

  def _generate_examples(self):
    raise NotImplementedError("the split is given whole")


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as folder:
    builder = Talk(data_dir=folder, file_format="tfrecord")
    builder.download_and_prepare()
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(builder.data_dir, FOLDER)
