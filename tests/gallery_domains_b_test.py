"""The five drawn domains: charts, documents, code, formulae, chess."""

import collections
import re

import numpy as np
import pytest

from mixjax.corpus import tasks
from mixjax.corpus.gallery import (
  ask,
  charts,
  chess_boards,
  code,
  documents,
  equations,
  fonts,
  formulae,
  tables,
)
from mixjax.corpus.gallery.picture import SIZE, Picture

LEAST_SOURCES = {"charts": 600, "documents": 1500, "code": 1500, "formulae": 1500, "chess": 1500}
MODULES = (charts, documents, code, formulae, chess_boards)
CHOOSING = {"relations", "scenes", "science", "breadth"}
BENCHMARKS = {
  "charts": {"charts", "maths", "counting", "breadth"},
  "documents": {"documents", "counting", "breadth"},
  "code": {"screens", "breadth"},
  "formulae": {"maths", "science", "breadth"},
  "chess": {"science", "grounding", "counting", "breadth"},
}

each_domain = pytest.mark.parametrize("domain", [m.DOMAIN for m in MODULES], ids=lambda d: d.name)


def renders(domain, count: int, held_out: bool, seed: int = 0) -> list[Picture]:
  """Pictures of sources spread over the whole list."""
  sources = domain.sources()
  return [
    domain.render(sources[i * 97 % len(sources)], np.random.default_rng([seed, i]), held_out)
    for i in range(count)
  ]


def template(question: str) -> str:
  """The question without what it asks about."""
  words = question.removesuffix("?")
  for start in ("How many", "Is there", "Where is", "What color is"):
    if words.startswith(start):
      return start
  return re.sub(r"((?:left|right) of|above|below|value of) .*", r"\1", words)


@each_domain
def test_sources_are_unique_many_and_in_a_fixed_order(domain):
  sources = list(domain.sources())
  assert len(set(sources)) == len(sources) >= LEAST_SOURCES[domain.name]
  assert sources == list(domain.sources())


