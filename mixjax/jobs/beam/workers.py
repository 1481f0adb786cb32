"""Which runner carries the work to the workers, and one pipeline that does so.

Nothing but numbers of pieces goes into a pipeline's graph, and nothing but files comes out of it:
all workers see the folders that the job is given.
"""

import dataclasses
import shlex
from collections.abc import Sequence

import apache_beam as beam
import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions

_QUIET = "--default_sdk_harness_log_level=WARNING"


@dataclasses.dataclass(frozen=True)
class Workers:
  """`runner`: a name that Beam knows, such as DirectRunner, DataflowRunner or FlinkRunner.

  `options`: what Beam takes on a command line, such as "--direct_num_workers=2". `shards`: files of
  a cell; 0 leaves it to TFDS, which makes one of less than 128 MiB, and more of 64 MiB on.
  """

  runner: str
  options: str = ""
  shards: int = 0

  def download_config(self) -> tfds.download.DownloadConfig:
    """The same for TFDS, which builds pipelines of its own."""
    return tfds.download.DownloadConfig(
      beam_runner=self.runner,
      beam_options=self._pipeline_options(),
      num_shards=self.shards or None,
      try_download_gcs=False,
    )

  def each(self, label: str, work: beam.DoFn, pieces: Sequence) -> None:
    """Has every piece done, and waits until all are."""
    with beam.Pipeline(runner=self.runner, options=self._pipeline_options()) as pipeline:
      _ = (
        pipeline
        | "pieces" >> beam.Create(list(pieces))
        # Otherwise a runner may keep all of them on the worker that created them.
        | "spread" >> beam.Reshuffle()
        | label >> beam.ParDo(work)
      )

  def _pipeline_options(self) -> PipelineOptions:
    return PipelineOptions([_QUIET, *shlex.split(self.options)])
