"""Certificates for the TLS tests, made by the `openssl` command."""

import random
import subprocess
import tempfile
from datetime import datetime, timedelta, UTC
from pathlib import Path


class Authority:
    """A CA in a folder of its own, which signs what it is asked to."""

    def __init__(self, folder, name="ca", dates=None):
        self.folder = Path(folder)
        self.name = name
        self.ca = self.folder / f"{name}.crt"
        self.ca_key = self.folder / f"{name}.key"
        self_signed(self.ca, self.ca_key, name)
        if dates:
            dated(self.folder, self.ca, self.ca_key, name, dates)

    def issue_dated(self, name, dates):
        """A certificate that is valid from the first to the second of `dates`, in days from now."""
        cert, key = self.issue(name)
        dated(self.folder, cert, key, name, dates, self)
        return cert, key

    def issue(self, name, names="DNS:localhost,IP:127.0.0.1", days=30):
        """A certificate and its key; `names` empty: one without names, as redis' gen-test-certs.sh makes them."""
        cert, key, request = (self.folder / f"{name}.{kind}" for kind in ("crt", "key", "csr"))
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("basicConstraints=CA:FALSE\n" + (f"subjectAltName={names}\n" if names else ""))
        signed_by = ["-CA", self.ca, "-CAkey", self.ca_key, "-CAcreateserial"]
        openssl("x509", "-req", "-in", request, *signed_by, "-days", days, "-extfile", extensions, "-out", cert)
        return cert, key


def days_from_now(days):
    """As `openssl ca` writes dates."""
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y%m%d%H%M%SZ")


def dated(folder, cert, key, name, dates, issuer=None):
    """Makes a certificate anew that is valid from the first to the second of `dates`, in days from now, whatever its issuer's
    dates are. Without an issuer it is a CA, signed by itself."""
    home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    (home / "index.txt").write_text("")
    (home / "serial").write_text(f"{random.SystemRandom().randrange(16**15, 16**16):x}\n")
    constraints = "CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1" if issuer else "critical,CA:TRUE"
    (home / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=it\n[it]\ndatabase={home}/index.txt\nserial={home}/serial\nnew_certs_dir={home}\n"
        f"default_md=sha256\npolicy=any\nx509_extensions=ext\n[any]\ncommonName=supplied\n[ext]\nbasicConstraints={constraints}\n"
    )
    request = home / "request.csr"
    openssl("req", "-new", "-key", key, "-out", request, "-subj", f"/CN={name}")
    signer = ["-cert", issuer.ca, "-keyfile", issuer.ca_key] if issuer else ["-selfsign", "-keyfile", key]
    start, end = map(days_from_now, dates)
    openssl("ca", "-batch", "-config", home / "ca.cnf", *signer, "-in", request, "-out", cert, "-notext", "-startdate", start, "-enddate", end)


def self_signed(cert, key, name, *options):
    """What `openssl req -x509` makes by itself: marked as a CA's."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", key, "-out", cert, "-days", 30, "-subj", f"/CN={name}", *options)
    return cert, key


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
