"""Mixtures: what is refused, and the two that need no search."""

import math

import numpy as np
import pytest

from mixjax.data import mixture

CELLS = {"maps/caption": 30, "maps/vqa": 10, "charts/vqa": 0}


def test_weights_come_back_in_the_order_of_the_cells():
  weights = mixture.check({"maps/vqa": 0.25, "maps/caption": 0.75}, CELLS)
  assert list(weights.items()) == [("maps/caption", 0.75), ("maps/vqa", 0.25), ("charts/vqa", 0.0)]
  assert mixture.check(weights, CELLS) == weights


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    ({"maps/captions": 1.0}, "'maps/captions'; did you mean 'maps/caption'"),
    ({"maps/vqa": 1.5, "maps/caption": -0.5}, "'maps/caption' is -0.5"),
    ({"maps/vqa": math.nan}, "'maps/vqa' is nan"),
    ({"maps/vqa": math.inf}, "'maps/vqa' is inf"),
    ({"maps/vqa": 0.5, "maps/caption": 0.6}, "sum to 1.1, not 1: divide each"),
    ({"maps/vqa": 1 + 2e-6}, "sum to 1.000002"),
    ({"maps/vqa": 0.5, "charts/vqa": 0.5}, "'charts/vqa' has weight 0.5 but no rows"),
    ({"maps/vqa": 0.0}, "no cell has a positive weight"),
    ({}, "no cell has a positive weight"),
  ],
)
def test_errors_name_the_cell_and_the_remedy(weights, message):
  with pytest.raises(ValueError, match=message):
    mixture.check(weights, CELLS)


def test_sums_are_held_to_the_tolerance():
  assert mixture.check({"maps/vqa": 1 + 5e-7}, CELLS)["maps/vqa"] == 1 + 5e-7
  thirds = {f"c{i}": 1 / 3 for i in range(3)}
  mixture.check(thirds, dict.fromkeys(thirds, 1))


def test_natural_and_uniform():
  assert mixture.natural(CELLS) == {"maps/caption": 0.75, "maps/vqa": 0.25, "charts/vqa": 0.0}
  assert mixture.uniform(CELLS) == {"maps/caption": 0.5, "maps/vqa": 0.5, "charts/vqa": 0.0}
  for known in (mixture.natural(CELLS), mixture.uniform(CELLS)):
    assert mixture.check(known, CELLS) == known
  with pytest.raises(ValueError, match="no cell has any rows"):
    mixture.natural({"maps/vqa": 0})


def test_to_vector():
  np.testing.assert_array_equal(mixture.to_vector({"maps/vqa": 1.0}, CELLS), [0, 1, 0])
  with pytest.raises(ValueError, match="'elsewhere'"):
    mixture.to_vector({"elsewhere": 1.0}, CELLS)
