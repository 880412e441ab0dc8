"""A short form of `make agree`: the package and the plain verifier name the same outcome."""

from itertools import islice
from random import Random

import pytest

from tests.adversary import agree


@pytest.mark.parametrize("seed", [1000])
def test_two_verifiers_agree(seed):
    found = [(name, agree.package(files), agree.second(files)) for name, files in islice(agree.cases(seed), 12)]
    assert [(name, one, two) for name, one, two in found if one != two] == []
    assert found[0][1] == "true" and all(one != "true" for _, one, _ in found[1:])
    assert len({one for _, one, _ in found}) >= 5


def test_a_difference_is_noticed(monkeypatch):
    """A plain verifier that forgets a check is caught by the proof that needs it."""
    base = agree.Base.make(1000)
    files = base.files(agree.flipped(base.proof, len(base.proof) - 100, Random(1)))
    monkeypatch.setattr(agree.plain, "signed", lambda *_: None)
    assert agree.package(files) == "owner.signature" != agree.second(files)
