"""The report on a survey: what `lint.json` holds."""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from mixjax.corpus.lint import lookalike, picture
from mixjax.corpus.lint.survey import PICTURE, Survey, digest, printable
from mixjax.corpus.pixels import BadPicture
from mixjax.corpus.readers.walk import under
from mixjax.corpus.task_classifier import Accuracy
from mixjax.models.anyres import Anyres

SIDES = (64, 128, 224, 336, 448, 672, 1008, 1344, 2048, 4096)  # edges of the longer side's bins
LONG = 100  # of the longer side to the shorter: from here on some loaders have stopped
GROUPS = 20  # groups of duplicates that are named
_NAMES = 6  # of a group
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """The pictures that no corpus should hold."""

  names: tuple[str, ...]
  pictures: np.ndarray  # of PICTURE
  unreadable: tuple[str, ...]


def benchmark(folder: epath.Path) -> Benchmark:
  """All pictures under a folder. Raises ValueError where there are none."""
  names, rows, unreadable = [], [], []
  for path in under(folder, _SUFFIXES):
    name, data = str(path.relative_to(folder)), path.read_bytes()
    try:
      facts, _ = picture.inspect(data)
    except BadPicture:
      unreadable.append(name)
      continue
    names.append(name)
    shape = (*facts.size, facts.frames)
    rows.append((digest(name.encode()), digest(data), facts.looks, facts.plain, *shape))
  if not rows:
    raise ValueError(
      f"{folder} holds no picture ({', '.join(_SUFFIXES)}) to look for in the corpus"
    )
  return Benchmark(tuple(names), np.array(rows, PICTURE), tuple(unreadable))


def report(
  survey: Survey,
  labels: str,
  accuracy: Accuracy | None,
  benchmark: Benchmark | None,
  bound: int = lookalike.BOUND,
) -> dict[str, Any]:
  """Everything but the contact sheet, as JSON takes it. `labels` is how tasks were given."""
  kept = np.array(survey.pictures, PICTURE)
  _, first = np.unique(kept["name"], return_index=True)  # a picture met in several parts
  first.sort()
  pictures, names = kept[first], [printable(survey.names[i]) for i in first]
  kinds = collections.Counter(survey.kinds[i] for i in first)
  duplicate_keys = len(survey.keys) - len(np.unique(np.array(survey.keys, np.uint64)))
  return {
    "format": 1,
    "rows": survey.rows,
    "usable": survey.usable,
    "turns": _by_number(survey.turns),
    "images_of_row": _by_number(survey.images_of_row),
    "repeated_keys": duplicate_keys,
    "tasks": dict(survey.tasks.most_common()),
    "labels": {
      "asked": labels,
      "rows": dict(survey.labels.most_common()),
      "held_out": dataclasses.asdict(accuracy) if accuracy else None,
    },
    "languages": dict(survey.languages.most_common()),
    "sources": dict(survey.sources.most_common(200)),
    "pictures": _pictures(pictures, kinds),
    "broken": {
      kind: {
        "count": count,
        "examples": [{"where": w, "detail": d} for w, d in survey.named[kind]],
      }
      for kind, count in survey.broken.most_common()
    },
    "duplicates": _duplicates(pictures, names, bound),
    "leakage": _leakage(pictures, names, benchmark, bound) if benchmark else None,
  }


def _by_number(counts: collections.Counter) -> dict[str, int]:
  return {str(number): counts[number] for number in sorted(counts)}


def _pictures(pictures: np.ndarray, kinds: collections.Counter) -> dict[str, Any]:
  height, width = pictures["height"].astype(int), pictures["width"].astype(int)
  longer, shorter = np.maximum(height, width), np.minimum(height, width)
  counts = np.bincount(np.searchsorted(SIDES, longer), minlength=len(SIDES) + 1)
  bins = [f"to {side}" for side in SIDES] + [f"over {SIDES[-1]}"]
  tokens = anyres_tokens(height, width)
  return {
    "count": len(pictures),
    "longer_side": dict(zip(bins, counts.tolist(), strict=True)),
    "tokens": _spread(tokens),
    "kinds": dict(kinds.most_common()),
    "animated": int((pictures["frames"] > 1).sum()),
    "longer_than_wide_by_100": int((longer >= LONG * np.maximum(shorter, 1)).sum()),
    "plain": int(pictures["plain"].sum()),
  }


