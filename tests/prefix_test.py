"""What cells have had after n samples, found without those samples: the same as with them."""

import numpy as np
import pytest

from mixjax.data import prefix
from mixjax.data.deadlines import GRID, Deadlines
from mixjax.data.prefix import Sections, counts_after

PLACES = 3000


def on_grid(weights):
  shares = [int(share * GRID) for share in np.array(weights) / np.sum(weights)]
  shares[int(np.argmax(weights))] += GRID - sum(shares)
  return shares


def recipes():
  random = np.random.default_rng(0)
  yield [1.0]
  yield [0.5, 0.5]
  yield [1.0, 1e-12]
  yield [1, 1, 2, 3, 3, 3]
  for cells in (3, 17, 50, 120):
    for concentration in (0.05, 1.0, 1000.0):
      yield random.dirichlet(np.full(cells, concentration))
      light = np.where(random.random(cells) < 0.3, random.choice([0.0, 1e-9, 1e-5]), 0.1)
      yield light * random.random(cells) + 1e-13


@pytest.fixture(scope="module")
def runs():
  """(shares, the rule's cells, what each place's cell had before) of every recipe."""
  every = [on_grid(weights) for weights in recipes()]
  found = [Deadlines(shares, [0] * len(shares), PLACES).at(np.arange(PLACES)) for shares in every]
  return [(shares, *places) for shares, places in zip(every, found, strict=True)]


@pytest.mark.parametrize("span", [1 << 16, 100])
def test_counts_are_the_rules(runs, span, monkeypatch):
  monkeypatch.setattr(prefix, "_SPAN", span)
  random = np.random.default_rng(1)
  for shares, cell, _ in runs:
    for n in (0, 1, 2, 3, PLACES, *random.integers(4, PLACES, 12)):
      expected = np.bincount(cell[:n], minlength=len(shares))
      np.testing.assert_array_equal(counts_after(int(n), shares), expected)


def test_sections_are_the_rule_wherever_one_looks(runs):
  random = np.random.default_rng(2)
  for shares, cell, earlier in runs:
    sections = Sections(shares, PLACES, section=257)
    for places in (
      np.arange(2500, 2700),
      np.arange(600),
      np.arange(600, 1400),  # goes on where a section was read to its end
      random.integers(0, PLACES, 400),
    ):
      found = sections.at(places)
      np.testing.assert_array_equal(found[0], cell[places])
      np.testing.assert_array_equal(found[1], earlier[places])
    for n in (0, 257, 700, PLACES):
      np.testing.assert_array_equal(
        sections.counts(n), np.bincount(cell[:n], minlength=len(shares))
      )


def test_a_far_section_does_not_find_those_before(monkeypatch):
  found = []
  extend = Deadlines._extend
  monkeypatch.setattr(
    Deadlines, "_extend", lambda self, length: found.append(length) or extend(self, length)
  )
  sections = Sections(on_grid(np.random.default_rng(3).dirichlet(np.ones(50))), 1 << 20)
  sections.at(np.arange(1_000_000, 1_000_064))
  assert sum(found) < 1 << 16
