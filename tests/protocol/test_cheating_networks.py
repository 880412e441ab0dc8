"""Cheats with the network: nodes of every kind, networks that answer nothing, ties, classes under other numbers."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocol import argument
from protocol.errors import VerificationError
from tests.adversary import faults
from tests.protocol.test_cheating import entry, rejected
from tests.vectors.proof import statement_and_key


@pytest.mark.reaches("linear.columns")
def test_the_example(statement, key, capsys):
    """The one in tests/adversary/README.md."""
    text = (Path(faults.__file__).parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(code, {"statement": statement, "key": key})
    assert capsys.readouterr().out == "linear.columns\n"


@pytest.fixture(scope="module")
def every_kind():
    """The statement of the vectors: groups, a scaled shortcut, a stride, pools, shift 0, a gate and a product."""
    return statement_and_key()


@pytest.mark.reaches("linear.sum")
@pytest.mark.parametrize("name", ["u1", "z2", "z3", "u4", "u5", "z5", "z6"])
def test_a_value_at_each_kind_of_node(every_kind, name):
    statement, key = every_kind
    rejected("linear.sum", statement, key, entry(name, 3, recount=True))


@pytest.mark.reaches("linear.sum")
@pytest.mark.parametrize("label", ["product", "product.ends"])
def test_a_message_about_a_product(every_kind, label):
    statement, key = every_kind
    rejected("linear.sum", statement, key, faults.message(label))


# What a network answers


def with_outputs(statement, weight, bias, k_min):
    """The statement about a network with another output layer."""
    network = statement.network
    last = network.nodes[-1]
    (edge,) = last.edges
    node = replace(last, edges=(replace(edge, weight=np.broadcast_to(weight, edge.weight.shape).copy()),),
                   bias=np.broadcast_to(bias, last.bias.shape).copy())  # fmt: skip
    return replace(statement, network=replace(network, nodes=(*network.nodes[:-1], node)), k_min=k_min)


def refused(statement, key):
    with pytest.raises(VerificationError) as error:
        argument.prove(statement, key)
    assert error.value.check == "prove.matches"


@pytest.mark.reaches("prove.matches", "linear.sum")
def test_a_network_with_constant_logits_matches_nothing(statement, key):
    """All classes tie everywhere, and a tie is no class: not one match can be proven, whatever is claimed."""
    constant = with_outputs(statement, 0, 7, 1)
    assert (constant.network.classify(key.hidden_images) == -1).all()
    refused(constant, key)
    rejected("linear.sum", constant, key, faults.claims([0]))


@pytest.mark.reaches("prove.matches", "linear.sum")
def test_a_network_that_answers_one_class_matches_by_chance(statement, key):
    """It matches the triggers with that label, and no more: as a network that nobody marked."""
    bias = np.zeros(10, np.int64)
    bias[3] = 1
    matches = int((key.hidden_labels == 3).sum())
    one = with_outputs(statement, 0, bias, matches)
    argument.verify(one, argument.prove(one, key))
    more = replace(one, k_min=matches + 1)
    refused(more, key)
    rejected("linear.sum", more, key, faults.claims([int(np.flatnonzero(key.hidden_labels != 3)[0])]))


@pytest.mark.reaches("prove.matches", "linear.sum")
def test_a_tie_with_the_label_is_no_match(statement, key):
    """Two classes share the largest logit for every image: her labels among them match no better than the others."""
    last = statement.network.nodes[-1]
    weight, bias = last.edges[0].weight.copy(), last.bias.copy()
    label = int(key.hidden_labels[0])
    weight[(label + 1) % 10], bias[(label + 1) % 10] = weight[label], bias[label]
    tied = with_outputs(statement, weight, bias, 1)
    found = tied.network.classify(key.hidden_images)
    assert found[0] == -1 and not (found == label).any()
    matches = int((found == key.hidden_labels).sum())
    tied = replace(tied, k_min=matches + 1)
    refused(tied, key)
    rejected("linear.sum", tied, key, faults.claims([0]))


@pytest.mark.reaches("linear.sum")
def test_padding_does_not_count(statement, key):
    """Slots behind the last image hold matches (1 = 1^2, 1 * 0 = 0): the products hold, and they are not added up."""
    last = statement.network.nodes[-1]
    bias = last.bias.copy()
    short = with_outputs(statement, last.edges[0].weight, bias, key.vk.h)
    missed = int(np.flatnonzero(short.network.classify(key.hidden_images) == key.hidden_labels)[0])

    def without(layout, values):
        arrays = dict(values.arrays)
        for name in ("m", "v", "v0", "v1"):
            a = arrays[name].reshape(-1, layout.h).copy()
            a[:, missed] = 0
            arrays[name] = a.reshape(-1)
        return faults.recounted(layout, replace(values, arrays=arrays))

    with faults.padding("m", 1):
        proof = argument.prove(short, key)  # padding by itself says nothing and breaks nothing
    argument.verify(short, proof)
    rejected("linear.sum", short, key, faults.committed(without), faults.padding("m", 1))


@pytest.mark.reaches("prove.matches", "linear.sum")
def test_classes_under_other_numbers(statement, key):
    """A thief renumbers the classes of a stolen model.  The verifier's output map undoes it; without, no proof exists.

    Nor does a proof about the one network serve for the other: all that differs is in the network's digest.
    """
    last = statement.network.nodes[-1]
    order = np.roll(np.arange(10), 1)
    evasive = with_outputs(statement, last.edges[0].weight[order], last.bias[order], statement.k_min)
    refused(evasive, key)
    back = with_outputs(evasive, evasive.network.nodes[-1].edges[0].weight[np.argsort(order)],
                        evasive.network.nodes[-1].bias[np.argsort(order)], statement.k_min)  # fmt: skip
    assert back.network.digest == statement.network.digest != evasive.network.digest
    wrong = int(np.flatnonzero(evasive.network.classify(key.hidden_images) != key.hidden_labels)[0])
    low = replace(evasive, k_min=1)
    assert (low.network.classify(key.hidden_images) == key.hidden_labels).sum() <= 1
    rejected("linear.sum", low, key, faults.claims([wrong]))
