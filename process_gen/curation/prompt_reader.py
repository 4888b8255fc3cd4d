"""The grammar behind `prompt_graph`: one pass over the words of a prompt.

The rules, in the order in which they are tried at each word:

* a relation ("to the left of") joins the noun phrase before it with the one after it; without a
  second one it says where in the picture something is ("on the left") and becomes an attribute;
* an auxiliary, or a word in the form of a verb where a noun cannot stand, is a relation as well
  ("is holding", "a chair hidden by a plate"), or an attribute where nothing follows ("is asleep");
* all else is a noun phrase: determiner or number, adjectives, noun. Its last noun is its head, and
  nouns before it belong to the class ("wine glass"); adjectives stand before nouns, so any unknown
  word before a known adjective is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from process_gen.curation import prompt_words as words
from process_gen.curation.plurals import is_plural, singular
from process_gen.curation.protocols import Edge, Node

MAX_CLASS_WORDS = 3


@dataclasses.dataclass
class _Link:
    """A relation that waits for its second node, or has just found it."""

    subjects: tuple[int, ...]
    label: str
    verbal: bool


class Reader:
    """Reads the words of a prompt; the results are `nodes`, `edges` and `unread`.

    The state is that of the clause: `subjects` are what its verb says something about, `last` is
    the noun phrase that a preposition belongs to, `joined` is "and" or "," since then.
    """

    def __init__(self, tokens: Sequence[str]):
        """Takes words in lower case, punctuation marks as words of their own."""
        self.tokens = tokens
        self.at = 0
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self.unread: list[str] = []
        self._placed: set[int] = set()  # tokens that name a relation or a place in the picture
        self._new_clause()

    def read(self) -> None:
        """Reads all words. Afterwards every open word is in the graph or in `unread`."""
        while self.at < len(self.tokens):
            self._next()
        self._end_link()
        held = " ".join(
            part for node in self.nodes for part in (node.name, node.color or "", *node.attributes)
        )
        held += " " + " ".join([edge.relation for edge in self.edges] + self.unread)
        found = set(held.split())
        for i, word in enumerate(self.tokens):
            if words.is_open(word) and i not in self._placed:
                self.unread += [word] if not found & {word, singular(word)} else []

    def _next(self) -> None:
        word = self._word()
        if not word[0].isalnum() and word != "&":
            self._punctuation(word)
        elif word in words.CONJUNCTIONS:
            self.joined = "and"
            self.at += 1
        elif word in words.SUBORDINATORS:
            self._subordinate(word)
        elif word in words.RELATIVE and self.last is not None:
            self.subjects = (self.last,)
            self.at += 1
        elif word in words.AUXILIARIES:
            self._auxiliary()
        elif self._region(self.last) or self._relation():
            return
        elif word in words.PRONOUNS:
            self.unread += [word] if word != "there" else []
            self.at += 1
        elif self._starts_verb():
            self._verb([])
        else:
            self._noun_phrase()

    def _new_clause(self) -> None:
        self.subjects: tuple[int, ...] = ()
        self.last: int | None = None
        self.pending: _Link | None = None
        self.linked: _Link | None = None
        self.joined = ""
        self.verb_seen = False
        self.verb_next = False  # the grammar has decided that the next word is a verb

    def _word(self, ahead: int = 0) -> str:
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def _is_open(self, ahead: int) -> bool:
        """Whether a word can be part of a noun phrase after its determiner, or a verb."""
        word = self._word(ahead)
        if word == "can" and not words.is_open(self._word(ahead + 1)):
            return True  # "a paint can"
        return words.is_open(word) and self._match_relation(ahead) is None

    def _starts_determined(self, ahead: int = 0) -> bool:
        return self._word(ahead) in words.DETERMINING

    def _describe(self, indices: Sequence[int], *attributes: str, background: bool = False) -> None:
        for index in indices:
            node = self.nodes[index]
            self.nodes[index] = dataclasses.replace(
                node,
                attributes=(*node.attributes, *attributes),
                background=node.background or background,
            )

    def _end_link(self) -> None:
        """A relation that found no second node says something about its subject alone."""
        if self.pending is not None:
            self._describe(self.pending.subjects, self.pending.label)
            self.pending = None

    # ---- between phrases -------------------------------------------------------------------------

    def _punctuation(self, mark: str) -> None:
        self.at += 1
        if mark == ",":
            self._end_link()
            self.joined = self.joined or ","
        elif mark in ".;:!?()":
            self._end_link()
            self._new_clause()

    def _subordinate(self, word: str) -> None:
        self._end_link()
        if word in ("while", "as") and self.subjects and words.looks_like_verb(self._word(1)):
            self.joined = "and"  # "sipping coffee while looking out": the same subject goes on
            self.at += 1
            return
        end = self.at
        while end < len(self.tokens) and self.tokens[end] not in ".;!?":
            end += 1
        self.unread += [token for token in self.tokens[self.at : end] if token[0].isalnum()]
        self.at = end

    # ---- relations -------------------------------------------------------------------------------

    def _region(self, subject: int | None) -> bool:
        """Reads "on the left", "in the background"; not "on the left of", "in the top drawer"."""
        if subject is None or self._word() not in ("on", "in", "at", "to"):
            return False
        start = end = 1 + (self._word(1) == "the")
        while self._word(end) in words.REGIONS:
            end += 1
        alone = end - start == 1 and self._word(start) in ("side", "back", "front")
        if end == start or alone or self._word(end) == "of" or words.is_open(self._word(end)):
            return False
        where = " ".join(self.tokens[self.at : self.at + end])
        background = self._word(end - 1) == "background"
        if self.pending is None:
            self._describe((subject,), where, background=background)
        else:
            label = f"{self.pending.label} {where}"
            self._describe(self.pending.subjects, label, background=background)
            self.pending = None
        self._place(end)
        return True

    def _match_relation(self, ahead: int = 0) -> tuple[int, str] | None:
        """Number of words and name of the relation that starts `ahead` of here, the longest one."""
        start = self.at + ahead
        for size in range(words.LONGEST_RELATION, 0, -1):
            phrase = tuple(self.tokens[start : start + size])
            if len(phrase) == size and phrase in words.RELATIONS:
                return size, words.RELATIONS[phrase]
        return None

    def _place(self, count: int) -> None:
        self._placed.update(range(self.at, self.at + count))
        self.at += count

    def _relation(self) -> bool:
        found = self._match_relation()
        if found is None:
            return False
        size, name = found
        self._place(size)
        if self.pending is not None:
            self.pending.label += f" {name}"
        elif self.joined and self.verb_seen and self.subjects:
            self.pending = _Link(self.subjects, name, True)
        elif self.last is not None:
            self.pending = _Link((self.last,), name, False)
        else:
            self.unread.append(name)  # "In the distance, a tower": related to what comes later
        self.joined = ""
        return True

    # ---- verbs -----------------------------------------------------------------------------------

    def _starts_verb(self) -> bool:
        """Whether a verb, or an adverb before one, stands here: only after a subject."""
        if self.verb_next:
            return True
        prepositional = self.pending is not None and not self.pending.verbal
        if prepositional or self.last is None or self._starts_determined():
            return False
        ahead = 0
        while words.is_adverb(self._word(ahead)):
            ahead += 1
        if ahead and not self._is_open(ahead):
            return True  # an adverb at the end: "floated lazily"
        verb_form = words.looks_like_verb(self._word(ahead))
        if self.joined:  # "and smiling", "and planted a tree": the subject goes on
            return self.verb_seen and (verb_form or self._starts_determined(ahead + 1))
        return verb_form and self.pending is None

    def _auxiliary(self) -> None:
        """Reads from "is" to the verb, adjective or relation that it introduces."""
        self.verb_next = False
        possession = self._word() in words.POSSESSION
        while self._word() in words.AUXILIARIES:
            self.at += 1
        adverbs = self._adverbs()
        if not self.subjects:
            return  # "there are": what follows is a list of noun phrases
        self._end_link()
        if self.joined == "," and self.last is not None:
            self.unread.append(self.nodes[self.last].name)  # "the house, a ruin, was empty"
        self.joined, self.verb_seen = "", True
        relation = self._match_relation()
        if relation is not None:
            if not self._region(self.subjects[-1]):
                self._place(relation[0])
                self.pending = _Link(self.subjects, relation[1], True)
        elif self._starts_determined():
            self.pending = _Link(self.subjects, "has" if possession else "is", True)
        elif words.is_adjective(self._word()):
            self._predicate()
        elif self._is_open(0):
            self._verb(adverbs)

    def _predicate(self) -> None:
        """Reads "red and fluffy" after "is"; each word describes the subjects."""
        while words.is_adjective(self._word()) or (
            self._word() in words.CONJUNCTIONS and words.is_adjective(self._word(1))
        ):
            word = self._word()
            self.at += 1
            for index in self.subjects:
                if words.is_color(word) and self.nodes[index].color is None:
                    self.nodes[index] = dataclasses.replace(self.nodes[index], color=word)
                elif word not in words.CONJUNCTIONS:
                    self._describe((index,), word)

    def _adverbs(self) -> list[str]:
        found = []
        while words.is_adverb(self._word()):
            found.append(self._word())
            self.at += 1
        return found

    def _verb(self, adverbs: list[str]) -> None:
        """Reads a verb with its adverbs; it waits for an object or a preposition."""
        parts = [*adverbs, *self._adverbs()]
        reduced = self._word().endswith("ing") and not (self.verb_seen or adverbs)
        # "a vase sitting on a counter" says something about the vase alone.
        subjects = (self.last,) if reduced and self.last is not None else self.subjects
        if not subjects and self.last is not None:
            subjects = (self.last,)
        if self._is_open(0):
            parts.append(self._word())
            self.at += 1
        parts += self._adverbs()
        while self._word() == "to" and self._is_open(1) and not is_plural(self._word(1)):
            parts += ["to", self._word(1)]  # an infinitive: "trying to find"
            self.at += 2
        self._end_link()
        self.verb_seen, self.verb_next, self.joined = True, False, ""
        if parts:
            self.pending = _Link(subjects, " ".join(parts), True)
        else:
            self.unread.append(self._word())
            self.at += 1

    # ---- noun phrases ----------------------------------------------------------------------------

    def _noun_phrase(self) -> None:
        start = self.at
        while self._starts_determined():
            self.at += 1
        before = self.tokens[start : self.at]
        places = self._run()
        run = [self.tokens[place] for place in places]
        if not run:
            self.unread += [word for word in before if word in words.NUMBERS]
            self.at = max(self.at, start + 1)
            return
        if len(run) == 1 and not before and self.pending and run[0].endswith("ed"):
            self.pending.label += f" {run[0]}"  # "feeling inspired"
            self.at += 1
            return
        count = max([words.NUMBERS.get(word, 0) for word in before], default=0)
        many = count > 1 or any(word in words.PLURAL_DETERMINERS for word in before)
        article = any(word in words.ARTICLES for word in before)
        size = self._noun_words(run, many)
        self.at = places[size - 1] + 1
        self.verb_next = size < len(run)
        described, nouns = _adjectives_and_nouns(run[:size])
        if not before and not described and self.verb_seen and words.is_adjective(run[0]):
            if size == 1 and not words.is_color(run[0]):
                self._describe(self.subjects, run[0])  # "looking calm"
                return
        # "the bold, dynamic lines": not something bold, and lines.
        listed = before == ["the"] and self._word() == "," and self._is_open(1)
        # "before heading out", "flash yellow": no things.
        bare = not before and size == 1 and len(self.nodes) > 0
        bare = bare and (words.is_color(run[0]) or words.looks_like_verb(run[0]))
        if listed or bare or _doubtful(nouns):
            self.unread += nouns
        head = nouns[-1]
        plural = is_plural(head) and not article
        name = " ".join([*nouns[:-1], singular(head) if plural else head])
        quantifiers = [word for word in before if word in words.QUANTIFIERS]
        self._add(_node(name, count or 1 + plural, described, quantifiers))

    def _run(self) -> list[int]:
        """Places of the open words from here on, those joined by "," or "and" included."""
        run: list[int] = []
        ahead = 0
        while True:
            if self._is_open(ahead):
                run.append(self.at + ahead)
            elif not (
                # "a soft, plush cushion", "a black and white cat"; not "a red and a blue one"
                self._word(ahead) in (",", "and")
                and run
                and all(words.is_adjective(self.tokens[place]) for place in run)
                and self._is_open(ahead + 1)
            ):
                return run
            ahead += 1

    def _noun_words(self, run: list[str], many: bool) -> int:
        """How many words of an open run are the noun phrase; the others begin with a verb."""
        if many:  # a counted noun is a plural: what follows the last one is a verb
            plurals = [i for i, word in enumerate(run) if is_plural(word)]
            if plurals:
                return plurals[-1] + 1
        for i in range(1, len(run)):
            if not words.looks_like_verb(run[i]) and not words.is_adverb(run[i]):
                continue
            last = all(map(words.is_adverb, run[i + 1 :]))
            described = all(map(words.is_adjective, run[:i]))
            if not described and (last or is_plural(run[i - 1]) or words.is_past(run[i])):
                return i
        # Two noun phrases never stand side by side: the last word must be a verb.
        joint = self._starts_determined(len(run)) and not self.pending
        return len(run) - (joint and not all(map(words.is_adjective, run[:-1])))

    def _add(self, node: Node) -> None:
        index = len(self.nodes)
        self.nodes.append(node)
        link = self.pending
        if link is None and self.joined == "and" and self.linked and self.linked.verbal:
            link = self.linked  # "cooked the eggs and the vegetables"
        if link is not None:
            self.edges += [Edge(subject, link.label, index) for subject in link.subjects]
            inside = link.label.split()[-1] in ("in", "at", "on", "through", "across")
            if inside and node.name.split()[-1] in words.SCENES:
                self._describe((index,), background=True)
        elif self.verb_seen and self.joined != "and":
            self.unread.append(node.name)  # an apposition: ", a marvel of engineering"
        else:
            self.subjects = (*self.subjects, index)
        self.linked, self.pending = link, None
        self.last, self.joined = index, ""


def _adjectives_and_nouns(run: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a noun phrase without its determiner; the last word is always a noun."""
    first = 0
    for i, word in enumerate(run[:-1]):
        shade = word in words.SHADES and words.is_color(run[i + 1])
        if words.is_adjective(word) or shade or (i == first and word in words.MATERIALS):
            first = i + 1
    return list(run[:first]), list(run[first:])


def _doubtful(nouns: Sequence[str]) -> bool:
    """Whether a class can hardly be one: too long, or with a plural, a colour, an adverb in it."""
    return (
        len(nouns) > MAX_CLASS_WORDS
        or any(is_plural(word) for word in nouns[:-1])
        or (len(nouns) > 1 and words.is_color(nouns[-1]) and nouns[-1] != "orange")
        or any(map(words.is_adverb, nouns))
    )


def _node(name: str, count: int, described: Sequence[str], quantifiers: Sequence[str]) -> Node:
    color, attributes, shade = None, list(quantifiers), ""
    for i, word in enumerate(described):
        if words.is_color(word) and color is None:
            color = f"{shade} {word}".strip()
        elif word in words.SHADES and i + 1 < len(described) and words.is_color(described[i + 1]):
            shade = word
        else:
            attributes.append(word)
    return Node(name, count, color, tuple(attributes))
