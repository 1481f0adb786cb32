"""Small molecules as skeletal formulae, drawn by RDKit: which atoms they have, how many, and where.

A source is a canonical SMILES string out of a few hundred built from scaffolds and substituents,
with one to three atoms other than carbon; only those carry a letter. Training draws in one font, in
black or in the usual colours of the elements, on pale paper; held-out pictures are black, in
another font, on coloured paper.
"""

import functools
import hashlib
import io
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from mixjax.corpus import tasks
from mixjax.corpus.gallery import ask, canvas
from mixjax.corpus.gallery.picture import SIZE, Domain, Picture, Probe, Thing

ELEMENTS = {
  "N": "nitrogen", "O": "oxygen", "S": "sulfur", "F": "fluorine", "Cl": "chlorine", "Br": "bromine",
}  # fmt: skip
# Molecules that hold each element for one that does not.
ODDS = {
  "nitrogen": 0.72, "oxygen": 0.67, "sulfur": 0.6, "fluorine": 0.25, "chlorine": 0.25,
  "bromine": 0.28,
}  # fmt: skip

SCAFFOLDS = (
  # no ring
  "C({a})CC{b}", "CC({a})CC({b})C", "C({a})C(C)C{b}", "CC({a})C({b})C", "C({a})C({b})CC",
  "C({a})C#CC{b}", "CC({a})CCC{b}", "CC({a})(C)C{b}", "C({a})C({b})C({c})", "CC({a})CC({b})C({c})",
  # one ring
  "c1ccc({a})c({b})c1", "c1cc({a})cc({b})c1", "c1c({a})ccc({b})c1", "C1CCC({a})C({b})C1",
  "C1C({a})CCC({b})C1", "C1CC({a})C({b})C1", "C1C({a})C1{b}", "C1C({a})CC1{b}",
  "n1c({a})cccc1{b}", "n1ccc({a})c({b})c1", "o1cc({a})c({b})c1", "s1c({a})ccc1{b}",
  "n1c({a})nccc1", "C1CC({a})OC1{b}", "C1C({a})NCC1{b}",
  # two rings
  "c1({b})ccc2c({a})cccc2c1", "n1ccc({a})c2ccccc12", "C1CCC2C({a})CCC({b})C2C1",
  "C1CC1c1ccc({a})cc1", "C1CC1C({a})C1CC1{b}", "C1C({a})C2(C1)CC({b})C2", "C1CC2CC({a})CC2C1{b}",
  "C1CC1c1cc({a})cs1", "C1CC1c1cc({a})co1", "C1CC1c1cc({a})ccn1",
  # three rings
  "C1C({b})C1C1CC1C1CC1{a}", "C1CC1C({a})(C1CC1)C1CC1{b}", "C1CC1c1c({a})cc(C2CC2)s1",
  "c1ccc2c(c1)Cc1cc({a})ccc1-2", "C1C({a})C1c1cc({b})cc(C2CC2)c1",
)  # fmt: skip
SUBSTITUENTS = ("O", "N", "S", "F", "Cl", "Br", "C", "OC", "CN", "CS")
PER_RING_COUNT = 180
LETTER = 15  # pixels of the font
HELD_OUT_FONT, TRAINING_FONT = "BuiltinRobotoRegular", "BuiltinTelexRegular"


def _built() -> Iterator[str]:
  """Every scaffold under every choice of substituents, as canonical SMILES."""
  for scaffold in SCAFFOLDS:
    slots = [s for s in "abc" if f"{{{s}}}" in scaffold]
    for chosen in itertools.product(SUBSTITUENTS, repeat=len(slots)):
      filled = scaffold.format(**dict(zip(slots, chosen, strict=True)))
      yield Chem.MolToSmiles(Chem.MolFromSmiles(filled))


def _worth_counting(count: int, rng: np.random.Generator) -> bool:
  """Most molecules have none or one of an element: asked of all, 1 would be a safe bet."""
  return count > 1 or rng.random() < (0.15, 0.3)[count]


def _letters(molecule: Chem.Mol) -> list[Chem.Atom]:
  return [atom for atom in molecule.GetAtoms() if atom.GetSymbol() in ELEMENTS]


@functools.cache
def sources() -> Sequence[str]:
  """Equally many molecules with no ring, one, two and three, in an order without meaning."""
  kept: dict[int, list[str]] = {rings: [] for rings in range(4)}
  unique = sorted(set(_built()), key=lambda s: hashlib.sha256(s.encode()).digest())
  for smiles in unique:
    molecule = Chem.MolFromSmiles(smiles)
    rings = kept[molecule.GetRingInfo().NumRings()]
    if 1 <= len(_letters(molecule)) <= 3 and len(rings) < PER_RING_COUNT:
      rings.append(smiles)
  return [smiles for rings in kept.values() for smiles in rings]


@functools.lru_cache(maxsize=4096)
def _molecule(smiles: str) -> Chem.Mol:
  """With 2-D coordinates, and bare letters: hydrogens would crowd a picture this small."""
  molecule = Chem.MolFromSmiles(smiles)
  rdDepictor.Compute2DCoords(molecule)
  for atom in _letters(molecule):
    atom.SetProp("_displayLabel", atom.GetSymbol())
    atom.SetProp("_displayLabelW", atom.GetSymbol())
  return molecule


