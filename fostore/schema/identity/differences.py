"""What differs between the identity of a store and the one at hand, in a user's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fostore.errors import IdentityError
from fostore.schema.identity.code import is_byte_code, is_comparable

ANEW = "Choose another path, or make the store anew with exists='overwrite'"
JOINED = "Choose another path, or give every share what the store was planned with"
"""What to do where a store was made from something else; the second where several write it."""
_NAMED = 4
"""How many differences a message spells out."""

_MOVING = "moving"
"""The entry of what running the model changes (a counter, a cache, what the first call makes)."""


_DATASET = {
    "length": "the length of the dataset",
    "labels": "the hash of the labels",
    "ids": "the hash of the ids",
    "views": "the hash of the views",
    "fingerprint": "the fingerprint of the dataset",
    "tokenizer": "the tokenizer",
    "vocabulary": "the hash of the tokenizer's vocabulary",
    "input_getter": "the input_getter",
}
_OUTPUT = {
    "mode": "the output mode",
    "transform": "the output_transform",
    "rows": "what rows are of",
    "draws": "num_draws",
    "seed": "the seed of the draws",
    "batch_size": "the batch_size of the draws",
}
"""What decides beside the model, and how messages call it."""


def settled(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """An identity whose entries that differ once the model has run say so, and nothing else.

    >>> settled({"output": {"details": {"a": "int 0", "b": "int 1"}}},
    ...         {"output": {"details": {"a": "int 5", "b": "int 1"}}})
    {'output': {'details': {'a': 'moving', 'b': 'int 1'}}}
    """
    kept = dict(before)
    for key, old in before.items():
        new: Any = after.get(key)
        if key in ("details", "tensors") and isinstance(new, Mapping):
            names = sorted(old.keys() | new.keys()) if key == "details" else old
            kept[key] = {
                name: _MOVING if name in new and old.get(name) != new[name] else old[name]
                for name in names
            }
        elif key == "members":
            kept[key] = [settled(*pair) for pair in zip(old, new, strict=True)]
        elif key in ("model", "output"):
            kept[key] = settled(old, new)
    return kept


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What differs between the identity of a store and the one at hand, in a user's words.

    >>> differences({"output": {"mode": "logits"}}, {"output": {"mode": "probs"}})
    ["the output mode is 'probs', the store has 'logits'"]
    """
    ours, theirs = given.get("model", {}), stored.get("model", {})
    new, old = ours.get("members"), theirs.get("members")
    listed: list[str] = []
    if new is not None and old is not None and len(new) == len(old):
        for i, pair in enumerate(zip(old, new, strict=True)):
            listed += _model(*pair, f"member {i} of the model")
    elif new is None and old is None:
        listed += _model(theirs, ours, "the model")
    else:
        count, before = (1 if members is None else len(members) for members in (new, old))
        listed.append(f"the model has {count} members, the store was made by {before}")
    dataset, output = ((stored.get(key, {}), given.get(key, {})) for key in ("dataset", "output"))
    names = dict(_DATASET)
    if None in (one.get("labels") for one in dataset):
        del names["labels"]  # a dataset that does not tell its labels says nothing about them
    return [*listed, *_plain(*dataset, names), *_plain(*output, _OUTPUT)]


def _model(stored: Mapping[str, Any], given: Mapping[str, Any], which: str) -> list[str]:
    if stored.get("fingerprint") is not None or given.get("fingerprint") is not None:
        return _plain(stored, given, {"fingerprint": f"the fingerprint of {which}"})
    listed = _plain(stored, given, {"class": f"the class of {which}"})
    old, new = stored.get("tensors") or {}, given.get("tensors") or {}
    # In the order of the model, not of the alphabet: the first layer that differs says most.
    changed = [name for name in new if name in old and old[name] not in (new[name], _MOVING)]
    renamed = _only_renamed(old, new)
    added = [] if renamed else [name for name in new if name not in old]
    gone = [] if renamed else [name for name in old if name not in new]
    if changed:
        name = changed[0]
        listed.append(_tensor(name, old[name], new[name], which) + _more(len(changed) - 1))
    if added:
        text = f"{which} has the tensor {added[0]!r}, which the store's model had not"
        listed.append(text + _more(len(added) - 1))
    if gone:
        listed.append(f"{which} lacks the tensor {gone[0]!r} of the store's" + _more(len(gone) - 1))
    before, now = stored.get("modules") or {}, given.get("modules") or {}
    others = [name for name in now if name in before and before[name] != now[name]]
    for name in others[:1]:
        text = f"part {name!r} of {which} is a {now[name]}, in the store's it was a {before[name]}"
        listed.append(text)
    if not listed and list(before.values()) != list(now.values()):
        listed.append(f"{which} is built of other parts than the store's")
    return listed


