import json

import numpy as np
import pytest

from mixjax.corpus import readers, tasks
from mixjax.corpus.gallery import gallery
from mixjax.evals import benchmarks

SMALL = dict(seed=0, scale=0.01, per_benchmark=8)

# Of the small gallery above. It changes when a domain's drawing, its raw material or a pinned
# package that draws changes: then look at the pictures again, and train the stand-ins again.
SHA256 = "69ebd97b93bc44aea3a3f8386c40508db0520651f30de9d18bbfc821a88f120a"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gallery")
  return folder, gallery.write(folder, **SMALL, workers=0)


def test_there_are_ten_domains_or_more_and_no_split_shares_a_source():
  assert len(gallery.DOMAINS) >= 10
  for domain in gallery.DOMAINS.values():
    splits = gallery.split_sources(domain)
    assert all(splits.values()), f"{domain.name} leaves a split without sources"
    every = [source for sources in splits.values() for source in sources]
    assert len(every) == len(set(every)) == len(domain.sources())


@pytest.mark.parametrize("domain", ["documents", "code", "formulae", "chess", "molecules"])
def test_what_can_be_read_or_set_up_in_one_split_is_in_no_other(domain):
  """Two sources with the same content would share it under two names."""
  content = {}
  for split in gallery.SHARES:
    rendered = gallery.render(domain, split, 40, seed=0)
    content[split] = {r.picture.source for r in rendered}
  splits = list(content)
  for i, a in enumerate(splits):
    for b in splits[i + 1 :]:
      assert not content[a] & content[b]


def test_no_picture_is_in_two_splits():
  seen: dict[bytes, str] = {}
  for name in gallery.DOMAINS:
    for split in gallery.SHARES:
      for r in gallery.render(name, split, 15, seed=0):
        assert seen.setdefault(r.png, split) == split, f"{name}: the same picture in two splits"


def test_every_picture_has_all_five_tasks():
  for name in gallery.DOMAINS:
    for r in gallery.render(name, "train", 8, seed=0):
      said = list(gallery.answers(r.picture))
      assert {task for task, _, _ in said} == set(tasks.TASKS)
      assert all(answer.strip() for _, _, answer in said)


def test_no_benchmark_is_a_training_cell():
  """Other sources in other styles, so no picture in common; and breadth is asked in no training
  row.
  """
  for name, domain in gallery.DOMAINS.items():
    trained = gallery.render(name, "train", 60, seed=0)
    prompts = {prompt for r in trained for _, prompt, _ in gallery.answers(r.picture)}
    for r in gallery.render(name, "benchmark", 60, seed=0):
      assert not prompts & {p.prompt for p in r.picture.probes if p.benchmark == "breadth"}
    if name == "photos":  # their held-out style is that of other files
      continue
    # The same source and the same chance, drawn in both styles, differ.
    source = domain.sources()[0]
    styles = [domain.render(source, np.random.default_rng(0), style) for style in (False, True)]
    assert not np.array_equal(styles[0].image, styles[1].image), name


def test_the_pretrain_split_alone_mixes_both_styles():
  squares = {split: set() for split in ("train", "pretrain", "benchmark")}
  for split, found in squares.items():
    for r in gallery.render("chess", split, 40, seed=0):
      found.update(map(tuple, r.picture.image[:2, :2].reshape(-1, 3)))
  assert squares["pretrain"] & squares["benchmark"] and not squares["train"] & squares["benchmark"]


def test_same_seed_same_bytes_whatever_the_workers(small, tmp_path):
  _, card = small
  again = gallery.write(tmp_path, **SMALL, workers=2)
  assert again["sha256"] == card["sha256"] == SHA256
  assert (
    gallery.write(tmp_path / "other", **(SMALL | {"seed": 1}), workers=0)["sha256"]
    != card["sha256"]
  )


def test_a_finished_gallery_is_not_built_again(small):
  folder, card = small
  before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
  assert gallery.write(folder, **SMALL, workers=0) == card
  assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_its_files_are_read_through_the_same_doors_as_any_corpus(small):
  folder, card = small
  examples = list(readers.read(folder / "train.json"))
  assert len({e.image_key for e in examples}) == sum(card["pictures"]["train"].values())
  assert all(e.image.startswith(b"\x89PNG") for e in examples)
  for split in ("validation", "benchmark"):
    questions = benchmarks.read(folder / f"{split}.json")
    assert {q.benchmark for q in questions} == set(benchmarks.BENCHMARKS)
    assert all((folder / q.image).exists() for q in questions)


def test_mislabelled_cells_hold_other_pictures_answers(small):
  folder, _ = small
  rows = json.loads((folder / "train.json").read_text())
  said = {row["id"]: row["conversations"][1]["value"] for row in rows}
  counts = {d: max(1, round(n * SMALL["scale"])) for d, n in gallery.TRAIN_PICTURES.items()}
  true = {
    row["id"]: row["conversations"][1]["value"]
    for name, count in counts.items()
    for row in gallery.rows(gallery.render(name, "train", count, 0), 0, mislabel=False)
  }
  wrong = {key for key in said if said[key] != true[key]}
  cells = {tuple(key.split("/")[1:]) for key in wrong}
  assert wrong and {(c[0].rsplit("-", 1)[0], c[1].rstrip("0123456789")) for c in cells} <= set(
    gallery.MISLABELLED
  )


def test_sizes_are_skewed():
  sizes = np.array(sorted(gallery.TRAIN_PICTURES.values()))
  assert sizes[-1] > 5 * sizes[0]
