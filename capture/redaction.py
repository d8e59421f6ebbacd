"""What a message must not say: credentials, wherever they came from.

Every error message passes through ``redact`` when the error is made, and every error line of the
command line passes through it again. It imports nothing heavy.
"""

import os
import re
from urllib.parse import urlsplit

HIDDEN = "…"
MIN_CHARACTERS = 6
"""Shorter values of the environment are not looked for: they would occur within ordinary words."""
SECRET_VARIABLES = re.compile(r"AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|SECURITY_TOKEN)")
URL_VARIABLES = re.compile(r"AWS_ENDPOINT_URL\w*|(HTTPS?|ALL)_PROXY", re.IGNORECASE)
PATTERNS = (
    # user:password@ in any URI; a password may hold a slash.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,3})[^\s/@'\"]*(:[^\s@'\"]*)?@", re.IGNORECASE), r"\1…@"),
    # Parameters of a presigned URL, and the like.
    (
        re.compile(
            r"([?&;][\w.-]*(?:signature|credential|token|secret|password|passwd|apikey|api_key"
            r"|accesskeyid|sig)=)[^\s&'\"]*",
            re.IGNORECASE,
        ),
        r"\1…",
    ),
    # A refused HTTP header is quoted as it was sent, and credentials are sent in headers.
    (
        re.compile(
            r"(Invalid header value )b?('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s(]+)",
            re.IGNORECASE,
        ),
        r"\1…",
    ),
    (re.compile(r"(Credential=)[^\s,&'\"]*"), r"\1…"),
    (
        re.compile(r"((?:Authorization|X-Amz-Security-Token)['\"]?\s*[:=]\s*).*", re.IGNORECASE),
        r"\1…",
    ),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{12,}"), r"\1…"),
    # A key that was pasted into store.profile or AWS_PROFILE.
    (re.compile(r"(config profile )\([^)]*\)"), r"\1(…)"),
)


def redact(text: str) -> str:
    """Return a message without credentials: known values, and what looks like some."""
    for secret in known_secrets():
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def shown_cause(error: BaseException) -> BaseException | None:
    """Return the error as the cause of another; None if a traceback would show credentials."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return None if any(redact(str(link)) != str(link) for link in chain) else error


def known_secrets() -> list[str]:
    """Return the credentials in this process's environment, the longest first."""
    found = set[str]()
    for name, value in os.environ.items():
        if SECRET_VARIABLES.fullmatch(name):
            found |= {value, value.strip(), value.encode("unicode_escape").decode()}
        elif URL_VARIABLES.fullmatch(name):
            found |= userinfo(value)
    return sorted((each for each in found if len(each) >= MIN_CHARACTERS), key=len, reverse=True)


def userinfo(url: str) -> set[str]:
    """Return the user and password in a URL, together and alone."""
    try:
        before, sign, _ = urlsplit(url).netloc.rpartition("@")
    except ValueError:
        return set()
    user, _, password = before.partition(":")
    return {before, user, password} - {""} if sign else set()
