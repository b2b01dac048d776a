"""The control plane's certificate authority, its server certificate, client certificates and service-account key.

Made with the openssl command, once per environment. Called by ``rig.controlplane``.
"""

from dataclasses import dataclass
from pathlib import Path

from rig.progress import run

VALID_DAYS = "3650"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Paths of a PEM certificate and of its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """Issues certificates into ``directory`` (mode 0700); an issued one is used again on the next call."""

    directory: Path

    @property
    def certificate(self) -> Path:
        """What clients trust."""
        return self.directory / "ca.crt"

    @property
    def service_account_key(self) -> Path:
        """Private key that signs service-account tokens; its public half is ``service_account_public_key``."""
        return self.directory / "service-account.key"

    @property
    def service_account_public_key(self) -> Path:
        """What the API server checks service-account tokens with."""
        return self.directory / "service-account.pub"

    def create(self) -> None:
        """Make the authority and the service-account key unless they exist. Raises CommandError."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.certificate.exists():
            key = self._new_key("ca.key")
            # fmt: off
            run(["openssl", "req", "-x509", "-new", "-key", key, "-days", VALID_DAYS, "-subj", "/CN=perdure-env",
                 "-out", self.certificate], timeout=30)
            # fmt: on
        if not self.service_account_public_key.exists():
            key = self._new_key(self.service_account_key.name)
            run(["openssl", "pkey", "-in", key, "-pubout", "-out", self.service_account_public_key], timeout=30)

    def server(self) -> KeyPair:
        """The certificate of an API server on the loopback address."""
        names = "IP:127.0.0.1,IP:10.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default.svc"
        return self._issue("apiserver", "/CN=kube-apiserver", f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")

    def client(self, user: str, groups: tuple[str, ...] = ()) -> KeyPair:
        """A certificate that makes its holder ``user`` (CN) in ``groups`` (O) to the API server."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        name = "client-" + "-".join((user, *groups)).replace(":", "_").replace("/", "_")
        return self._issue(name, subject, "extendedKeyUsage=clientAuth\n")

    def _issue(self, name: str, subject: str, extensions: str) -> KeyPair:
        pair = KeyPair(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        if pair.certificate.exists():
            return pair
        key = self._new_key(pair.key.name)
        request = self.directory / f"{name}.csr"
        extension_file = self.directory / f"{name}.ext"
        extension_file.write_text(extensions)
        run(["openssl", "req", "-new", "-key", key, "-subj", subject, "-out", request], timeout=30)
        # fmt: off
        run(["openssl", "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.directory / "ca.key",
             "-days", VALID_DAYS, "-extfile", extension_file, "-out", pair.certificate], timeout=30)
        # fmt: on
        request.unlink()
        extension_file.unlink()
        return pair

    def _new_key(self, name: str) -> Path:
        key = self.directory / name
        run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], timeout=30)
        key.chmod(0o600)
        return key
