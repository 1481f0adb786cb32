"""The ledger of a search: a folder of trials that any program can read and no kill corrupts."""

import dataclasses
import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mixjax.search import records
from mixjax.search.objective import Objective, all_fidelities, unfinished
from mixjax.search.observations import Observations
from mixjax.search.policies import Policy
from mixjax.search.space import Key, Space
from mixjax.search.trial import (
  DONE,
  FAILED,
  INFEASIBLE,
  PROGRESS,
  QUEUED,
  STATES,
  Scores,
  Trial,
  check_mixture,
  check_scores,
  conflicts,
  fidelities,
)

FORMAT = 1


class Study:
  """A folder `study.json`, `trials/00012/{mixture,status,curve,scores}.json`, local or in a bucket.

  Each file appears whole or not at all (temporary name, then rename), so that one searcher and many
  workers need no lock: the searcher alone attaches trials, each worker records its own. What a kill
  left half-made counts as not done. `config` is what results depend on; with another one than the
  study was started with, ValueError shows the difference. None opens any study, but starts none.
  """

  def __init__(self, path: epath.PathLike, config: Mapping[str, Any] | None = None):
    self.path = epath.Path(path)
    about = self.path / "study.json"
    wanted = None if config is None else json.loads(json.dumps(config, default=records.plain))
    if not about.exists():
      if wanted is None:
        raise FileNotFoundError(f"no study at {self.path}: pass config= to start one")
      start = {"format": FORMAT, "fingerprint": records.fingerprint(wanted), "config": wanted}
      records.write(about, start)
    found, problem = records.read(about)
    if problem:
      raise ValueError(f"{about} {problem}: restore it, or start another study")
    if found.get("format") != FORMAT:
      raise ValueError(f"{about} has format {found.get('format')!r}; this program reads {FORMAT}")
    if missing := [key for key in ("fingerprint", "config") if key not in found]:
      raise ValueError(f"{about} has no {' and no '.join(missing)}: restore it, or start another")
    if wanted is not None and found["fingerprint"] != records.fingerprint(wanted):
      changes = "\n  ".join(records.differences(found["config"], wanted))
      raise ValueError(
        f"{self.path} was started with another config:\n  {changes}\n"
        "Use the old one, or another folder: their results are not comparable."
      )
    self.config: dict[str, Any] = found["config"]
    self.fingerprint: str = found["fingerprint"]

  def trials(self) -> list[Trial]:
    """All readable trials by id. Those without a readable mixture are left out; see `torn`."""
    return [trial for trial, _ in self._scan() if trial is not None]

  def torn(self) -> dict[str, str]:
    """What a kill or a bad disk left unreadable: `{file under trials/: what is wrong}`."""
    return {file: why for _, problems in self._scan() for file, why in problems.items()}

  def get(self, trial_id: int) -> Trial | None:
    """The trial of that id; None if there is none or its mixture cannot be read."""
    return self._load(self._folder(trial_id))[0]

  def attach(self, trial: Trial) -> Trial:
    """Writes `trial` down and returns it as the study knows it. The same one again is only found.

    Without an id, an equal trial (purpose, axis, point, mixture, seed, fidelity) is looked up, so a
    search that was interrupted proposes it again and finds it done; a new one gets the lowest free
    number, that of a torn trial included. With an id, ValueError if that trial is another one.
    """
    check_mixture(trial)
    if trial.id is None:
      known = self.trials()
      for old in known:
        if not conflicts(old, trial):
          return old
      taken = {old.id for old in known}
      free = next(i for i in range(len(taken) + 1) if i not in taken)
      trial = dataclasses.replace(trial, id=free)
    elif (old := self.get(trial.id)) is not None:
      if fields := conflicts(old, trial):
        raise ValueError(f"trial {trial.id} is another one already: {', '.join(fields)} differ")
      return old
    folder = self._folder(trial.id)
    for name in ("status.json", "curve.json", "scores.json"):
      # Left by a trial whose mixture is lost: kept for a person to look at, never taken as ours.
      if (folder / name).exists():
        (folder / name).replace(folder / f"orphan-{uuid.uuid4().hex[:8]}-{name}")
    asked = dataclasses.asdict(trial)
    records.write(folder / "mixture.json", {k: v for k, v in asked.items() if k not in PROGRESS})
    self.mark(trial.id, QUEUED)
    return self._known(trial.id)

  def ask(
    self,
    policy: Policy,
    space: Space,
    objective: Objective,
    count: int,
    key: Key,
    *,
    purpose: str = "search",
    seed: int = 0,
    fidelity: float | None = None,
  ) -> list[Trial]:
    """The next `count` mixtures by `policy`, queued: run each, then `tell` its scores.

    The policy sees the finished trials on `space` benchmark by benchmark, at all fidelities
    (`objective.all_fidelities`), and all others on it as pending or infeasible. Answers depend on
    what is in the folder and on `key` alone; use one for a search. A kill may come when only the
    first of the `count` are queued. They are then pending and not returned again: run what
    `trials()` has queued, and ask for the rest, which are those that would have come. ValueError as
    of the policy, or if trials were scored on other benchmarks than others.
    """
    trials = [trial for trial in self.trials() if trial.axis == space.name]
    if any(trial.state == DONE for trial in trials):
      runs = all_fidelities(trials, space, objective)
    else:
      runs = observe(trials, space, objective)
    points = policy.ask(runs, count, key)
    return [
      self.attach(
        Trial(None, purpose, space.name, space.cells(p), space.as_dict(p), seed, fidelity)
      )
      for p in points
    ]

  def mark(self, trial_id: int, state: str, detail: str = "") -> None:
    """Notes any state but done; a trial that is done stays so. ValueError for an unknown state."""
    if state not in STATES or state == DONE:
      allowed = [s for s in STATES if s != DONE]
      raise ValueError(f"{state!r} cannot be marked: it is one of {allowed}, or tell its scores")
    if self._known(trial_id).state != DONE:
      self._note(trial_id, state, detail, self.attempt(trial_id))

  def attempt(self, trial_id: int) -> int:
    """Which try at the trial this is, from 1; what a torn status leaves unknown counts as 1."""
    status, _ = records.read(self._folder(trial_id) / "status.json")
    return (status or {}).get("attempt", 1)

  def retry(self, max_attempts: int) -> list[Trial]:
    """Queues the failed trials again that were tried less than `max_attempts` times, and returns
    them, each with what went wrong last in its `detail`.

    Infeasible trials would go wrong again and stay as they are. For the searcher to call, like
    attach: a failed trial has no worker that could write at the same time.
    """
    if max_attempts < 1:
      raise ValueError(f"max_attempts counts the first try too: at least 1, not {max_attempts}")
    failed = [trial for trial in self.trials() if trial.state == FAILED]
    again = [trial for trial in failed if self.attempt(trial.id) < max_attempts]
    for trial in again:
      self._note(trial.id, QUEUED, trial.detail, self.attempt(trial.id) + 1)
    return [self._known(trial.id) for trial in again]

  def report(
    self, trial: Trial | int, step: float, scores: Mapping[str, Mapping[str, Any]]
  ) -> Trial:
    """Notes a trial's scores at a checkpoint on the way, for `Curves.of_trials`.

    The same step again, as after a kill, replaces what was noted there. ValueError for a step that
    is not positive and finite, or scores as for `tell`.
    """
    trial = self._known(trial.id if isinstance(trial, Trial) else trial)
    if not 0 < step < math.inf:
      raise ValueError(f"trial {trial.id} reports at step {step}: it is positive and finite")
    _check_scores_of(trial, scores)
    curve = dict(trial.curve) | {float(step): scores}
    points = [{"step": at, "scores": curve[at]} for at in sorted(curve)]
    records.write(self._folder(trial.id) / "curve.json", {"points": points})
    return self._known(trial.id)

  def tell(self, trial: Trial | int, scores: Mapping[str, Mapping[str, Any]]) -> Trial:
    """Writes a trial's scores; from then on it is done. The same scores again change nothing.

    ValueError if a score is missing, NaN or infinite, or if the trial is done with other scores.
    """
    trial = self._known(trial.id if isinstance(trial, Trial) else trial)
    _check_scores_of(trial, scores)
    scores = json.loads(json.dumps(scores, default=records.plain))
    folder = self._folder(trial.id)
    if trial.state == DONE and trial.scores != scores:
      raise ValueError(
        f"trial {trial.id} is done with other scores; to redo it, remove {folder / 'scores.json'}"
      )
    if trial.state != DONE:
      records.write(folder / "scores.json", scores)
    self._note(trial.id, DONE, "", self.attempt(trial.id))
    return self._known(trial.id)

  def _note(self, trial_id: int, state: str, detail: str, attempt: int) -> None:
    status = {"state": state, "detail": detail, "attempt": attempt}
    records.write(self._folder(trial_id) / "status.json", status)

  def _folder(self, trial_id: int) -> epath.Path:
    return self.path / "trials" / f"{trial_id:05d}"

  def _known(self, trial_id: int) -> Trial:
    if (trial := self.get(trial_id)) is None:
      raise KeyError(f"{self.path} has no trial {trial_id}: attach it first")
    return trial

  def _scan(self) -> Iterator[tuple[Trial | None, dict[str, str]]]:
    folder = self.path / "trials"
    names = [child.name for child in folder.iterdir()] if folder.exists() else []
    for name in sorted((name for name in names if name.isdigit()), key=int):
      yield self._load(folder / name)

  def _load(self, folder: epath.Path) -> tuple[Trial | None, dict[str, str]]:
    """The trial in `folder`, None if unreadable, and what is wrong with which of its files."""
    problems = {}
    asked, problem = records.read(folder / "mixture.json")
    try:
      trial = Trial(**(asked or {}))
      check_mixture(trial)
    except (TypeError, ValueError, AttributeError) as error:
      return None, {f"{folder.name}/mixture.json": problem or f"is no trial: {error}"}
    if trial.id != int(folder.name):
      return None, {f"{folder.name}/mixture.json": f"is that of trial {trial.id}"}
    status, problem = records.read(folder / "status.json")
    if problem and problem != records.MISSING:
      problems[f"{folder.name}/status.json"] = problem
    status = status or {}
    state = status.get("state", QUEUED)
    if state not in STATES:
      problems[f"{folder.name}/status.json"] = f"has the state {state!r}, none of {list(STATES)}"
      state = QUEUED
    scores, problem = records.read(folder / "scores.json")
    if scores is not None:
      try:
        check_scores(scores)
      except ValueError as error:
        scores, problem = None, f"is invalid: {error}"
    if problem and (problem != records.MISSING or state == DONE):
      problems[f"{folder.name}/scores.json"] = problem
    curve, problem = _curve(folder / "curve.json")
    if problem and problem != records.MISSING:
      problems[f"{folder.name}/curve.json"] = problem
    # Scores decide, not the status: a kill may have come between the writing of the two.
    state = DONE if scores is not None else QUEUED if state == DONE else state
    detail = "" if state == DONE else status.get("detail", "")
    told = dataclasses.replace(trial, state=state, detail=detail, scores=scores, curve=curve)
    return told, problems


