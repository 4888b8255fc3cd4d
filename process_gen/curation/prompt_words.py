"""Function words and adjectives that `prompt_graph` knows. No noun that can be painted is listed.

What is not in one of these tables is an open word: a noun, a part of a compound, or a verb, which
its place in the sentence tells.
"""

from __future__ import annotations

import re

ARTICLES = frozenset(("a", "an"))
DETERMINERS = frozenset(
    """the this that these those its his her their our my your each every some any another
    several many few both all various multiple numerous""".split()
)
PLURAL_DETERMINERS = frozenset(
    "these those some several many few both all various multiple numerous".split()
)
# Determiners that say something about the picture and are kept as attributes.
QUANTIFIERS = frozenset("several many few various multiple numerous".split())
_COUNTING = "one two three four five six seven eight nine ten eleven twelve".split()
NUMBERS = {word: i for i, word in enumerate(_COUNTING, 1)} | {str(i): i for i in range(1, 101)}
DETERMINING = ARTICLES | DETERMINERS | set(NUMBERS)

COLORS = frozenset(
    """red orange yellow green blue purple pink brown black white gray grey gold golden silver
    beige tan turquoise cyan magenta violet indigo maroon teal crimson scarlet burgundy khaki
    blonde blond colorful colourful multicolored multicolor""".split()
)
SHADES = frozenset("light dark bright deep pale vivid hot neon".split())

_SIZES = """big large larger largest small smaller smallest tiny huge giant gigantic enormous
    little mini miniature massive tall taller short shorter long longer wide narrow thin thick
    fat slim"""
_SHAPES = """round circular square rectangular triangular oval cubic cylindrical spherical
    conical pyramidal pentagonal hexagonal octagonal oblong teardrop diamond-shaped
    heart-shaped star-shaped curved straight flat pointed pointy sloped rounded crooked bent
    asymmetrical"""
_SURFACES = """fluffy furry fuzzy hairy smooth rough bumpy spiky prickly jagged rugged soft
    hard shiny glossy matte dull sleek metallic wooden woolen woollen wicker ceramic leathery
    silky velvety rusty dusty dirty clean wet dry moist sticky slimy sandy grassy rocky snowy
    icy muddy transparent translucent opaque polished textured striped spotted dotted
    checkered checked plaid patterned floral plush crisp crunchy juicy crispy cracked rustic
    weathered delicate intricate ornate plain tough bristly grainy coarse gritty thorny earthy
    scaly"""
_QUALITIES = """old young new fresh ancient modern vintage antique traditional happy sad angry
    crying smiling cute beautiful pretty ugly lovely adorable elegant majestic graceful fierce
    gentle calm peaceful quiet loud cozy cosy comfortable warm cold chilly cool sweet sour
    bitter tender fragrant ripe rich empty full open closed broken glowing sparkling
    shimmering flickering glittering dazzling bright dark heavy sharp blunt strong weak slow
    lazy busy bustling crowded sunny cloudy rainy stormy foggy misty windy distant nearby
    early late wild tame tiny vibrant lush dense magnificent stunning breathtaking serene
    tranquil gourmet natural romantic therapeutic mysterious magical billowing towering
    streamlined detailed refreshing"""
ADJECTIVES = frozenset(f"{_SIZES} {_SHAPES} {_SURFACES} {_QUALITIES}".split())
# Materials are nouns too: "a glass vase", but "a wine glass". They describe what follows them.
MATERIALS = frozenset(
    """glass leather fabric rubber plastic metal wood steel iron stone brick paper cardboard
    cotton velvet silk wool denim concrete marble copper bronze brass porcelain clay crystal
    granite""".split()
)

AUXILIARIES = frozenset(
    """is are was were be been being am has have had do does did can could will would may
    might must shall should isn't aren't""".split()
)
POSSESSION = frozenset(("has", "have", "had"))
CONJUNCTIONS = frozenset(("and", "or", "plus", "&"))
# What opens a clause that this grammar does not follow.
SUBORDINATORS = frozenset(
    """because if when where whose why how so but until unless although though since than
    whether as while""".split()
)
RELATIVE = frozenset(("that", "which", "who"))
PRONOUNS = frozenset(
    """it they he she them him i we us you itself themselves himself herself one's there other
    others others' what everyone someone something nothing""".split()
)
ADVERBS = frozenset(
    """very quite too also just not always often again together away down up back forth out
    apart almost nearly still already now then only even rather more most perfectly neatly
    happily""".split()
)
_NOT_ADVERBS = re.compile(
    "fly|family|belly|jelly|lily|bully|holly|assembly|friendly|lovely|ugly|silly|curly|woolly|"
    "early|elderly|bristly|prickly|italy|monopoly|supply|(?:butter|dragon|fire|house)fly|gnarly|"
    "chilly|hilly"
)
SCENES = frozenset(
    """background garden park room kitchen bathroom bedroom street road field meadow beach
    forest jungle desert sky sea ocean lake river mountain mountains city town yard backyard
    farm office classroom library restaurant stadium museum landscape night countryside woods
    space snow sunset""".split()
)

