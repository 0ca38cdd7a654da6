"""A detached signature over `data/`: OpenSSF model-signing in key mode (extra `sign`), and nothing else of it.

What is signed is the tree digest that stands in the manifest, so that whoever checks the signature checks every file.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import Any

from fostore import disk
from fostore.errors import ArgumentError, FormatError, UnsupportedError
from fostore.schema import jsontext

MAX_SIGNATURE = 64 << 20
DATA = "data"
"""The folder that is signed; its name is no part of a signature."""
_EXPECTED = (
    "the private half of an elliptic curve key in PEM, not encrypted: openssl ecparam -genkey -name prime256v1 "
    "-noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"
)


def sign(
    data: Path, path: Path, key: Path, hashes: Mapping[str, str], tree: str, earlier: bytes | None
) -> bytes:
    """Sign the files of a folder with a private key.

    No two signatures are the same, so `earlier` is kept where it is the key's, over the same files.

    Args:
        data: the folder.
        path: where signatures are written for a moment.
        key: a private key.
        hashes: the SHA-256 of each file, by its name from the folder.
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
    except (AttributeError, OSError, TypeError, ValueError) as error:  # the first of a key of RSA
        raise ArgumentError(
            f"{key} is no key to sign with ({error}); expected {_EXPECTED}"
        ) from error
    if earlier is not None:
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with _named(public) as file:
            if problem_of(hashes, earlier, file, tree) is None:
                return earlier
    config.set_hashing_config(_hashing()).sign(data, path)
    return disk.read_named(path, MAX_SIGNATURE, "a signature")


def problem_of(hashes: Mapping[str, str], signed: bytes, key: Path, tree: str) -> str | None:
    """What is wrong with a signature; None where it is of the key's owner, over these files and this tree digest.

    Args:
        hashes: the SHA-256 of each file as it is, by its name from the folder that was signed.

    Raises:
        ArgumentError: the file holds no public key.
        UnsupportedError: model-signing is not installed.
    """
    verifying = _module("model_signing.verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{key} is no public key of an elliptic curve in PEM ({error})"
        ) from error
    try:
        with _named(signed) as path:
            config.set_hashing_config(_known(hashes)).verify(Path(DATA), path)
        about = _tree_of(signed, "the signature")
    except Exception as error:  # a stranger's text, which the library parses as it comes
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"is not a signature of {key.name} over these files: {first[:300]}"
    return None if about == tree else f"signs the tree sha256:{about}, and the manifest has {tree}"


@contextmanager
def _named(text: bytes) -> Iterator[Path]:
    """A file for a moment: the library takes keys and signatures by their paths."""
    with NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        yield Path(file.name)


def _known(hashes: Mapping[str, str]) -> Any:
    """What the library would hash, from hashes that are known: so files are read once, wherever they lie."""
    manifest = _module("model_signing.manifest")

    class Known(_module("model_signing.hashing").Config):  # type: ignore[misc]  # a base that is imported late
        def hash(self, *_: Any, **__: Any) -> Any:
            kind = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
            items = [
                manifest.FileManifestItem(
                    path=PurePosixPath(name),
                    digest=manifest.hashing.Digest("sha256", bytes.fromhex(sha256)),
                )
                for name, sha256 in hashes.items()
            ]
            return manifest.Manifest(DATA, items, manifest.SerializationType.from_args(kind))

    return Known()


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
