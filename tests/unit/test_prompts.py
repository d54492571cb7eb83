import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import PromptError
from tasks.domain.prompts import (
    CLS,
    FULL_STOP,
    MAX_TOKENS,
    QUESTION_MARK,
    SEP,
    UNKNOWN,
    Caption,
    caption_text,
    clean_phrase,
    plan_captions,
)

token_ids = st.lists(st.lists(st.integers(1030, 1040), min_size=1, max_size=9).map(tuple), max_size=60)


def plan(ids: list[tuple[int, ...]], max_tokens: int = MAX_TOKENS) -> tuple[Caption, ...]:
    return plan_captions([f"phrase {number}" for number in range(len(ids))], ids, max_tokens)


@given(token_ids, st.integers(12, 40))
def test_every_phrase_is_asked_exactly_once(ids, max_tokens):
    asked = sorted(index for caption in plan(ids, max_tokens) for index in caption.phrases)
    assert asked == list(range(len(ids)))


@given(token_ids, st.integers(12, 40))
def test_a_span_holds_the_tokens_of_its_phrase_and_no_others(ids, max_tokens):
    for caption in plan(ids, max_tokens):
        for index, (start, end) in zip(caption.phrases, caption.spans, strict=True):
            assert caption.input_ids[start:end] == ids[index]
            assert caption.input_ids[end] == FULL_STOP
            assert caption.input_ids[start - 1] in (CLS, FULL_STOP)


@given(token_ids, st.integers(12, 40))
def test_no_caption_is_longer_than_its_budget_and_each_ends_in_a_full_stop(ids, max_tokens):
    for caption in plan(ids, max_tokens):
        assert len(caption.input_ids) <= max_tokens
        assert caption.input_ids[0] == CLS
        assert caption.input_ids[-2:] == (FULL_STOP, SEP)


@given(token_ids, st.integers(12, 40))
def test_a_caption_holds_nothing_but_its_phrases_and_their_full_stops(ids, max_tokens):
    for caption in plan(ids, max_tokens):
        tokens = sum(end - start + 1 for start, end in set(caption.spans))
        assert len(caption.input_ids) == tokens + 2


@given(token_ids, st.integers(12, 40))
def test_no_two_captions_could_be_one(ids, max_tokens):
    lengths = sorted(len(caption.input_ids) for caption in plan(ids, max_tokens))
    if len(lengths) > 1:
        assert lengths[0] + lengths[1] - 2 > max_tokens


@given(st.lists(st.integers(1, 5), min_size=1, max_size=800))
def test_class_lists_take_the_fewest_captions_that_hold_their_tokens(lengths):
    ids = [(2000 + number,) * length for number, length in enumerate(lengths)]
    fewest = math.ceil((sum(lengths) + len(lengths)) / (MAX_TOKENS - 2))
    assert len(plan(ids)) in (fewest, fewest + 1 if any(length > 1 for length in lengths) else fewest)


@given(token_ids)
def test_phrases_that_fit_together_are_asked_together_in_the_order_asked(ids):
    captions = plan(ids, max_tokens=2 + sum(len(phrase) + 1 for phrase in ids) + 9)
    assert len(captions) == min(1, len(ids))
    for caption in captions:
        first_seen = list(dict.fromkeys(ids))
        assert caption.input_ids == (CLS, *(token for phrase in first_seen for token in (*phrase, FULL_STOP)), SEP)


def test_phrases_of_equal_tokens_are_asked_once_and_share_their_span():
    (caption,) = plan_captions(["Café", "bar", "cafe"], [[1500], [1600], [1500]])
    assert caption == Caption((0, 1, 2), (CLS, 1500, FULL_STOP, 1600, FULL_STOP, SEP), ((1, 2), (3, 4), (1, 2)))


def test_no_phrases_need_no_caption():
    assert plan([]) == ()


def test_a_phrase_may_fill_a_caption_to_the_last_token():
    (caption,) = plan([(1500,) * (MAX_TOKENS - 3)])
    assert len(caption.input_ids) == MAX_TOKENS


def test_all_phrases_that_cannot_be_asked_are_named_at_once_with_the_way_out():
    phrases = ["cat", "", "🐱", "long", "a[SEP]b"]
    ids = [[1500], [], [UNKNOWN, UNKNOWN], [1500] * 254, [1500, SEP, 1501]]
    with pytest.raises(PromptError) as problem:
        plan_captions(phrases, ids)
    message = str(problem.value)
    assert message.startswith("4 of 5 phrases cannot be asked: ")
    assert "'' has no word" in message
    assert "'🐱' has no word" in message
    assert "'long' takes 254 tokens and a caption has room for 253; use fewer words" in message
    assert "'a[SEP]b' holds a token that separates phrases" in message
    assert "cat" not in message


def test_a_phrase_with_one_known_word_can_be_asked():
    (caption,) = plan([(UNKNOWN, 1500)])
    assert caption.spans == ((1, 3),)


@pytest.mark.parametrize(
    ("phrase", "cleaned"),
    [
        ("person ", "person"),
        ("  traffic \t light", "traffic light"),
        ("St. Bernard", "St Bernard"),
        ("what?", "what"),
        ("a . b", "a b"),
        ("...", ""),
        ("Café", "Café"),
    ],
)
def test_d18_spaces_and_separators_in_a_name_leave_one_phrase(phrase, cleaned):
    assert clean_phrase(phrase) == cleaned


@given(st.text())
def test_cleaning_twice_changes_nothing_more(phrase):
    assert clean_phrase(clean_phrase(phrase)) == clean_phrase(phrase)


def test_the_caption_text_ends_in_a_full_stop_and_keeps_the_order():
    assert caption_text(["truck", "St. Bernard", "car"]) == "truck . St Bernard . car ."
    assert caption_text([]) == ""


def test_separators_inside_token_ids_are_refused_whichever_they_are():
    for separator in (CLS, SEP, FULL_STOP, QUESTION_MARK):
        with pytest.raises(PromptError, match="separates phrases"):
            plan([(1500, separator)])


@given(st.lists(st.lists(st.integers(2000, 2040), min_size=1, max_size=40).map(tuple), unique=True), st.randoms())
def test_which_phrases_share_a_caption_does_not_depend_on_their_order(ids, random):
    shuffled = random.sample(ids, len(ids))

    def companies(token_ids):
        names = [str(i) for i in range(len(token_ids))]
        captions = plan_captions(names, token_ids, max_tokens=64)
        return {frozenset(token_ids[i] for i in caption.phrases) for caption in captions}

    assert companies(ids) == companies(shuffled)
