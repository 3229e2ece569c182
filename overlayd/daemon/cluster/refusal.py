"""Why there is no connection to a server, in words that say what to do.

Owns: the sentences, by what the kernel and OpenSSL report.  Must not know: how a connection is made (`connection`).
"""

import os
import socket
import ssl
import time
from pathlib import Path
from typing import NamedTuple

# X509_verify_cert(3): what was wrong with the server's certificate.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
# Alerts by which a server tells that it does not take ours (RFC 8446, 6.2), as OpenSSL calls them.
_OURS_REFUSED = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")
_NO_TLS = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")


class Files(NamedTuple):
    """The files of TLS: who may have signed the server's certificate, empty for those that the host trusts; our own
    certificate and its key.
    """

    authority: str = ""
    certificate: str = ""
    key: str = ""


def of_files(files: Files, error: OSError) -> str:
    """One of the files could not be used."""
    for option, path in (("etcd-ca", files.authority), ("etcd-cert", files.certificate), ("etcd-key", files.key)):
        try:
            if path:
                with Path(path).open("rb"):
                    pass
        except OSError as cause:
            return f"--{option} {path}: {cause.strerror}"
    reason = getattr(error, "reason", None) or "no PEM"
    if not _has("CERTIFICATE", files.authority):
        return f"--etcd-ca {files.authority}: there is no certificate in it (PEM)"
    if not _has("CERTIFICATE", files.certificate):
        return f"--etcd-cert {files.certificate}: there is no certificate in it (PEM)"
    if not _has("PRIVATE KEY", files.key or files.certificate):
        return (
            f"--etcd-key {files.key}: there is no key in it (PEM)"
            if files.key
            else f"--etcd-cert {files.certificate}: its key is not in it, so it takes --etcd-key as well"
        )
    if reason == "KEY_VALUES_MISMATCH":
        return f"--etcd-key {files.key or files.certificate} is not the key of --etcd-cert {files.certificate}"
    return f"the certificates cannot be used: {reason}"


def of_connection(error: OSError, files: Files, *, tls: bool) -> str:
    """The server could not be reached, or TLS came to no end."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(error, files)
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if any(each in reason for each in _OURS_REFUSED):
            if not files.certificate:
                return f"TLS: it wants a certificate of ours, so give --etcd-cert and --etcd-key ({reason})"
            return (
                f"TLS: it refuses our certificate, --etcd-cert {files.certificate}: is that signed by who the server "
                f"trusts, for clients, and valid now? ({reason})"
            )
        if any(each in reason for each in _NO_TLS):
            return f"TLS: what listens there speaks no TLS, so it may be http:// ({reason})"
        return f"TLS: {reason}"
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    if tls and isinstance(error, ConnectionResetError):
        return "TLS: it hangs up at once, so it may be http://"
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__


def _of_certificate(error: ssl.SSLCertVerificationError, files: Files) -> str:
    if error.verify_code in _UNKNOWN_AUTHORITY:
        trusted = f"--etcd-ca {files.authority} trusts" if files.authority else "this host trusts, so give --etcd-ca"
        return f"TLS: its certificate is signed by nobody whom {trusted} ({error.verify_message})"
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        return f"TLS: its {error.verify_message}, or the clock here is wrong: it says {now}"
    return f"TLS: its certificate is another server's: {error.verify_message}"


def _has(what: str, path: str) -> bool:
    """Whether a file holds something in PEM; no file holds everything."""
    return not path or f"{what}-----".encode() in Path(path).read_bytes()
