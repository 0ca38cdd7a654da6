"""What DistillKit packs: integers in bits, log-probabilities as exact ones, a curve and what it misses.

Source: arcee-ai/DistillKit, `distillkit/compression/`: `bitpack.py`, `monotonic_logprobs.py`, `legacy.py`, `config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.errors import FormatError
from fostore.schema.halves import bfloat16_to_float32
from fostore.schema.row import Array

_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
_MOST = 1 << 16


def unpacked(raw: Array, bits: int, count: int, where: str) -> Array:
    """`count` integers of so many bits each, most significant bit first, from bytes (n, m): int64 (n, count)."""
    if raw.shape[-1] != -(-count * bits // 8):
        raise FormatError(
            f"{where} has {raw.shape[-1]} bytes a row, and {count} numbers of {bits} bits take "
            f"{-(-count * bits // 8)}: is this its configuration?"
        )
    ones = np.unpackbits(raw, axis=-1)[:, : count * bits].reshape(len(raw), count, bits)
    powers = np.int64(1) << np.arange(bits - 1, -1, -1, dtype=np.int64)
    numbers: Array = ones.astype(np.int64) @ powers
    return numbers


def unpacked_words(words: Array, bits: int, count: int, where: str) -> Array:
    """`count` integers of so many bits from 64-bit words (n, m), the first in the lowest bits: int64 (n, count)."""
    each = 64 // bits
    if words.shape[-1] != -(-count // each):
        raise FormatError(
            f"{where} has {words.shape[-1]} words a row, and {count} numbers of {bits} bits take "
            f"{-(-count // each)}: is this its configuration?"
        )
    shifts = np.uint64(bits) * np.arange(each, dtype=np.uint64)
    numbers = (words.astype(np.uint64)[..., None] >> shifts) & np.uint64((1 << bits) - 1)
    return numbers.reshape(len(words), -1)[:, :count].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Bin:
    """Some of what the curve misses, on one scale."""

    scale_dtype: str
    element_bits: int
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """Of the packed elements of a row."""
        return -(-self.num_elements * self.element_bits // 8)


@dataclass(frozen=True, slots=True)
class Packing:
    """A `DistributionQuantizationConfig`: how the k log-probabilities of a row are packed."""

    d: int
    k: int
    exact_k: int
    exact_dtype: str
    polynomial_terms: tuple[int | str, ...]
    term_dtype: str
    residual_bins: tuple[Bin, ...]
    delta_encoding: bool
    normalize_t: bool

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> Packing:
        """Read what a configuration file says.

        Raises:
            FormatError: a key is missing, or holds what it cannot.
        """
        try:
            bins = tuple(
                Bin(
                    _dtype(b["scale_dtype"]), _size(b["element_bits"], 64), _size(b["num_elements"])
                )
                for b in config["residual_bins"]
            )
            packing = cls(
                d=_size(config["d"], 1 << 32),
                k=_size(config["k"]),
                exact_k=_size(config["exact_k"], least=0),
                exact_dtype=_dtype(config.get("exact_dtype", "float32")),
                polynomial_terms=tuple(map(_term, config.get("polynomial_terms") or ())),
                term_dtype=_dtype(config.get("term_dtype", "float32")),
                residual_bins=bins,
                delta_encoding=bool(config.get("delta_encoding", True)),
                normalize_t=bool(config.get("normalize_t", False)),
            )
            if sum(b.num_elements for b in bins) > packing.k - packing.exact_k:
                raise ValueError(
                    f"exact_k and residual_bins hold more than k = {packing.k} numbers"
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise FormatError(
                f"{where} is no logprob_compressor of DistillKit: it {what}"
            ) from error
        return packing

    @property
    def index_bits(self) -> int:
        """Bits of a class: as many as number the classes."""
        return max((self.d - 1).bit_length(), 1)

    def decode(self, raw: Array, where: str) -> Array:
        """Log-probabilities (n, k) from bytes (n, m), float32 (float64 where the exact ones are)."""
        wide = np.float64 if self.exact_dtype == "float64" else np.float32
        cursor = _Cursor(raw, where)
        exact = cursor.floats(self.exact_dtype, self.exact_k).astype(wide)
        others = self.k - self.exact_k
        curve = np.zeros((len(raw), others), wide)
        if self.polynomial_terms:
            factors = cursor.floats(self.term_dtype, len(self.polynomial_terms)).astype(wide)
            curve = curve + factors @ self._terms(others, wide).T
        at = 0
        for b in self.residual_bins:
            scale = cursor.floats(b.scale_dtype, 1).astype(np.float32)
            codes = unpacked(cursor.bytes(b.num_bytes), b.element_bits, b.num_elements, where)
            if b.element_bits == 1:
                missed = (2.0 * codes - 1.0) * scale
            else:
                missed = (codes - (1 << (b.element_bits - 1))) * scale
            curve[:, at : at + b.num_elements] += missed.astype(wide)
            at += b.num_elements
        cursor.end()
        logs = np.concatenate([exact, curve], axis=-1)
        return np.cumsum(logs, axis=-1, dtype=wide) if self.delta_encoding else logs

    def _terms(self, count: int, dtype: Any) -> Array:
        points = (
            np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        )
        with np.errstate(divide="ignore", over="ignore"):
            terms = [
                getattr(np, term)(points) if isinstance(term, str) else points ** float(term)
                for term in self.polynomial_terms
            ]
        return np.stack(terms, axis=-1).astype(dtype)


class _Cursor:
    """The bytes of rows, taken from the left."""

    def __init__(self, raw: Array, where: str) -> None:
        self._raw, self._where, self._at = raw, where, 0

    def bytes(self, count: int) -> Array:
        piece = self._raw[:, self._at : self._at + count]
        if piece.shape[-1] != count:
            raise FormatError(
                f"{self._where} has {self._raw.shape[-1]} bytes a row, fewer than its configuration says: is this "
                "the one it was written with?"
            )
        self._at += count
        return np.ascontiguousarray(piece)

    def floats(self, dtype: str, count: int) -> Array:
        raw = self.bytes(count * _BITS[dtype] // 8)
        if not count:
            return np.empty((len(raw), 0), np.float32)
        if dtype == "bfloat16":
            return bfloat16_to_float32(raw.view("<u2"))
        numbers: Array = raw.view(np.dtype(dtype).newbyteorder("<"))
        return numbers

    def end(self) -> None:
        if self._at != self._raw.shape[-1]:
            raise FormatError(
                f"{self._where} has {self._raw.shape[-1]} bytes a row, and its configuration explains {self._at}: is "
                "this the one it was written with?"
            )


def terms_of_legacy(config: Mapping[str, Any], where: str) -> tuple[int, int, int, Array]:
    """k, exact_k, bits of a class, and the terms (k - exact_k, m) of a `LegacyLogitCompressionConfig`."""
    try:
        k, exact = _size(config["k"]), _size(config["exact_k"], least=0)
        bits = max((_size(config["vocab_size"], 1 << 32) - 1).bit_length(), 1)
        points = np.arange(k - exact, dtype=np.float32) + 1
        sign = -1.0 if config.get("invert_polynomial", True) else 1.0
        terms = [points ** (sign * i) for i in range(_size(config["polynomial_degree"], 64, 0) + 1)]
        if config.get("with_sqrt_term", False):
            terms.append(np.sqrt(points))
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise FormatError(
            f"{where} is no legacy_logit_compression of DistillKit: it {what}"
        ) from error
    return k, exact, bits, np.stack(terms, axis=-1)


def _size(given: Any, most: int = _MOST, least: int = 1) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        raise ValueError(f"holds {given!r:.40} where {least} to {most} was expected")
    return given


def _dtype(given: Any) -> str:
    if given not in _BITS:
        raise ValueError(f"holds the dtype {given!r:.40}, expected one of {list(_BITS)}")
    return str(given)


def _term(given: Any) -> int | str:
    if given in ("sqrt", "exp"):
        return str(given)
    if isinstance(given, bool) or not isinstance(given, int) or abs(given) > 64:
        raise ValueError(f"holds the polynomial term {given!r:.40}")
    return given
