"""The owner's file at rest: the marking key and the networks it may answer for, encrypted and authenticated together.

    file = magic | log2 N, r, p | salt[32] | nonce[12] | length | AES-256-GCM(plaintext) | tag[16]
    key = scrypt(secret, salt, N, r, p)                                                  (RFC 7914, NIST SP 800-38D)
    plaintext = marking key | budget | approvals: network digest[32] -> k_min            (magic to nonce are the AAD)

The file is written to a temporary name, synced and renamed, mode 0600, each time with a fresh salt and nonce.  A wrong
secret and an altered file look the same to AES-GCM: both are ParameterError (exit 2), since neither says anything false
about a claim.  Who can put back an older copy of the file also puts back an older list of approvals.

The approvals are the defense against a serving oracle: a thief who may ask about networks of his own making reads one
bit of a secret trigger per answer.  So the number of networks a key ever answers for is limited, each has one k_min,
and a network that turned out not to be provable (k_min 0, until a smaller k_min is approved) spends one of them, too.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from getpass import getpass
from pathlib import Path

from Crypto.Cipher import AES
from Crypto.Protocol.KDF import scrypt

from protocol.encoding import Reader, Writer
from protocol.errors import DecodingError, ParameterError
from protocol.keygen import MarkingKey

MAGIC = b"zkmark marking key file 1\n"
LOG2_N, R, P = 17, 8, 1  # 128 MiB and a third of a second; OWASP's recommendation for scrypt
LOG2_N_RANGE = range(14, 19)  # accepted in a file: 16 to 256 MiB
MAX_FILE_BYTES = 5 << 28  # the largest key, 4096 images of 2^18 pixels, has 1.001 2^30
BUDGET = 64  # distinct networks that one key answers for, ever
MAX_BUDGET = 4096
MAX_SECRET_BYTES = 4096
MIN_KEY_FILE_BYTES = 16


@dataclass(frozen=True)
class Approvals:
    """The k_min under which each network (by digest) may be proven; 0 where it was tried in vain."""

    budget: int = BUDGET
    k_min: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.k_min) <= self.budget <= MAX_BUDGET:
            raise ParameterError(f"the key has answered for its budget of {self.budget} networks; make a new key")

    def record(self, network_digest: bytes, k_min: int) -> Approvals:
        """These approvals with one more network.  Raises ParameterError over the budget or for a second k_min."""
        known = self.k_min.get(network_digest, 0)
        if known and known != k_min:
            raise ParameterError(
                f"this network was approved with k_min {known}; a second k_min would reveal how many triggers match"
            )
        return replace(self, k_min={**self.k_min, network_digest: k_min})


def save_marking_key(path: str | Path, key: MarkingKey, secret: bytes) -> None:
    """Write a new file.  Raises ParameterError if `path` exists: a marking key cannot be made again."""
    path = Path(path)
    with _locked(path):
        if os.path.lexists(path):
            raise ParameterError(f"{path} exists; a marking key is never overwritten")
        write_file(path, _seal(key, Approvals(), secret))


def load_marking_key(path: str | Path, secret: bytes) -> MarkingKey:
    """The marking key in the file at `path`.  Raises DecodingError (malformed) or ParameterError (wrong secret)."""
    return load_owner(path, secret)[0]


def load_owner(path: str | Path, secret: bytes) -> tuple[MarkingKey, Approvals]:
    """The marking key and the approvals.  Raises as `load_marking_key` does."""
    return _open(read_capped(path, MAX_FILE_BYTES, "marking key file"), secret)


def record_approval(path: str | Path, secret: bytes, network_digest: bytes, k_min: int) -> Approvals:
    """Add one network (digest of 32 bytes; k_min 0: the answer is no) and return all approvals.

    The change is on disk when this returns, so that an answer given afterwards is never forgotten.
    Raises ParameterError over the budget or for a second k_min, and as `load_marking_key` does.
    """
    path = Path(path).resolve()  # a link stays one, and the secrets stay where it points
    with _locked(path):
        key, approvals = load_owner(path, secret)
        changed = approvals.record(network_digest, k_min)
        if changed != approvals:
            write_file(path, _seal(key, changed, secret))
    return changed


def change_secret(path: str | Path, secret: bytes, new_secret: bytes) -> None:
    """Encrypt the file with `new_secret` instead: a crash leaves one of the two.

    Raises ParameterError if it is the present one, and as `load_marking_key` does.
    """
    if new_secret == secret:
        raise ParameterError("the new secret is the present one")
    path = Path(path).resolve()
    with _locked(path):
        write_file(path, _seal(*load_owner(path, secret), new_secret))


def back_up(path: str | Path, copy: str | Path, secret: bytes) -> Approvals:
    """Copy the file as it is, once the secret has opened it, to a name that is not there.  Raises as `load_owner`."""
    data = read_capped(path, MAX_FILE_BYTES, "marking key file")
    approvals = _open(data, secret)[1]
    write_file(copy, data)
    return approvals


def restore_backup(copy: str | Path, path: str | Path, secret: bytes, force: bool = False) -> Approvals:
    """Put a copy back.  Raises ParameterError for one of another key, and, unless `force`, for one that lacks an answer
    which the file at `path` has given: a server would forget how much of its budget is spent.
    """
    data, path = read_capped(copy, MAX_FILE_BYTES, "backup"), Path(path).resolve()
    key, approvals = _open(data, secret)
    with _locked(path):
        if os.path.lexists(path) and not force:
            present, known = load_owner(path, secret)
            if present.vk.digest != key.vk.digest:
                raise ParameterError(f"{path} holds another key")
            if any(approvals.k_min.get(digest) != k_min for digest, k_min in known.k_min.items()):
                raise ParameterError("the backup is older: it lacks approvals that the present file has")
        write_file(path, data)
    return approvals


def read_secret(
    passphrase_file: str | Path | None = None, key_file: str | Path | None = None, *, confirm: bool = False
) -> bytes:
    """The secret that encrypts a marking key: a file, the variable ZKMARK_PASSPHRASE, or a prompt on the terminal.

    Of a passphrase file the first line counts; a key file counts as it is and has 16 random bytes or more.
    Raises ParameterError for an empty, oversized or missing secret.
    """
    if passphrase_file is not None and key_file is not None:
        raise ParameterError("give a passphrase file or a key file, not both")
    if key_file is not None:
        secret = read_capped(key_file, MAX_SECRET_BYTES, "key file")
        if len(secret) < MIN_KEY_FILE_BYTES:
            raise ParameterError(f"the key file has fewer than {MIN_KEY_FILE_BYTES} bytes")
        return secret
    if passphrase_file is not None:
        secret = read_capped(passphrase_file, MAX_SECRET_BYTES, "passphrase file").split(b"\n")[0].rstrip(b"\r")
    elif "ZKMARK_PASSPHRASE" in os.environ:
        secret = os.environb[b"ZKMARK_PASSPHRASE"]
    else:
        secret = _prompt(confirm)
    if not 0 < len(secret) <= MAX_SECRET_BYTES:
        raise ParameterError("the passphrase is empty or too long")
    return secret


def read_capped(path: str | Path, cap: int, what: str) -> bytes:
    """The bytes of a file of at most `cap` bytes.  Raises DecodingError over the cap, OSError if it cannot be read."""
    with open(path, "rb") as file:
        data = file.read(cap + 1)
    if len(data) > cap:
        raise DecodingError(f"{what}: more than {cap} bytes")
    return data


def write_file(path: str | Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file at once or not at all, readable as `mode` says from its first byte on."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    with _directory(path) as folder:
        os.fsync(folder)  # the new name, too, is on the disk


def _prompt(confirm: bool) -> bytes:
    try:
        secret = getpass("Passphrase of the marking key: ")
        if confirm and getpass("Again: ") != secret:
            raise ParameterError("the two passphrases differ")
    except EOFError:
        raise ParameterError("no passphrase: use --passphrase-file, --key-file or ZKMARK_PASSPHRASE") from None
    return secret.encode()


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time.  The folder is locked, since the file itself is replaced by every write."""
    with _directory(path) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _derive(secret: bytes, salt: bytes, log2_n: int) -> bytes:
    key = scrypt(secret, salt, 32, 1 << log2_n, R, P)
    if not isinstance(key, bytes):
        raise TypeError("one key was asked for")
    return key