REGIONS = frozenset(
    """left right top bottom upper lower above below center centre middle background
    foreground distance corner side front back""".split()
)
_SIDES = ("left", "right")
_PREPOSITIONS = """above below over near beside behind inside outside beneath underneath
    under between among amidst against around across through throughout past along alongside
    toward towards from to with without within for of about during before after by in into on
    onto upon off at like atop beyond despite via"""


def _relations() -> dict[tuple[str, ...], str]:
    """Phrases that relate two things, as words, with the name that all spellings of one share."""
    table: dict[tuple[str, ...], str] = {(word,): word for word in _PREPOSITIONS.split()}
    for word in ("underneath", "beneath"):
        table[word,] = "under"
    table["atop",] = "on top of"
    for side in _SIDES:
        for lead in ("", "to the ", "on the ", "at the ", "in the ", "to ", "on ", "at "):
            for tail in ("", " side", "-hand side", " hand side"):
                words = f"{lead}{side}{tail} of"
                table[tuple(words.split())] = f"{side} of"
    for lead in ("on ", "on the ", "at the "):
        table[tuple(f"{lead}top of".split())] = "on top of"
        table[tuple(f"{lead}bottom of".split())] = "at the bottom of"
        table[tuple(f"{lead}side of".split())] = "at the side of"
    for lead in ("next to", "close to", "adjacent to", "in front of", "out of", "away from"):
        table[tuple(lead.split())] = lead
    for phrase, name in (
        ("at front of", "in front of"),
        ("in back of", "behind"),
        ("at the back of", "behind"),
        ("inside of", "inside"),
        ("in the middle of", "in the middle of"),
        ("in the center of", "in the middle of"),
        ("in the centre of", "in the middle of"),
        ("at the edge of", "at the edge of"),
        ("at the end of", "at the end of"),
        ("in the corner of", "in the corner of"),
        ("together with", "with"),
        ("along with", "with"),
    ):
        table[tuple(phrase.split())] = name
    return table


RELATIONS = _relations()
LONGEST_RELATION = max(map(len, RELATIONS))

_FUNCTION_WORDS = (
    DETERMINING
    | AUXILIARIES
    | CONJUNCTIONS
    | SUBORDINATORS
    | RELATIVE
    | PRONOUNS
    | {phrase[0] for phrase in RELATIONS if len(phrase) == 1}
)

FRAMES = frozenset(
    """photo photograph picture image snapshot shot portrait painting drawing illustration
    sketch rendering render closeup close-up view""".split()
)

_IRREGULAR_VERBS = frozenset(
    """sped flew hung lay lain stood sat held ran shone lit swam sang fell slept kept wore
    worn ate drank drove rode wrote drew grew blew threw caught brought bought built sent
    spent met led fed hidden driven ridden written drawn grown blown thrown eaten taken given
    shown seen spun clung swung strung bound woven wove leapt crept swept wept dug burnt lent
    made went came gave took told sold cast became""".split()
)
# Words like "ring" and "sled" need no place here: no vowel stands before their ending.
_NOT_PARTICIPLES = re.compile(
    ".*(?:eed|ceiling|building|painting|clothing|earring|pudding|wedding|flooring|stuffing|awning|"
    "sibling|duckling|sapling|evening|morning|lightning|icing|dumpling|hundred|hatred)"
)


def looks_like_verb(word: str) -> bool:
    """Whether the form of a word is a past tense or a participle."""
    if word in _IRREGULAR_VERBS:
        return True
    stem = word[:-3] if word.endswith("ing") else word[:-2] if word.endswith("ed") else ""
    vowels = any(letter in "aeiouy" for letter in stem)
    return len(stem) > 1 and vowels and not _NOT_PARTICIPLES.fullmatch(word)


def is_past(word: str) -> bool:
    """Whether a word is an irregular past tense or participle."""
    return word in _IRREGULAR_VERBS


def is_adverb(word: str) -> bool:
    """Whether a word is an adverb: by its ending, or one of a few short ones."""
    by_ending = word.endswith("ly") and len(word) > 4 and not _NOT_ADVERBS.fullmatch(word)
    return word in ADVERBS or by_ending


def is_adjective(word: str) -> bool:
    """Whether a word is an adjective, wherever it stands: by the tables above, or by its ending."""
    return is_color(word) or word in ADJECTIVES or word.endswith(("ous", "ful", "less"))


def is_color(word: str) -> bool:
    """Whether a word is a colour, compounds ("golden-yellow", "black-and-white") included."""
    parts = [part for part in word.split("-") if part != "and"]
    return any(part in COLORS for part in parts) and all(
        part in COLORS or part in SHADES for part in parts
    )


def is_open(word: str) -> bool:
    """Whether a word is none of the function words above: a noun, an adjective, or a verb."""
    return bool(word) and word[0].isalnum() and word not in _FUNCTION_WORDS
