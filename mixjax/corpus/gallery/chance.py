"""Draws from a numpy generator that give back plain Python values."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def coin(rng: np.random.Generator) -> bool:
  return bool(rng.integers(2))


def pick(rng: np.random.Generator, among: Iterable[T]) -> T:
  """One of `among`, uniformly. ValueError where there is none."""
  options = tuple(among)
  return options[int(rng.integers(len(options)))]


def shuffled(rng: np.random.Generator, among: Iterable[T]) -> tuple[T, ...]:
  options = tuple(among)
  return tuple(options[i] for i in rng.permutation(len(options)))
