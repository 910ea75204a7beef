"""The key that signs this gateway's own tokens, kept in its data folder.

Made once and kept, so that tokens still hold after a restart. Whoever reads the file can make tokens for
anybody, hence a file that others may read is refused instead of used.
"""

import errno
import os
import secrets
import shlex
import stat
from pathlib import Path

from mcpgw.errors import ConfigError

FILE_NAME = "signing.key"
KEY_BYTES = 32
"""Size of a new key. RFC 7518 section 3.2 asks for at least 256 bits with HS256."""

_MAXIMUM_FILE_SIZE = 4096
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def load_or_create_signing_key(data_dir: Path) -> str:
    """The signing key of `data_dir` as hexadecimal text of at least 64 digits; made where there is none.

    Several processes may start at the same time: all get the same key. The file has mode 0600, and a folder
    that is made here has mode 0700. Raises `ConfigError` where the folder or the file cannot be used, where
    others may read the file, and where what it holds is not a key.
    """
    path = data_dir / FILE_NAME
    try:
        _make_folder(data_dir)
        if not os.path.lexists(path):
            _create(path)
        return _read(path)
    except OSError as fault:
        raise ConfigError([f"signing key {path}: {fault.strerror or fault}"]) from fault


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise ConfigError(
                [f"data folder {folder}: a file of this name is in the way; name another with --data-dir"]
            ) from None


def _create(path: Path) -> None:
    """Put a new key at `path`, whole or not at all; where another process was first, its key stays."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # a narrow umask could have taken the owner's own right to read
            file.write(f"{secrets.token_hex(KEY_BYTES)}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link never replaces a file, unlike a rename: the first process wins, the others see its key.
            path.hardlink_to(draft)
        except FileExistsError:
            return
        except OSError as fault:
            if fault.errno in _NO_HARD_LINKS:
                raise ConfigError(
                    [
                        (
                            f"signing key {path}: this file system has no hard links; "
                            "name a folder on a local disk with --data-dir, or set auth.secret"
                        )
                    ]
                ) from fault
            raise
    finally:
        draft.unlink()
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, as fsync of a file alone does not (see fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    # O_NONBLOCK: a pipe put in the file's place would otherwise hold the start for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError([f"signing key {path}: not a regular file"])
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigError(
                [
                    (
                        f"signing key {path}: others may read or change it "
                        f"(mode {stat.S_IMODE(status.st_mode):04o}); run: chmod 600 {shlex.quote(str(path))}"
                    )
                ]
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                [f"signing key {path}: another user (uid {status.st_uid}) owns it and could sign tokens"]
            )
        text = file.read(_MAXIMUM_FILE_SIZE + 1)
    try:
        key = text.decode("ascii").strip()
        whole = len(text) <= _MAXIMUM_FILE_SIZE and len(bytes.fromhex(key)) >= KEY_BYTES
    except ValueError:
        whole = False
    if not whole:
        raise ConfigError(
            [
                (
                    f"signing key {path}: it does not hold a key ({KEY_BYTES} bytes or more in hexadecimal); "
                    "bring it back from a backup, or remove it: a new one is made, and all tokens so far end"
                )
            ]
        )
    return key
