"""Studies in and out: the tables of Olmix and RegMix, and Optuna for its dashboard.

A copy of a study's folder keeps everything. A table keeps mixtures, scores and fidelities of the
runs that are done, and these to the last bit: `observe` sees the same in a study that went out and
came back. Standard errors, seeds and purposes have no place in a table and are lost.
"""

import csv
import dataclasses
import io
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from etils import epath

from mixjax.search.objective import Objective
from mixjax.search.space import SUM_TOLERANCE, Space
from mixjax.search.study import Study
from mixjax.search.tables import ABOUT, Table
from mixjax.search.trial import DONE, FAILED, INFEASIBLE, QUEUED, RUNNING, STOPPED, Scores, Trial

if TYPE_CHECKING:
  import optuna

OPTUNA = "optuna==5.0.0"

# The purpose of an imported trial is this and the run's name in its table.
_IMPORTED = "imported:"


def objective(study: Study, metric: str = "mean") -> Objective:
  """One benchmark, or the `mean` over all of the study's, for `observe`: higher is better.

  A study holds what was measured; `minimize` in its config, as `import_table` writes it there, says
  that these are losses. ValueError for an unknown metric.
  """
  done = [trial.scores for trial in study.trials() if trial.state == DONE]
  known = list(dict.fromkeys(name for scores in done for name in scores))
  if metric != "mean" and metric not in known:
    raise ValueError(f"no trial has a score of {metric!r}: choose mean or one of {known}")
  names = known if metric == "mean" else [metric]
  return Objective(dict.fromkeys(names, 1.0), minimize=study.config.get("minimize", False))


def export_olmix(study: Study, folder: epath.PathLike, axis: str | None = None) -> dict[int, str]:
  """Writes `ratios.csv` and `metrics.csv` (run, name, index, then a column a cell or benchmark).

  The runs are all that are done, by cell; with `axis` those on that axis, by its coordinates. A
  column `fidelity` is added where it differs between the runs. Values are as measured: the files do
  not say which way is better. Returns what was left out, `{trial: why}`. ValueError if nothing is
  left, if a name cannot be a column, or if an axis is not one simplex.
  """
  runs = _Runs.of(study, axis)
  purposes = [trial.purpose for trial in runs.trials]
  about = runs.about(run=runs.names, name=purposes, index=range(len(runs.names)))
  folder = epath.Path(folder)
  _write(folder / "ratios.csv", about, runs.weights, missing="0.0")
  _write(folder / "metrics.csv", about, runs.scores(1), missing="")
  return runs.left_out


def export_regmix(study: Study, folder: epath.PathLike, axis: str | None = None) -> dict[int, str]:
  """Writes `study_mixture.csv` and `study_loss.csv`, joined on `index`; else as `export_olmix`.

  Lower is better in a file of losses: unless the study's config says `minimize`, its scores go out
  with their sign turned.
  """
  runs = _Runs.of(study, axis)
  about = runs.about(index=runs.names)
  sign = 1 if study.config.get("minimize", False) else -1
  folder = epath.Path(folder)
  _write(folder / "study_mixture.csv", about, runs.weights, missing="0.0")
  _write(folder / "study_loss.csv", about, runs.scores(sign), missing="")
  return runs.left_out


