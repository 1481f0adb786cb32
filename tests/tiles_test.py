import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mixjax.data import tiles
from mixjax.models import clip
from mixjax.models.anyres import Anyres

SMALL = Anyres(tile=28, patch=7, pinpoints=((28, 56), (56, 28), (56, 56), (84, 28), (28, 84)))
SIZES = [(37, 61), (28, 56), (200, 13), (9, 140), (57, 55), (1, 90), (130, 131)]


def picture(size, mode="RGB", seed=0):
  """Smooth enough that resizing matters, rough enough that a shift shows."""
  values = np.random.default_rng(seed).integers(0, 256, (*size, 4), np.uint8)
  return Image.fromarray(values, "RGBA").convert(mode)


def reference(images, geometry):
  processors = pytest.importorskip("transformers.models.llava_next.image_processing_pil_llava_next")
  processor = processors.LlavaNextImageProcessorPil(
    size={"shortest_edge": geometry.tile},
    crop_size={"height": geometry.tile, "width": geometry.tile},
    image_grid_pinpoints=[list(size) for size in geometry.pinpoints],
  )
  return processor(images, return_tensors="np")


def assert_equal_to_the_reference(images, geometry):
  want = reference(images, geometry)
  for image, pixels, size in zip(images, want["pixel_values"], want["image_sizes"], strict=True):
    assert tiles.size_of(image) == tuple(size)
    ours = tiles.cut(image, geometry)
    assert ours.shape == (geometry.num_tiles(tiles.size_of(image)), *[geometry.tile] * 2, 3)
    np.testing.assert_allclose(
      clip.preprocess(jnp.asarray(ours)),
      pixels[: len(ours)].transpose(0, 2, 3, 1),
      rtol=0,
      atol=1e-5,
    )


def test_tiles_equal_the_reference():
  assert_equal_to_the_reference([picture(size) for size in SIZES], SMALL)


def test_tiles_equal_the_reference_at_true_size():
  assert_equal_to_the_reference([picture((480, 640)), picture((341, 97))], Anyres())


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK"])
def test_other_modes_equal_the_reference(mode):
  assert_equal_to_the_reference([picture((37, 61), mode)], SMALL)


def test_a_batch_lies_as_the_index_counts():
  sizes = [[(37, 10), (15, 41)], [], [(64, 61)], [(23, 97)]]
  pictures = [[tiles.cut(picture(size), SMALL) for size in row] for row in sizes]
  for groups, slots in ((1, 17), (2, 9), (4, 8)):
    batch = tiles.stack(pictures, (groups, slots, 28, 28, 3))
    index = SMALL.index(sizes, length=160, groups=groups)
    for row, parts in enumerate(pictures):
      first = 0
      for part, size in zip(parts, sizes[row], strict=True):
        at = index[row, first : first + SMALL.num_tokens(size)]
        base = batch[row * groups // 4, at[0] // 16]
        np.testing.assert_array_equal(base, part[0])
        np.testing.assert_array_equal(batch[row * groups // 4, at.max() // 16], part[-1])
        first += len(at)
  assert not batch[1].any()  # a text-only row


def test_too_many_tiles_are_named():
  part = np.ones((3, 28, 28, 3), np.uint8)
  with pytest.raises(ValueError, match="group 1 of 2 has more tiles than its 5 slots"):
    tiles.stack([[part], [part, part]], (2, 5, 28, 28, 3))
  with pytest.raises(ValueError, match="3 rows do not make 2"):
    tiles.stack([[part], [], []], (2, 5, 28, 28, 3))
