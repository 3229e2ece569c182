"""Certificates by openssl: an authority, and what it signs.

Owns: their files.  Must not know: who presents them, or to whom.
"""

from pathlib import Path

from lab.processes import run

OPENSSL = "openssl"


def certify(
    directory: Path, name: str, ca: Path | None, address: str = "127.0.0.1", *, days: tuple[str, str] | None = None
) -> Path:
    """Make NAME.pem and NAME.key, signed by the authority `ca`, or an authority when that is none.  days: when it
    begins and ends to be valid, as openssl-ca(1) writes times; None: for two days from now on.
    """
    key, request, certificate = (directory / f"{name}.{end}" for end in ("key", "csr", "pem"))
    subject = ["-subj", f"/CN={name}", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    if ca is None:
        run([OPENSSL, "req", "-x509", *subject, "-keyout", str(key), "-out", str(certificate), "-days", "2"])
        return certificate
    extensions = directory / f"{name}.ext"
    extensions.write_text(f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n")
    run([OPENSSL, "req", *subject, "-keyout", str(key), "-out", str(request)])
    signer = ["-in", str(request), "-out", str(certificate), "-extfile", str(extensions)]
    if days is None:
        by = ["-CA", str(ca), "-CAkey", str(ca.with_suffix(".key")), "-CAcreateserial", "-days", "2"]
        run([OPENSSL, "x509", "-req", *signer, *by])
        return certificate
    database, settings = directory / f"{name}.database", directory / f"{name}.cnf"
    database.write_text("")
    settings.write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndatabase={database}\nnew_certs_dir={directory}\nrand_serial=yes\n"
        "default_md=sha256\npolicy=any\n[any]\ncommonName=supplied\n"
    )
    by = ["-cert", str(ca), "-keyfile", str(ca.with_suffix(".key")), "-startdate", days[0], "-enddate", days[1]]
    run([OPENSSL, "ca", "-batch", "-notext", "-config", str(settings), *signer, *by])
    return certificate
