"""Addresses of folders and files as they may be shown."""

import re

# RFC 3986, 3.2: the authority begins behind "://" and ends before "/", "?" or "#"; the user information in it ends
# with the last "@". The first colon divides the user from the password.
PASSWORD = re.compile(r"(?<=://)([^/?#\s:@]*:)[^/?#\s]*@")


def without_password(uri: str) -> str:
    """The URL `scheme://user:password@host` with *** for the password; everything else is left alone.

    Also for a text with URLs in it, such as the message of a library's error.
    """
    return PASSWORD.sub(r"\1***@", uri)
