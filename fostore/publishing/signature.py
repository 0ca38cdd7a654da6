"""A detached signature over `data/`: OpenSSF model-signing in key mode (extra `sign`), and nothing else of it.

What is signed is the tree digest that stands in the manifest, so that whoever checks the signature checks every file.
"""

from __future__ import annotations

import base64
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from fostore import disk
from fostore.errors import ArgumentError, FormatError, UnsupportedError
from fostore.schema import jsontext

MAX_SIGNATURE = 64 << 20
_EXPECTED = (
    "the private half of an elliptic curve key in PEM, not encrypted: openssl ecparam -genkey -name prime256v1 "
    "-noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"
)


def sign(data: Path, path: Path, key: Path, tree: str, earlier: bytes | None) -> bytes:
    """Sign the files of a folder with a private key.

    No two signatures are the same, so `earlier` is kept where it is the key's, over the same files.

    Args:
        data: the folder.
        path: where signatures are written for a moment.
        key: a private key.
        tree: the digest of the files.
        earlier: the signature of before.

    Raises:
        ArgumentError: the file holds no such key.
        UnsupportedError: model-signing is not installed.
    """
    serialization = _module("cryptography.hazmat.primitives.serialization")
    signing = _module("model_signing.signing")
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key)
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{key} is no key to sign with ({error}); expected {_EXPECTED}"
        ) from error
    if earlier is not None:
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with NamedTemporaryFile(suffix=".pem") as file:  # the library takes keys by their path
            file.write(public)
            file.flush()
            disk.write_whole(path, earlier)
            if problem_of(data, path, Path(file.name), tree) is None:
                return earlier
    config.set_hashing_config(_hashing()).sign(data, path)
    return disk.read_named(path, MAX_SIGNATURE, "a signature")


def problem_of(data: Path, signature: Path, key: Path, tree: str) -> str | None:
    """What is wrong with a signature; None where it is of the key's owner, over these files and this tree digest.

    Raises:
        ArgumentError: the file holds no public key.
        UnsupportedError: model-signing is not installed.
    """
    verifying = _module("model_signing.verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{key} is no public key of an elliptic curve in PEM ({error})"
        ) from error
    try:
        config.set_hashing_config(_hashing()).verify(data, signature)
        signed = _tree_of(disk.read_named(signature, MAX_SIGNATURE, "a signature"), str(signature))
    except Exception as error:  # a stranger's text, which the library parses as it comes
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"is not a signature of {key.name} over these files: {first[:300]}"
    return (
        None if signed == tree else f"signs the tree sha256:{signed}, and the manifest has {tree}"
    )


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"signatures need model-signing, and {error.name} is missing: pip install 'fostore[sign]'"
        ) from error


def _hashing() -> Any:
    """Every file counts: by default the library leaves out what git keeps for itself."""
    return (
        _module("model_signing.hashing")
        .Config()
        .set_ignored_paths(paths=[], ignore_git_paths=False)
    )


def _tree_of(text: bytes, where: str) -> str:
    """The digest that a signature is about."""
    value: Any = jsontext.loads(text, where)
    try:
        payload = base64.b64decode(value["dsseEnvelope"]["payload"])
        return str(jsontext.loads(payload, where)["subject"][0]["digest"]["sha256"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError(f"{where} names no digest") from error
