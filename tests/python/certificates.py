"""Certificates for the TLS tests, made by the `openssl` command."""

import subprocess
from pathlib import Path


class Authority:
    """A CA in a folder of its own, which signs what it is asked to."""

    def __init__(self, folder, name="ca"):
        self.folder = Path(folder)
        self.name = name
        self.ca = self.folder / f"{name}.crt"
        self.ca_key = self.folder / f"{name}.key"
        self_signed(self.ca, self.ca_key, name)

    def issue(self, name, names="DNS:localhost,IP:127.0.0.1", days=10):
        """A certificate and its key; `names` empty: one without names, as redis' gen-test-certs.sh makes them."""
        cert, key, request = (self.folder / f"{name}.{kind}" for kind in ("crt", "key", "csr"))
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("basicConstraints=CA:FALSE\n" + (f"subjectAltName={names}\n" if names else ""))
        signed_by = ["-CA", self.ca, "-CAkey", self.ca_key, "-CAcreateserial"]
        openssl("x509", "-req", "-in", request, *signed_by, "-days", days, "-extfile", extensions, "-out", cert)
        return cert, key


def self_signed(cert, key, name, *options):
    """What `openssl req -x509` makes by itself: marked as a CA's."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", key, "-out", cert, "-days", 10, "-subj", f"/CN={name}", *options)
    return cert, key


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
