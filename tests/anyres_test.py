import itertools
import types

import numpy as np
import pytest

from mixjax.models.anyres import NEWLINE, NOTHING, Anyres

CLIP_L = Anyres()
# The largest first: of resolutions that keep as much, the smallest wins wherever it stands.
SMALL = Anyres(tile=28, patch=7, pinpoints=((56, 56), (84, 28), (28, 84), (28, 56), (56, 28)))

# Heights and widths that round every way: primes, thin strips, exact fits and their neighbours.
ODD = [1, 2, 7, 97, 336, 337, 480, 641, 671, 672, 673, 1007, 1009, 2200, 5000]
SIZES = list(itertools.product(ODD, ODD))


def processor_of(geometry):
  """LlavaNextProcessor's arithmetic without the tokenizer that its constructor wants."""
  transformers = pytest.importorskip("transformers")
  made = object.__new__(transformers.LlavaNextProcessor)
  made.patch_size, made.num_additional_image_tokens = geometry.patch, 0
  pinpoints = [list(size) for size in geometry.pinpoints]
  made.image_processor = types.SimpleNamespace(image_grid_pinpoints=pinpoints)
  return made


def test_counts_known_from_the_reference():
  assert CLIP_L.num_tokens((480, 640)) == 2340
  assert CLIP_L.num_tokens((2200, 1700)) == 2448
  assert CLIP_L.num_tokens((672, 672)) == CLIP_L.max_tokens == 2928
  assert CLIP_L.max_tiles == 5


@pytest.mark.parametrize("geometry", [CLIP_L, SMALL], ids=["clip_l", "small"])
def test_resolutions_of_odd_sizes_are_those_of_the_processor(geometry):
  reference = pytest.importorskip("transformers.image_processing_utils")
  pinpoints = [list(size) for size in geometry.pinpoints]
  for size in SIZES:
    resolution = reference.select_best_resolution(size, pinpoints)
    assert geometry.resolution(size) == resolution, size
    image = np.broadcast_to(np.uint8(0), (3, *size))
    fitted = reference.get_patch_output_size(image, resolution, "channels_first")
    assert geometry.fitted(size) == fitted, size


@pytest.mark.parametrize("geometry", [CLIP_L, SMALL], ids=["clip_l", "small"])
def test_counts_of_odd_sizes_are_those_of_the_processor(geometry):
  processor = processor_of(geometry)
  counts = set()
  for size in SIZES:
    count = processor._get_number_of_features(*size, geometry.tile, geometry.tile)
    assert geometry.num_tokens(size) == count == len(geometry.tokens(size)), size
    counts.add(count)
  assert len(counts) > 10
  assert geometry.max_tokens == max(counts)
  assert geometry.max_tiles == max(geometry.num_tiles(size) for size in SIZES)


def test_tokens_of_odd_sizes_are_what_the_model_packs():
  torch = pytest.importorskip("torch")
  from transformers import CLIPVisionConfig, LlavaNextConfig, Qwen2Config
  from transformers.models.llava_next import modeling_llava_next as reference

  geometry = SMALL
  pinpoints = [list(size) for size in geometry.pinpoints]
  vision = CLIPVisionConfig(image_size=geometry.tile, patch_size=geometry.patch)
  config = LlavaNextConfig(
    vision_config=vision, text_config=Qwen2Config(), image_grid_pinpoints=pinpoints
  )
  model = types.SimpleNamespace(config=config)
  newline = torch.full((1,), NEWLINE)
  for size in SIZES:
    count = reference.image_size_to_num_patches(size, pinpoints, geometry.tile)
    assert geometry.num_tiles(size) == count
    patches = torch.arange(count * geometry.side**2).reshape(count, -1, 1)
    packed, lengths = reference.LlavaNextModel.pack_image_features(
      model, [patches], torch.tensor([size]), "default", newline
    )
    np.testing.assert_array_equal(geometry.tokens(size), packed[0][:, 0].numpy(), str(size))
    assert geometry.num_tokens(size) == lengths[0]


def test_a_close_up_by_hand():
  geometry = Anyres(tile=4, patch=2, pinpoints=((4, 8),))  # two tiles side by side
  whole = [0, 1, 2, 3]
  assert geometry.tokens((4, 8)).tolist() == [*whole, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
  # Half as wide: a column of patches on either side is padding.
  assert geometry.fitted((8, 8)) == (4, 4)
  assert geometry.margins((8, 8)) == (0, 1)
  assert geometry.tokens((8, 8)).tolist() == [*whole, 5, 8, -1, 7, 10, -1]


def test_pictures_of_a_group_lie_one_after_another():
  one, two = (28, 56), (64, 61)
  rows = [[one, two], [], [two], [one]]
  alone = [SMALL.tokens(size) for size in (one, two)]
  index = SMALL.index(rows, length=160)
  assert index.shape == (4, 160) and index.dtype == np.int32

  def expected(*parts):
    return np.concatenate([np.where(part < 0, part, part + start) for part, start in parts])

  tiles, (a, b) = 16, alone
  want = expected((a, 0), (b, 3 * tiles))
  np.testing.assert_array_equal(index[0, : len(want)], want)
  assert np.all(index[0, len(want) :] == NOTHING) and np.all(index[1] == NOTHING)
  np.testing.assert_array_equal(index[2, : len(b)], expected((b, 8 * tiles)))
  np.testing.assert_array_equal(index[3, : len(a)], expected((a, 13 * tiles)))
  halves = SMALL.index(rows, length=160, groups=2)
  np.testing.assert_array_equal(halves[:2], index[:2])
  np.testing.assert_array_equal(halves[2, : len(b)], b)
  np.testing.assert_array_equal(halves[3, : len(a)], expected((a, 5 * tiles)))


def test_errors_say_what_does_not_fit():
  with pytest.raises(ValueError, match=r"\(40, 56\).*multiples of 28"):
    Anyres(28, 7, ((28, 56), (40, 56)))
  with pytest.raises(ValueError, match="tile=28 is not a multiple of patch=5"):
    Anyres(28, 5, ((28, 56),))
  with pytest.raises(ValueError, match="empty"):
    Anyres(28, 7, ())
  with pytest.raises(ValueError, match="no pixels"):
    CLIP_L.num_tokens((0, 640))
  count = SMALL.num_tokens((64, 61))
  with pytest.raises(ValueError, match=f"row 1 has {2 * count} image tokens.*at most 88"):
    SMALL.index([[], [(64, 61), (64, 61)]], length=2 * count - 1)
  with pytest.raises(ValueError, match="3 rows do not make 2 equal groups"):
    SMALL.index([[], [], []], length=8, groups=2)
