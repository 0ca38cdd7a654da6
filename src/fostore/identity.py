"""What a store was made from: hashes of models, datasets and functions, and what differs between two.

Pure functions on values that are at hand; nothing here imports a framework. Versions, hosts,
devices and times are no part of an identity, so that an upgrade never blocks a resume.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any

import numpy as np

from fostore.errors import IdentityError
from fostore.nested import is_numbers
from fostore.schema import Array

_CALL = "__call__"
_SMALL_ROW = 2048  # bytes
_LIBRARIES = ("torch", "jax", "numpy", "scipy")
"""Whose functions are known by their names: an upgrade changes their source, not what they mean."""

Leaves = Callable[[Any], "dict[str, str] | None"]
"""Entries of the arrays in nested data, by path; None where something in it cannot be hashed."""


# ------------------------------------------------------------------ hashing


def hash_bytes(data: Any) -> str:
    """128 bits of xxh3 over any buffer, in hexadecimal."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def array_entry(dtype: str, shape: Sequence[int], data: Any) -> str:
    """A tensor as an identity keeps it: its dtype, shape and hash.

    >>> array_entry("float32", (2, 3), bytes(24)).rsplit(" ", 1)[0]
    'float32 [2, 3]'
    """
    return f"{dtype} {list(shape)} {hash_bytes(data)}"


def hash_leaves(data: Any) -> dict[str, str] | None:
    """Entries of nested NumPy-like arrays and plain values, by path; None if something has no bytes.

    >>> sorted(hash_leaves({"w": np.zeros(2), "steps": 3}))
    ["['steps']", "['w']"]
    """
    entries: dict[str, str] = {}
    return entries if _collect(data, "", entries) else None


def _collect(data: Any, path: str, entries: dict[str, str]) -> bool:
    if isinstance(data, Mapping):
        return all(_collect(item, f"{path}[{key!r}]", entries) for key, item in data.items())
    if isinstance(data, (list, tuple)):
        return all(_collect(item, f"{path}[{i}]", entries) for i, item in enumerate(data))
    if data is None or isinstance(data, (bool, int, float, str, bytes)):
        entries[path] = f"{type(data).__name__} {data!r}"
        return True
    if hasattr(data, "__array__") and hasattr(data, "shape"):
        try:
            array = np.asarray(data.detach().cpu() if hasattr(data, "detach") else data)
        except (TypeError, ValueError, RuntimeError):
            return False
        if array.dtype != object:
            entries[path] = array_entry(array.dtype.name, array.shape, _bytes_of(array))
            return True
    return False


def _bytes_of(array: Array) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def row_hashes(leaves: Iterable[tuple[str, Any]], rows: int) -> Array | None:
    """One 64-bit hash a row (uint64) of a collated batch; None where a leaf has no bytes.

    A row's hash covers the path, dtype, shape and bytes of its part of every leaf: it is the same
    in a batch of any size. Leaves without a row axis count into every row.

    Args:
        leaves: (path, leaf): C-contiguous NumPy arrays, or lists with an entry a row: texts, bytes, arrays,
            lists of numbers or anything that `hash_leaves` takes.
        rows: rows of the batch.
    """
    import xxhash

    digest = xxhash.xxh3_64_intdigest
    hashes: list[Any] = []
    for path, leaf in leaves:
        if isinstance(leaf, np.ndarray):
            if leaf.ndim and leaf.shape[0] == rows:
                seed = digest(f"{path} {leaf.dtype.name} {leaf.shape[1:]}".encode())
                size = leaf.nbytes // rows if rows else 0
                hashes.append(_hash_rows(leaf, rows, size, seed) if size else [seed] * rows)
            else:
                seed = digest(f"{path} {leaf.dtype.name} {leaf.shape}".encode())
                hashes.append([digest(_bytes_of(leaf).data, seed)] * rows)
        elif isinstance(leaf, (list, tuple)) and len(leaf) == rows:
            seed = digest(f"{path} str".encode())
            found = [
                digest(entry.encode(), seed) if type(entry) is str else _entry_hash(path, entry)
                for entry in leaf
            ]
            if None in found:
                return None
            hashes.append(found)
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            hashes.append([digest(f"{path} {leaf!r}".encode())] * rows)
        else:
            return None
    if not hashes:
        return None
    if len(hashes) == 1:
        return np.array(hashes[0], np.uint64)
    table = np.array(hashes, np.uint64).T.copy()
    return np.array([digest(row.data) for row in table], np.uint64)