def _draw(
  smiles: str, rng: np.random.Generator, held_out: bool
) -> tuple[np.ndarray, tuple[Thing, ...]]:
  """The picture, and every lettered atom with its box, in raster order."""
  molecule = _molecule(smiles)
  drawing = rdMolDraw2D.MolDraw2DCairo(SIZE, SIZE)
  options = drawing.drawOptions()
  options.fontFile = HELD_OUT_FONT if held_out else TRAINING_FONT
  options.fixedFontSize = LETTER
  options.bondLineWidth = 2
  options.scaleBondWidth = False
  options.padding = float(rng.uniform(0.13, 0.2))
  options.rotate = float(rng.uniform(0, 360))
  options.additionalAtomLabelPadding = 0.0
  paper = canvas.color_shade(list(canvas.COLORS)[rng.integers(len(canvas.COLORS))], rng) / 255
  paper = 1 - (1 - paper) * (0.6 if held_out else 0.2)
  options.setBackgroundColour(tuple(float(c) for c in paper))
  if held_out or rng.integers(2):
    options.useBWAtomPalette()
  drawing.DrawMolecule(molecule)
  drawing.FinishDrawing()
  pixels = np.asarray(Image.open(io.BytesIO(drawing.GetDrawingText())).convert("RGB"))
  things = []
  for atom in _letters(molecule):
    point = drawing.GetDrawCoords(atom.GetIdx())
    wide = 11 if len(atom.GetSymbol()) == 2 else 8
    box = (point.y - 8, point.x - wide, point.y + 8, point.x + wide)
    box = tuple(float(np.clip(c / SIZE, 0, 1)) for c in box)
    things.append(Thing(ELEMENTS[atom.GetSymbol()], box))
  return pixels, tuple(sorted(things, key=lambda t: (t.box[0], t.box[1])))


def _offset(first: Thing, second: Thing) -> tuple[float, float]:
  """(down, right) from the first centre to the second."""
  return tuple(
    (second.box[i] + second.box[i + 2] - first.box[i] - first.box[i + 2]) / 2 for i in (0, 1)
  )


def _relation(first: Thing, second: Thing) -> str | None:
  """Where `first` lies from `second`, if one direction clearly leads."""
  down, right = _offset(first, second)
  if abs(right) >= max(0.12, 1.5 * abs(down)):
    return "left of" if right > 0 else "right of"
  if abs(down) >= max(0.12, 1.5 * abs(right)):
    return "above" if down > 0 else "below"
  return None


def _caption(things: Sequence[Thing], rings: int) -> str:
  names = [t.label for t in things]
  ring = ask.amount(rings, "ring")
  if len(names) == 2 and names[0] != names[1] and (relation := _relation(*things)):
    return f"a molecule with {ring}, {names[0]} {relation} {names[1]}"
  atoms = [ask.amount(names.count(n), n) for n in dict.fromkeys(names)]
  return f"a molecule with {ask.listing([ring, *atoms])}"


def _other_captions(things: Sequence[Thing], rings: int, rng: np.random.Generator) -> list[str]:
  """One wrong number of rings, two wrong elements."""
  here = {t.label for t in things}
  absent = [e for e in ELEMENTS.values() if e not in here]
  changed = things[rng.integers(len(things))].label
  others = [_caption(things, int((rings + rng.integers(1, 4)) % 4))]
  for i in rng.permutation(len(absent))[:2]:
    others.append(
      _caption([Thing(absent[i] if t.label == changed else t.label, t.box) for t in things], rings)
    )
  return others


def _probes(things: Sequence[Thing], rings: int, rng: np.random.Generator) -> tuple[Probe, ...]:
  names = [t.label for t in things]
  ring_choices = ask.choices(str(rings), ("0", "1", "2", "3"), rng)
  probes = [Probe("science", ask.how_many("ring"), str(rings), ring_choices)]
  relation = _relation(*things) if len(set(names)) == len(names) == 2 else None
  if _worth_counting(names.count("nitrogen"), rng):
    count = str(names.count("nitrogen"))
    probes.append(Probe("counting", ask.how_many("nitrogen atom"), count))
  elif relation:
    answer, anchor = names
    if rng.integers(2):
      answer, anchor, relation = anchor, answer, ask.OPPOSITE[relation]
    offered = ask.choices(answer, [e for e in ELEMENTS.values() if e != anchor], rng)
    prompt = ask.what_is(relation, f"{anchor} atom")
    probes.append(Probe("science", prompt, answer, offered))
  caption = _caption(things, rings)
  offered = ask.choices(caption, _other_captions(things, rings, rng), rng)
  fits = Probe("breadth", ask.CAPTION_QUESTION, caption, offered)
  kind = Probe("breadth", ask.KIND_QUESTION, "molecule", ask.choices("molecule", ask.KINDS, rng))
  return (*probes, fits if rng.integers(2) else kind)


def _questions(things: Sequence[Thing], rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
  names = [t.label for t in things]
  atoms = {e: f"{e} atom" for e in ELEMENTS.values()}
  odds = {atoms[e]: ratio for e, ratio in ODDS.items()}
  present = sorted({atoms[n] for n in names})
  absent = [a for e, a in atoms.items() if e not in names]
  questions = [ask.presence(present, absent, odds, rng)]
  if _worth_counting(names.count("oxygen"), rng):
    questions.append((ask.how_many("oxygen atom"), str(names.count("oxygen"))))
  single = [t for t in things if names.count(t.label) == 1]
  if single:
    target = single[rng.integers(len(single))]
    questions.append((ask.where_is(atoms[target.label]), tasks.write_box(target.box)))
  else:
    questions.append((ask.CONTENT_QUESTION, names[0]))
  return tuple(questions)


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """One molecule at a random angle; see the module's docstring for the two styles."""
  image, things = _draw(source, rng, held_out)
  rings = _molecule(source).GetRingInfo().NumRings()
  letters = {name: symbol for symbol, name in ELEMENTS.items()}
  return Picture(
    source=source,
    image=image,
    caption=_caption(things, rings),
    text=" ".join(letters[t.label] for t in things),
    things=things,
    questions=_questions(things, rng),
    probes=_probes(things, rings, rng),
  )


DOMAIN = Domain("molecules", sources, render)
