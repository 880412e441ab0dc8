"""The ways in which a call can fail.  Malformed and false are different outcomes everywhere."""


class DecodingError(ValueError):
    """The bytes are not a well-formed object: truncated, non-canonical, over a cap, of an unknown version."""


class ParameterError(ValueError):
    """The caller asked for something outside the protocol: wrong shape, unmet bound, unusable network."""


class VerificationError(Exception):
    """The object is well formed and its claim is false or not accepted.

    `check` is the name of the failed check in SPEC.md (for example ``linear.sum`` or ``policy.k_min``).
    """

    def __init__(self, check: str, message: str = "") -> None:
        super().__init__(f"{check}: {message}" if message else check)
        self.check = check


class Restart(Exception):
    """The prover's coins do not serve (about once in a thousand proofs): a new session, with everything fresh."""
