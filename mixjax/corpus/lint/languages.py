"""The language of a text from its script and its commonest words: no model, no dependency.

Codes are BCP 47's. A script that one language uses tells it alone; Latin and Cyrillic texts are
told by function words and letters, and where those are missing by their script only ("und-Latn").
"""

import collections
import functools
import re
import unicodedata

NONE = "zxx"  # BCP 47 for no language: numbers, boxes, formulae
_SHARE = 0.3  # of the letters: less of a script is a loan

_SCRIPTS = {
  "HANGUL": "ko", "HEBREW": "he", "GREEK": "el", "THAI": "th", "DEVANAGARI": "hi", "BENGALI": "bn",
  "TAMIL": "ta", "TELUGU": "te", "GEORGIAN": "ka", "ARMENIAN": "hy", "GUJARATI": "gu",
  "KANNADA": "kn", "MALAYALAM": "ml", "KHMER": "km", "LAO": "lo", "MYANMAR": "my", "SINHALA": "si",
  "ETHIOPIC": "am", "GURMUKHI": "pa",
}  # fmt: skip

# Frequent words that few of the other languages share.
_WORDS = {
  "en": "the of and is are in what this that with how there image which many color it on does "
  "to all describe detect text objects appears picture answer question",
  "de": "der die das und ist nicht ein eine mit auf dem den von zu im wie was welche bild sind",
  "fr": "le la les des est une dans et du que qui pour sur avec il au ce cette quelle image sont",
  "es": "el los las es una en que del por con para como qué cuál imagen son hay está se",
  "it": "il di che una per con del della gli sono nel come questo immagine non si qual quale",
  "pt": "os uma em que não com do da para são na no imagem qual como um está ao",
  "nl": "de het een van en is niet op met zijn dat voor wat welke afbeelding er aan te deze ook",
  "pl": "jest nie na się że do co jak to obraz są jaki która dla przez od czy ile",
  "sv": "och är det som en på med för av inte den till bilden vad ett har om hur vilken finns",
  "tr": "bir ve bu için ile ne nedir var mı olan resimde çok da de gibi kaç hangi olarak değil",
  "vi": "là và của có trong không một những các với cho được này hình ảnh gì người bao nhiêu",
  "id": "yang dan di ini itu dengan untuk adalah tidak apa gambar dari pada berapa dalam ada ke",
}
_LATIN = {code: frozenset(words.split()) for code, words in _WORDS.items()}


def detect(text: str) -> str:
  """The code of a text's main language."""
  letters = [c for c in text if c.isalpha()]
  if not letters:
    return NONE
  scripts = collections.Counter(map(_script, letters[:2000]))
  # Japanese mixes kana into Han; few kana are enough.
  if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * len(letters[:2000]):
    return "ja"
  script, count = scripts.most_common(1)[0]
  others = [s for s, n in scripts.items() if s != "LATIN" and n >= _SHARE * scripts.total()]
  if script == "LATIN" and others:  # a question in its own script about a word in Latin letters
    script = others[0]
  if count == 0 or script in _SCRIPTS:
    return _SCRIPTS.get(script, f"und-{script.title()}")
  if script == "LATIN":
    return _latin(text)
  if script == "CYRILLIC":
    return "uk" if set(text.lower()) & set("іїєґ") else "ru"
  if script == "ARABIC":
    return "fa" if set(text) & set("پچژگ") else "ar"
  return "zh" if script == "CJK" else f"und-{script.title()}"


@functools.lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
  return unicodedata.name(letter, "UNKNOWN").split()[0]


def _latin(text: str) -> str:
  words = collections.Counter(re.findall(r"[^\W\d_]+", text[:4000].lower()))
  score = {
    code: sum(n for word, n in words.items() if word in known) for code, known in _LATIN.items()
  }
  best = max(score, key=lambda code: score[code])
  return best if score[best] else "und-Latn"