def _entry_hash(path: str, entry: Any) -> int | None:
    """The hash of one entry of a list; an array's is that of a row of a whole array of such."""
    from xxhash import xxh3_64_intdigest as digest

    if isinstance(entry, str):  # of a type of its own, such as NumPy's
        return digest(entry.encode(), digest(f"{path} str".encode()))
    if isinstance(entry, bytes):
        return digest(entry, digest(f"{path} bytes".encode()))
    if is_numbers(entry):
        with suppress(ValueError):  # lists of several lengths
            entry = np.array(entry)
    if isinstance(entry, np.ndarray) and entry.dtype != object:
        seed = digest(f"{path} {entry.dtype.name} {entry.shape}".encode())
        return digest(_bytes_of(entry).data, seed) if entry.nbytes else seed
    found = hash_leaves(entry)
    if found is None:
        return None
    return digest(repr(sorted(found.items())).encode(), digest(path.encode()))


def _hash_rows(leaf: Array, rows: int, size: int, seed: int) -> Array:
    """xxh3 of each row's `size` bytes, uint64 (rows,)."""
    from xxhash import xxh3_64_digest as digest

    flat = _bytes_of(leaf)
    parts: Iterable[Any]
    if size <= _SMALL_ROW:  # copied, so that no Python runs between two rows: twice as fast
        parts = flat.view(f"V{size}").tolist()
    else:
        view: Any = memoryview(flat)
        parts = (view[at : at + size] for at in range(0, rows * size, size))
    return np.frombuffer(b"".join(map(digest, parts, repeat(seed))), ">u8").astype("<u8")


def hash_values(values: Any) -> str | None:
    """A hash of labels or ids: numbers or strings, whatever container; None for anything else.

    The same for a list, an array or a tensor of the same values and kind.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    if array.dtype.kind in "iub":
        return hash_bytes(_bytes_of(array.astype(np.int64)))
    if array.dtype.kind == "f":
        return hash_bytes(_bytes_of(array.astype(np.float64)))
    if array.dtype.kind == "U":
        return hash_bytes("\0".join(map(str, array.ravel().tolist())).encode())
    return None


# ------------------------------------------------------------------ functions and callables


def describe_function(function: Callable[..., Any] | None) -> dict[str, Any] | None:
    """A function's qualified name and the hash of its source and of the values that it captured.

    The source is hashed as the syntax tree prints it, so comments and layout do not count.
    """
    if function is None:
        return None
    if isinstance(function, functools.partial):
        inner = describe_function(function.func) or {}
        arguments = hash_leaves([list(function.args), function.keywords])
        text = "opaque" if arguments is None else repr(sorted(arguments.items()))
        return {**inner, "arguments": hash_bytes(text.encode())}
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    plain = inspect.unwrap(function)
    source = source_hash(plain)
    return {"name": name} if source is None else {"name": name, "source": source}


def source_hash(function: Callable[..., Any]) -> str | None:
    """The hash of a Python function's source and captured plain values; None where there is none."""
    target = _routine_of(function)
    code = getattr(target, "__code__", None)
    if code is None or str(getattr(target, "__module__", "")).partition(".")[0] in _LIBRARIES:
        return None
    try:
        text = textwrap.dedent(inspect.getsource(target))
    except (OSError, TypeError):
        return None
    captured = hash_leaves(
        [
            [
                cell.cell_contents
                for cell in filled_cells(getattr(target, "__closure__", None) or ())
            ],
            list(getattr(target, "__defaults__", None) or ()),
            dict(getattr(target, "__kwdefaults__", None) or {}),
        ]
    )
    values = "" if captured is None else repr(sorted(captured.items()))
    return hash_bytes(f"{_normal(text, code.co_name == '<lambda>')}\n{values}".encode())


