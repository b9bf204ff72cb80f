"""Certificate authorities for tests of TLS, by trustme: a root, an intermediate authority that signs, a leaf.

A verifier of the leaf has only the root, so the chain in between must be sent.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme


class Authorities:
    """A root and the authority below it that signs.

    :ivar root: the file with the root's certificate.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        root = trustme.CA()
        self._signing = root.create_child_ca()
        self.root = folder / "root.pem"
        root.cert_pem.write_to_path(str(self.root))

    def issue(self, *names: str) -> trustme.LeafCert:
        """Issue a certificate for hosts of these names or addresses."""
        return self._signing.issue_cert(*names)

    def endpoint(self, leaf: trustme.LeafCert) -> str:
        """Write a certificate to files as an operator has them; return the Twisted endpoint that listens with it."""
        key, own, rest = (self._folder / name for name in ("key.pem", "cert.pem", "chain.pem"))
        leaf.private_key_pem.write_to_path(str(key))
        certificate, *chain = leaf.cert_chain_pems
        certificate.write_to_path(str(own))
        assert chain, "no certificate between the root and the leaf"
        for link in chain:
            link.write_to_path(str(rest), append=True)
        return f"ssl:0:privateKey={key}:certKey={own}:extraCertChain={rest}:interface=127.0.0.1"

    def renewed_endpoint(self, *names: str) -> str:
        """Put a new certificate in the files of the old one; return the endpoint."""
        (self._folder / "chain.pem").unlink(missing_ok=True)
        return self.endpoint(self.issue("127.0.0.1", *names))

    def trusting(self) -> ssl.SSLContext:
        """Build a client's settings that trust the root and nothing else."""
        return ssl.create_default_context(cafile=str(self.root))


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    """Authorities that every client with the root's certificate trusts."""
    return Authorities(tmp_path_factory.mktemp("tls") / "authorities")
