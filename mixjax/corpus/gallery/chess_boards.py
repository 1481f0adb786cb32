"""Chess endgames in a corner of the board, where the pieces are big enough to tell apart."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mixjax.corpus import tasks
from mixjax.corpus.gallery import ask, fonts
from mixjax.corpus.gallery.chance import coin, pick, shuffled
from mixjax.corpus.gallery.picture import SIZE, Domain, Picture, Probe, Thing

WHITE, BLACK = SIDES = ("white", "black")
GLYPHS = {"king": "♚", "queen": "♛", "rook": "♜", "bishop": "♝", "knight": "♞", "pawn": "♟"}
LETTERS = {"king": "k", "queen": "q", "rook": "r", "bishop": "b", "knight": "n", "pawn": "p"}
OFFICERS = tuple(kind for kind in GLYPHS if kind != "king")
STRAIGHT = ((0, 1), (1, 0), (0, -1), (-1, 0))
DIAGONAL = ((1, 1), (1, -1), (-1, 1), (-1, -1))
JUMPS = tuple((r, c) for r in (-2, -1, 1, 2) for c in (-2, -1, 1, 2) if abs(r) != abs(c))
STEPS = {
  "king": STRAIGHT + DIAGONAL,
  "queen": STRAIGHT + DIAGONAL,
  "rook": STRAIGHT,
  "bishop": DIAGONAL,
  "knight": JUMPS,
}
BOARD = 8
CORNER = 4  # squares a side that hold every piece, and that training shows
HELD_OUT_CORNER = 5
MOST = 3  # pieces a side
NUMBERS = (3, 4, 5, 6)  # pieces on the board, equally often
SOURCES = 1600
# light and dark squares
SQUARES = (
  ((238, 215, 180), (180, 135, 98)),
  ((236, 236, 208), (118, 150, 86)),
  ((222, 228, 234), (140, 162, 182)),
)
HELD_OUT_SQUARES = (((226, 206, 230), (150, 112, 165)), ((235, 200, 190), (190, 100, 90)))
PALE, DEEP = (255, 255, 255), (0, 0, 0)

Square = tuple[int, int]  # rank from the top, file from the left
Placement = Mapping[Square, str]  # square -> "white king"


def attacked(placement: Placement, side: str) -> set[Square]:
  """The squares that the pieces of `side` attack."""
  found = set()
  for (rank, file), piece in placement.items():
    owner, kind = piece.split()
    if owner != side:
      continue
    if kind == "pawn":
      ahead = rank + (-1 if side == WHITE else 1)
      found.update({(ahead, file - 1), (ahead, file + 1)})
      continue
    for down, right in STEPS[kind]:
      square = rank + down, file + right
      found.add(square)
      while kind not in ("king", "knight") and square not in placement and max(square) < BOARD:
        square = square[0] + down, square[1] + right
        if min(square) < 0:
          break
        found.add(square)
  return found


def legal(placement: Placement) -> bool:
  """Whether neither king is attacked and no pawn is on the first or last rank."""
  pawns_fit = all(0 < r < BOARD - 1 for (r, _), piece in placement.items() if "pawn" in piece)
  kings = {piece: square for square, piece in placement.items() if "king" in piece}
  return (
    pawns_fit
    and kings["white king"] not in attacked(placement, BLACK)
    and kings["black king"] not in attacked(placement, WHITE)
  )


def written(placement: Placement) -> str:
  """The placement field of FEN."""
  ranks = []
  for rank in range(BOARD):
    row = ""
    for file in range(BOARD):
      side, _, kind = placement.get((rank, file), "").partition(" ")
      letter = LETTERS.get(kind, "1")
      row += letter.upper() if side == WHITE else letter
    for run in range(BOARD, 0, -1):
      row = row.replace("1" * run, str(run)) if run > 1 else row
    ranks.append(row)
  return "/".join(ranks)


def _random_placement(rng: np.random.Generator, number: int) -> tuple[dict[Square, str], Square]:
  """A placement of `number` pieces in a corner of the board, and the corner's top-left square."""
  top, left = (int(rng.integers(0, BOARD - HELD_OUT_CORNER + 1)) for _ in range(2))
  white = int(rng.integers(max(1, number - MOST), min(MOST, number - 1) + 1))
  pieces = ["white king", "black king"]
  for side, own in ((WHITE, white), (BLACK, number - white)):
    pieces += [f"{side} {kind}" for kind in shuffled(rng, OFFICERS)[: own - 1]]
  places = rng.permutation(CORNER * CORNER)[:number]
  placement = {
    (top + int(p) // CORNER, left + int(p) % CORNER): piece
    for p, piece in zip(places, pieces, strict=True)
  }
  return placement, (top, left)


@functools.lru_cache(maxsize=1)
def _positions() -> dict[str, tuple[dict[Square, str], Square]]:
  """FEN placement -> the placement and the corner that holds it; no two corners look alike."""
  rng = np.random.default_rng(23)
  found, seen = {}, set()
  for number in NUMBERS:
    goal = len(found) + SOURCES // len(NUMBERS)
    while len(found) < goal:
      placement, (top, left) = _random_placement(rng, number)
      look = frozenset((r - top, f - left, piece) for (r, f), piece in placement.items())
      if look not in seen and legal(placement):
        seen.add(look)
        found[written(placement)] = placement, (top, left)
  return found


def sources() -> Sequence[str]:
  """Positions as the placement field of FEN."""
  return tuple(_positions())


@functools.lru_cache(maxsize=64)
def _glyph(kind: str, side: str, cell: float) -> Image.Image:
  """The piece on nothing, RGBA, a little smaller than its square."""
  width = int(cell)
  glyph = Image.new("RGBA", (width, width), (0, 0, 0, 0))
  font = fonts.load("dejavu sans", 0.72 * cell)
  fill, edge = (PALE, DEEP) if side == WHITE else (DEEP, PALE)
  draw = ImageDraw.Draw(glyph)
  left, top, right, bottom = draw.textbbox((0, 0), GLYPHS[kind], font=font)
  at = (width - left - right) / 2, (width - top - bottom) / 2
  draw.text(at, GLYPHS[kind], font=font, fill=edge, stroke_width=1, stroke_fill=edge)
  draw.text(at, GLYPHS[kind], font=font, fill=fill)
  return glyph


def _draw(
  placement: Placement, corner: Square, squares: int, shades: tuple[fonts.RGB, fonts.RGB]
) -> tuple[Image.Image, dict[str, tasks.Box]]:
  """The squares from `corner` on, `squares` a side; and where each piece is."""
  cell = SIZE / squares
  edges = [round(cell * i) for i in range(squares + 1)]
  image = Image.new("RGB", (SIZE, SIZE), shades[0])
  draw = ImageDraw.Draw(image)
  boxes = {}
  for row in range(squares):
    for column in range(squares):
      rank, file = corner[0] + row, corner[1] + column
      left, top, right, bottom = edges[column], edges[row], edges[column + 1], edges[row + 1]
      if (rank + file) % 2:
        draw.rectangle([left, top, right - 1, bottom - 1], fill=shades[1])
      piece = placement.get((rank, file))
      if piece:
        side, kind = piece.split()
        glyph = _glyph(kind, side, cell)
        image.paste(glyph, (left, top), glyph)
        boxes[piece] = fonts.share((left, top, right, bottom))
  return image, boxes


def _relations(placement: Placement) -> list[tuple[str, str, str]]:
  """(relation, piece, answer) wherever only one piece lies on that side of the piece."""
  found = []
  for (rank, file), piece in placement.items():
    sides = {
      "left of": [p for (_, f), p in placement.items() if f < file],
      "right of": [p for (_, f), p in placement.items() if f > file],
      "above": [p for (r, _), p in placement.items() if r < rank],
      "below": [p for (r, _), p in placement.items() if r > rank],
    }
    found += [(side, piece, others[0]) for side, others in sides.items() if len(others) == 1]
  return found


def _pieces(placement: Placement, side: str) -> list[str]:
  """The kinds of the pieces of one side, in the order of GLYPHS."""
  there = [piece.split()[1] for piece in placement.values() if piece.startswith(side)]
  return [kind for kind in GLYPHS if kind in there]


def _questions(rng: np.random.Generator, placement: Placement) -> tuple[tuple[str, str], ...]:
  white, black = (_pieces(placement, side) for side in SIDES)
  side, own = pick(rng, ((WHITE, white), (BLACK, black)))
  questions = [(ask.how_many(f"{side} piece"), str(len(own)))]
  alone = [k for k in OFFICERS if (k in white) != (k in black)]
  if alone:
    kind = pick(rng, alone)
    questions.append((ask.what_color(kind), WHITE if kind in white else BLACK))
  by_kind: dict[str, list[tuple[str, str, str]]] = {}  # so that not every answer is a king
  for found in _relations(placement):
    by_kind.setdefault(found[2].split()[1], []).append(found)
  for kind in shuffled(rng, by_kind)[:2]:
    relation, piece, answer = pick(rng, by_kind[kind])
    questions.append((ask.what_is(relation, piece), answer))
  if len(questions) == 1:
    other = BLACK if side == WHITE else WHITE
    questions.append((ask.how_many(f"{other} piece"), str(len(_pieces(placement, other)))))
  return tuple(questions)


def _present(rng: np.random.Generator, placement: Placement) -> Probe:
  """Which of four pieces is there; where it can be, two sides by two kinds."""
  there = [p for p in placement.values() if "king" not in p]
  piece = pick(rng, there)
  kind = piece.split()[1]
  absent = [f"{s} {k}" for s in SIDES for k in OFFICERS if f"{s} {k}" not in there]
  crossed = [
    wrong
    for k in shuffled(rng, (k for k in OFFICERS if k != kind))
    if set(wrong := [f"{s} {n}" for s in SIDES for n in (kind, k) if f"{s} {n}" != piece])
    <= set(absent)
  ]
  others = crossed[0] if crossed else shuffled(rng, absent)[:3]
  return Probe("science", ask.CONTENT_QUESTION, piece, ask.choices(piece, others, rng))


def _probes(
  rng: np.random.Generator, placement: Placement, boxes: Mapping[str, tasks.Box]
) -> tuple[Probe, ...]:
  white, black = (len(_pieces(placement, side)) for side in SIDES)
  if coin(rng):
    more = "both" if white == black else WHITE if white > black else BLACK
    shown = ask.choices(more, (WHITE, BLACK, "both", "none"), rng)
    science = Probe("science", "Which side has more pieces?", more, shown)
  else:
    science = _present(rng, placement)
  piece = pick(rng, boxes)
  kinds = ask.choices("chess board", ask.KINDS, rng)
  rest = (
    Probe("counting", ask.how_many("piece"), str(white + black)),
    Probe("grounding", ask.where_is(piece), tasks.write_box(boxes[piece])),
    Probe("breadth", ask.KIND_QUESTION, "chess board", kinds),
  )
  return (science, *shuffled(rng, rest)[:2])


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """`source` is one of `sources()`; KeyError for any other."""
  placement, corner = _positions()[source]
  if held_out:
    squares, shades = HELD_OUT_CORNER, pick(rng, HELD_OUT_SQUARES)
    shift = HELD_OUT_CORNER - CORNER
    corner = tuple(max(c - int(rng.integers(shift + 1)), 0) for c in corner)
  else:
    squares, shades = CORNER, pick(rng, SQUARES)
  image, boxes = _draw(placement, corner, squares, shades)
  things = tuple(Thing(piece, box) for piece, box in boxes.items())[:3]
  sides = [f"{side} {ask.listing(_pieces(placement, side))}" for side in SIDES]
  return Picture(
    source=source,
    image=np.asarray(image),
    caption=f"chess board, {', '.join(sides)}",
    text="",
    things=things,
    questions=_questions(rng, placement),
    probes=_probes(rng, placement, boxes),
  )


DOMAIN = Domain("chess", sources, render)
