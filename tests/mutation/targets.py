"""What is mutated: the verifier's code of every module, and the tests that have to notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HONEST, KEYS, CHEATS = "honest", "keys", "cheats"  # of tests.mutation.killers
EDGES, PROOFS = "tests.protocol.test_killers", "tests.protocol.test_killers_of_proofs"
EQUATIONS = "tests.protocol.test_killers_of_equations"


@dataclass(frozen=True)
class Target:
    """Suites in the order in which they are run: the corpus, or files of tests, below tests/protocol if no folder is
    named, else below tests/.

    excluded: what only a prover, an owner, a log's server or a test runs.
    """

    suites: tuple[str, ...]
    excluded: frozenset[str] = frozenset()


KNOWN = {"honest": HONEST, "keys": KEYS, "cheats": CHEATS, "edges": EDGES, "proofs": PROOFS,
         "equations": EQUATIONS}  # fmt: skip


def _target(suites: str, excluded: str = "") -> Target:
    return Target(tuple(KNOWN.get(suite, suite) for suite in suites.split()), frozenset(excluded.split()))


TARGETS = {
    "argument": _target(
        "honest edges proofs cheats",
        "Cancelled Progress _PROCESS_BYTES _TREE_BYTES Statement.memory_bytes prove _prove _session _draw_pads",
    ),
    "ligero": _target(
        "honest edges equations proofs cheats",
        "_BATCH BLOCK_BYTES KEPT_BYTES Expander Committed _values_at _coefficients_at _five prove",
    ),
    "forks": _target("honest", "Shared Engine"),
    "link": _target("honest edges proofs cheats", "Masks Answer.to_bytes answer"),
    "pads": _target("honest edges proofs cheats", "Party.proving"),
    "matrix": _target("honest edges equations proofs cheats", "Shape.proof_bytes"),
    "lookup": _target("honest edges proofs cheats", "copied_triples TreeWitness _Level"),
    "sumcheck": _target("honest edges proofs cheats", "Sums of_product"),
    "layers": _target(
        "honest edges equations proofs cheats",
        "Witness Part Context.column Context.leaves _leaves work _pooled_table transposed_weights",
    ),
    "layout": _target("honest edges proofs cheats", "Tables.start"),
    "multilinear": _target("honest edges proofs cheats test_multilinear.py", "evaluate"),
    "merkle": _target("honest edges test_merkle.py cheats", "Tree prefixes _tagged _FEW"),
    "reed_solomon": _target(
        "honest edges proofs cheats test_reed_solomon.py",
        "_reversal _roots _transform evaluate_subgroup interpolate_subgroup _shifts encode row_coefficients "
        "evaluate_domain _domain_powers _montgomery",
    ),
    "transcript": _target(
        "honest edges test_transcript.py test_masking.py cheats", "InteractiveProver Messages _bytes_for"),
    "claim": _target("edges", "Claim.to_bytes"),
    "identity": _target("edges test_log.py", "public_key sign sign_text _secret_key"),
    "keygen": _target("edges keys honest test_keygen.py", "MarkingKey PendingKey commit_key generate_key _uniform"),
    "pedersen": _target("edges keys honest test_pedersen.py", "commit commit_share commit_images"),
    "encoding": _target("test_encoding.py edges"),
    "group": _target("edges keys honest test_group.py", "multiply"),
    "field": _target("edges honest test_field.py"),
    "soundness": _target("test_soundness.py edges"),
    "network": _target(
        "edges honest test_network.py", "IDENTITY Network.activations sum_pool _is_depthwise _convolution _depthwise"),
    "log": _target(
        "test_log.py edges",
        "appended root_hash inclusion_path consistency_path _subtree _split _check_range sign_checkpoint",
    ),
    "anchor": _target("test_log.py edges", "Anchor.to_bytes anchor_of"),
    "history": _target("test_history.py"),
    "cosignature": _target(
        "test_cosignature.py test_primitives.py edges", "WitnessKey.of cosign Cosignature.join"),
    "bls": _target(
        "test_cosignature.py test_primitives.py",
        "SECRET_SEED_BYTES secret_key public_key sign prove_possession aggregate _sign",
    ),
    "timestamp": _target("service/test_timestamp.py edges", "Query query"),
    "cache": _target("test_pedersen.py", "directory store"),
}


def path_of(suite: str) -> Path:
    """Of a file of tests."""
    return Path("tests") / (suite if "/" in suite else f"protocol/{suite}")
