"""The processor's files, opened by transformers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import CONFIG

from mixjax.data import encode
from mixjax.data import tiles as tiles_lib
from mixjax.models import clip
from mixjax.models.hf_processor import processor_files


def test_transformers_prepares_pictures_and_prompts_as_we_do(tmp_path):
  transformers = pytest.importorskip("transformers")
  pytest.importorskip("torch")
  tokenizer = encode.train_tokenizer(["What is this?"] * 3, 400, tmp_path)
  for name, content in processor_files(CONFIG, "<image>").items():
    (tmp_path / name).write_text(json.dumps(content))
  processor = transformers.LlavaNextProcessor.from_pretrained(tmp_path)
  chance = np.random.default_rng(0)
  for size in ((28, 56), (90, 31), (17, 60)):
    image = Image.fromarray(chance.integers(0, 256, (*size, 3), np.uint8))
    made = processor(images=image, text="<image>\nWhat?", return_tensors="pt")
    ours = clip.preprocess(jnp.asarray(tiles_lib.cut(image, CONFIG.anyres)))
    theirs = made["pixel_values"][0].numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    seen = int((made["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")).sum())
    assert seen == CONFIG.anyres.num_tokens(size)