def _seal(key: MarkingKey, approvals: Approvals, secret: bytes) -> bytes:
    plain = Writer().blob(key.to_bytes()).u32(approvals.budget).u32(len(approvals.k_min))
    for digest, k_min in sorted(approvals.k_min.items()):
        plain.raw(digest).u32(k_min)
    return seal(MAGIC, plain.to_bytes(), secret)


def seal(magic: bytes, plain: bytes, secret: bytes) -> bytes:
    """A file of the kind that begins with `magic`: `plain`, encrypted and authenticated."""
    salt, nonce = os.urandom(32), os.urandom(12)
    header = Writer().raw(magic).u8(LOG2_N).u8(R).u8(P).raw(salt).raw(nonce).to_bytes()
    cipher = AES.new(_derive(secret, salt, LOG2_N), AES.MODE_GCM, nonce=nonce)
    cipher.update(header)
    sealed, tag = cipher.encrypt_and_digest(plain)
    return Writer().raw(header).blob(sealed).raw(tag).to_bytes()


def unseal(magic: bytes, data: bytes, secret: bytes) -> Reader:
    """What `seal` encrypted.  Raises DecodingError (malformed) or ParameterError (wrong secret)."""
    r = Reader(data, "marking key file")
    r.magic(magic)
    log2_n = r.u8()
    if log2_n not in LOG2_N_RANGE or (r.u8(), r.u8()) != (R, P):
        raise r.fail("scrypt parameters out of range")
    salt, nonce = r.raw(32), r.raw(12)
    header = data[: len(data) - r.remaining]
    sealed, tag = r.blob(MAX_FILE_BYTES), r.raw(16)
    r.done()
    cipher = AES.new(_derive(secret, salt, log2_n), AES.MODE_GCM, nonce=nonce)
    cipher.update(header)
    try:
        return Reader(cipher.decrypt_and_verify(sealed, tag), "marking key file")
    except ValueError:
        raise ParameterError("wrong passphrase or key file, or the marking key file was altered") from None


def _open(data: bytes, secret: bytes) -> tuple[MarkingKey, Approvals]:
    plain = unseal(MAGIC, data, secret)
    key = MarkingKey.from_bytes(plain.blob(MAX_FILE_BYTES))
    budget, count = plain.u32(), plain.u32()
    if not count <= budget <= MAX_BUDGET:
        raise plain.fail("approvals over the budget")
    approvals = Approvals(budget, {plain.raw(32): plain.u32() for _ in range(count)})
    plain.done()
    return key, approvals