def observe(
  trials: Sequence[Trial], space: Space, objective: Callable[[Scores], tuple[float, float | None]]
) -> Observations:
  """What a policy sees of the trials on `space`, in their order; those of other axes are left out.

  `objective` turns a score vector into one number, higher is better, and its standard error (None
  if unknown). Trials that are not done, failed ones too, are pending, or infeasible: not to be
  proposed again. ValueError if only some state their fidelity. What a search learns from benchmarks
  one by one is `objective.all_fidelities(trials, space, objective)`.
  """
  trials = [trial for trial in trials if trial.axis == space.name]
  done = [trial for trial in trials if trial.state == DONE]
  values = [objective(trial.scores) for trial in done]
  stderr = [error for _, error in values]
  fidelity = fidelities(done)
  pending, infeasible = unfinished(trials, space)
  return Observations(
    np.reshape([space.from_dict(trial.point) for trial in done], (len(done), space.dim)),
    np.array([score for score, _ in values], np.float64),
    stderr=None if None in stderr else np.array(stderr, np.float64),
    fidelity=None if fidelity is None else np.array(fidelity, np.float64),
    pending=pending,
    infeasible=infeasible,
  )


def _curve(path: epath.Path) -> tuple[tuple[tuple[float, Scores], ...], str]:
  """What was reported on the way, nothing if unreadable, and what is wrong with it."""
  content, problem = records.read(path)
  if content is None:
    return (), problem
  try:
    points = tuple((float(point["step"]), point["scores"]) for point in content["points"])
    for _, scores in points:
      check_scores(scores)
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    return (), f"is no curve: {error!r}"
  return points, ""


def _check_scores_of(trial: Trial, scores: Mapping[str, Mapping[str, Any]]) -> None:
  try:
    check_scores(scores)
  except ValueError as error:
    raise ValueError(
      f"trial {trial.id}: {error}; mark a run without valid scores {INFEASIBLE!r} or {FAILED!r}"
    ) from None
