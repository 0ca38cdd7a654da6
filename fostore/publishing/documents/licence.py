"""LICENSE: under which terms the rows are published, and what is known of those of model and outputs."""

from __future__ import annotations

from fostore.publishing.described import Described


def text(described: Described) -> bytes:
    """The text that was given, or the name of the licence and where its text stands."""
    facts = described.facts
    names = ", ".join(creator.name for creator in described.facts.creators)
    lines = [
        f"SPDX-License-Identifier: {described.license}",
        f"SPDX-FileCopyrightText: {described.year} {names}",
        "",
    ]
    if facts.license_text:
        lines.append(facts.license_text)
    elif described.license_url:
        lines.append(
            f"The rows of this dataset are published under {described.license}, whose text is at "
            f"{described.license_url}"
        )
    else:
        lines.append(f"The rows of this dataset are published under {described.license}.")
    unknown = "not stated by the publisher"
    lines += [
        "",
        f"Licence of the model that made them: {facts.model_license or unknown}",
        f"Terms on the outputs of that model: {facts.outputs_license or unknown}",
    ]
    return ("\n".join(lines) + "\n").encode("utf-8")
