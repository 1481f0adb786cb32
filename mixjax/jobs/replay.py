"""The replay job: policies and surrogates judged on a recorded table of runs.

Every row is a pure function of the table and its own arguments, so rows may be computed by any
number of processes; each is kept in `rows/` when it is done, and a killed replay goes on from them.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from etils import epath

from mixjax.jobs import workers
from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter
from mixjax.search import replay, tables


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
  """What to judge on which table.

  `objective` is a metric's column, "mean" of all or "each" in turn; `policy` and `surrogate` are
  names with commas between, or "all"; so is `n`, the runs to fit on ("" is 32, 64, ... and all).
  `minimize` None takes the metrics of `*_loss*` files for losses and all others for scores. Without
  `workers`, this process does the work.
  """

  table: str
  objective: str = "mean"
  mode: Literal["search", "fit"] = "search"
  policy: str = "all"
  surrogate: str = "all"
  budget: int = 48
  batch: int = 1
  seeds: int = 5
  n: str = ""
  minimize: bool | None = None
  workers: int = 0

  def __post_init__(self):
    if not self.table:
      raise ValueError("configs/replay.py needs table=DIR, a folder of recorded runs")
    if self.mode not in ("search", "fit"):
      raise ValueError(f"mode is search or fit, not {self.mode!r}")
    for name, least in (("budget", 1), ("batch", 1), ("seeds", 1), ("workers", 0)):
      if getattr(self, name) < least:
        raise ValueError(f"{name} is at least {least}, not {getattr(self, name)}")
    if bad := [n for n in self.sizes if not (n == "all" or str(n).isdigit())]:
      raise ValueError(f"n is numbers of runs, or all, not {bad}")
    _ = self.policies, self.surrogates

  @property
  def policies(self) -> tuple[str, ...]:
    return _chosen("policy", self.policy, replay.POLICIES)

  @property
  def surrogates(self) -> tuple[str, ...]:
    return _chosen("surrogate", self.surrogate, replay.SURROGATES)

  @property
  def sizes(self) -> tuple[str, ...]:
    return _names(self.n)


def _names(text: str) -> tuple[str, ...]:
  return tuple(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))


def _chosen(what: str, text: str, known: Mapping[str, object]) -> tuple[str, ...]:
  names = tuple(known) if text == "all" else _names(text)
  if not names or (unknown := [name for name in names if name not in known]):
    asked = ", ".join(map(repr, unknown)) if names else "nothing"
    raise ValueError(f"{what} is all or some of {', '.join(known)}, not {asked}")
  return names


def parse(config: dict) -> ReplayConfig:
  """ConfigDict's plain dict -> dataclass; ConfigDict ends here."""
  fields = {k: v for k, v in config.items() if k != "job"}
  says = {"guess": None, "true": True, "false": False}
  if (minimize := str(fields.get("minimize", "guess")).lower()) not in says:
    raise ValueError(f"minimize is true or false, or guess, not {minimize!r}")
  return ReplayConfig(**fields | {"minimize": says[minimize]})


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it: leaves replay.json."""
  parsed = parse(config)
  table = tables.read(parsed.table)
  reporter = Reporter()
  try:
    objectives = gather(parsed, table, reporter)
    # Rows depend on what the table holds, not on how many processes compute them.
    lasting = {k: v for k, v in config.items() if k != "workers"}
    folder = claim(workdir, lasting | {"table_sha256": table.sha256})
    run(parsed, objectives, folder, reporter)
  finally:
    reporter.close()


def run(
  config: ReplayConfig,
  objectives: Sequence[replay.Objective],
  workdir: epath.Path,
  reporter: Reporter,
) -> dict:
  """Computes the rows that are not there yet; writes and returns what replay.json holds."""
  found = {
    "table": config.table,
    "objective": config.objective,
    "mode": config.mode,
    "minimize": objectives[0].minimize,
    "targets": len(objectives),
    "seeds": config.seeds,
  }
  with workers.processes(config.workers) as executor:
    compute = _Rows(workdir / "rows", executor, reporter)
    judge = _search if config.mode == "search" else _fit
    found |= judge(config, objectives, compute, reporter)
  write_whole(workdir / "replay.json", json.dumps(found, indent=1, allow_nan=False))
  reporter.say(f"rows: {workdir / 'replay.json'}")
  return found


def gather(config: ReplayConfig, table: tables.Table, reporter: Reporter) -> list[replay.Objective]:
  """The targets of the objective, each with the runs that have it; says what was assumed.

  ValueError if the table cannot answer what the config asks.
  """
  count = len(table)
  table = table.at_target()
  split = "" if table.test is None else f", {int((~table.test).sum())} of them to learn from"
  reporter.say(
    f"table: {len(table)} runs{split}, {len(table.domains)} domains, {len(table.metrics)} metrics"
  )
  if len(table) < count:
    reporter.say(f"  {count - len(table)} runs of other fidelities than {table.fidelity[0]:g}: out")
  if table.empty:
    reporter.say(f"  metrics without any value, left out: {', '.join(table.empty)}")
  if "mean" in table.metrics and config.objective == "mean":
    reporter.say("  objective mean: of all metrics, not the column of that name")
  minimize = table.losses if config.minimize is None else config.minimize
  better = "lower" if minimize else "higher"
  if config.minimize is None:
    reason = "in a *_loss* file" if table.losses else "not in a *_loss* file"
    reporter.say(f"  {better} is better (assumed: metrics {reason}; minimize=true/false decides)")
  else:
    reporter.say(f"  {better} is better, as asked")
  objectives = [
    _objective(table, target, minimize, reporter) for target in table.targets(config.objective)
  ]
  if config.mode == "fit":
    replay.fit_sizes(objectives, config.sizes)
  return objectives


def _objective(
  table: tables.Table, target: str, minimize: bool, reporter: Reporter
) -> replay.Objective:
  values = table.values(target)
  has = np.isfinite(values)
  if not has.all():
    reporter.say(f"  {target}: {int((~has).sum())} of {len(has)} runs lack it and are left out")
  test = None if table.test is None else table.test[has]
  if not has.any() or (test is not None and test.all()):
    raise ValueError(
      f"no run to learn from has a value of {target!r}: choose another objective of "
      + ", ".join(table.metrics)
    )
  runs = tuple(run for run, kept in zip(table.runs, has, strict=True) if kept)
  metrics = np.stack(list(table.metrics.values()), axis=1)[has] if target == "mean" else None
  return replay.Objective(
    target, minimize, table.domains, runs, table.mixtures[has], values[has], test, metrics
  )


def _search(config: ReplayConfig, objectives, compute: "_Rows", reporter: Reporter) -> dict:
  for o in objectives:
    if (most := len(o.replicates)) < config.budget:
      reporter.say(f"  {o.name}: the pool has {most} mixtures; its searches end there")
  rows, single = replay.search_rows(
    objectives, config.policies, config.seeds, config.budget, config.batch, compute
  )
  summary = replay.search_summary(single)
  reporter.say(f"{config.objective}, regret in its own unit after {config.budget} evaluations")
  reporter.say(
    f"  {'policy':18}{'found':>10}{'median':>8}{'worst':>8}{'regret':>10}{'recommended':>13}"
  )
  for s in summary:
    at = "".join(
      f"{'never' if s[key] is None else format(s[key], 'g'):>8}"
      for key in ("found_at_median", "found_at_worst")
    )
    found = f"{s['found']}/{s['searches']}"
    reporter.say(
      f"  {s['policy']:18}{found:>10}{at}{s['regret']:10.4g}{s['recommended_regret']:13.4g}"
    )
  found = {"budget": config.budget, "batch": config.batch, "rows": rows, "summary": summary}
  return found | ({} if single is rows else {"by_target": single})


def _fit(config: ReplayConfig, objectives, compute: "_Rows", reporter: Reporter) -> dict:
  sizes = replay.fit_sizes(objectives, config.sizes)
  rows, single = replay.fit_rows(objectives, config.surrogates, sizes, config.seeds, compute)
  reporter.say(f"{config.objective}, each surrogate fitted on n runs and judged on others")
  reporter.say(f"  {'n':>6}  {'surrogate':20}{'spearman':>10}{'mse':>12}{'coverage95':>12}")
  for row in sorted(rows, key=lambda row: row["n"]):
    coverage = "-" if row["coverage95"] is None else f"{row['coverage95']:.3f}"
    constant = f"   constant in {row['constant']} of {row['fits']}" if row["constant"] else ""
    reporter.say(
      f"  {row['n']:6}  {row['surrogate']:20}{row['spearman']:10.4f}{row['mse']:12.4g}"
      f"{coverage:>12}{constant}"
    )
  return {"sizes": list(sizes), "rows": rows, "by_target": single}


class _Rows:
  """Computes rows in any process and keeps each on disk; those that are there are only read."""

  def __init__(
    self, folder: epath.Path, executor: concurrent.futures.Executor | None, reporter: Reporter
  ):
    self._folder = folder
    self._executor = executor
    self._reporter = reporter

  def __call__(self, function: Callable[..., dict], tasks: Mapping[str, tuple]) -> list[dict]:
    paths = {label: self._path(label) for label in tasks}
    rows = {label: json.loads(path.read_text()) for label, path in paths.items() if path.exists()}
    self._reporter.stage("replay", len(tasks), done=len(rows))
    left = {label: arguments for label, arguments in tasks.items() if label not in rows}
    for label, row in self._each(function, left):
      write_whole(paths[label], json.dumps(row, indent=1, allow_nan=False))
      rows[label] = row
      self._reporter.advance(note=f"row={label.replace(' ', '_')} seconds={row['seconds']:.1f}")
    return [rows[label] for label in tasks]

  def _each(self, function, tasks: Mapping[str, tuple]) -> Iterator[tuple[str, dict]]:
    futures = {}
    if self._executor:
      futures = {label: self._executor.submit(function, *tasks[label]) for label in tasks}
    labels = {future: label for label, future in futures.items()}
    ready = map(labels.get, concurrent.futures.as_completed(labels)) if futures else tasks
    for label in ready:
      try:
        yield label, futures[label].result() if futures else function(*tasks[label])
      except ValueError as error:
        raise ValueError(f"{label}: {error}") from error

  def _path(self, label: str) -> epath.Path:
    """A metric's name may hold anything; the digest tells apart what looks alike as a file name."""
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return self._folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', label)[:80]}-{digest}.json"
