"""The keeper of tokens that a configuration asks for."""

import os

from mcpgw.access.signing_key import FILE_NAME, load_or_create_signing_key
from mcpgw.access.tokens import Tokens
from mcpgw.config import Config
from mcpgw.errors import ConfigError


class SigningKeyMissingError(ConfigError):
    """There is no signing key in the data folder yet, and none is to be made."""


def configured_tokens(config: Config, *, create_key: bool) -> Tokens:
    """The tokens of the gateway that runs with `config`.

    Without a configured key the one in the data folder is used; `create_key` says whether it is made where it
    is missing. A key that a mere command made would be known to no gateway.

    Raises:
        SigningKeyMissingError: there is no key, and `create_key` is false.
        ConfigError: the key cannot be read or used.
    """
    auth = config.auth
    key = auth.secret if auth.algorithm == "HS256" else auth.public_key
    if not key:
        if not create_key and not os.path.lexists(config.data.dir / FILE_NAME):
            fault = f"there is no signing key in {config.data.dir}: start the gateway there once"
            raise SigningKeyMissingError([f"{fault}, or name its data folder with --data-dir"])
        key = load_or_create_signing_key(config.data.dir)
    return Tokens(
        algorithm=auth.algorithm, key=key, issuer=auth.issuer, audience=auth.audience, leeway=auth.leeway
    )
