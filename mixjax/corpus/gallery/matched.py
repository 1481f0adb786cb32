"""The mixture matched to the benchmarks by hand: an upper bound that a user could not have.

It uses what only the makers of the gallery know: which domains each benchmark asks about, and which
kinds of supervision teach what it asks.
"""

from collections.abc import Mapping, Sequence

from mixjax.corpus import tasks
from mixjax.evals.benchmarks import Question

# Shares of supervision for one benchmark: reading needs OCR, relations need regions, and so on.
NEEDS: Mapping[str, Mapping[str, float]] = {
  "relations": {tasks.VQA: 0.5, tasks.GROUNDED: 0.3, tasks.CAPTION: 0.2},
  "scenes": {tasks.VQA: 0.5, tasks.CAPTION: 0.5},
  "grounding": {tasks.GROUNDED: 0.6, tasks.DETECTION: 0.4},
  "documents": {tasks.OCR: 0.6, tasks.VQA: 0.4},
  "charts": {tasks.OCR: 0.3, tasks.VQA: 0.4, tasks.CAPTION: 0.3},
  "screens": {tasks.OCR: 0.6, tasks.VQA: 0.4},
  "science": {tasks.VQA: 0.6, tasks.CAPTION: 0.4},
  "maths": {tasks.OCR: 0.5, tasks.VQA: 0.5},
  "counting": {tasks.VQA: 0.6, tasks.CAPTION: 0.4},
  "breadth": {tasks.CAPTION: 0.6, tasks.VQA: 0.4},
}


def matched_weights(
  questions: Sequence[Question],
  domains_of_concepts: Mapping[str, Mapping[str, int]],
  cells: Sequence[str],
  mislabelled: Mapping[str, float],
) -> dict[str, float]:
  """{cell: weight}: every benchmark's share goes to its domains' concepts under the tasks it needs.

  `domains_of_concepts` counts a concept's images a domain (the atlas card); what is mislabelled by
  more than half gets nothing.
  """
  weight = dict.fromkeys(cells, 0.0)
  per_benchmark = {name: [q.domain for q in questions if q.benchmark == name] for name in NEEDS}
  images: dict[str, int] = {}
  for counts in domains_of_concepts.values():
    for domain, count in counts.items():
      images[domain] = images.get(domain, 0) + count
  for name, domains in per_benchmark.items():
    for domain in domains:
      for task, share in NEEDS[name].items():
        if mislabelled.get(f"{domain}/{task}", 0.0) > 0.5:
          continue
        for concept, counts in domains_of_concepts.items():
          cell = f"{concept}/{task}"
          part = counts.get(domain, 0) / images[domain]
          if cell in weight:
            weight[cell] += share * part / len(domains)
  total = sum(weight.values())
  return {cell: w / total for cell, w in weight.items()}