def anyres_tokens(height: Sequence[int], width: Sequence[int]) -> np.ndarray:
  """Image tokens of each picture under LLaVA-NeXT's tiles."""
  tokens = functools.cache(lambda h, w: Anyres().num_tokens((h, w)))
  return np.array([tokens(int(h), int(w)) for h, w in zip(height, width, strict=True)], int)


def _spread(values: np.ndarray) -> dict[str, float]:
  if not len(values):
    return {}
  low, middle, high = np.percentile(values, [5, 50, 95])
  return {
    "total": int(values.sum()), "mean": float(values.mean()), "p5": float(low),
    "median": float(middle), "p95": float(high), "max": int(values.max()),
  }  # fmt: skip


def _duplicates(pictures: np.ndarray, names: list[str], bound: int) -> dict[str, Any]:
  """Groups of the same bytes, and of pictures that look alike without being the same bytes."""
  _, same = np.unique(pictures["content"], return_inverse=True)
  told = np.flatnonzero(~pictures["plain"])
  alike = np.full(len(pictures), -1)
  alike[told] = lookalike.groups(pictures["looks"][told], bound)
  return {
    "bound_bits": bound,
    "same_bytes": _listed(same, np.arange(len(names)), names),
    "look_alike": _listed(alike[told], told, names),
    "not_compared": int(pictures["plain"].sum()),
  }


def _listed(group: np.ndarray, index: np.ndarray, names: list[str]) -> dict[str, Any]:
  """Groups of two and more, the largest first: how many, and the names of some."""
  values, counts = np.unique(group, return_counts=True)
  order = np.argsort(-counts, kind="stable")
  several = [i for i in order if counts[i] > 1]
  sorted_at = np.argsort(group, kind="stable")
  starts = np.searchsorted(group[sorted_at], values)
  largest = []
  for i in several[:GROUPS]:
    members = sorted_at[starts[i] : starts[i] + min(counts[i], _NAMES)]
    largest.append({"pictures": int(counts[i]), "names": [names[index[j]] for j in members]})
  return {
    "groups": len(several),
    "pictures": int(sum(counts[several])),
    "largest": largest,
  }


def _leakage(
  pictures: np.ndarray, names: list[str], benchmark: Benchmark, bound: int
) -> dict[str, Any]:
  """Pictures of the benchmark that the corpus holds: the same bytes, or what looks like them."""
  known: dict[int, int] = {}
  for i, content in enumerate(pictures["content"].tolist()):
    known.setdefault(content, i)
  same = {b: known[int(c)] for b, c in enumerate(benchmark.pictures["content"]) if int(c) in known}
  theirs = np.flatnonzero(~benchmark.pictures["plain"])
  ours = np.flatnonzero(~pictures["plain"])
  pairs = lookalike.matches(benchmark.pictures["looks"][theirs], pictures["looks"][ours], bound)
  alike: dict[int, tuple[int, int]] = {}  # of several, the nearest
  for b, c, bits in zip(theirs[pairs[0]], ours[pairs[1]], pairs[2], strict=True):
    if b not in same:
      alike.setdefault(int(b), (int(c), int(bits)))
  listed = [(b, c, "same bytes", 0) for b, c in same.items()]
  listed += [(b, c, "looks alike", bits) for b, (c, bits) in alike.items()]
  return {
    "benchmark_pictures": len(benchmark.names),
    "unreadable": list(benchmark.unreadable),
    "same_bytes": len(same),
    "look_alike": len(alike),
    "found": [
      {"benchmark": benchmark.names[b], "corpus": names[c], "how": how, "bits": bits}
      for b, c, how, bits in sorted(listed)[:200]
    ],
  }
