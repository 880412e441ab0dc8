"""The stranger's side: policy, checks, reports and the command `zkmark-verifier`; no marking key, no torch.

As a library: `check_key`, `obtain_claim`, `check_claim` and `check_batch`, on a `Subject` and under a `Policy`; a
`Verdict` says what was found.  False is a verdict; malformed and unavailable are exceptions.  Loaded when first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.argument import Context
    from protocol.keygen import VerificationKey
    from verifier.batch import check_batch
    from verifier.check import Subject, Verdict, check_claim, check_key
    from verifier.client import Remote, obtain_claim
    from verifier.policy import Policy

__all__ = (
    "Context", "Policy", "Remote", "Subject", "Verdict", "VerificationKey", "check_batch", "check_claim",
    "check_key", "obtain_claim",
)  # fmt: skip
_HOMES = {
    "Context": "protocol.argument",
    "Policy": "verifier.policy",
    "Remote": "verifier.client",
    "Subject": "verifier.check",
    "Verdict": "verifier.check",
    "VerificationKey": "protocol.keygen",
    "check_batch": "verifier.batch",
    "check_claim": "verifier.check",
    "check_key": "verifier.check",
    "obtain_claim": "verifier.client",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
