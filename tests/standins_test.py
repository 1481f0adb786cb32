"""The stand-ins: the shipped ones have the layouts they claim, and the job makes such files."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from mixjax.corpus.gallery.picture import Thing
from mixjax.data import encode
from mixjax.jobs import standins
from mixjax.jobs.atlas import STANDINS
from mixjax.models import hf


def test_the_tokenizer_opens_with_transformers_and_knows_its_boxes():
  tokenizer = encode.load_tokenizer(STANDINS / "tokenizer")
  assert len(tokenizer("cat <3><0><15><7>")["input_ids"]) <= 6
  said = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
  assert said == "<|im_start|>user\nhello<|im_end|>\n"


def test_the_target_has_more_than_four_times_the_proxys_parameters():
  def size(name):
    import jax

    return sum(x.size for x in jax.tree.leaves(hf.load_llava(STANDINS / name, tower=False)))

  assert size("target") > 4 * size("proxy")


def test_proxy_and_target_share_the_tower_of_the_clip():
  clip = hf.load_clip(STANDINS / "clip")
  for name in ("proxy", "target"):
    tower = hf.load_llava(STANDINS / name).vision
    np.testing.assert_array_equal(tower.patch.kernel[...], clip.vision.patch.kernel[...])


def test_the_shipped_weights_are_a_few_megabytes():
  files = [p for p in pathlib.Path(STANDINS).rglob("*") if p.is_file()]
  assert sum(p.stat().st_size for p in files) < 12e6


def test_but_for_the_stem_the_keys_are_those_of_transformers(tmp_path):
  pytest.importorskip("torch")
  import transformers

  config = transformers.LlavaConfig.from_pretrained(STANDINS / "proxy")
  transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
  theirs, ours = (
    load_file(folder / "model.safetensors") for folder in (tmp_path, STANDINS / "proxy")
  )
  assert theirs.keys() <= ours.keys()
  assert all(".embeddings.stem." in key for key in ours.keys() - theirs.keys())


def test_a_patch_names_what_stands_there():
  tokenizer = encode.load_tokenizer(STANDINS / "tokenizer")
  cat = set(tokenizer("cat")["input_ids"])
  # The cat fills the upper left quarter; the milk a strip that covers a tenth of its patches.
  things = (Thing("cat", (0.0, 0.0, 0.5, 0.5)), Thing("milk", (0.9, 0.0, 0.925, 1.0)))
  image = np.zeros((1, 72, 72, 3), np.uint8)
  rows = standins.PretrainRows(image, [things], np.zeros(1, int), [""], [""], [""])
  named = np.unpackbits(standins._named(rows, tokenizer, 4, 1024), axis=-1)[0].reshape(4, 4, 1024)
  for row, column in np.ndindex(4, 4):
    found = set(np.flatnonzero(named[row, column]))
    assert found == (cat if row < 2 and column < 2 else set())


def test_naming_counts_patches_where_something_stands_and_pictures_alike():
  named = np.zeros((2, 3, 4), np.float32)
  named[0, 0, 1] = named[1, 0, 1] = named[1, 1, 1] = 1  # one patch of the first picture, two
  logits = np.zeros((2, 3, 4), np.float32)  # of the second; all four names are as likely
  assert standins._naming(logits, named) == pytest.approx(np.log(4))
  elsewhere = logits.copy()
  elsewhere[:, 2, 0] = 9.0  # a wrong name where nothing stands
  assert standins._naming(elsewhere, named) == pytest.approx(np.log(4))
  read = logits.copy()
  read[0, 0, 1] = 30.0  # the first picture is read: half of the loss is gone
  assert standins._naming(read, named) == pytest.approx(np.log(4) / 2)


def test_base_rows_are_half_aligned_a_quarter_beside_any_picture_a_quarter_text():
  picture = np.repeat(np.arange(50), 2)
  rows = standins.PretrainRows(
    np.zeros((50, 2, 2, 3), np.uint8), [()] * 50, picture, [""] * 100, [""] * 100, [""] * 100
  )
  aligned = np.arange(0, 100, 2)
  with_image, text_only, shown = standins._base_rows(np.random.default_rng(0), 64, rows, aligned)
  assert (len(with_image), len(text_only), len(shown)) == (48, 16, 64)
  assert np.isin(with_image[:32], aligned).all()
  np.testing.assert_array_equal(shown[:32], picture[with_image[:32]])
  assert np.mean(shown[32:48] == picture[with_image[32:]]) < 0.3


@pytest.mark.slow
def test_the_job_makes_them(run_main, tmp_path):
  run_main("configs/standins.py:tiny", tmp_path)
  for name in ("clip", "proxy", "target"):
    assert json.loads((tmp_path / name / "config.json").read_text())["architectures"]
  hf.load_llava(tmp_path / "target")
