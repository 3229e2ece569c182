"""What our clients of TLS trust.

Owns: the context that every one of them begins with.  Must not know: whom it is for.
"""

import ssl


def client_context(ca_file: str = "") -> ssl.SSLContext:
    """Trusts who is signed by a certificate of the file, or without one whom the host trusts.

    Errors: OSError and ssl.SSLError, as `ssl.create_default_context` raises them.

    Python from 3.13 on refuses authorities without a key usage (VERIFY_X509_STRICT), which `openssl req -x509` makes
    and other programs take: whether a certificate is good must not depend on the release of Debian.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