def _tensor(name: str, old: str, new: str, which: str) -> str:
    old_kind, new_kind = old.rpartition(" ")[0], new.rpartition(" ")[0]
    if old_kind != new_kind:
        return f"tensor {name!r} of {which} is {new_kind or new}, the store's was {old_kind or old}"
    return f"tensor {name!r} of {which} has other values than the store's"


def _more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""


def _only_renamed(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether the same entries come in the same order: another name changes no output by itself."""
    return list(old.values()) == list(new.values())


def _plain(
    stored: Mapping[str, Any], given: Mapping[str, Any], names: Mapping[str, str]
) -> list[str]:
    """Functions are compared by name and by the arguments of a partial; see `doubts` for their code."""
    listed = []
    for key, words in names.items():
        old, new = stored.get(key), given.get(key)
        before, now = (one.get("name") if isinstance(one, Mapping) else one for one in (old, new))
        if isinstance(old, Mapping) and isinstance(new, Mapping) and before == now:
            if old.get("arguments") != new.get("arguments"):
                listed.append(f"{words} {now!r} has other arguments than the store's")
        elif old != new:
            listed.append(f"{words} is {now!r}, the store has {before!r}")
    return listed


# ------------------------------------------------------------------ what only the rows can tell


@dataclass(frozen=True, slots=True)
class Doubts:
    """What differs and may change no output: code, attributes, globals, captured values.

    Both map what it is to how it differs, in a user's words: `code` in source or values, `byte_code`
    only in byte code.
    """

    code: Mapping[str, str] = field(default_factory=dict)
    byte_code: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.code or self.byte_code)

    def __str__(self) -> str:
        every = [*self.code.items(), *self.byte_code.items()]
        words = [f"{name} {how}" for name, how in every[:_NAMED]]
        return "; ".join(words) + _more(len(every) - _NAMED)


def doubts(stored: Mapping[str, Any], given: Mapping[str, Any]) -> Doubts:
    """What two identities see differently and do not decide by.

    Keys that the store does not have, since an older release wrote it, say nothing.

    >>> old = {"output": {"details": {"the global 'T'": "float 1.0"}}}
    >>> print(doubts(old, {"output": {"details": {"the global 'T'": "float 2.0"}}}))
    the global 'T' (output_transform) is 2.0, it was 1.0
    """
    code: dict[str, str] = {}
    byte_code: dict[str, str] = {}
    for which, old, new in _parts(stored, given):
        # The user's word for the model counts instead of what it is made of.
        if old.get("fingerprint") is not None:
            continue
        for key in ("tensors", "modules"):
            before, now = old.get(key) or {}, new.get(key) or {}
            if list(before) != list(now) and _only_renamed(before, now):
                code[f"the {key}{which}"] = "have other names"
        before, now = old.get("details"), new.get("details")
        if not isinstance(before, Mapping) or not isinstance(now, Mapping):
            continue
        for name in sorted(before.keys() | now.keys()):
            one, other = before.get(name), now.get(name)
            if one == _MOVING:
                continue
            if one is None or other is None:
                code[f"{name}{which}"] = "is gone" if other is None else "is new"
            elif one != other and is_comparable(one, other):
                kind = byte_code if is_byte_code(one) else code
                kind[f"{name}{which}"] = _changed(one, other)
    data, new_data = stored.get("dataset", {}), given.get("dataset", {})
    if data.get("input_getter") not in (None, new_data.get("input_getter")):
        code["the input_getter"] = "has changed"
    return Doubts(code, byte_code)


def is_opaque(made_from: Mapping[str, Any]) -> bool:
    """Whether something in the model, or in what is done with its output, cannot be hashed."""
    return any(one.get("opaque") for _, one, _ in _parts(made_from, made_from))


def _parts(
    stored: Mapping[str, Any], given: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    ours, theirs = given.get("model", {}), stored.get("model", {})
    old, new = theirs.get("members", [theirs]), ours.get("members", [ours])
    many = len(new) > 1
    members = [
        (f" (member {i})" if many else "", *pair)
        for i, pair in enumerate(zip(old, new, strict=False))
    ]
    return [*members, (" (output_transform)", stored.get("output", {}), given.get("output", {}))]


def _changed(old: str, new: str) -> str:
    plain = [text.partition(" ")[2] for text in (old, new)]
    if all(text.startswith(("float ", "int ", "bool ")) for text in (old, new)):
        return f"is {plain[1]}, it was {plain[0]}"
    return "has changed"


def refuse(path: object, listed: Sequence[str], cure: str = ANEW) -> None:
    """Raise IdentityError, which keeps the differences, where there are any; nothing was written."""
    if listed:
        raise IdentityError(
            f"{str(path)!r} was made from something else: {'; '.join(listed)}. {cure}",
            tuple(listed),
        )