def import_table(
  table: Table, path: epath.PathLike, space: Space | None = None, *, minimize: bool | None = None
) -> Study:
  """A study at `path` with one finished trial a run, numbered by row; the same again changes none.

  `space` has the table's domains as its coordinates; without one, they are a simplex of cells. The
  study's config notes `minimize` (None: whether the metrics stand in a `*_loss*` file), with which
  `objective` turns the sign of the scores; these are as in the table. A run without any value is
  failed. Those of a test split are imported too, as `test:RUN`: leave them out to judge on them.
  ValueError if the domains are not those of `space`.
  """
  space = Space.simplex("domain", table.domains) if space is None else space
  if differing := set(table.domains) ^ set(space.names):
    raise ValueError(
      f"the table has the domains {list(table.domains)}, the {space.name} axis the coordinates "
      f"{list(space.names)}: {sorted(differing)} are in one only; rename them to agree"
    )
  config = {
    "imported": table.sha256,
    "runs": len(table),
    "minimize": table.losses if minimize is None else minimize,
    "axis": space.name,
    "coordinates": space.names,
  }
  study = Study(path, config)
  for row, run in enumerate(table.runs):
    name = run if table.split is None else f"{table.split[row]}:{run}"
    point = _point(space, dict(zip(table.domains, table.mixtures[row].tolist(), strict=True)))
    mixture = point if set(space.cell_names) == set(point) else space.cells(space.from_dict(point))
    fidelity = None if table.fidelity is None else float(table.fidelity[row])
    trial = Trial(row, _IMPORTED + name, space.name, mixture, point, seed=0, fidelity=fidelity)
    study.attach(trial)
    values = {metric: float(column[row]) for metric, column in table.metrics.items()}
    scores = {metric: {"score": v} for metric, v in values.items() if math.isfinite(v)}
    if scores:
      study.tell(row, scores)
    else:
      study.mark(row, FAILED, "the table has no value of any metric")
  return study


def export_optuna(
  study: Study,
  storage: "str | optuna.storages.BaseStorage",
  name: str,
  objective: Callable[[Scores], tuple[float, float | None]],
  axis: str | None = None,
) -> "optuna.Study":
  """The trials as an Optuna study `name`, for its dashboard; `storage` may be a URL.

  The parameters are the weights of the cells, or with `axis` those of its coordinates for the
  trials on it; the value is `objective`'s, to be maximised, and scores reported on the way are
  intermediate values. Stopped and infeasible trials are pruned ones.
  ImportError without Optuna, ValueError if the storage has a study of that name.
  """
  try:
    import optuna
  except ImportError:
    raise ImportError(f"exporting to Optuna needs it: pip install {OPTUNA}") from None
  state = optuna.trial.TrialState
  states = {
    QUEUED: state.WAITING,
    RUNNING: state.RUNNING,
    DONE: state.COMPLETE,
    FAILED: state.FAIL,
    STOPPED: state.PRUNED,
    INFEASIBLE: state.PRUNED,
  }
  storage = optuna.storages.get_storage(storage)
  if name in optuna.get_all_study_names(storage):
    raise ValueError(
      f"the storage has an Optuna study {name!r}: choose another name, or remove that one with "
      "optuna.delete_study"
    )
  trials = [trial for trial in study.trials() if axis in (None, trial.axis)]
  weights = [trial.mixture if axis is None else trial.point for trial in trials]
  columns = list(dict.fromkeys(column for row in weights for column in row))
  unit = optuna.distributions.FloatDistribution(0.0, 1.0)
  exported = optuna.create_study(storage=storage, study_name=name, direction="maximize")
  exported.set_user_attr("mixjax", {"path": str(study.path), "config": study.config})
  for trial, row in zip(trials, weights, strict=True):
    about = {"trial": trial.id, "purpose": trial.purpose, "axis": trial.axis, "seed": trial.seed}
    about |= {"state": trial.state, "attempt": study.attempt(trial.id)}
    about |= {"fidelity": trial.fidelity, "detail": trial.detail, "command": trial.command}
    value = None
    if trial.state == DONE:
      value, about["stderr"] = objective(trial.scores)
      for benchmark, entry in trial.scores.items():
        about |= {f"{benchmark} {key}": entry[key] for key in ("score", "stderr") if key in entry}
    exported.add_trial(
      optuna.trial.create_trial(
        state=states[trial.state],
        value=value,
        params={column: min(row.get(column, 0.0), 1.0) for column in columns},
        distributions=dict.fromkeys(columns, unit),
        intermediate_values={int(step): objective(scores)[0] for step, scores in trial.curve},
        user_attrs={key: v for key, v in about.items() if v not in (None, "")},
      )
    )
  return exported


