"""What of an address may be shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.addresses import without_password

WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-._~%"), min_size=1)


@given(WORDS, st.text(st.characters(codec="ascii", exclude_characters="/?#", exclude_categories=["Z", "C"])), WORDS)
def test_a_password_in_a_url_is_replaced_by_stars_and_nothing_else_is(user: str, password: str, path: str) -> None:
    url = f"ftp://{user}:{password}@example.org:21/{path}@1.png"
    assert without_password(url) == f"ftp://{user}:***@example.org:21/{path}@1.png"


@pytest.mark.parametrize(
    "uri",
    [
        "photos",
        "/data/a:b@c",
        "C:\\photos",
        "s3://bucket/a:b@c",
        "ftp://user@example.org/photos",
        "http://example.org:8080/photos@2x",
        "memory://photos",
    ],
)
def test_an_address_without_a_password_is_left_alone(uri: str) -> None:
    assert without_password(uri) == uri


def test_every_password_in_the_message_of_an_error_is_replaced() -> None:
    message = "no answer from ftp://me:hunter2@a/x, nor simplecache::sftp://:hunter3@b: is b@c right?"
    assert without_password(message) == "no answer from ftp://me:***@a/x, nor simplecache::sftp://:***@b: is b@c right?"


def test_masking_twice_changes_nothing_more() -> None:
    masked = without_password("ftp://me:hunter2@example.org")
    assert without_password(masked) == masked


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://TOKEN@example.org/photos", "https://***@example.org/photos"),
        ("HTTPS://TOKEN@example.org/photos", "HTTPS://***@example.org/photos"),
        ("simplecache::http://TOKEN@example.org/a", "simplecache::http://***@example.org/a"),
        ("https://example.org/p.jsonl?X-Amz-Signature=a/b&c=d", "https://example.org/p.jsonl?***"),
    ],
)
def test_what_a_web_server_takes_for_a_key_is_not_shown(uri: str, shown: str) -> None:
    assert without_password(uri) == shown
