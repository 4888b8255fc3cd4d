"""English plurals, by rule: no list of nouns, only of irregular endings and words.

Prompts of benchmarks are written by programs, so that plurals like "benchs" and "knifes" are as
common as "benches" and "knives": both give "bench" and "knife".
"""

from __future__ import annotations

_IRREGULAR = {
    "women": "woman",
    "children": "child",
    "people": "person",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "dice": "die",
    "cacti": "cactus",
    "fungi": "fungus",
    "knives": "knife",
    "wives": "wife",
    "lives": "life",
    "leaves": "leaf",
    "loaves": "loaf",
    "wolves": "wolf",
    "shelves": "shelf",
    "halves": "half",
    "calves": "calf",
    "scarves": "scarf",
    "thieves": "thief",
    "hooves": "hoof",
    "elves": "elf",
    "lenses": "lens",
    "canvases": "canvas",
    "gases": "gas",
    "axes": "axe",
}
# Plural in form only, or the same in both numbers. What ends like one of these counts too.
_INVARIABLE = (
    "scissors",
    "skis",
    "pants",
    "jeans",
    "trousers",
    "shorts",
    "tights",
    "pajamas",
    "pyjamas",
    "sunglasses",
    "eyeglasses",
    "goggles",
    "binoculars",
    "headphones",
    "pliers",
    "tongs",
    "tweezers",
    "clothes",
    "stairs",
    "series",
    "species",
    "chess",
    "news",
    "sheep",
    "fish",
    "deer",
    "shrimp",
)
# Singular, though they end in a single s.
_SINGULAR = {"canvas", "gas", "lens", "atlas", "christmas", "pancreas", "yes", "sports"}
_IE = {"cookie", "movie", "zombie", "hoodie", "selfie", "brownie", "smoothie", "genie", "pixie"}
_OE = ("shoe", "toe", "canoe", "hoe", "oboe", "aloe", "doe", "foe")
_US = {"emus", "menus", "gnus", "gurus", "tutus"}  # plurals, unlike "bus"
_IS = ("sis", "xis", "tennis", "iris", "trellis", "pelvis", "ibis", "clematis")  # unlike "taxis"


def _is_men(word: str) -> bool:
    return word.endswith("men") and not word.endswith(("omen", "imen", "ramen"))


def is_plural(word: str) -> bool:
    """Whether a noun looks like a plural; nouns with one form for both numbers do not."""
    if word in _IRREGULAR or word in _US or _is_men(word):
        return True
    if word in _SINGULAR or word.endswith((*_INVARIABLE, *_IS)) or len(word) < 3:
        return False
    return word.endswith("s") and not word.endswith(("ss", "us", "'s"))


def singular(word: str) -> str:
    """The singular of a noun in lower case; a word that is no plural comes back as it is."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if _is_men(word):
        return word[:-2] + "an"
    if not is_plural(word):
        return word
    if word.endswith("ses") and word[:-2].endswith(_INVARIABLE):  # "scissorses" is in GenEval++
        return word[:-2]
    if word.endswith("ies"):
        short = len(word) == 4 or word[:-1] in _IE
        return word[:-1] if short else word[:-3] + "y"
    if word.endswith("oes"):
        keeps_e = word[:-1].endswith(_OE) and not word.endswith(("potatoes", "tomatoes"))
        return word[:-1] if keeps_e else word[:-2]
    if word.endswith(("sses", "shes", "ches", "xes", "zzes")):
        return word[:-2]
    if word.endswith("uses") and word[-5:-4] not in ("o", "a"):  # buses, but houses and causes
        return word[:-2]
    return word[:-1]
