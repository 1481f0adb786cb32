"""Writes the report of a workdir again; what is not there yet is named in it.

  python -m mixjax.main --config=configs/report.py --workdir=RUN     # seconds

Leaves RUN/report.html: one page, without network, readable in any browser and in print.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """No arguments: the workdir says everything."""
  parse_arg(arg)
  return ConfigDict(dict(job="report"))
