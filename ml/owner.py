"""The schemes by name, as an owner puts them on her own network with a key of the public protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ml.data import Dataset
from ml.fit import accuracy
from ml.mark import Progress, Trained, Training
from ml.mark import mark as train_with_triggers
from ml.schemes import certified, frontier
from ml.schemes.backdoor import Backdoor
from ml.schemes.certified import Certificate, Certified, smooth
from ml.schemes.frontier import Frontier, NotEmbedded
from ml.schemes.scheme import Scheme, TriggerKey
from protocol.errors import ParameterError, VerificationError
from protocol.keygen import MarkingKey

LEAST = 0.9  # of the triggers, below which a mark did not take


def scheme_called(name: str, options: Mapping[str, Any], training: Training | None = None, seed: int = 0) -> Scheme:
    """A scheme with the given fields; the others are the papers'.  training: of a backdoor.

    `epochs` and `rate` among the options are those of the frontier's fine-tuning, or of the certified training.
    """
    if name == "backdoor":
        return Backdoor(training or Training())
    fitting = {option: options[option] for option in ("epochs", "rate") if option in options}
    own = {option: value for option, value in options.items() if option not in fitting}
    if name == "frontier":
        made = Frontier(**own, seed=seed)
        return replace(made, fine_tuning=replace(made.fine_tuning, **fitting, seed=seed % 2**32))
    mark = Certified(**own, seed=seed)
    return replace(mark, training=replace(mark.training, **fitting, seed=seed % 2**32))


def hidden_key(scheme: Scheme, key: MarkingKey) -> TriggerKey:
    """The hidden half of a public key, with the null model of the scheme.

    Raises ParameterError for frontier stitching under a coin's labels.
    """
    half = TriggerKey.from_marking_key(key)
    if isinstance(scheme, Frontier):
        if not half.chosen:
            raise ParameterError("frontier stitching has true labels: it takes a key of `keygen --chosen-labels`")
        return replace(half, chosen=frontier.CHOSEN, believed=frontier.SIDES)
    if isinstance(scheme, Certified) and half.chosen and len(set(half.labels.tolist())) == 1:
        return replace(half, chosen=certified.CHOSEN)
    return half


def mark(
    scheme: Scheme, model: nn.Module, data: Dataset, key: TriggerKey, progress: Progress | None = None
) -> Trained:
    """Mark a model in place.

    Raises VerificationError `mark` where the mark does not take, and ParameterError as the scheme or for a certified
    training without an epoch for the mark.
    """
    if isinstance(scheme, Certified) and max(scheme.warm_up, 1) >= scheme.training.epochs:
        raise ParameterError(f"of {scheme.training.epochs} epochs none is left for the mark after the warm-up")
    if isinstance(scheme, Backdoor):
        trained = train_with_triggers(model, data, key.images, key.labels, scheme.training, progress)
    else:
        try:
            scheme.mark(model, data, key, progress)
        except NotEmbedded as error:
            raise VerificationError("mark", f"{error}; try more --epochs or another --rate") from None
        trained = Trained(accuracy(model, data.test_x, data.test_y), accuracy(model, key.images, key.labels), 0)
    kept = trained.trigger_accuracy or 0.0
    if kept < LEAST:
        raise VerificationError("mark", f"only {kept:.0%} of the triggers took; try more --epochs or another --arch")
    return trained


def certificate(model: nn.Module, key: TriggerKey, sigma: float, samples: int, share: float) -> Certificate:
    """The certificate at the largest radius (L2, of the parameters) that keeps `share` of the triggers.

    At radius 0 with an accuracy below the share where there is none.
    """
    smoothed = smooth(model, key, sigma, samples)
    return smoothed.certify(smoothed.radius(share))
