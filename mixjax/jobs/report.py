"""The report job: writes a workdir's report.html again, from what is there."""

from etils import epath

from mixjax.recipes import report


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it. No settings; the workdir's config stays as it is.

  Raises FileNotFoundError when there is no such workdir.
  """
  if not epath.Path(workdir).is_dir():
    raise FileNotFoundError(
      f"no workdir {workdir}: --workdir names one that configs/search.py has left"
    )
  print(f"report: {report.write(workdir)}")
