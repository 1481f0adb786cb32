"""`jobs.apply` by the workers of Apache Beam, in an environment that has it."""

from mixjax.jobs.workdir import claim


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it. Any runner may go on with what another one began."""
  try:
    import apache_beam  # noqa: F401
  except ImportError as error:
    raise ValueError(
      "beam= needs Apache Beam, which wants older packages than requirements.txt: make an "
      "environment of its own with `pip install -r requirements-beam.txt`, and run there"
    ) from error
  from mixjax.jobs.apply import ApplyConfig
  from mixjax.jobs.beam import apply
  from mixjax.jobs.beam.workers import Workers
  from mixjax.progress import Reporter

  settings = {name: value for name, value in config.items() if name != "beam"}
  claim(workdir, settings)
  reporter = Reporter()
  fields = {name: value for name, value in settings.items() if name != "job"}
  apply.run(ApplyConfig(**fields), Workers(**config["beam"]), workdir, reporter)
  reporter.close()
