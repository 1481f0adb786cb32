"""Olmix: `ratios.csv` and `metrics.csv` of a study, which its fit reads.

A recipe is one mixture; Olmix fits many, with their scores. So this exports the study that a recipe
came from. Its columns are shares of samples, as the study has them: a proposal fitted to them is in
samples too. Olmix's own launcher draws tokens; multiply by tokens a sample (`token_shares`) first.
"""

from etils import epath

from mixjax.search import exchange
from mixjax.search.study import Study


def export(study: epath.PathLike, folder: epath.PathLike) -> dict[int, str]:
  """Writes both files into `folder`; returns the trials that are left out, `{trial: why}`.

  Raises FileNotFoundError where there is no study, ValueError where none of its trials is done.
  """
  path = epath.Path(study)
  if not (path / "trials").exists():
    raise FileNotFoundError(f"no study in {path}: give study=RUN/study of a configs/search.py run")
  return exchange.export_olmix(Study(path), folder)
