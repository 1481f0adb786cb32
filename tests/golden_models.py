"""Folders with a small golden model, whole or damaged."""

import pathlib

import jax
import numpy as np
import pytest

from mixjax.models import hf

GOLDEN = pathlib.Path(__file__).parent / "golden"
QWEN2 = GOLDEN / "qwen2_untied"


def assert_same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def shards(folder):
  return sorted(folder.glob("model-*.safetensors"))


def refusal(folder, load=hf.load_qwen2):
  """The lines of the error with which a folder is refused."""
  with pytest.raises(ValueError) as raised:
    load(folder)
  assert str(folder) in str(raised.value)
  return [line.strip() for line in str(raised.value).splitlines()[1:]]