@dataclasses.dataclass(frozen=True)
class _Runs:
  """What of a study goes into a table: its finished trials, each by a name; `{trial: why}` not."""

  trials: list[Trial]
  names: list[str]
  weights: list[dict[str, float]]
  left_out: dict[int, str]

  @classmethod
  def of(cls, study: Study, axis: str | None) -> "_Runs":
    left_out = {int(file.split("/")[0]): f"{file} {why}" for file, why in study.torn().items()}
    asked = [trial for trial in study.trials() if axis in (None, trial.axis)]
    trials = [trial for trial in asked if trial.state == DONE]
    if not trials:
      where = "" if axis is None else f" on the axis {axis!r}"
      raise ValueError(f"{study.path} has no finished trial{where} to export")
    for trial in asked:
      if trial.state == DONE:
        left_out.pop(trial.id, None)
      else:
        why = f"{trial.state}: {trial.detail}" if trial.detail else trial.state
        left_out.setdefault(trial.id, why)
    names = [trial.purpose.removeprefix(_IMPORTED) for trial in trials]
    imported = all(trial.purpose.startswith(_IMPORTED) for trial in trials)
    if not imported or len(set(names)) < len(names):
      names = [f"{trial.id:05d}" for trial in trials]
    weights = [_weights(trial, axis) for trial in trials]
    return cls(trials, names, weights, dict(sorted(left_out.items())))

  def scores(self, sign: int) -> list[dict[str, float]]:
    """What each trial measured, by benchmark, times `sign`."""
    return [
      {benchmark: sign * entry["score"] for benchmark, entry in trial.scores.items()}
      for trial in self.trials
    ]

  def about(self, **columns: Sequence) -> list[dict[str, object]]:
    """The first columns of a file, and the fidelity where the trials differ in it."""
    fidelity = [trial.fidelity for trial in self.trials]
    if None not in fidelity and len(set(fidelity)) > 1:
      columns["fidelity"] = fidelity
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _weights(trial: Trial, axis: str | None) -> dict[str, float]:
  if axis is None:
    # Where the coordinates are the cells, the point is the mixture before its last rounding.
    return trial.point if trial.point.keys() == trial.mixture.keys() else trial.mixture
  if abs(sum(trial.point.values()) - 1) > SUM_TOLERANCE:
    raise ValueError(
      f"trial {trial.id}: its coordinates on {axis!r} sum to {sum(trial.point.values())}, not to 1 "
      "as a table's do; export the cells, without axis="
    )
  return trial.point


def _point(space: Space, weights: Mapping[str, float]) -> dict[str, float]:
  """The numbers, an ulp or so from `weights`, that `observe` turns into exactly `weights`.

  It divides them by their sum, as was done to the table: once more would move their last bits.
  """
  wanted = [weights[name] for name in space.names]
  for step in sorted(range(-16, 17), key=abs):
    point = {name: weight * (1 + step * 2.0**-53) for name, weight in weights.items()}
    if space.from_dict(point).tolist() == wanted:
      return point
  return dict(weights)


def _write(path: epath.Path, about, rows: Sequence[Mapping[str, float]], missing: str) -> None:
  """A CSV file, whole or not at all; floats as the shortest text that reads back as the same."""
  columns = list(dict.fromkeys(name for row in rows for name in row))
  if bad := [name for name in columns if name in ABOUT or name != name.strip()]:
    raise ValueError(f"{bad} cannot be columns of {path.name}: a table has other uses for the name")
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([*about[0], *columns])
  for first, row in zip(about, rows, strict=True):
    numbers = (repr(float(row[name])) if name in row else missing for name in columns)
    writer.writerow([*first.values(), *numbers])
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
  temporary.write_text(text.getvalue())
  temporary.replace(path)
