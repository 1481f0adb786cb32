"""Recorded runs: a folder of CSV files read into one table, everything matched by name."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import Bool, Float

from mixjax.search.sheets import Sheet, listed

# How far the weights of a run may miss a sum of 1 (decimal rounding in the file). RegMix's files
# miss it by up to 0.004.
SUM_TOLERANCE = 0.02

# Columns that describe a run and are no domain or metric; "" and "Unnamed: 0" are pandas's own.
ABOUT = ("", "Unnamed: 0", "run", "name", "index", "fidelity")
_SPLITS = ("train", "test")
_SIZES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """n finished runs: what each was trained on and what it was measured to be.

  `metrics` hold NaN where a run has no finite value; `empty` names the columns where none has.
  `losses` says that they stand in a `*_loss*` file. `split` is "train" or "test" a run where the
  files are named so; a name in `runs` is unique within its split and fidelity. `fidelity` is each
  run's size where several were recorded.
  """

  runs: tuple[str, ...]
  domains: tuple[str, ...]
  mixtures: Float[np.ndarray, "n d"]
  metrics: Mapping[str, Float[np.ndarray, " n"]]
  losses: bool
  sha256: str  # of the files it was read from
  split: tuple[str, ...] | None = None
  fidelity: Float[np.ndarray, " n"] | None = None
  empty: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.runs)

  @property
  def test(self) -> Bool[np.ndarray, " n"] | None:
    """Which runs are the test split; None without one."""
    return None if self.split is None else np.array([part == "test" for part in self.split])

  def targets(self, objective: str) -> tuple[str, ...]:
    """What an objective stands for: every metric (`each`), `mean`, or one metric's column.

    ValueError names the choices.
    """
    if objective == "each":
      return tuple(self.metrics)
    if objective != "mean" and objective not in self.metrics:
      raise ValueError(
        f"the table has no objective {objective!r}; choose mean, each or one of its metrics: "
        + ", ".join(self.metrics)
      )
    return (objective,)

  def values(self, target: str) -> Float[np.ndarray, " n"]:
    """A metric, or the `mean` of all; NaN for the runs that lack it (for the mean, any of it)."""
    if target == "mean":
      return np.mean(list(self.metrics.values()), axis=0)
    return self.metrics[target]

  def at_target(self) -> "Table":
    """Only the runs of the highest fidelity that every split has."""
    if self.fidelity is None:
      return self
    splits = self.split or ("all",) * len(self)
    found = [
      {f for f, s in zip(self.fidelity.tolist(), splits, strict=True) if s == part}
      for part in set(splits)
    ]
    if not (common := set.intersection(*found)):
      raise ValueError("the train and test runs of the table have no fidelity in common")
    return self._rows(np.flatnonzero(self.fidelity == max(common)))

  def _rows(self, rows: np.ndarray) -> "Table":
    return dataclasses.replace(
      self,
      runs=tuple(self.runs[i] for i in rows),
      mixtures=self.mixtures[rows],
      metrics={name: values[rows] for name, values in self.metrics.items()},
      split=None if self.split is None else tuple(self.split[i] for i in rows),
      fidelity=self.fidelity[rows],
    )


def read(folder: epath.PathLike) -> Table:
  """The runs recorded in a folder, in one of two layouts.

  Olmix: `ratios.csv` and `metrics.csv`, joined on their column `run`; `name` and `index` may stand
  beside it. RegMix: pairs of `*_mixture*.csv` and `*_loss*.csv`, joined on `index`, whose names may
  end in a model size (`_1m`), which is then the fidelity; so is a column `fidelity` in either
  layout. All other columns are domains and metrics. Files that start with `train_` and `test_` are
  the two splits. Weights are divided by their sum. FileNotFoundError if there is no such table,
  ValueError naming file and run where one is wrong.
  """
  folder = epath.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"no folder {folder} to read a table from")
  pairs = _pairs(folder)
  parts = [_read_pair(pair) for pair in pairs]
  domains = parts[0].domains
  for pair, part in zip(pairs, parts, strict=True):
    if differing := set(domains) ^ set(part.domains):
      raise ValueError(
        f"{pairs[0].mixtures.name} and {pair.mixtures.name} have different domains: "
        f"{listed(sorted(differing))} in one only"
      )
  names = dict.fromkeys(name for part in parts for name in part.metrics)
  columns = {name: np.concatenate([part.metric(name) for part in parts]) for name in names}
  metrics = {name: values for name, values in columns.items() if np.isfinite(values).any()}
  if not metrics:
    raise ValueError(f"no run in {folder} has a value of any metric")
  known = [part.fidelity for part in parts]
  if any(f is None for f in known) and any(f is not None for f in known):
    raise ValueError(f"only some of the files in {folder} say the fidelity of their runs")
  splits = {pair.split for pair in pairs}
  content = hashlib.sha256()
  for path in sorted(path for pair in pairs for path in (pair.mixtures, pair.metrics)):
    content.update(path.name.encode() + b"\0" + path.read_bytes())
  return Table(
    runs=tuple(run for part in parts for run in part.runs),
    domains=domains,
    mixtures=np.concatenate([part.weights_of(domains) for part in parts]),
    metrics=metrics,
    losses=pairs[0].key == "index",
    sha256=content.hexdigest(),
    split=tuple(pair.split for pair, part in zip(pairs, parts, strict=True) for _ in part.runs)
    if splits == set(_SPLITS)
    else None,
    fidelity=None if known[0] is None else np.concatenate(known),
    empty=tuple(name for name in columns if name not in metrics),
  )


@dataclasses.dataclass(frozen=True)
class _Pair:
  """Two files that describe the same runs, and the column that joins them."""

  mixtures: epath.Path
  metrics: epath.Path
  key: str
  split: str
  fidelity: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
  """The runs of one pair of files."""

  runs: tuple[str, ...]
  domains: tuple[str, ...]
  weights: np.ndarray
  metrics: dict[str, np.ndarray]
  fidelity: np.ndarray | None

  def weights_of(self, domains: tuple[str, ...]) -> np.ndarray:
    return self.weights[:, [self.domains.index(name) for name in domains]]

  def metric(self, name: str) -> np.ndarray:
    return self.metrics.get(name, np.full(len(self.runs), np.nan))


def _split_of(name: str) -> str:
  return next((split for split in _SPLITS if name.startswith(f"{split}_")), "")


def _pairs(folder: epath.Path) -> list[_Pair]:
  """The pairs of files in a folder, train before test."""
  files = {path.name: path for path in sorted(folder.iterdir()) if path.name.endswith(".csv")}
  olmix = [
    _Pair(files[ratios], files[metrics], "run", prefix.rstrip("_"))
    for prefix in ("", "train_", "test_")
    for ratios, metrics in [(f"{prefix}ratios.csv", f"{prefix}metrics.csv")]
    if ratios in files and metrics in files
  ]
  used = {pair.mixtures.name for pair in olmix} | {pair.metrics.name for pair in olmix}
  if lonely := [
    n for n in files if re.fullmatch(r"(train_|test_)?(ratios|metrics)\.csv", n) and n not in used
  ]:
    raise ValueError(f"{folder} has {listed(lonely)} without its partner (ratios and metrics)")
  if olmix and (others := [name for name in files if "_mixture" in name]):
    raise ValueError(f"{folder} has both ratios.csv and {listed(others)}: one table a folder")
  pairs = olmix or _regmix_pairs(list(files.values()))
  if not pairs:
    raise FileNotFoundError(
      f"no table in {folder}: it needs ratios.csv and metrics.csv, or *_mixture*.csv and "
      f"*_loss*.csv; it has {listed(files) or 'no CSV file'}"
    )
  if "" in (splits := {pair.split for pair in pairs}) and len(splits) > 1:
    raise ValueError(f"{folder} has a table with and one without train_/test_ in its name")
  return pairs


def _regmix_pairs(paths: list[epath.Path]) -> list[_Pair]:
  """Files with the same split, joined by what follows `_mixture` and `_loss` if there are many."""
  pairs = []
  for split in ("", *_SPLITS):
    sides = []
    for word in ("mixture", "loss"):
      side: dict[str, list[epath.Path]] = {}
      for path in paths:
        found = re.fullmatch(rf"(?:.*_)?{word}(.*)\.csv", path.name)
        if found and _split_of(path.name) == split:
          side.setdefault(found[1], []).append(path)
      sides.append(side)
    mixtures, losses = sides
    if len(mixtures) == len(losses) == 1:
      losses = dict(zip(mixtures, losses.values(), strict=True))
    for ending in mixtures | losses:
      group = [*mixtures.get(ending, ()), *losses.get(ending, ())]
      if not (len(mixtures.get(ending, ())) == len(losses.get(ending, ())) == 1):
        raise ValueError(
          f"{listed(p.name for p in group)}: a *_mixture*.csv needs exactly one *_loss*.csv with "
          "the same ending"
        )
      size = re.fullmatch(r"_(\d+(?:\.\d+)?)([kmbt])", ending, re.IGNORECASE)
      fidelity = float(size[1]) * _SIZES[size[2].lower()] if size else None
      pairs.append(_Pair(*group, "index", split, fidelity))
  if len({pair.fidelity for pair in pairs}) == 1:
    return [dataclasses.replace(pair, fidelity=None) for pair in pairs]
  return pairs


def _read_pair(pair: _Pair) -> _Part:
  ratios, metrics = Sheet.read(pair.mixtures, pair.key), Sheet.read(pair.metrics, pair.key)
  for there, other in ((ratios, metrics), (metrics, ratios)):
    if missing := [run for run in there.runs if run not in other.runs]:
      raise ValueError(
        f"{other.path.name} has no row for {pair.key} {listed(missing)} of {there.path.name}"
      )
  domains = [name for name in ratios.columns if name not in ABOUT]
  names = [name for name in metrics.columns if name not in ABOUT]
  for sheet, found, what in ((ratios, domains, "domain"), (metrics, names, "metric")):
    if not found or not sheet.runs:
      raise ValueError(f"{sheet.path} has no {'run' if found else what}")
  runs = tuple(ratios.runs)
  weights = _normalised(np.stack([ratios.numbers(d, runs) for d in domains], 1), domains, ratios)
  values = {name: metrics.numbers(name, runs) for name in names}
  fidelity = None if pair.fidelity is None else np.full(len(runs), pair.fidelity)
  for sheet in (ratios, metrics):
    if "fidelity" in sheet.columns:
      fidelity = sheet.numbers("fidelity", runs)
      if not np.isfinite(fidelity).all():
        run = runs[int(np.argmin(np.isfinite(fidelity)))]
        raise ValueError(f"{sheet.path}: run {run!r} has no fidelity")
  finite = {name: np.where(np.isfinite(v), v, np.nan) for name, v in values.items()}
  return _Part(runs, tuple(domains), weights, finite, fidelity)


def _normalised(weights: np.ndarray, domains: list[str], sheet: "Sheet") -> np.ndarray:
  runs = list(sheet.runs)
  if (bad := ~np.isfinite(weights) | (weights < 0)).any():
    row, column = np.argwhere(bad)[0]
    raise ValueError(
      f"{sheet.path}: run {runs[row]!r} has weight {weights[row, column]} for "
      f"{domains[column]!r}; weights are finite and not negative"
    )
  sums = weights.sum(axis=1)
  if (wrong := np.abs(sums - 1) > SUM_TOLERANCE + 1e-9).any():
    row = int(np.argmax(wrong))
    raise ValueError(
      f"{sheet.path}: the weights of run {runs[row]!r} sum to {sums[row]:.6g}, not to 1 within "
      f"{SUM_TOLERANCE:.0%}; divide them by their sum if they are shares of one mixture"
    )
  return weights / sums[:, None]
