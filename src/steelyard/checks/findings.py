"""What a self-check found, in words for the one who signs for the privacy of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 96


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One test of a self-check.

    text: what was tested, the number found, what it means and, where it failed, what to do; one
    paragraph without line breaks. figures: the numbers in it, by name; never a sample's content.
    """

    name: str
    passed: bool
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return textwrap.fill(f"[{verdict}] {self.name}. {self.text}", WIDTH)


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """The findings of `steelyard.checks.self_check.check`, in the order in which they were made.

    Private, like the batch it was made on: losses and gradient norms of single samples stand in it.
    """

    findings: Sequence[Finding]

    @property
    def passed(self) -> bool:
        """Whether every finding passed."""
        return all(finding.passed for finding in self.findings)

    def __str__(self) -> str:
        failed = [finding.name for finding in self.findings if not finding.passed]
        head = (
            f"Self-check FAILED: {', '.join(failed)}. The privacy that the ledger states does not "
            "hold, or could not be shown, for this model and this loss."
            if failed
            else f"Self-check passed: {len(self.findings)} tests on one batch. It can show that "
            "something is wrong, not that nothing is: other batches may reach other code."
        )
        paragraphs = [textwrap.fill(head, WIDTH), *map(str, self.findings)]
        return "\n\n".join(paragraphs)

    def raise_if_failed(self) -> None:
        """Raises ValueError with the first finding that failed, in one line."""
        for finding in self.findings:
            if not finding.passed:
                raise ValueError(f"self-check, {finding.name}: {finding.text}")


def listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
