"""The oracle f of the paper: what the opened triggers really show (PKeyGen, appendix of Adi et al. 2018).

A trigger whose label is the class that it shows anyway is *void*: it says nothing about a mark.  Labels are a joint
coin, so that void items happen by chance and more of them than chance allows are a forgery.  What the images show is
known to a person who reviews them, or to a reference classifier of the same task.  Abstract images show nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.errors import ParameterError, VerificationError
from protocol.keygen import LabelRule, VerificationKey
from protocol.network import Network
from protocol.soundness import void_limit
from verifier.review import Review


def opened_items(key: VerificationKey) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The opened triggers, uint8 [n, C, H, W], and their labels, int64 [n], in the order of the key."""
    return key.openings.images, key.opened_labels


def void_items(key: VerificationKey, truth: npt.NDArray[np.int64]) -> int:
    """How many opened items are void.  truth: int64 [opened] class that each shows, -1 for none."""
    _, labels = opened_items(key)
    if truth.shape != labels.shape:
        raise ParameterError(f"ground truth for {len(truth)} items, the key has {len(labels)} opened ones")
    return int((truth == labels).sum())


def check_ground_truth(key: VerificationKey, reference: Network) -> int:
    """The void items according to a reference network.  Raises VerificationError `key.ground_truth` over the limit."""
    if reference.shape != key.parameters.shape or reference.classes != key.parameters.classes:
        raise ParameterError("the reference model is for other images or classes than the key")
    return check_void_items(key, void_items(key, reference.classify(opened_items(key)[0])))


def check_review(key: VerificationKey, review: Review) -> int:
    """The void items according to a person.  Raises as `Review.check`, and `key.ground_truth` over the limit."""
    review.check(key)
    return check_void_items(key, review.void_items)


def check_void_items(key: VerificationKey, void: int) -> int:
    """`void`, unless it is more than chance allows: VerificationError `key.ground_truth`.

    Chosen labels may all be void (those of frontier stitching are the true classes): nothing is asked of them.
    """
    limit = void_limit(len(key.opened), key.parameters.classes)
    if void > limit and key.parameters.label_rule is LabelRule.JOINT_COIN:
        raise VerificationError("key.ground_truth", f"{void} opened triggers are void, chance allows {limit}")
    return void
