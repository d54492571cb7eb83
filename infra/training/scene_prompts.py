"""Prompts about scenes: the vocabulary, random phrases, and which phrase is true of which object."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import BertTokenizer

from tasks.domain.scenes import COLOURS, SHAPES, SIZES

# transformers hard-codes these ids as the borders between phrases (modeling_grounding_dino.py, SPECIAL_TOKENS).
CLS, SEP, FULL_STOP, QUESTION_MARK = 101, 102, 1012, 1029
MAX_TOKENS = 256
ANY, NOTHING = -1, -2  # a phrase that does not name the attribute; one that is true of no object at all

# Things that no scene shows. As whole words they teach the detector to stay silent on a word it knows.
_ABSENT = (
    "person man woman child dog cat bird horse cow sheep car bus truck train bicycle boat plane tree "
    "flower grass house door window table chair bed lamp cup bottle fork knife spoon bowl apple banana "
    "pizza cake phone book clock ball kite bag hat shoe shirt road sky water cloud mountain animal food "
    "pink brown grey cyan huge tiny box"
)
ABSENT_WORDS = tuple(_ABSENT.split())
_ARTICLES = ("a", "an", "the")
_PLURALS = tuple(f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES)


@dataclass(frozen=True)
class Phrase:
    """Words, and the indices of the (shape, colour, size) they ask for; `ANY` where they leave it open."""

    text: str
    attributes: tuple[int, int, int]


@dataclass(frozen=True)
class Prompt:
    """Token ids of "phrase . phrase ." with [CLS] and [SEP], and the phrase that each token belongs to.

    `phrase_of_token` is (T,), -1 for borders; `attributes` is (P, 3) as in `Phrase`.
    """

    ids: np.ndarray
    phrase_of_token: np.ndarray
    attributes: np.ndarray


def vocabulary() -> dict[str, int]:
    """WordPiece vocabulary: the words of the scenes, and every ASCII character so that any word has pieces."""
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": 103, ".": FULL_STOP, "?": QUESTION_MARK}
    letters = string.ascii_lowercase + string.digits
    words = (*SHAPES, *COLOURS, *SIZES, *_ARTICLES, *_PLURALS, *ABSENT_WORDS, *string.punctuation, *letters)
    wanted = dict.fromkeys([*words, *(f"##{letter}" for letter in letters)])
    free = iter([word for word in wanted if word not in fixed])
    by_id = {identifier: word for word, identifier in fixed.items()}
    tokens = [
        by_id.get(i) or (next(free, None) if i > 103 else None) or f"[unused{i}]" for i in range(QUESTION_MARK + 1)
    ]
    return {token: i for i, token in enumerate(tokens)}


def build_tokenizer() -> BertTokenizer:
    """The lower-casing tokenizer of this vocabulary."""
    return BertTokenizer(vocab=vocabulary(), do_lower_case=True, model_max_length=MAX_TOKENS)


class PromptWriter:
    """Draws random prompts; remembers the token ids of every phrase it has seen."""

    def __init__(self, tokenizer: BertTokenizer, rng: np.random.Generator) -> None:
        self._tokenizer = tokenizer
        self.random = rng
        self._ids: dict[str, list[int]] = {}

    def prompt(self, phrases: Sequence[Phrase]) -> Prompt:
        """The phrases joined; those past the token budget are left out."""
        ids, owner, kept = [CLS], [-1], 0
        for index, phrase in enumerate(phrases):
            tokens = self._tokens(phrase.text)
            if len(ids) + len(tokens) + 2 > MAX_TOKENS:
                break
            ids += [*tokens, FULL_STOP]
            owner += [index] * len(tokens) + [-1]
            kept += 1
        attributes = np.asarray([phrase.attributes for phrase in phrases[:kept]], dtype=np.int64)
        return Prompt(np.asarray([*ids, SEP]), np.asarray([*owner, -1]), attributes)

    def random_prompts(self, images: Sequence[np.ndarray]) -> list[Prompt]:
        """A prompt per image, whose objects are (n, 3) attribute indices; the prompts of one batch are of one kind."""
        kind = self.random.choice(["mixed", "classes", "pairs"], p=[0.8, 0.15, 0.05])
        return [self.prompt(self._phrases(objects, str(kind))) for objects in images]

    def _phrases(self, objects: np.ndarray, kind: str) -> list[Phrase]:
        """Mixed: true, nearly true, absent and foreign phrases; classes: all shapes; pairs: in all colours."""
        if kind == "mixed":
            chosen = self._mixed(objects)
        else:
            colours = [ANY] if kind == "classes" else list(range(len(COLOURS)))
            chosen = [(shape, colour, ANY) for shape in range(len(SHAPES)) for colour in colours]
        distinct = list(dict.fromkeys(chosen))
        self.random.shuffle(distinct)
        phrases = [self._worded(attributes) for attributes in distinct]
        foreign = [self._foreign() for _ in range(int(self.random.integers(0, 3)) if self.random.random() < 0.3 else 0)]
        return list({phrase.text: phrase for phrase in [*foreign, *phrases]}.values())

    def _mixed(self, objects: np.ndarray) -> list[tuple[int, int, int]]:
        """Up to about 25 phrases of mixed detail, at least one."""
        form = self.random.choice(["one", "two", "three", "any"], p=[0.15, 0.3, 0.35, 0.2])
        chosen = [self._masked(tuple(row), form) for row in objects if self.random.random() < 0.85]
        near = [self._masked(self._altered(tuple(row)), form) for row in objects if self.random.random() < 0.5]
        absent = [self._masked(self._altered((0, 0, 0), 1.0), form) for _ in range(int(self.random.integers(1, 5)))]
        return [*chosen, *near, *absent]

    def _masked(self, attributes: tuple[int, ...], form: str) -> tuple[int, int, int]:
        """Leave out the colour, the size or both; the shape is always named."""
        shape, colour, size = (int(value) for value in attributes)
        form = str(self.random.choice(["one", "two", "three"])) if form == "any" else form
        if form == "one":
            return shape, ANY, ANY
        if form == "two":
            return (shape, colour, ANY) if self.random.random() < 0.7 else (shape, ANY, size)
        return shape, colour, size

    def _altered(self, attributes: tuple[int, ...], chance: float = 0.0) -> tuple[int, int, int]:
        """One attribute drawn anew, each of the others too with probability `chance`."""
        counts = (len(SHAPES), len(COLOURS), len(SIZES))
        sure = int(self.random.integers(3))
        redraw = [index == sure or self.random.random() < chance for index in range(3)]
        shape, colour, size = (
            int(self.random.integers(count)) if new else int(value)
            for value, count, new in zip(attributes, counts, redraw, strict=True)
        )
        return shape, colour, size

    def _worded(self, attributes: tuple[int, int, int]) -> Phrase:
        """The phrase in words: now and then with an article or in the plural."""
        shape, colour, size = attributes
        noun = _PLURALS[shape] if self.random.random() < 0.05 else SHAPES[shape]
        article = str(self.random.choice(_ARTICLES)) if self.random.random() < 0.05 else ""
        words = (article, SIZES[size] if size >= 0 else "", COLOURS[colour] if colour >= 0 else "", noun)
        return Phrase(" ".join(filter(None, words)), attributes)

    def _foreign(self) -> Phrase:
        """A known or made-up word for a thing that no scene shows, sometimes in a colour that one may show."""
        if self.random.random() < 0.7:
            word = str(self.random.choice(ABSENT_WORDS))
        else:
            word = "".join(self.random.choice(list(string.ascii_lowercase), size=int(self.random.integers(2, 8))))
        colour = f"{self.random.choice(COLOURS)} " if self.random.random() < 0.3 else ""
        return Phrase(colour + word, (NOTHING, NOTHING, NOTHING))

    def _tokens(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids[text]


def true_of(objects: np.ndarray, phrases: np.ndarray) -> np.ndarray:
    """Which phrase, (P, 3) attributes, describes which object, (n, 3): (n, P) bool."""
    asked, have = phrases[None], objects[:, None]
    return np.asarray(((asked == ANY) | (asked == have)).all(axis=2))
