"""Regular expressions that cannot hang: the subset that CloudWatch Logs takes between `%` signs.

Literals, `.`, classes `[a-z]`, `\\d \\w \\s` and their opposites, `\\xhh`, anchors, alternatives and the quantifiers
`* + ? {n,m}`; no groups. Matching follows all possibilities at once and remembers what it learns (an automaton
built as the text demands), so that time is proportional to the text for any pattern. Python's `re` would backtrack,
holding the interpreter, for as long as a hostile pattern likes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_CLASSES: Final = {
    "d": "0123456789",
    "s": " \t\n\r\f\v",
    "w": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_",
}
_REPEAT_MAX: Final = 100
_ATOMS_MAX: Final = 1_000
_REMEMBERED_MAX: Final = 20_000


class BadRegex(ValueError):
    """The pattern is none, or uses what CloudWatch does not take; the message says which."""


class _Atom(NamedTuple):
    """One character of a kind: one of `chars`, or with `negated` any other."""

    chars: frozenset[str]
    negated: bool
    #: May be left out.
    optional: bool = False
    #: May come again.
    repeated: bool = False


class _Branch(NamedTuple):
    """One alternative."""

    atoms: tuple[_Atom, ...]
    at_start: bool
    at_end: bool


class LinearRegex:
    """A compiled pattern; `search` says whether it fits anywhere in a text.

    A place is a position in front of an atom or at the end of a branch; a set of places is an int, one bit each.
    """

    def __init__(self, pattern: str) -> None:
        self._atoms: list[_Atom | None] = []
        self._closures: list[int] = []
        #: Places where a match is complete, and where it is if the text ends there.
        self._complete = 0
        self._complete_at_end = 0
        #: Places where a match may begin at any character, and at the first one.
        self._fresh = 0
        self._first = 0
        for branch in _Parser(pattern).parse():
            self._add(branch)
        self._steps: dict[tuple[int, str], int] = {}
        self._fitting: dict[str, int] = {}

    def _add(self, branch: _Branch) -> None:
        start = len(self._atoms)
        self._atoms += [*branch.atoms, None]
        end = len(self._atoms) - 1
        closures = [1 << end]
        for place in range(end - 1, start - 1, -1):
            atom = self._atoms[place]
            skipped = closures[-1] if atom is not None and atom.optional else 0
            closures.append(1 << place | skipped)
        self._closures += reversed(closures)
        self._first |= self._closures[start]
        if not branch.at_start:
            self._fresh |= self._closures[start]
        self._complete_at_end |= 1 << end
        if not branch.at_end:
            self._complete |= 1 << end

    def search(self, text: str) -> bool:
        places = self._first
        steps, complete = self._steps, self._complete
        if places & complete:
            return True
        for char in text:
            following = steps.get((places, char))
            if following is None:
                following = self._step(places, char)
            if following & complete:
                return True
            places = following
        return bool(places & self._complete_at_end)

    def _step(self, places: int, char: str) -> int:
        fitting = self._fitting.get(char)
        if fitting is None:
            if len(self._fitting) >= _REMEMBERED_MAX:
                self._fitting.clear()
            fitting = self._fitting[char] = self._fit(char)
        following = self._fresh
        moving = places & fitting
        while moving:
            lowest = moving & -moving
            moving ^= lowest
            place = lowest.bit_length() - 1
            following |= self._closures[place + 1]
            atom = self._atoms[place]
            if atom is not None and atom.repeated:
                following |= self._closures[place]
        if len(self._steps) >= _REMEMBERED_MAX:
            self._steps.clear()
        self._steps[places, char] = following
        return following

    def _fit(self, char: str) -> int:
        """Places in front of an atom that takes this character."""
        return sum(
            1 << place
            for place, atom in enumerate(self._atoms)
            if atom is not None and (char in atom.chars) != atom.negated
        )


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def parse(self) -> list[_Branch]:
        branches = [self._branch()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._branch())
        return branches

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise BadRegex("the regular expression ends too early")
        self._at += 1
        return char

    def _branch(self) -> _Branch:
        at_start = self._peek() == "^"
        self._at += at_start
        atoms: list[_Atom] = []
        at_end = False
        while self._peek() not in ("", "|"):
            if at_end:
                raise BadRegex("$ may stand only at the end")
            if self._peek() == "$":
                self._at += 1
                at_end = True
                continue
            atoms += self._quantified(self._atom())
            if len(atoms) > _ATOMS_MAX:
                raise BadRegex("the regular expression is too long")
        return _Branch(tuple(atoms), at_start, at_end)

    def _atom(self) -> _Atom:
        char = self._next()
        if char in "()^*+?{":
            raise BadRegex(f"{char} is not supported here in a regular expression")
        if char == ".":
            return _Atom(frozenset("\n"), True)
        if char == "[":
            return self._set()
        if char == "\\":
            chars, negated = self._escape()
            return _Atom(chars, negated)
        return _Atom(frozenset(char), False)

    def _escape(self) -> tuple[frozenset[str], bool]:
        char = self._next()
        if char.lower() in _CLASSES:
            return frozenset(_CLASSES[char.lower()]), char.isupper()
        if char == "x":
            return frozenset(self._hex()), False
        if char in "tnrfv":
            return frozenset({"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}[char]), False
        if char.isalnum():
            raise BadRegex(f"\\{char} is not supported in a regular expression")
        return frozenset(char), False

    def _hex(self) -> str:
        digits = self._next() + self._next()
        try:
            return chr(int(digits, 16))
        except ValueError:
            raise BadRegex(f"\\x{digits} is no character") from None

    def _set(self) -> _Atom:
        negated = self._peek() == "^"
        self._at += negated
        chars: set[str] = set()
        first = True
        while self._peek() != "]" or first:
            first = False
            low = self._next()
            if low == "\\":
                found, opposite = self._escape()
                if opposite:
                    raise BadRegex("\\D, \\W and \\S are not supported inside [ ]")
                chars |= found
                if len(found) > 1:
                    continue
                low = next(iter(found))
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                high = self._next()
                if high == "\\":
                    found, opposite = self._escape()
                    if opposite or len(found) != 1:
                        raise BadRegex("a range in [ ] ends in a class")
                    high = next(iter(found))
                if not ord(low) <= ord(high) <= ord(low) + 0x10000:
                    raise BadRegex(f"{low}-{high} is no range")
                chars |= {chr(code) for code in range(ord(low), ord(high) + 1)}
            else:
                chars.add(low)
        self._at += 1
        return _Atom(frozenset(chars), negated)

    def _quantified(self, atom: _Atom) -> list[_Atom]:
        char = self._peek()
        if char and char in "*+?":
            self._at += 1
            return [atom._replace(optional=char in "*?", repeated=char in "*+")]
        if char != "{":
            return [atom]
        end = self._pattern.find("}", self._at)
        low, comma, high = self._pattern[self._at + 1 : end].partition(",")
        self._at = end + 1
        plain = low.isascii() and low.isdigit() and (not high or (high.isascii() and high.isdigit()))
        if end < 0 or not plain or len(low) > 4 or len(high) > 4:
            raise BadRegex("{ } must hold one or two numbers")
        least = int(low)
        most = least if not comma else int(high) if high else None
        if least > _REPEAT_MAX or (most is not None and not least <= most <= _REPEAT_MAX):
            raise BadRegex(f"{{ }} must hold numbers up to {_REPEAT_MAX} in order")
        if most is None:
            return [atom] * least + [atom._replace(optional=True, repeated=True)]
        return [atom] * least + [atom._replace(optional=True)] * (most - least)