def _routine_of(function: Callable[..., Any]) -> Any:
    """The function itself; of an object its `forward` (a torch module's), or else its `__call__`."""
    if inspect.isroutine(function):
        return function
    return getattr(type(function), "forward", None) or getattr(type(function), _CALL, None)


def details_of(function: Callable[..., Any] | None) -> str | None:
    """A hash of the values that a function finds outside its source: its object's, and global numbers.

    They may change for reasons that change no output, so a difference never refuses by itself: on
    resume one committed batch is recomputed and compared.
    """
    if function is None:
        return None
    if isinstance(function, functools.partial):
        return details_of(function.func)
    owner = getattr(function, "__self__", None) if inspect.isroutine(function) else function
    found: dict[str, Any] = {}
    if owner is not None and not inspect.isclass(owner) and not inspect.ismodule(owner):
        state = getattr(owner, "state_dict", None)
        found.update(state() if callable(state) else getattr(owner, "__dict__", {}))
    target = _routine_of(function)
    code, named = getattr(target, "__code__", None), getattr(target, "__globals__", {})
    for step in dis.get_instructions(code) if code is not None else ():
        if step.opname == "LOAD_GLOBAL" and isinstance(named.get(step.argval), (int, float)):
            found[f"global {step.argval}"] = named[step.argval]
    hashed = {name: hash_leaves(value) for name, value in found.items()}
    kept = sorted((name, sorted(entry.items())) for name, entry in hashed.items() if entry)
    return hash_bytes(repr(kept).encode()) if kept else None


