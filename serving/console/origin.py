"""Where a request to the console comes from, as far as its headers tell, and the headers that every answer carries."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from serving.auth import is_loopback
from serving.problems import Problem

HEADERS = {
    # Everything from here, nothing inline, no frame around it, no form to elsewhere.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers would send forms with the origin `null`, which could not be told from a stranger's.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def require_own_name(http: Request) -> None:
    """Raises a 403 Problem unless the request names this machine.

    For a console without tokens: a page from elsewhere whose name is made to resolve to 127.0.0.1 would be of the same
    origin for the browser (DNS rebinding), but its Host header still tells.
    """
    host = urlsplit(f"//{http.headers.get('host', '')}").hostname or ""
    if not is_loopback(host):
        raise Problem(
            403,
            f"without serving.tokens the console answers on this machine's own names only (127.0.0.1, localhost), not on "
            f"{host[:100] or 'none'}",
        )


def require_same_site(http: Request) -> None:
    """Raises a 403 Problem for a POST that a page from elsewhere sent.

    Sec-Fetch-Site where the browser sends it (https and localhost), else Origin against Host. What is no browser sends
    neither, and no cookie that it was not given: the form's token decides.
    """
    site, origin = http.headers.get("sec-fetch-site"), http.headers.get("origin")
    if site is not None:
        ours = site == "same-origin"
    else:
        ours = origin is None or urlsplit(origin).netloc == http.headers.get("host")
    if not ours:
        raise Problem(403, "the request was sent by a page from elsewhere")


def is_https(http: Request) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy before us. A made-up header only spoils its sender's own cookie."""
    return "https" in (http.url.scheme, http.headers.get("x-forwarded-proto", "").partition(",")[0].strip())
