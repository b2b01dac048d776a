"""Whether an HTTP server on loopback answers. Called by the parts of an environment that serve HTTP."""

import ssl
import urllib.request


def answers(url: str, context: ssl.SSLContext | None = None) -> bool:
    """True if a GET of ``url`` is answered with 200 within two seconds. Never through a proxy: it is loopback."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def self_signed() -> ssl.SSLContext:
    """For servers on loopback that sign their own certificate, and are asked nothing secret."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
