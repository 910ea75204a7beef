"""An issuer that publishes its keys, and signs whatever a test wants of it."""

import json
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

AUDIENCE = "https://gateway.example.org/mcp"
CLIENT = "gateway"


class ForeignIssuer:
    """A discovery document and one key, over HTTP on this machine; `asked` counts who wanted the keys."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.asked = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Documents, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def configuration(self) -> str:
        """What ``mcpgw.toml`` has to say to trust it: it may give leave to call tools."""
        return (
            f'[auth.issuers.company]\nissuer = "{self.url}"\naudience = "{AUDIENCE}"\n'
            f'client_id = "{CLIENT}"\nscopes = {{ "tools" = ["tools:call", "events:read"] }}\n'
        )

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def public_pem(self) -> bytes:
        """Its key, as all the world has it."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Those of a good access token of it; None takes one away."""
        now = int(time.time())
        good = {"iss": self.url, "aud": AUDIENCE, "sub": "a-subject", "iat": now, "exp": now + 600}
        good |= {"scope": "tools", "client_id": "an agent", "jti": "one"}
        return {name: value for name, value in {**good, **changed}.items() if value is not None}

    def token(self, *, kid: str = "first", typ: str = "at+jwt", **changed: Any) -> str:
        """A token that it has signed."""
        headers = {"kid": kid, "typ": typ}
        return jwt.encode(self.claims(**changed), self._key, algorithm="ES256", headers=headers)

    def id_token(self, **changed: Any) -> str:
        """What a client gets to know who has logged in (OpenID Connect Core 1.0 section 2)."""
        return self.token(typ="JWT", **{"aud": CLIENT, "nonce": "n", "scope": None, "jti": None, **changed})

    def document(self, path: str) -> dict[str, Any] | None:
        """What is at `path`."""
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        if path != "/keys":
            return None
        self.asked += 1
        key = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**key, "kid": "first", "use": "sig", "alg": "ES256"}]}


class _Documents(BaseHTTPRequestHandler):
    def __init__(self, issuer: ForeignIssuer, *arguments: Any) -> None:
        self._issuer = issuer
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with a document, or 404."""
        document = self._issuer.document(self.path)
        body = json.dumps(document).encode()
        self.send_response(404 if document is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""
