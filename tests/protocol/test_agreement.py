"""A short form of `make agree`: the package and the plain verifier name the same outcome."""

import ast
import json
import sys
from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest

from protocol import argument
from protocol.errors import DecodingError, ParameterError, Restart
from protocol.network import Network
from protocol.transcript import InteractiveProver, InteractiveVerifier
from tests.adversary import agree, networks
from tests.protocol import plain_network

REPORT = json.loads((agree.PROTOCOL.parent / agree.REPORT).read_text())


@pytest.mark.parametrize("seed", [1000])
def test_two_verifiers_agree(seed):
    cases = agree.cases(agree.Base.make(seed), Random(-1 - seed))
    found = [(name, agree.package(files), agree.second(files)) for name, files in islice(cases, 12)]
    assert [(name, one, two) for name, one, two in found if one != two] == []
    assert found[0][1] == "true" and all(one != "true" for _, one, _ in found[1:])
    assert len({one for _, one, _ in found}) >= 5


def test_a_difference_is_noticed(monkeypatch):
    """A plain verifier that forgets a check is caught by the proof that needs it."""
    base = agree.Base.make(1000)
    files = base.files(agree.flipped(base.proof, len(base.proof) - 100, Random(1)))
    monkeypatch.setattr(agree.plain, "signed", lambda *_: None)
    assert agree.package(files) == "owner.signature" != agree.second(files)


def test_a_lie_in_few_columns_needs_the_arithmetic_of_all():
    base = agree.Base.make(1000)
    tries = (agree.few_columns(base, Random(number)) for number in range(50))
    files = next(files for files in tries if agree.second(files) == "true")  # one in five has it in its first columns
    assert agree.package(files) == agree.second(files, columns=None) == "proximity.columns"


def test_the_last_report_counts_every_base_and_proof():
    kinds, bases = REPORT["bases of kind"], REPORT["bases"]
    assert kinds["anchored"] + kinds["not anchored"] == kinds["chosen"] + kinds["joint_coin"] == bases
    assert sum(REPORT["outcomes"].values()) == REPORT["proofs"] and REPORT["outcomes"]["true"] == bases
    assert REPORT["differences"] == [] and len(REPORT["all columns"]) == 2


def test_two_readers_of_networks_agree():
    """On which bytes are networks: their one encoding, their structure and their static bounds."""
    found = Counter()
    for seed in range(20):
        random = Random(seed)
        network, _ = networks.random_network(np.random.default_rng(seed), 5)
        for data in (network.to_bytes(), *(networks.broken(random, network) for _ in range(20))):
            found[reads(Network.from_bytes, data), reads(plain_network.Network, data)] += 1
    assert set(found) == {(True, True), (False, False)} and found[True, True] > 40 and found[False, False] > 200


def reads(read, data):
    try:
        read(data)
    except (DecodingError, ParameterError, plain_network.Failed):
        return False
    return True


@pytest.mark.parametrize("seed", [0, 1])
def test_two_readers_of_keys_agree(seed):
    """Every alteration of a key that `make agree` draws from, and every one that moves a proof to another statement."""
    base, random = agree.Base.make(seed), Random(seed)
    assert agree.package(base.files()) == "true"
    for name, files in (*agree.keys(base, random), *agree.moved(base, random)):
        assert agree.package(files) == agree.second(files) != "true", name


def test_two_verifiers_agree_about_a_session():
    """In the interactive channel: with the coins of the session, without one of them, and with one more."""
    base, asked = agree.Base.make(1), InteractiveVerifier(Random(1).randbytes)
    while True:
        with suppress(Restart):
            proof = argument.prove(base.statement, base.key, InteractiveProver(asked.answer))
            break
        asked = InteractiveVerifier(Random(2).randbytes)
    files, coins = base.files(proof), dict(asked._coins)
    fewer = dict(list(coins.items())[:-1])
    for given, outcome in ((coins, "true"), (fewer, "channel.coin"), (coins | {b"": b""}, "channel.unused_coin")):
        verifier = InteractiveVerifier(bytes)
        verifier._coins, verifier._unused = given, {*given}
        assert agree.package(files, verifier) == agree.second(files, given) == outcome
    assert agree.package(files) == agree.second(files) == "link.opening"


def test_the_plain_verifier_is_another():
    """It imports the standard library and what computes hashes, signatures and points; nothing of the package."""
    for name in ("plain_verifier", "plain_network"):
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text())
        found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        others = {"Crypto.Hash", "Crypto.Signature", "py_arkworks_bls12381", "tests.protocol.plain_network"}
        assert {module.partition(".")[0] for module in found - others} <= sys.stdlib_module_names
