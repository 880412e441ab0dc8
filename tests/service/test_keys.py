"""The marking key at rest and the approvals beside it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import keygen
from protocol.errors import DecodingError, ParameterError
from protocol.soundness import window
from prover import keys
from prover.keys import Approvals, load_marking_key, load_owner, read_secret, record_approval, save_marking_key

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}"}
SECRET = b"correct horse battery staple"  # as in conftest.py


def digest(n: int) -> bytes:
    return n.to_bytes(32, "little")


def test_round_trip_and_mode(world, tmp_path):
    path = tmp_path / "new.mk"
    save_marking_key(path, world.key, b"other secret")
    loaded = load_marking_key(path, b"other secret")
    assert loaded.to_bytes() == world.key.to_bytes()
    assert np.array_equal(loaded.images, world.key.images)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [path]  # no temporary file is left


def test_nothing_secret_is_readable_in_the_file(world):
    data = (world.folder / "owner.mk").read_bytes()
    assert world.key.owner_secret_seed not in data
    for image in world.key.images:
        assert image.tobytes() not in data


def test_two_files_of_one_key_differ(world, tmp_path):
    for name in ("a", "b"):
        save_marking_key(tmp_path / name, world.key, SECRET)
    a, b = ((tmp_path / name).read_bytes() for name in ("a", "b"))
    assert a[len(keys.MAGIC) + 3 :][:44] != b[len(keys.MAGIC) + 3 :][:44]  # salt and nonce


def test_a_new_file_takes_work_to_guess(world, tmp_path, monkeypatch):
    code = "from prover import keys; print(keys.LOG2_N, keys.R, keys.P)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert shown.stdout.split() == ["17", "8", "1"], shown.stderr
    monkeypatch.setattr(keys, "LOG2_N", 17)
    save_marking_key(tmp_path / "new.mk", world.key, SECRET)
    assert (tmp_path / "new.mk").read_bytes()[len(keys.MAGIC) :][:3] == bytes([17, 8, 1])
    assert load_marking_key(tmp_path / "new.mk", SECRET).vk.digest == world.key.vk.digest


def test_an_existing_file_is_never_overwritten(world, tmp_path):
    path = tmp_path / "owner.mk"
    path.write_bytes(b"precious")
    with pytest.raises(ParameterError, match="never overwritten"):
        save_marking_key(path, world.key, SECRET)
    assert path.read_bytes() == b"precious"
    link = tmp_path / "dangling.mk"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ParameterError, match="never overwritten"):
        save_marking_key(link, world.key, SECRET)


@pytest.mark.parametrize("secret", [b"", b"wrong", SECRET + b" "])
def test_a_wrong_secret_is_misuse(owner_file, secret):
    with pytest.raises(ParameterError, match="wrong passphrase"):
        load_marking_key(owner_file, secret)


def test_truncated_files_are_malformed(owner_file):
    data = owner_file.read_bytes()
    for size in (0, 1, 25, 26, 28, 29, 60, 73, 76, 77, 200, len(data) // 2, len(data) - 17, len(data) - 1):
        owner_file.write_bytes(data[:size])
        with pytest.raises(DecodingError):
            load_marking_key(owner_file, SECRET)
    owner_file.write_bytes(data + b"\0")
    with pytest.raises(DecodingError):
        load_marking_key(owner_file, SECRET)


def test_flipped_bits_are_found(owner_file):
    data = owner_file.read_bytes()
    at = [0, 24, 26, 27, 28, 40, 65, 72, 73, 77, 78, len(data) // 2, len(data) - 17, len(data) - 16, len(data) - 1]
    for place in at:
        changed = bytearray(data)
        changed[place] ^= 0x20
        owner_file.write_bytes(changed)
        with pytest.raises((DecodingError, ParameterError)):
            load_marking_key(owner_file, SECRET)


@pytest.mark.parametrize("parameters", [(30, 8, 1), (13, 8, 1), (17, 255, 1), (17, 8, 200), (0, 0, 0), (255, 255, 255)])
def test_costly_scrypt_parameters_are_refused_before_any_work(owner_file, parameters, monkeypatch):
    monkeypatch.setattr(keys, "scrypt", lambda *_: pytest.fail("scrypt ran"))
    data = bytearray(owner_file.read_bytes())
    data[len(keys.MAGIC) : len(keys.MAGIC) + 3] = bytes(parameters)
    owner_file.write_bytes(data)
    with pytest.raises(DecodingError, match="out of range"):
        load_marking_key(owner_file, SECRET)


def test_the_largest_key_can_be_read_again(world, owner_file):
    def bytes_of(ell: int, pixels: int, beacon: int, networks: int) -> int:
        public = 12 + 20 + 1 + 32 + 96 * ell + 4 + beacon + 4 + 64
        secret = 12 + 4 + public + (pixels + 4 + 64) * ell + 32
        return len(keys.MAGIC) + 3 + 32 + 12 + 4 + (4 + secret + 8 + 36 * networks) + 16

    parameters, networks = world.key.vk.parameters, len(load_owner(owner_file, SECRET)[1].k_min)
    assert bytes_of(parameters.ell, 16, 0, networks) == owner_file.stat().st_size
    largest = bytes_of(keygen.MAX_ELL, keygen.MAX_PIXELS, keygen.MAX_BEACON_BYTES, keys.MAX_BUDGET)
    assert 1 << 30 < largest < keys.MAX_FILE_BYTES
    most_opened = keygen.MAX_ELL - window(keygen.MAX_ELL)[0]
    assert 100 * keygen.MAX_ELL + 5000 + most_opened * (keygen.MAX_PIXELS + 68) < keygen.MAX_KEY_BYTES


def test_an_oversized_file_is_not_read(owner_file, monkeypatch):
    monkeypatch.setattr(keys, "MAX_FILE_BYTES", 1000)
    with pytest.raises(DecodingError, match="more than 1000 bytes"):
        load_marking_key(owner_file, SECRET)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_malformed(data):
    with pytest.raises(DecodingError):
        keys._open(data, SECRET)


def test_approvals_are_kept_with_the_key(world, owner_file):
    record_approval(owner_file, SECRET, digest(1), 70)
    record_approval(owner_file, SECRET, digest(2), 0)
    key, approvals = load_owner(owner_file, SECRET)
    assert approvals == Approvals(64, {digest(1): 70, digest(2): 0})
    assert key.to_bytes() == world.key.to_bytes()
    assert stat.S_IMODE(owner_file.stat().st_mode) == 0o600


def test_a_network_has_one_k_min(owner_file):
    record_approval(owner_file, SECRET, digest(1), 70)
    record_approval(owner_file, SECRET, digest(1), 70)
    for k_min in (69, 71):
        with pytest.raises(ParameterError, match="second k_min"):
            record_approval(owner_file, SECRET, digest(1), k_min)
    assert load_owner(owner_file, SECRET)[1].k_min == {digest(1): 70}


def test_the_budget_counts_networks_that_could_not_be_proven():
    approvals = Approvals(budget=3)
    approvals = approvals.record(digest(1), 70).record(digest(2), 0).record(digest(3), 70).record(digest(2), 60)
    assert approvals.k_min[digest(2)] == 60
    with pytest.raises(ParameterError, match="budget of 3"):
        approvals.record(digest(4), 70)
    with pytest.raises(ParameterError, match="second k_min"):
        approvals.record(digest(2), 0)


def test_two_writers_lose_nothing(owner_file):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: record_approval(owner_file, SECRET, digest(n), 60 + n), range(4)))
    assert load_owner(owner_file, SECRET)[1].k_min == {digest(n): 60 + n for n in range(4)}


def test_a_crash_while_writing_leaves_the_old_file(owner_file, monkeypatch):
    data = owner_file.read_bytes()

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        record_approval(owner_file, SECRET, digest(1), 70)
    assert owner_file.read_bytes() == data
    assert list(owner_file.parent.iterdir()) == [owner_file]


def test_a_link_stays_a_link(owner_file, tmp_path):
    link = tmp_path / "folder" / "link.mk"
    link.parent.mkdir()
    link.symlink_to(owner_file)
    record_approval(link, SECRET, digest(1), 70)
    assert link.is_symlink() and load_owner(owner_file, SECRET)[1].k_min == {digest(1): 70}


def test_errors_and_reprs_hold_no_secret(world, owner_file):
    seed, wrong = world.key.owner_secret_seed, os.urandom(8).hex()
    with pytest.raises(ParameterError) as caught:
        load_marking_key(owner_file, wrong.encode())
    text = "".join(traceback.format_exception(caught.value)) + repr(world.key)
    assert wrong not in text
    assert str(world.key.trigger_randomness[0]) not in text
    assert repr(seed) not in text and seed.hex() not in text


def test_read_secret(tmp_path, monkeypatch):
    file = tmp_path / "secret"
    monkeypatch.delenv("ZKMARK_PASSPHRASE", raising=False)
    file.write_bytes(b"first line\r\nsecond line\n")
    assert read_secret(passphrase_file=file) == b"first line"
    file.write_bytes(bytes(range(32)))
    assert read_secret(key_file=file) == bytes(range(32))
    monkeypatch.setenv("ZKMARK_PASSPHRASE", "from the environment")
    assert read_secret() == b"from the environment"
    file.write_bytes(b"first line")
    assert read_secret(passphrase_file=file) == b"first line"


@pytest.mark.parametrize("content", [b"", b"\nsecond line", b"x" * 5000])
def test_unusable_passphrase_files(tmp_path, content):
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises((ParameterError, DecodingError)):
        read_secret(passphrase_file=file)


def test_unusable_key_files(tmp_path):
    file = tmp_path / "secret"
    file.write_bytes(b"short")
    with pytest.raises(ParameterError, match="fewer than 16"):
        read_secret(key_file=file)
    with pytest.raises(ParameterError, match="not both"):
        read_secret(Path("a"), Path("b"))


def test_the_prompt_asks_twice_for_a_new_key(monkeypatch):
    monkeypatch.delenv("ZKMARK_PASSPHRASE", raising=False)
    answers = iter(["one", "one", "one", "two"])
    monkeypatch.setattr(keys, "getpass", lambda _: next(answers))
    assert read_secret(confirm=True) == b"one"
    with pytest.raises(ParameterError, match="differ"):
        read_secret(confirm=True)
