"""Images embedded part by part: restarts, hosts and damage change no bits."""

import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mixjax.atlas import embed, parts
from mixjax.corpus.example import Example, Turn
from mixjax.models import clip as clip_lib
from mixjax.models import hf

GOLDEN = pathlib.Path(__file__).parent / "golden" / "clip"
ORIGIN = parts.Origin("corpus", "tower")


class Tower:
  """Stands in for the network: what it returns depends on the image alone."""

  size = 4

  def __init__(self):
    self.images = 0

  def __call__(self, images):
    self.images += len(images)
    x = np.stack(images).reshape(len(images), -1)[:, :6].astype(np.float32)
    return x, x.reshape(-1, 2, 3).astype(np.float16)


def picture(i):
  buffer = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(buffer, "PNG")
  return buffer.getvalue()


def corpus(broken=(4, 11)):
  """25 images with two rows each, some that cannot be read, and text in between."""
  for i in range(25):
    image = b"torn" if i in broken else picture(i)
    for turn in ("a", "b"):
      other = ("other", picture(99)) if turn == "a" else ()
      keys, images = zip((f"image{i}", image), *([other] if other else []), strict=True)
      yield Example(f"{i}{turn}", "vqa", (Turn("?", turn),), keys, images, domain=f"d{i % 3}")
    yield Example(f"text{i}", "vqa", (Turn("?", "!"),))


def embedded(folder, *hosts, tower=None, origin=ORIGIN, examples=corpus):
  """Every host in turn, then all parts joined."""
  for index, count in hosts or [(0, 1)]:
    names = parts.write(tower or Tower(), examples(), folder / "parts", origin, 4, index, count)
  return names, parts.join(folder / "parts", names, origin, folder)


def files(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_parts_hold_the_first_picture_of_every_row(tmp_path):
  names, card = embedded(tmp_path)
  assert names[1] == "000000004-000000008" and len(names) == 7
  good = [i for i in range(25) if i not in (4, 11)]
  assert card.images == [f"image{i}" for i in good]
  assert card.domains == [f"d{i % 3}" for i in good]
  assert card.unreadable.keys() == {"image4", "image11"}
  np.testing.assert_array_equal(np.load(tmp_path / "embeddings.npy")[:, 0], good)
  features = np.load(tmp_path / "features.npy")
  assert features.shape == (23, 2, 3) and features.dtype == np.float16
  np.save(tmp_path / "again.npy", features)
  assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "features.npy").read_bytes()


def test_hosts_share_the_parts(tmp_path):
  for folder in ("one", "two", "three"):
    (tmp_path / folder).mkdir()
  embedded(tmp_path / "one")
  embedded(tmp_path / "two", (1, 2), (0, 2))
  embedded(tmp_path / "three", (2, 3), (0, 3), (1, 3))
  assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")
  tower = Tower()
  parts.write(tower, corpus(), tmp_path / "alone", ORIGIN, 4, 1, 3)
  assert tower.images == 7  # of the images 4 to 7 and 16 to 19, all but one


def test_only_what_is_missing_damaged_or_of_another_origin_is_embedded(tmp_path):
  embedded(tmp_path)
  whole = files(tmp_path)
  again = Tower()
  embedded(tmp_path, tower=again)
  assert again.images == 0
  (tmp_path / "parts" / "000000008-000000012.json").unlink()
  path = tmp_path / "parts" / "000000000-000000004.features.npy"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(bytes(data))
  names = parts.write(tower := Tower(), [], tmp_path / "parts", ORIGIN, 4)
  assert names == [] and tower.images == 0
  with pytest.raises(ValueError, match=r"part 000000000-000000004 .* is missing or damaged"):
    parts.join(tmp_path / "parts", ["000000000-000000004"], ORIGIN, tmp_path)
  embedded(tmp_path, tower=again)
  assert again.images == 3 + 4 and files(tmp_path) == whole
  embedded(tmp_path, tower=again, origin=parts.Origin("corpus", "another"))
  assert again.images == 7 + 23


def test_features_may_be_left_out(tmp_path):
  _, card = embedded(tmp_path, origin=parts.Origin("corpus", "tower", features=False))
  assert card.sha256.keys() == {"embeddings"} and not list(tmp_path.rglob("*features*"))


def test_a_killed_part_is_made_again(tmp_path):
  def killed():
    for i, example in enumerate(corpus()):
      if i == 40:
        raise KeyboardInterrupt
      yield example

  with pytest.raises(KeyboardInterrupt):
    embedded(tmp_path, examples=killed)
  done = len(list((tmp_path / "parts").glob("*.json")))
  assert done == 3  # 13 images had come, four a part
  embedded(tmp_path, tower=(tower := Tower()))
  assert tower.images == 13  # and 12 of those 25 were there, two of them unreadable


def test_a_part_of_broken_images_alone(tmp_path):
  _, card = embedded(tmp_path, examples=lambda: corpus(broken=range(4, 8)))
  assert len(card.images) == 21 and len(np.load(tmp_path / "embeddings.npy")) == 21


def test_the_tower_is_the_same_on_any_number_of_devices(monkeypatch):
  """Eight of them here, against a plain call."""
  monkeypatch.setattr(embed, "BATCH", 8)
  clip = hf.load_clip(GOLDEN)
  size = clip.config.vision.image_size
  images = np.random.default_rng(0).integers(0, 255, (3, size, size, 3), dtype=np.uint8)
  embeddings, features = embed.Embedder(clip)(list(images))
  pixels = clip_lib.preprocess(jnp.asarray(images))
  patches, expected = jax.jit(embed.tower)(clip, pixels)
  np.testing.assert_allclose(embeddings, expected, atol=1e-5)
  np.testing.assert_allclose(features, patches, atol=2e-2, rtol=1e-3)