@each_domain
@pytest.mark.parametrize("held_out", [False, True])
def test_same_arguments_give_the_same_picture(domain, held_out):
  for source in domain.sources()[3::400]:
    first, again = (domain.render(source, np.random.default_rng(5), held_out) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.caption == again.caption and first.things == again.things
    assert first.questions == again.questions and first.probes == again.probes


@each_domain
@pytest.mark.parametrize("held_out", [False, True])
def test_pictures_keep_their_promises(domain, held_out):
  probed = set()
  for picture in renders(domain, 300, held_out):
    assert picture.image.shape == (SIZE, SIZE, 3) and picture.image.dtype == np.uint8
    assert picture.image.std() > 2
    assert 3 <= len(picture.caption.split()) <= 14
    assert len(picture.text.split()) <= 6 and bool(picture.text) == (domain.name != "chess")
    assert 1 <= len(picture.things) <= 3
    assert 2 <= len(picture.questions) <= 4
    for thing in picture.things:
      assert thing.label == thing.label.lower().strip() != ""
      tasks.write_box(thing.box)
    for question, answer in picture.questions:
      assert question.endswith("?") and 1 <= len(answer.split()) <= 6
    assert len({q for q, _ in picture.questions}) == len(picture.questions)
    assert 1 <= len(picture.probes) <= 4
    for probe in picture.probes:
      probed.add(probe.benchmark)
      assert probe.prompt.endswith("?") and 1 <= len(probe.answer.split()) <= 6
      assert bool(probe.choices) == (probe.benchmark in CHOOSING)
      if probe.choices:
        assert len(set(probe.choices)) == 4 and probe.choices.count(probe.answer) == 1
  assert probed == BENCHMARKS[domain.name] if held_out else probed <= BENCHMARKS[domain.name]


@each_domain
def test_the_breadth_questions_are_asked_by_no_training_question(domain):
  trained = {q for p in renders(domain, 300, False) for q, _ in p.questions}
  breadth = {
    x.prompt for p in renders(domain, 300, True) for x in p.probes if x.benchmark == "breadth"
  }
  assert breadth and not trained & breadth


@each_domain
def test_answers_cannot_be_guessed(domain):
  said = collections.Counter(
    a for p in renders(domain, 300, False) for _, a in p.questions if a in ("yes", "no")
  )
  if said:
    assert 0.4 <= said["yes"] / said.total() <= 0.6
  place = collections.Counter(
    x.choices.index(x.answer) for p in renders(domain, 300, True) for x in p.probes if x.choices
  )
  assert min(place[i] for i in range(4)) / place.total() > 0.18


@each_domain
def test_no_open_question_has_one_answer_most_of_the_time(domain):
  """Of what takes more than looking at the question: 10 answers or more, or no answer over 70%."""
  answers = collections.defaultdict(collections.Counter)
  for picture in renders(domain, 400, True):
    for probe in picture.probes:
      if not probe.choices:
        answers[template(probe.prompt)][probe.answer] += 1
  for asked, counts in answers.items():
    assert counts.most_common(1)[0][1] / counts.total() < 0.7, f"{asked}: {counts.most_common(3)}"


@pytest.mark.parametrize("module", [documents, code, formulae], ids=lambda m: m.DOMAIN.name)
def test_no_two_sources_show_the_same_text(module):
  shown: dict[str, str] = {}
  for seed in range(3):
    for source in module.sources()[seed::3]:
      picture = module.render(source, np.random.default_rng(seed), False)
      assert shown.setdefault(picture.text, source) == source


def test_training_and_benchmarks_share_no_font():
  assert not set(fonts.TRAINING) & set(fonts.HELD_OUT)
  assert set(code.FACES) <= set(fonts.TRAINING) and set(code.HELD_OUT_FACES) <= set(fonts.HELD_OUT)
  assert set(formulae.HELD_OUT_FACES) <= set(fonts.HELD_OUT)
  assert not set(formulae.FACES) & set(fonts.HELD_OUT)


@pytest.mark.parametrize("face", fonts.FACES)
def test_fonts_have_the_height_asked_for(face):
  for cap in (9, 12):
    _, top, _, bottom = fonts.load(face, cap).getbbox("H")
    assert abs(bottom - top - cap) <= 1
  narrow = fonts.fit(face, 14, ("mmmm",), 40)
  assert 35 < narrow.getlength("mmmm") <= 40


def test_chart_slices_share_no_rows():
  weeks = [s for s in tables.slices() if s.startswith("weather")]
  assert len(weeks) == len(set(weeks)) > 200
  for source, columns in tables.slices().items():
    for column in columns:
      values = list(column.values())
      assert len(set(values)) == len(values) >= tables.FEWEST, source
      assert all(1 <= v <= 99 for v in values)
  # one known week: rain of 2012-01-02 to 2012-01-08, whole millimetres, none on 5 and 7 January
  assert tables.slices()["weather:2012-1"][0] == {"mon": 11, "tue": 1, "wed": 20, "fri": 3}


def test_columns_are_as_high_as_their_values():
  seen = 0
  for picture in renders(charts.DOMAIN, 200, False):
    listed = re.findall(r"(\w+) (\w+) (\d+)", picture.caption)
    if not picture.caption.startswith("bar chart of"):
      continue
    heights = []
    for (color, label, _), thing in zip(listed, picture.things, strict=True):
      assert thing.label == f"{label} bar"
      middle = round((thing.box[1] + thing.box[3]) / 2 * SIZE)
      column = picture.image[:, middle - 1].astype(int)
      inks = (fonts.DARK_INKS.get(color, (0, 0, 0)), fonts.BRIGHT_INKS.get(color, (0, 0, 0)))
      filled = [np.abs(column[20:57] - ink).max(-1) < 5 for ink in inks]
      heights.append(max(f.sum() for f in filled))
    values = [int(v) for _, _, v in listed]
    if max(values) - min(values) > 0.2 * max(values) and min(heights) < 37:
      assert int(np.argmin(heights)) == int(np.argmin(values)), picture.caption
      seen += 1
  assert seen > 20


def test_chart_answers_agree_with_the_printed_values():
  seen = collections.Counter()
  for picture in renders(charts.DOMAIN, 300, True):
    words = picture.text.split()
    printed = dict(zip(words[::2], words[1::2], strict=False))
    for probe in picture.probes:
      if probe.prompt.startswith("What is the value of"):
        label = probe.prompt.removesuffix("?").split()[-1]
        assert printed[label] == probe.answer
      elif probe.benchmark == "maths":
        assert int(probe.answer) == sum(int(v) for v in printed.values())
      elif probe.benchmark == "counting":
        assert int(probe.answer) == len(words) >= 4
      elif "biggest" in probe.prompt and len(words) > 1 and words[1].isdigit():
        assert printed[probe.answer] == max(printed.values(), key=int)
      seen[probe.benchmark] += 1
  assert min(seen[b] for b in BENCHMARKS["charts"]) > 40


def test_documents_are_read_as_they_are_written():
  seen = collections.Counter()
  for picture in renders(documents.DOMAIN, 300, True):
    lines = re.split(", | and ", picture.caption.split(" with ")[1])
    pairs = dict(line.split(" ", 1) for line in lines if " " in line)
    assert sorted(picture.text.split()) == sorted(" ".join(lines).split())
    if "total" in pairs:
      assert int(pairs["total"]) == sum(int(v) for k, v in pairs.items() if k != "total")
    for probe in picture.probes:
      seen[probe.benchmark] += 1
      key = probe.prompt.removeprefix("What is the ").removesuffix("?")
      if probe.benchmark == "counting":
        assert int(probe.answer) == len(lines)
      elif key in pairs:
        assert probe.answer == pairs[key]
      elif probe.benchmark == "breadth":
        assert [c for c in probe.choices if c in lines] == [probe.answer]
  assert min(seen[b] for b in BENCHMARKS["documents"]) > 60


def test_programs_compile_and_say_their_name_and_number():
  for source in code.sources()[::5]:
    program = code._program(source)
    compile(program.text, source, "exec")
    assert re.findall(r"(?:def|class|import) (\w+)", program.text) == [program.name]
    assert re.findall(r"\d+", program.text) == [program.number]
    assert program.returns == ("return" in program.text)
  assert 0.45 < np.mean([code._program(s).returns for s in code.sources()]) < 0.55


def test_formulae_come_to_their_results():
  for source, formula in equations.equations().items():
    typed = re.sub(r"root (\d+)", r"\1**0.5", formula.typed.replace("^", "**"))
    value = eval(typed)
    assert formula.result == value or (formula.result is None and value != int(value)), source


def test_the_root_and_the_fraction_bar_are_drawn_in_their_boxes():
  for picture in renders(formulae.DOMAIN, 80, False):
    ground = picture.image[0, 0].astype(int)
    for thing in picture.things:
      y0, x0, y1, x1 = (round(c * SIZE) for c in thing.box)
      assert (np.abs(picture.image[y0:y1, x0:x1] - ground).max(-1) > 60).mean() > 0.05


def test_positions_are_legal_chess():
  chess = pytest.importorskip("chess")
  for source in chess_boards.sources()[::7]:
    board = chess.Board(f"{source} w - - 0 1")
    assert board.is_valid()
    board.turn = chess.BLACK
    assert board.is_valid()
    placement, _ = chess_boards._positions()[source]
    for side, owner in (("white", chess.WHITE), ("black", chess.BLACK)):
      attacks = {
        (7 - chess.square_rank(s), chess.square_file(s))
        for s in chess.SQUARES
        if board.is_attacked_by(owner, s)
      }
      ours = {s for s in chess_boards.attacked(placement, side) if 0 <= min(s) <= max(s) < 8}
      assert ours == attacks, source


def test_a_king_beside_a_king_is_not_legal():
  kings = {(0, 0): "white king", (0, 2): "black king"}
  assert chess_boards.legal(kings)
  assert not chess_boards.legal({(0, 0): "white king", (1, 1): "black king"})
  assert not chess_boards.legal({**kings, (5, 0): "black rook"})
  assert chess_boards.legal({**kings, (5, 0): "black rook", (3, 0): "white pawn"})
  assert not chess_boards.legal({**kings, (7, 7): "white pawn"})


def test_chess_relations_and_boxes_agree():
  kept = 0
  for picture in renders(chess_boards.DOMAIN, 200, False):
    things = {t.label: t.box for t in picture.things}
    for question, answer in picture.questions:
      found = re.fullmatch(r"What is (left of|right of|above|below) the (.*)\?", question)
      if found and {found[2], answer} <= set(things):
        axis, sign = {"left of": (1, 1), "right of": (1, -1), "above": (0, 1), "below": (0, -1)}[
          found[1]
        ]
        assert sign * (things[found[2]][axis] - things[answer][axis]) > 0
        kept += 1
  assert kept > 40
  for picture in renders(chess_boards.DOMAIN, 100, True):
    boxes = {t.label: t.box for t in picture.things}
    for probe in picture.probes:
      label = probe.prompt.removeprefix("Where is the ").removesuffix("?")
      if label in boxes:
        assert probe.answer == tasks.write_box(boxes[label])
      if probe.prompt.startswith("How many"):
        assert 3 <= int(probe.answer) <= 6


def test_kinds_asked_are_kinds_of_the_gallery():
  asked = {
    answer
    for module in MODULES
    for picture in renders(module.DOMAIN, 60, True)
    for question, answer in (*picture.questions, *((p.prompt, p.answer) for p in picture.probes))
    if question == ask.KIND_QUESTION
  }
  assert asked == {"chart", "document", "code", "formula", "chess board"} <= set(ask.KINDS)
