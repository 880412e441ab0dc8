"""A short form of `make assurance`: proofs with one key, watched for anything that has to do with the secrets."""

import numpy as np

from tests.assurance import hiding

DOUBT = 1e-6  # of each statistic, that it is this unlikely although nothing is to be seen


def test_many_proofs_with_one_key():
    found = hiding.measure(16)
    assert found.repeated == 0
    assert {kind: found.chance(kind) for kind in found.deviates if found.chance(kind) < DOUBT} == {}
    assert found.error > 1e5  # of a pixel: the regression on the challenges says nothing
    assert sum(map(len, found.deviates.values())) > 30_000


def test_masks_that_are_too_small_are_noticed():
    """Every pixel is read from 8 proofs if the link's masks have 32 bits."""
    found = hiding.measure(8, lambda: hiding.small_masks(32))
    assert found.chance("link: slopes") < DOUBT
    assert found.error < 1 and np.abs(found.slopes - hiding.pixels()).max() < 6 * found.error


def test_pads_that_are_too_small_are_noticed():
    found = hiding.measure(8, hiding.small_pads)
    assert min(found.chance(kind) for kind in found.deviates if kind.startswith("messages")) < DOUBT
