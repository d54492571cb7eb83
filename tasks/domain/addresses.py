"""Addresses of folders and files as they may be shown."""

import re

# RFC 3986, 3.2: the authority begins behind "://" and ends before "/", "?" or "#"; the user information in it ends
# with the last "@". The first colon divides the user from the password.
PASSWORD = re.compile(r"(?<=://)([^/?#\s:@]*:)[^/?#\s]*@")
# Web servers take tokens in the place of the user, and signatures in the query (S3's presigned URLs, Azure's SAS).
# Elsewhere a user is the name of an account, and "?" a letter of a file name.
TOKEN = re.compile(r"(https?://)[^/?#\s:@]+@", re.IGNORECASE)
QUERY = re.compile(r"(https?://[^\s?#'\"]*\?)[^\s#'\"]+", re.IGNORECASE)


def without_password(uri: str) -> str:
    """The URL `scheme://user:password@host` with *** for the password; everything else is left alone.

    Of http:// and https:// also a user without a password, who is a token, and the query, which may be a signature.
    Also for a text with URLs in it, such as the message of a library's error.
    """
    return QUERY.sub(r"\1***", TOKEN.sub(r"\1***@", PASSWORD.sub(r"\1***@", uri)))
