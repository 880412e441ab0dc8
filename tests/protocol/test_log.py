"""The log of keys against plain recursion (RFC 9162), published vectors, and every small tree."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.anchor import MAX_ANCHOR_BYTES, WINDOW, Anchor, anchor_of
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.identity import public_key
from protocol.log import (
    MAX_NAME,
    MAX_PATH,
    MAX_SIZE,
    Checkpoint,
    Entry,
    EntryKind,
    LogKey,
    Receipt,
    appended,
    check_consistency,
    check_inclusion,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    open_checkpoint,
    root_hash,
    sign_checkpoint,
)

SEED = bytes(range(32))
KEY = LogKey("log.example/keys", public_key(SEED))

# The eight entries and the roots of their prefixes from the reference tests of Certificate Transparency.
VECTORS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


class Tree:
    """A log in memory: the stored hashes, and the root by plain recursion."""

    def __init__(self, entries: list[bytes]) -> None:
        self.leaves = [leaf_hash(entry) for entry in entries]
        self.nodes: dict[tuple[int, int], bytes] = {}
        for size, leaf in enumerate(self.leaves):
            for level, index, value in appended(self.read, size, leaf):
                assert (level, index) not in self.nodes
                self.nodes[level, index] = value

    def read(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]

    def checkpoint(self, size: int) -> Checkpoint:
        return Checkpoint(KEY.name, size, root_hash(self.read, size))


def plain_root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    middle = max(1 << k for k in range(20) if 1 << k < len(leaves))
    return node_hash(plain_root(leaves[:middle]), plain_root(leaves[middle:]))


TREE = Tree([b"entry %d" % n for n in range(70)])


def test_vectors():
    tree = Tree([bytes.fromhex(entry) for entry in VECTORS])
    assert [root_hash(tree.read, n + 1).hex() for n in range(8)] == ROOTS
    assert root_hash(tree.read, 0) == hashlib.sha256(b"").digest()


def test_roots_are_those_of_the_definition():
    for size in range(1, 71):
        assert root_hash(TREE.read, size) == plain_root(TREE.leaves[:size])


def test_every_inclusion_proof_of_small_logs():
    for size in range(1, 40):
        root = root_hash(TREE.read, size)
        for index in range(size):
            path = inclusion_path(TREE.read, index, size)
            assert len(path) <= (size - 1).bit_length()
            check_inclusion(TREE.leaves[index], index, size, path, root)


def test_no_other_inclusion_proof_holds():
    for size in (1, 2, 3, 5, 8, 13):
        root = root_hash(TREE.read, size)
        for index in range(size):
            path = inclusion_path(TREE.read, index, size)
            leaf = TREE.leaves[index]
            wrong = [(TREE.leaves[index + 1], index, size, path), (leaf, index, size, [*path, bytes(32)])]
            wrong += [(leaf, other, size, path) for other in range(-1, size + 2) if other != index]
            wrong += [(leaf, index, size, path[:n] + path[n + 1 :]) for n in range(len(path))]
            wrong += [(leaf, index, size, [*path[:n], bytes(32), *path[n + 1 :]]) for n in range(len(path))]
            wrong += [(leaf, index, 0, path), (leaf, index, -1, path)]
            for case in wrong:
                with pytest.raises(VerificationError, match=r"log\.inclusion"):
                    check_inclusion(*case, root)


def test_every_consistency_proof_of_small_logs():
    for new in range(0, 40):
        for old in range(new + 1):
            path = consistency_path(TREE.read, old, new)
            check_consistency(TREE.checkpoint(old), TREE.checkpoint(new), path)


def test_no_other_history_is_consistent():
    """A log that changes any one old entry has no proof: not the path of either history, nor a part of it."""
    for new in (2, 3, 4, 7, 8, 11):
        for old in range(1, new):
            for changed in range(old):
                entries = [b"entry %d" % n for n in range(new)]
                entries[changed] = b"another"
                other = Tree(entries)
                for path in (consistency_path(TREE.read, old, new), consistency_path(other.read, old, new)):
                    for part in (path, path[1:], path[:-1], [*path, bytes(32)], [TREE.checkpoint(old).root, *path], []):
                        with pytest.raises(VerificationError, match=r"log\.consistency"):
                            check_consistency(TREE.checkpoint(old), other.checkpoint(new), part)


@pytest.mark.reaches("log.rollback", "log.split", "log.consistency")
def test_rollback_and_split_view():
    other = Tree([b"else %d" % n for n in range(9)])
    with pytest.raises(VerificationError) as caught:
        check_consistency(TREE.checkpoint(9), TREE.checkpoint(8), [])
    assert caught.value.check == "log.rollback"
    with pytest.raises(VerificationError) as caught:
        check_consistency(TREE.checkpoint(9), other.checkpoint(9), [])
    assert caught.value.check == "log.split"
    with pytest.raises(VerificationError) as caught:
        check_consistency(TREE.checkpoint(9), TREE.checkpoint(9), [bytes(32)])
    assert caught.value.check == "log.consistency"
    with pytest.raises(ParameterError):
        check_consistency(replace(TREE.checkpoint(3), origin="another"), TREE.checkpoint(5), [])


def test_ranges():
    for index, size in ((0, 0), (3, 3), (-1, 3)):
        with pytest.raises(ParameterError):
            inclusion_path(TREE.read, index, size)
    for old, new in ((4, 3), (-1, 3)):
        with pytest.raises(ParameterError):
            consistency_path(TREE.read, old, new)


@given(st.integers(1, 60), st.data())
def test_random_paths_prove_nothing(size, data):
    path = data.draw(st.lists(st.binary(min_size=32, max_size=32), max_size=8))
    index = data.draw(st.integers(0, size))
    with pytest.raises(VerificationError):
        check_inclusion(bytes(32), index, size, path, root_hash(TREE.read, size))
    with pytest.raises(VerificationError):
        check_consistency(replace(TREE.checkpoint(size), root=bytes(32)), TREE.checkpoint(size + 3), path)


def test_paths_of_no_hashes():
    for path in ([bytes(31)], [bytes(33)], [b""], [bytes(32)] * 65):
        with pytest.raises(DecodingError):
            check_inclusion(TREE.leaves[0], 0, 2, path, bytes(32))
        with pytest.raises(DecodingError):
            check_consistency(TREE.checkpoint(1), TREE.checkpoint(2), path)


# --- notes


def test_a_checkpoint_survives_its_note():
    for size in (0, 1, 70):
        checkpoint = TREE.checkpoint(size)
        note = sign_checkpoint(SEED, checkpoint)
        assert open_checkpoint(note, KEY) == checkpoint
        lines = note.split("\n")
        assert lines[:3] == [KEY.name, str(size), base64.b64encode(checkpoint.root).decode()]
        assert lines[3] == "" and lines[4].startswith(f"— {KEY.name} ") and lines[5:] == [""]


def test_the_published_note_of_another_project():
    """Key, text and signature of golang.org/x/mod/sumdb/note's documentation: the formats are those of others, too."""
    key = LogKey.from_text("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert signature[:4] == key.hash
    from protocol.identity import check_text

    check_text(key.public, text, signature[4:])
    with pytest.raises(VerificationError):
        check_text(key.public, text + "\n", signature[4:])


def test_signatures_of_others_and_extensions_are_passed_over():
    note = sign_checkpoint(SEED, TREE.checkpoint(5))
    witness = "— witness.example/w " + base64.b64encode(bytes(76)).decode() + "\n"
    assert open_checkpoint(note + witness, KEY) == TREE.checkpoint(5)
    text, _, line = note.partition("\n\n")
    assert open_checkpoint(f"{text}\n\n{witness}{line}", KEY) == TREE.checkpoint(5)
    with pytest.raises(VerificationError, match=r"log\.signature"):
        open_checkpoint(f"{text}\nextension\n\n{line}", KEY)  # well formed, but not what was signed


@pytest.mark.reaches("log.signature")
def test_only_the_log_signs():
    checkpoint = TREE.checkpoint(5)
    note = sign_checkpoint(SEED, checkpoint)
    other = LogKey(KEY.name, public_key(SEED[::-1]))
    for bad, key in (
        (sign_checkpoint(SEED[::-1], checkpoint), KEY), (note, other), (note, LogKey("another", KEY.public)),
        (note.replace("\n5\n", "\n6\n"), KEY), (sign_checkpoint(SEED, replace(checkpoint, origin="another")), KEY),
    ):  # fmt: skip
        with pytest.raises(VerificationError) as caught:
            open_checkpoint(bad, key)
        assert caught.value.check == "log.signature"


def test_malformed_notes():
    note = sign_checkpoint(SEED, TREE.checkpoint(5))
    text, _, line = note.partition("\n\n")
    root = text.split("\n")[2]
    for bad in (
        "", "\n\n", note[:-1], text, f"{text}\n{line}", f"{text}\n\n{line}\n", f"{text}\n\n{line}junk\n",
        note.replace("\n5\n", "\n05\n"), note.replace("\n5\n", "\n-5\n"), note.replace("\n5\n", "\n5 \n"),
        note.replace("\n5\n", "\n٥\n"), note.replace("\n5\n", f"\n{1 << 63}\n"),
        note.replace("\n5\n", f"\n{'9' * 5000}\n"),
        note.replace(root, root[:-4]), note.replace(root, root[:-2] + "!="), note.replace(KEY.name, "a b"),
        note.replace("—", "-"), note.replace(f"— {KEY.name}", "— "), "\n" + note, note + "x" * (1 << 17),
    ):  # fmt: skip
        with pytest.raises(DecodingError):
            open_checkpoint(bad, KEY)


@given(st.text(max_size=200))
def test_any_text_is_malformed_or_unsigned(text):
    for note in (text, f"{KEY.name}\n5\n{text}\n\n{text}\n", sign_checkpoint(SEED, TREE.checkpoint(5))[:-20] + text):
        with pytest.raises((DecodingError, VerificationError)):
            open_checkpoint(note, KEY)


def test_keys_as_text():
    text = KEY.to_text()
    assert LogKey.from_text(text) == KEY and text.count("+") >= 2
    name, number, value = text.split("+", 2)
    small_order = base64.b64encode(b"\x01" + bytes(32)).decode()
    for bad in (
        "", "a", f"{name}+{value}", f"{name}+00000000+{value}", f"x{text}", f"{text} ", f"+{number}+{value}",
        f"{name}+{number}+{small_order}", f"{name}+{number}+{value[:-4]}", f"{name}+{number}x+{value}",
    ):  # fmt: skip
        with pytest.raises(DecodingError):
            LogKey.from_text(bad)
    for bad in ("", "a b", "a+b", "a\nb", "a" * 1000, "a\u202e"):
        with pytest.raises(ParameterError):
            Checkpoint(bad, 0, bytes(32))


# --- receipts


def receipt(index: int = 3, size: int = 6) -> Receipt:
    entries = [Entry(EntryKind.KEY, bytes([n]) * 32, public_key(SEED), 1_700_000_000 + n) for n in range(size)]
    tree = Tree([entry.to_bytes() for entry in entries])
    path = tuple(inclusion_path(tree.read, index, size))
    return Receipt(entries[index], index, path, sign_checkpoint(SEED, tree.checkpoint(size)))


@pytest.mark.reaches("log.signature", "log.entry", "log.inclusion")
def test_receipts():
    good = receipt()
    digest = bytes([3]) * 32
    assert good.check(KEY, digest, public_key(SEED)).size == 6
    for bad, check in (
        (replace(good, index=2), "log.inclusion"), (replace(good, path=good.path[1:]), "log.inclusion"),
        (replace(good, entry=replace(good.entry, unix_time=1)), "log.inclusion"),
        (replace(good, entry=replace(good.entry, digest=bytes(32))), "log.entry"),
        (replace(good, entry=replace(good.entry, owner=bytes(32))), "log.entry"),
        (replace(good, entry=replace(good.entry, kind=EntryKind.COMMITMENTS)), "log.entry"),
        (replace(good, note=sign_checkpoint(SEED[::-1], TREE.checkpoint(6))), "log.signature"),
        (replace(good, note=sign_checkpoint(SEED, TREE.checkpoint(6))), "log.inclusion"),
    ):  # fmt: skip
        with pytest.raises(VerificationError) as caught:
            bad.check(KEY, digest, public_key(SEED))
        assert caught.value.check == check


def test_entries():
    entry = receipt().entry
    anchored = Entry(EntryKind.COMMITMENTS, entry.digest, b"", entry.unix_time)
    tag, time = b"zkmark log entry 2\n", entry.unix_time.to_bytes(8, "little")
    assert entry.to_bytes() == tag + b"\0" + entry.digest + entry.owner + time
    assert anchored.to_bytes() == tag + b"\1" + entry.digest + time
    for good in (entry, anchored):
        data = good.to_bytes()
        assert Entry.from_bytes(data) == good
        kinds = [data[:19] + bytes([kind]) + data[20:] for kind in (1 - data[19], 2, 255)]
        for bad in (b"", data[:-1], data + b"\0", b"x" + data[1:], *kinds):
            with pytest.raises(DecodingError):
                Entry.from_bytes(bad)


# --- anchors

DIGEST = bytes(range(100, 132))
BEFORE = [Entry(EntryKind.KEY, bytes([n]) * 32, public_key(SEED), n) for n in range(5)]
ANCHORED = Entry(EntryKind.COMMITMENTS, DIGEST, b"", 1_700_000_000)
LOGGED = Tree([entry.to_bytes() for entry in [*BEFORE, ANCHORED, *BEFORE, *BEFORE]])


def anchor_receipt(size: int = 8, index: int = 5, entry: Entry = ANCHORED) -> Receipt:
    path = tuple(inclusion_path(LOGGED.read, index, size))
    return Receipt(entry, index, path, sign_checkpoint(SEED, LOGGED.checkpoint(size)))


def test_an_anchor():
    for size in range(6, 17):
        found = anchor_of(anchor_receipt(size), KEY, DIGEST)
        assert found.checkpoint == LOGGED.checkpoint(size) and found.log == KEY
        assert Anchor.from_bytes(found.to_bytes()) == found and len(found.to_bytes()) <= MAX_ANCHOR_BYTES
        found.check(DIGEST)
    longest = replace(found, log=LogKey("~" * MAX_NAME, KEY.public), path=(bytes(32),) * MAX_PATH)
    assert Anchor.from_bytes(longest.to_bytes()) == longest and len(longest.to_bytes()) <= MAX_ANCHOR_BYTES


def test_bytes_of_an_anchor():
    """Field by field as in SPEC section 4, at the largest size of a log."""
    def number(value: int) -> bytes:
        return value.to_bytes(8, "little")

    path = bytes(range(64))
    data = b"zkmark anchor 1\n" + len(KEY.name).to_bytes(4, "little") + KEY.name.encode() + KEY.public
    data += number(7) + number(1_700_000_000) + b"\2" + path + number(1 << 62) + DIGEST + bytes(range(64))
    found = Anchor.from_bytes(data)
    assert found == Anchor(
        KEY, 7, 1_700_000_000, (path[:32], path[32:]), 1 << 62, DIGEST, bytes(range(64)))
    assert found.to_bytes() == data


def test_no_other_anchor_holds():
    good = anchor_of(anchor_receipt(), KEY, DIGEST)
    later, at_five = sign_checkpoint(SEED, LOGGED.checkpoint(9)), LOGGED.checkpoint(5)
    text = base64.b64decode(sign_checkpoint(SEED, at_five).split()[-1])[4:]
    for bad, check in (
        (replace(good, signature=bytes(64)), "log.signature"),
        (replace(good, log=LogKey("another", KEY.public)), "log.signature"),
        (replace(good, log=LogKey(KEY.name, public_key(SEED[::-1]))), "log.signature"),
        (replace(good, size=9), "log.signature"),
        (replace(good, size=9, root=LOGGED.checkpoint(9).root), "log.signature"),
        (replace(good, root=bytes(32)), "log.signature"),
        (replace(good, size=5, root=at_five.root, signature=text), "log.inclusion"),  # a checkpoint before the entry
        (replace(good, index=4), "log.inclusion"),
        (replace(good, unix_time=0), "log.inclusion"),
        (replace(good, path=good.path[1:]), "log.inclusion"),
        (replace(good, path=(*good.path, bytes(32))), "log.inclusion"),
    ):
        with pytest.raises(VerificationError) as caught:
            bad.check(DIGEST)
        assert caught.value.check == check
    with pytest.raises(VerificationError, match=r"log\.inclusion"):
        good.check(bytes(32))
    with pytest.raises(VerificationError, match=r"log\.inclusion"):  # what is logged as a key anchors nothing
        replace(good, index=1, path=tuple(inclusion_path(LOGGED.read, 1, 8)), unix_time=1).check(b"\1" * 32)
    for receipt, check in (
        (anchor_receipt(entry=BEFORE[0]), "log.entry"),
        (replace(anchor_receipt(), index=6), "log.inclusion"),
        (replace(anchor_receipt(), note=later), "log.inclusion"),
        (replace(anchor_receipt(), note=sign_checkpoint(SEED[::-1], LOGGED.checkpoint(8))), "log.signature"),
    ):
        with pytest.raises(VerificationError) as caught:
            anchor_of(receipt, KEY, DIGEST)
        assert caught.value.check == check


@pytest.mark.reaches("log.window")
def test_a_checkpoint_anchors_for_a_while():
    """Each later checkpoint is another coin; their number is bounded."""
    tree = Tree([ANCHORED.to_bytes(), *(b"%d" % n for n in range(WINDOW))])
    for size, good in ((WINDOW, True), (WINDOW + 1, False)):
        path = tuple(inclusion_path(tree.read, 0, size))
        found = Receipt(ANCHORED, 0, path, sign_checkpoint(SEED, tree.checkpoint(size)))
        if good:
            anchor_of(found, KEY, DIGEST)
        else:
            with pytest.raises(VerificationError) as caught:
                anchor_of(found, KEY, DIGEST)
            assert caught.value.check == "log.window"


def test_how_far_an_anchor_is_counts_from_its_entry():
    """However many entries the log had before."""
    size, entry, path = 1 << 13, leaf_hash(ANCHORED.to_bytes()), (bytes(32),) * 13
    for index, good in ((size - 1, True), (size - WINDOW, True), (size - WINDOW - 1, False)):
        root = entry
        for level in range(13):
            root = node_hash(path[0], root) if index >> level & 1 else node_hash(root, path[0])
        note = sign_checkpoint(SEED, Checkpoint(KEY.name, size, root))
        signature = base64.b64decode(note.split()[-1])[4:]
        anchor = Anchor(KEY, index, ANCHORED.unix_time, path, size, root, signature)
        if good:
            anchor.check(DIGEST)
        else:
            with pytest.raises(VerificationError, match=r"log\.window"):
                anchor.check(DIGEST)


def test_malformed_anchors():
    good = anchor_of(anchor_receipt(), KEY, DIGEST)
    data = good.to_bytes()
    at = len(b"zkmark anchor 1\n")
    for bad in (
        b"", data[:-1], data + b"\0", b"x" + data[1:], data[:at] + b"\xff\xff" + data[at + 2 :],
        data.replace(KEY.name.encode(), b"log example/keys"), data.replace(KEY.public, bytes(32)),
        replace(good, path=(bytes(32),) * (MAX_PATH + 1)).to_bytes(), replace(good, index=8).to_bytes(),
        replace(good, size=MAX_SIZE + 1).to_bytes(),
    ):  # fmt: skip
        with pytest.raises(DecodingError):
            Anchor.from_bytes(bad)
