"""Atlases: names from captions, names edited by hand, names that survive a refit."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mixjax.atlas.atlas import Atlas, agreement, concept_names, contact_sheet

CAPTIONS = (
  ["A bar chart of sales in red", "The chart has three bars", "A bar chart with a title"],
  ["A map of the coast", "A map with rivers and a coast line", "The coast of a country on a map"],
  ["A chess board with a king", "The board of a chess game", "A chess position on a board"],
)


def images(seed=0, each=3, e=8):
  """Unit vectors in three groups, with captions and true domains."""
  rng = np.random.default_rng(seed)
  x = np.repeat(np.eye(e)[:3], each, axis=0) + 0.03 * rng.normal(size=(3 * each, e))
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  captions = [group[i % 3] for group in CAPTIONS for i in range(each)]
  return x.astype(np.float32), captions, np.repeat(["charts", "maps", "chess"], each)


def unit(*rows):
  rows = np.array(rows, np.float32)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_concepts_are_named_after_their_captions():
  x, captions, domains = images()
  atlas = Atlas.fit(x, captions, 3, seed=0, encoder="clip")
  found = dict(zip(domains, atlas.assign(x), strict=True))
  assert atlas.names[found["charts"]] == "chart-bar"
  assert atlas.names[found["maps"]] == "coast-map"
  assert atlas.names[found["chess"]] == "board-chess"
  assert agreement(atlas.assign(x), domains) == pytest.approx(1.0)


def test_names_are_unique_and_plain():
  captions = ["Été à la Çôte! 7 #1", "cats", "cats", "", "cats dogs", "dogs cats"]
  names = concept_names(captions, range(6), 6)
  assert len(set(names)) == 6
  assert names[1:3] == ("cats", "cats-2")
  assert names[3] == "concept-3"
  assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)


def test_a_saved_atlas_comes_back(tmp_path):
  x, captions, _ = images()
  atlas = Atlas.fit(x, captions, 3, seed=0, encoder="clip")
  atlas.save(tmp_path / "atlas")
  loaded = Atlas.load(tmp_path / "atlas")
  assert (loaded.names, loaded.encoder) == (atlas.names, "clip")
  np.testing.assert_array_equal(loaded.centroids, atlas.centroids)
  assert {p.name for p in (tmp_path / "atlas").iterdir()} == {"atlas.json", "centroids.npy"}


def edit(folder, **changes):
  card = json.loads((folder / "atlas.json").read_text())
  (folder / "atlas.json").write_text(json.dumps(card | changes))


def test_names_may_be_edited_by_hand(tmp_path):
  Atlas(("a", "b"), unit([1, 0], [0, 1])).save(tmp_path)
  edit(tmp_path, names=["Bar charts", "b"])
  assert Atlas.load(tmp_path).names == ("Bar charts", "b")
  for names, message in (
    (["a", "a"], "2 concepts are called 'a'"),
    (["a", "b/c"], "'b/c' cannot name a concept"),
    (["a", " "], "' ' cannot name"),
    (["a", 3], "3 cannot name"),
    (["a"], "1 concept names for 2 centroids"),
  ):
    edit(tmp_path, names=names)
    with pytest.raises(ValueError, match=rf"atlas\.json: {message}"):
      Atlas.load(tmp_path)


def test_damaged_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no atlas"):
    Atlas.load(tmp_path)
  Atlas(("a", "b"), unit([1, 0], [0, 1])).save(tmp_path)
  data = bytearray((tmp_path / "centroids.npy").read_bytes())
  data[-2] ^= 1
  (tmp_path / "centroids.npy").write_bytes(bytes(data))
  with pytest.raises(ValueError, match=r"centroids\.npy is not what was written"):
    Atlas.load(tmp_path)
  (tmp_path / "atlas.json").write_text("{")
  with pytest.raises(ValueError, match=r"atlas\.json is not an atlas card"):
    Atlas.load(tmp_path)


def test_a_refitted_atlas_keeps_the_names():
  old = Atlas(("maps", "charts"), unit([1, 0, 0], [0, 1, 0]))
  new = Atlas(("x-y", "maps", "z-w"), unit([0.1, 1, 0], [0, 0, 1], [1, 0.2, 0])).match(old)
  assert new.names == ("maps", "charts", "maps-2")  # "maps" is taken by its rightful owner
  np.testing.assert_array_equal(new.centroids, unit([1, 0.2, 0], [0.1, 1, 0], [0, 0, 1]))
  fewer = Atlas(("only",), unit([0.1, 1, 0])).match(old)
  assert fewer.names == ("charts",)
  with pytest.raises(ValueError, match="encoder 'b' and the old one to ''"):
    Atlas(("x",), unit([1, 0, 0]), encoder="b").match(old)


def test_pairing_is_best_in_total():
  # Nearest first would give "a" to the second row and leave the first with a stranger.
  old = Atlas(("a", "b"), unit([1, 0], [1, 1]))
  new = Atlas(("p", "q"), unit([0.9, -0.5], [1, 0.02])).match(old)
  assert new.names == ("a", "b")
  np.testing.assert_array_equal(new.centroids, unit([0.9, -0.5], [1, 0.02]))


def test_agreement_of_unrelated_labels_is_low():
  rng = np.random.default_rng(0)
  assert agreement(rng.integers(0, 3, 900), rng.choice(["a", "b", "c"], 900)) < 0.02


def test_contact_sheets_show_every_image_in_its_place():
  colours = [(10 * i, 0, 255 - i) for i in range(5)]
  tiles = [np.full((4, 6, 3), colour, np.uint8) for colour in colours]
  sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(tiles, columns=3, gap=1))))
  assert sheet.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
  for i, colour in enumerate(colours):
    y, x = 1 + i // 3 * 5, 1 + i % 3 * 7
    assert np.all(sheet[y : y + 4, x : x + 6] == colour)
  assert np.all(sheet[6:, 15:] == 255)  # no sixth image
  with pytest.raises(ValueError, match="at least one image"):
    contact_sheet([], columns=3)


def test_no_concept_is_called_as_rows_without_pictures_are():
  assert concept_names(["text", "text"], np.array([0, 1]), 2) == ("text-2", "text-3")
