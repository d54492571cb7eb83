"""Prompts: the phrases asked about an image, joined into captions whose token spans are known by construction.

Grounding DINO reads one text per forward pass, `"fire truck . truck . person ."`, and answers per token. Each phrase is
tokenised alone and the ids are joined here, so the tokens of a phrase are where they were put; searching the finished
text for "man" would find it in "woman".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.domain.errors import PromptError

# Ids in the vocabulary of bert-base-uncased. Grounding DINO hard-codes the last four as the borders between phrases.
PADDING, UNKNOWN, CLS, SEP, FULL_STOP, QUESTION_MARK = 0, 100, 101, 102, 1012, 1029
SEPARATORS = (CLS, SEP, FULL_STOP, QUESTION_MARK)

MAX_TOKENS = 256  # `max_text_len` of every published Grounding DINO; what lies behind it is never read

_SEPARATORS_TO_SPACES = str.maketrans(".?", "  ")
_LONGEST_QUOTE = 60  # characters of a phrase that an error message repeats


@dataclass(frozen=True)
class Caption:
    """A text for one forward pass, in tokens.

    `phrases` are indices into the asked phrases, ascending; `spans` the half-open range of `input_ids` that holds each
    of them. Phrases of equal tokens ("Café", "cafe") stand in the text once and share their span. `input_ids` start
    with [CLS], end with [SEP], and hold a full stop behind every phrase, behind the last one too: without it the
    model does not see the last phrase as one.
    """

    phrases: tuple[int, ...]
    input_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


def clean_phrase(phrase: str) -> str:
    """The phrase as it is asked: `.` and `?`, which would split it in two, as spaces; no spaces around or in a row."""
    return " ".join(phrase.translate(_SEPARATORS_TO_SPACES).split())


def caption_text(phrases: Sequence[str]) -> str:
    """The caption in words, `"a . b ."`; empty for no phrases."""
    return "".join(f"{clean_phrase(phrase)} . " for phrase in phrases).rstrip()


def plan_captions(
    phrases: Sequence[str], token_ids: Sequence[Sequence[int]], max_tokens: int = MAX_TOKENS
) -> tuple[Caption, ...]:
    """The captions of at most `max_tokens` tokens that ask all phrases, in the order of their first phrases.

    `token_ids` are those of each cleaned phrase alone, without special tokens. No phrase is cut. First-fit decreasing
    packs them: a caption less is possible at best in contrived cases. Which phrases share a caption depends on the
    phrases alone and not on their order, since company moves scores.

    Raises:
        PromptError: phrases have no known token, hold a separator or do not fit into a caption; names all of them.
    """
    _refuse_unaskable(phrases, token_ids, max_tokens)
    askers: dict[tuple[int, ...], list[int]] = {}
    for index, ids in enumerate(token_ids):
        askers.setdefault(tuple(ids), []).append(index)
    distinct = list(askers)
    packed = _first_fit_decreasing(distinct, max_tokens - 2)
    return tuple(_caption([(distinct[place], askers[distinct[place]]) for place in members]) for members in packed)


def _caption(members: Sequence[tuple[tuple[int, ...], list[int]]]) -> Caption:
    """The caption that asks the given (token ids, indices of the phrases that have them), in this order."""
    input_ids = [CLS]
    spans: dict[int, tuple[int, int]] = {}
    for ids, indices in members:
        span = (len(input_ids), len(input_ids) + len(ids))
        spans.update(dict.fromkeys(indices, span))
        input_ids += [*ids, FULL_STOP]
    phrases = sorted(spans)
    return Caption(tuple(phrases), (*input_ids, SEP), tuple(spans[index] for index in phrases))


def _first_fit_decreasing(phrases: Sequence[tuple[int, ...]], room: int) -> list[list[int]]:
    """Places into `phrases`, packed into groups of at most `room` tokens, with a full stop behind each phrase.

    Groups and their members are ascending; the longest is packed first, ties by the token ids.
    """
    groups: list[list[int]] = []
    space: list[int] = []
    for place in sorted(range(len(phrases)), key=lambda place: (-len(phrases[place]), phrases[place])):
        size = len(phrases[place]) + 1
        group = next((number for number, left in enumerate(space) if left >= size), len(groups))
        if group == len(groups):
            groups.append([])
            space.append(room)
        groups[group].append(place)
        space[group] -= size
    return sorted(sorted(group) for group in groups)


def _refuse_unaskable(phrases: Sequence[str], token_ids: Sequence[Sequence[int]], max_tokens: int) -> None:
    problems = [
        f"{phrase[:_LONGEST_QUOTE]!r} {problem}"
        for phrase, ids in zip(phrases, token_ids, strict=True)
        if (problem := _problem(ids, max_tokens))
    ]
    if problems:
        raise PromptError(f"{len(problems)} of {len(phrases)} phrases cannot be asked: " + "; ".join(problems))


def _problem(ids: Sequence[int], max_tokens: int) -> str | None:
    longest = max_tokens - 3  # [CLS], the full stop and [SEP] stand in every caption
    if all(token == UNKNOWN for token in ids):
        return "has no word that the detector's vocabulary knows; use other words"
    if any(token in SEPARATORS for token in ids):
        return "holds a token that separates phrases; leave it out"
    if len(ids) > longest:
        return f"takes {len(ids)} tokens and a caption has room for {longest}; use fewer words"
    return None