def details_differ(stored: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether what two identities do not name may differ, so that only the outputs can tell."""

    def details(made_from: Mapping[str, Any]) -> list[Any]:
        model = made_from.get("model", {})
        parts = [*model.get("members", [model]), made_from.get("output", {})]
        return [part.get("details") for part in parts]

    return details(stored) != details(given)


def filled_cells(cells: Iterable[Any]) -> list[Any]:
    """The cells of a closure that hold a value already."""
    filled = []
    for cell in cells:
        try:
            _ = cell.cell_contents
        except ValueError:  # a name that is bound later
            continue
        filled.append(cell)
    return filled


def _normal(text: str, is_lambda: bool) -> str:
    """Source as the syntax tree prints it; of a line with a lambda only the lambda."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # the line of a lambda may begin in the middle of an expression
        return text.strip() if not is_lambda else text[max(text.find("lambda"), 0) :].strip()
    if is_lambda:
        found = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
        return "\n".join(found)
    return ast.unparse(tree)


def describe_callable(model: Callable[..., Any], leaves: Leaves) -> dict[str, Any]:
    """A model that is a plain callable: the arguments of a `functools.partial` by their hashes.

    What a callable computes cannot be hashed, so it is marked opaque: on resume one committed batch
    is recomputed and compared.
    """
    if isinstance(model, functools.partial):
        inner = describe_callable(model.func, leaves)
        tensors = leaves([list(model.args), model.keywords])
        return {**inner, "tensors": tensors or {}}
    name = getattr(model, "__qualname__", None) or type(model).__qualname__
    return {"class": name, "opaque": True}


# ------------------------------------------------------------------ what differs


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What differs between the identity of a store and the one at hand, in a user's words.

    >>> differences({"output": {"mode": "logits"}}, {"output": {"mode": "probs"}})
    ["the output mode is 'probs', the store has 'logits'"]
    """
    found: list[str] = []
    ours, theirs = given.get("model", {}), stored.get("model", {})
    members, old_members = ours.get("members"), theirs.get("members")
    if members is not None and old_members is not None and len(members) == len(old_members):
        for i, (new, old) in enumerate(zip(members, old_members, strict=True)):
            found += _model(old, new, f"member {i} of the model")
    elif (members is None) != (old_members is None) or members != old_members:
        count = [1 if m is None else len(m) for m in (members, old_members)]
        found.append(f"the model has {count[0]} members, the store was made by {count[1]}")
    else:
        found += _model(theirs, ours, "the model")
    old_data, new_data = stored.get("dataset", {}), given.get("dataset", {})
    both_labelled = old_data.get("labels") is not None and new_data.get("labels") is not None
    found += _plain(
        old_data,
        new_data,
        {
            "length": "the length of the dataset",
            **({"labels": "the hash of the labels"} if both_labelled else {}),
            "ids": "the hash of the ids",
            "views": "the hash of the views",
            "fingerprint": "the fingerprint of the dataset",
            "input_getter": "the input_getter",
        },
    )
    found += _plain(
        stored.get("output", {}),
        given.get("output", {}),
        {"mode": "the output mode", "transform": "the output_transform"},
    )
    return found


def _model(stored: Mapping[str, Any], given: Mapping[str, Any], which: str) -> list[str]:
    if stored.get("fingerprint") is not None or given.get("fingerprint") is not None:
        return _plain(stored, given, {"fingerprint": f"the fingerprint of {which}"})
    found = _plain(stored, given, {"class": f"the class of {which}"})
    old, new = stored.get("tensors") or {}, given.get("tensors") or {}
    changed = [name for name in new if name in old and old[name] != new[name]]
    added = [name for name in new if name not in old]
    gone = [name for name in old if name not in new]
    if changed:
        name = changed[0]
        found.append(_tensor(name, old[name], new[name], which) + _more(len(changed) - 1))
    if added:
        found.append(
            f"{which} has the tensor {added[0]!r}, which the store's model had not"
            + _more(len(added) - 1)
        )
    if gone:
        found.append(f"{which} lacks the tensor {gone[0]!r} of the store's" + _more(len(gone) - 1))
    old_parts, new_parts = stored.get("modules") or {}, given.get("modules") or {}
    for name in new_parts:
        if name in old_parts and old_parts[name] != new_parts[name]:
            found.append(
                f"part {name!r} of {which} is a {new_parts[name]}, "
                f"in the store's it was a {old_parts[name]}"
            )
            break
    if not found and list(old_parts) != list(new_parts):
        found.append(f"{which} is built of other parts than the store's")
    return found


def _tensor(name: str, old: str, new: str, which: str) -> str:
    old_kind, new_kind = old.rpartition(" ")[0], new.rpartition(" ")[0]
    if old_kind != new_kind:
        return f"tensor {name!r} of {which} is {new_kind or new}, the store's was {old_kind or old}"
    return f"tensor {name!r} of {which} has other values than the store's"


def _more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""


def _plain(
    stored: Mapping[str, Any], given: Mapping[str, Any], names: Mapping[str, str]
) -> list[str]:
    found = []
    for key, words in names.items():
        old, new = stored.get(key), given.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if old.get("name") != new.get("name"):
                found.append(f"{words} is {new.get('name')!r}, the store has {old.get('name')!r}")
            else:
                found.append(f"{words} {new.get('name')!r} has changed since the store was made")
        else:
            old, new = ((v or {}).get("name") if isinstance(v, Mapping) else v for v in (old, new))
            found.append(f"{words} is {new!r}, the store has {old!r}")
    return found


def refuse(path: object, found: Sequence[str]) -> None:
    """Raise IdentityError where something differs; nothing was written.

    Raises:
        IdentityError: `differences` holds `found`.
    """
    if found:
        raise IdentityError(
            f"{str(path)!r} was made from something else: {'; '.join(found)}. Choose another path, make "
            "the store anew with exists='overwrite', or go on with accept_differences=True",
            tuple(found),
        )
