"""Who may call a server: TLS, certificates of clients, tokens, addresses, rates."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import resource
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.errors import DecodingError, ParameterError
from prover import access
from prover.access import (
    MAX_CLIENTS,
    Rate,
    Tokens,
    TooOften,
    Unauthenticated,
    address_of,
    check_address,
    client,
    read_listening,
)
from prover.jobs import Prover
from prover.server import Server
from tests.service.serving import (
    QUICK,
    SECRET,
    WAIT_S,
    Gate,
    calling,
    download,
    ended,
    failure,
    header,
    running,
    submit,
    wait_until,
)
from zkmark.connect import connect, read_tls, read_token
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

Code = grpc.StatusCode


@dataclass(frozen=True)
class Pair:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path


def issue(folder: Path, name: str, authority: Pair | None = None, between: bool = False) -> Pair:
    """A certificate for this machine; without an authority one that signs itself, and others as those `between` do."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = subject, key
    if authority is not None:
        issuer = x509.load_pem_x509_certificate(authority.certificate.read_bytes()).subject
        signer = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    names = x509.SubjectAlternativeName([
        x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    ])  # fmt: skip
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + 5 * day)
        .add_extension(names, False).add_extension(x509.BasicConstraints(between or authority is None, None), True)
        .sign(signer, hashes.SHA256())
    )  # fmt: skip
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    pair.key.chmod(0o600)
    return pair


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("pki")
    authority, stranger = issue(folder, "authority"), issue(folder, "stranger")
    return {
        "authority": authority, "stranger": stranger, "server": issue(folder, "server", authority),
        "alice": issue(folder, "alice", authority), "bob": issue(folder, "bob", authority),
        "mallory": issue(folder, "mallory", stranger),
    }  # fmt: skip


@pytest.fixture
def prover(approved_file: Path, monkeypatch) -> Prover:
    found, gate = Prover(approved_file, SECRET), Gate()
    gate.open.set()
    monkeypatch.setattr(found, "claim", gate)
    return found


def key_of(channel: grpc.Channel) -> bytes:
    with channel:
        return b"".join(c.data for c in pb_grpc.ProverStub(channel).Key(pb.KeyRequest(), timeout=WAIT_S))


def test_tls(world, prover, pki):
    tls = read_listening(pki["server"].certificate, pki["server"].key, None)
    with running(prover, tls=tls) as target:
        assert key_of(connect(target, read_tls(pki["authority"].certificate))) == world.key.vk.to_bytes()
        for other in (None, read_tls(None), read_tls(pki["stranger"].certificate)):
            assert failure(lambda other=other: key_of(connect(target, other)))[0] == Code.UNAVAILABLE


def test_clients_with_certificates(world, prover, pki):
    """Each sees its own jobs; one without a certificate of the authority does not get in."""
    tls = read_listening(pki["server"].certificate, pki["server"].key, pki["authority"].certificate)
    roots = pki["authority"].certificate
    with running(prover, tls=tls) as target:
        for other in (read_tls(roots), read_tls(roots, pki["mallory"].certificate, pki["mallory"].key)):
            assert failure(lambda other=other: key_of(connect(target, other)))[0] == Code.UNAVAILABLE
        clients = [read_tls(roots, pki[name].certificate, pki[name].key) for name in ("alice", "bob")]
        with connect(target, clients[0]) as one, connect(target, clients[1]) as two:
            alice, bob = pb_grpc.ProverStub(one), pb_grpc.ProverStub(two)
            message = header(world, world.marked)
            job = ended(alice, submit(alice, message, world.marked))
            ask = pb.JobRequest(id=job.id)
            for call in (
                lambda: bob.Cancel(ask, timeout=WAIT_S), lambda: list(bob.Follow(ask, timeout=WAIT_S)),
                lambda: download(bob, job),
            ):  # fmt: skip
                assert failure(call)[0] == Code.PERMISSION_DENIED
            header_only = iter([pb.SubmitRequest(header=message)])  # whoever saw a header need not have the model
            assert failure(lambda: bob.Submit(header_only, timeout=WAIT_S))[0] == Code.INVALID_ARGUMENT
            assert failure(lambda: download(bob, job))[0] == Code.PERMISSION_DENIED
            assert submit(bob, message, world.marked) == job  # who asks for the same shares the job
            assert download(bob, job) == download(alice, job) == b"a claim"
    rows = prover.state.connect().execute("SELECT client FROM submitters ORDER BY client").fetchall()
    assert ["alice" in rows[0][0], "bob" in rows[1][0]] == [True, True] and rows[0][0].startswith("certificate ")


def folder_of(pair: Pair, name: str) -> Path:
    """A new one beside its files, for another pair of the same name."""
    folder = pair.key.parent / name
    folder.mkdir()
    return folder


def test_one_subject_of_two_authorities_is_two_clients(world, prover, pki):
    """And a certificate that is renewed, with a key of its own, is the same client."""
    alice, authority, other = (pki[name] for name in ("alice", "authority", "stranger"))
    renewed = issue(folder_of(alice, "renewed"), "alice", authority)
    borrowed = issue(folder_of(alice, "borrowed"), "alice", other)
    both = folder_of(alice, "both") / "authorities"
    both.write_bytes(authority.certificate.read_bytes() + other.certificate.read_bytes())
    tls = read_listening(pki["server"].certificate, pki["server"].key, both)
    with running(prover, tls=tls) as target, ExitStack() as stack:
        stubs = []
        for pair in (alice, renewed, borrowed):
            secure = read_tls(authority.certificate, pair.certificate, pair.key)
            stubs.append(pb_grpc.ProverStub(stack.enter_context(connect(target, secure))))
        job = ended(stubs[0], submit(stubs[0], header(world, world.marked), world.marked))
        assert download(stubs[1], job) == b"a claim"
        assert failure(lambda: download(stubs[2], job))[0] == Code.PERMISSION_DENIED


def named(*path: Pair, authorities: tuple[Pair, ...], subject: str = "CN=alice") -> str:
    """What a client is called that sends these certificates, its own first."""
    own, *chain = (pair.certificate.read_bytes() for pair in path)

    class Call:
        def auth_context(self) -> dict[str, list[bytes]]:
            more = {"x509_pem_cert_chain": [b"".join(chain)]} if chain else {}
            return {"x509_subject": [subject.encode()], "x509_pem_cert": [own], **more}

    return client(Call(), None, b"".join(pair.certificate.read_bytes() for pair in authorities))


def test_a_certificate_that_cannot_be_read_is_nobodys(tmp_path):
    root = issue(tmp_path, "root")
    broken = Pair(tmp_path / "broken.pem", root.key)
    broken.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    with pytest.raises(Unauthenticated):
        named(broken, authorities=(root,))


def test_a_client_is_named_by_the_key_that_signed_it(tmp_path):
    """Of an authority, of one between them, and in neither case by a name or by what the client makes up."""

    def made(folder: str, name: str, *more: object) -> Pair:
        (tmp_path / folder).mkdir(exist_ok=True)
        return issue(tmp_path / folder, name, *more)

    root, twin = made("one", "root"), made("two", "root")  # of the same name
    one, two = made("one", "alice", root), made("two", "alice", twin)
    assert named(one, authorities=(root, twin)) == named(one, authorities=(twin, root))
    assert named(one, authorities=(root, twin)) != named(two, authorities=(root, twin))
    middle, again = made("three", "middle", root, True), made("four", "middle", root, True)
    deep, renewed, moved = made("three", "alice", middle), made("five", "alice", middle), made("four", "alice", again)
    names = [named(leaf, above, authorities=(twin, root)) for leaf, above in
             ((deep, middle), (renewed, middle), (moved, again))]  # fmt: skip
    assert names[0] == names[1] != names[2] and names[0] != named(one, authorities=(root,))
    assert names[0] == named(deep, middle, root, authorities=(root,)) == named(deep, authorities=(middle,))
    low = made("seven", "low", middle, True)
    last = made("seven", "alice", low)
    assert len({named(last, *order, authorities=(root,)) for order in permutations((low, middle, again, root))}) == 1
    below = [made(folder, "below", one) for folder in ("eight", "nine")]  # a client is no authority
    assert len({named(leaf, one, authorities=(root,)) for leaf in below}) == 2
    made_up = made("six", "root")
    assert named(one, made_up, authorities=(root,)) == named(one, authorities=(root,))
    broken = [(), (again,), (made_up,)]
    lost = {named(leaf, *above, authorities=(root,)) for leaf in (deep, renewed) for above in broken}
    assert len(lost) == 2 and not lost & set(names)  # each by its own key


def test_subjects_that_begin_alike_are_two_clients(pki):
    def of(subject: str) -> str:
        return named(pki["alice"], authorities=(pki["authority"],), subject=subject)

    names = {of("O=" + "x" * 300 + end) for end in ("", ",CN=alice", ",CN=bob")}
    assert len(names) == 3 and max(map(len, names)) < 400
    assert of("CN=alice").startswith("certificate CN=alice signed by ")


def tokens_file(path: Path, **tokens: str) -> Path:
    lines = [f"{name}:{hashlib.sha256(token.encode()).hexdigest()}" for name, token in tokens.items()]
    path.write_text("# who may call\n\n" + "\n".join(lines) + "\n")
    return path


def test_tokens(world, prover, tmp_path):
    path = tokens_file(tmp_path / "tokens", alice="secret-a", bob="secret-b")
    with running(prover, tokens=Tokens(path)) as target:
        with connect(target, None, "secret-a") as one, connect(target, None, "secret-b") as two:
            alice, bob = pb_grpc.ProverStub(one), pb_grpc.ProverStub(two)
            job = ended(alice, submit(alice, header(world, world.marked), world.marked))
            assert download(alice, job) == b"a claim"
            assert failure(lambda: download(bob, job))[0] == Code.PERMISSION_DENIED
        with connect(target) as channel:
            stub, ask = pb_grpc.ProverStub(channel), pb.JobRequest(id=job.id)
            for token in ("", "secret", "alice", "secret-A", "secret-a secret-b"):
                for call in everything(stub, ask, (("authorization", f"Bearer {token}"),)):
                    assert failure(call)[0] == Code.UNAUTHENTICATED
            for metadata in ((), (("authorization", "secret-a"),), (("authorization", "Bearer secret-a"),) * 2):
                call = partial(stub.Cancel, ask, timeout=WAIT_S, metadata=metadata)
                assert failure(call)[0] == Code.UNAUTHENTICATED


def everything(stub: pb_grpc.ProverStub, ask: pb.JobRequest, metadata) -> list:
    """Every call of the service."""
    more = {"timeout": WAIT_S, "metadata": metadata}
    return [
        lambda: list(stub.Key(pb.KeyRequest(), **more)), lambda: stub.Submit(iter([]), **more),
        lambda: list(stub.Follow(ask, **more)), lambda: list(stub.Download(pb.DownloadRequest(id=ask.id), **more)),
        lambda: stub.Cancel(ask, **more), lambda: list(stub.Prove(iter([]), **more)),
    ]  # fmt: skip


def test_the_list_of_tokens_is_read_again(tmp_path):
    path = tokens_file(tmp_path / "tokens", alice="a", bob="b")
    tokens = Tokens(path)
    assert [tokens.name(token) for token in ("a", "b", "c")] == ["alice", "bob", None]
    tokens_file(path, bob="b2")
    assert [tokens.name(token) for token in ("a", "b", "b2")] == [None, None, "bob"]
    path.write_text("junk\n")
    assert tokens.name("b2") is None  # nobody is let in
    tokens_file(path, carol="c")
    assert tokens.name("c") == "carol"
    path.unlink()
    assert tokens.name("c") is None


@pytest.mark.parametrize("text", ["alice:abc", "alice", f"al ice:{'0' * 64}", f":{'0' * 64}", f"a:{'0' * 64}:b"])
def test_malformed_lists_of_tokens(tmp_path, text):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(DecodingError):
        Tokens(tmp_path / "tokens")


def test_a_token_is_not_sent_in_the_clear(tmp_path):
    for target in ("prover.example:443", "10.0.0.1:50051", "127.0.0.1.example:1", "[2001:db8::1]:1"):
        with pytest.raises(ConnectionError, match="without TLS"):
            connect(target, None, "secret")
    (tmp_path / "token").write_text("secret-a\n")
    assert read_token(tmp_path / "token") == "secret-a"
    for text in ("", "\n", "two words", "ä"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(OSError, match="no token"):
            read_token(tmp_path / "token")


def test_addresses(pki):
    tls = read_listening(pki["server"].certificate, pki["server"].key, None)
    for listen in ("127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"):
        check_address(listen, None, False)
    for listen in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.com:1", ":1"):
        with pytest.raises(ParameterError, match="without TLS"):
            check_address(listen, None, False)
        check_address(listen, None, True)
        check_address(listen, tls, False)


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "[::1]:-1", "127.0.0.1:65536", "[::1]"])
def test_ports_out_of_range(listen):
    """grpc would take the low 16 bits of a port."""
    with pytest.raises(ParameterError, match="HOST:PORT"):
        check_address(listen, None, True)
    check_address("127.0.0.1:65535", None, False)
    check_address("unix:/tmp/zkmark", None, False)


def test_certificates_that_do_not_fit(pki, tmp_path):
    good = pki["server"]
    with pytest.raises(ParameterError):
        read_listening(good.certificate, None, None)
    with pytest.raises(ParameterError):
        read_listening(None, None, good.certificate)
    (tmp_path / "junk").write_text("junk")
    for certificate, key, authorities in (
        (good.certificate, pki["alice"].key, None), (tmp_path / "junk", good.key, None),
        (good.certificate, good.key, tmp_path / "junk"),
    ):  # fmt: skip
        with pytest.raises(OSError):
            read_listening(certificate, key, authorities)


@pytest.mark.parametrize("peer, name", [
    ("ipv4:192.0.2.7:1234", "192.0.2.7"), ("ipv6:%5B2001:db8::1:2:3%5D:1234", "2001:db8::/64"),
    ("ipv6:[2001:db8:0:0:ffff::9]:1", "2001:db8::/64"), ("ipv6:%5Bfe80::1%25eth0%5D:9", "fe80::/64"), ("unix:", "unix"),
    ("ipv6:junk", "ipv6"),
])  # fmt: skip
def test_names_of_addresses(peer, name):
    assert address_of(peer) == name


def test_the_bucket_of_a_client():
    now = [0.0]
    rate = Rate(60, 3, clock=lambda: now[0])
    for _ in range(3):
        rate.spend("me")
    with pytest.raises(TooOften):
        rate.spend("me")
    rate.spend("you")
    now[0] = 1.0
    rate.spend("me")
    with pytest.raises(TooOften):
        rate.spend("me")
    now[0] = 1000.0  # no more than a burst is saved
    for _ in range(3):
        rate.spend("me")
    with pytest.raises(TooOften):
        rate.spend("me")
    for number in range(2 * MAX_CLIENTS):
        rate.spend(str(number))
    assert len(rate._buckets) == MAX_CLIENTS


def test_a_server_in_the_clear_is_for_this_machine(prover):
    async def make() -> None:
        Server(prover, "0.0.0.0:0", QUICK)

    with pytest.raises(ParameterError, match="without TLS"):
        asyncio.run(make())


def test_silent_connections_take_no_place(prover, monkeypatch):
    """Those over the limit are closed at once, the others when they have said nothing for a while."""
    monkeypatch.setattr(access, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(access, "HANDSHAKE_S", 3.0)

    def over(connection: socket.socket) -> bool:
        try:
            return connection.recv(1000, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def another() -> grpc.Channel:
        return grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])

    with running(prover) as target, calling(target) as stub, ExitStack() as stack:
        known = key_of(another())
        assert b"".join(chunk.data for chunk in stub.Key(pb.KeyRequest(), timeout=WAIT_S)) == known
        address = ("127.0.0.1", int(target.rpartition(":")[2]))
        silent = [stack.enter_context(socket.create_connection(address, WAIT_S)) for _ in range(20)]
        for connection in silent:
            connection.sendall(b"PRI * HT")
        wait_until(lambda: sum(map(over, silent)) >= 13)
        assert b"".join(chunk.data for chunk in stub.Key(pb.KeyRequest(), timeout=WAIT_S)) == known
        wait_until(lambda: all(map(over, silent)))
        assert key_of(another()) == known


@pytest.mark.parametrize(("soft", "connections"), [
    (1024, 512), (256, 128), (10**6, 4096), (resource.RLIM_INFINITY, 4096)
])  # fmt: skip
def test_connections_leave_files_for_the_work(monkeypatch, soft, connections):
    monkeypatch.setattr(access.resource, "getrlimit", lambda _: (soft, soft))
    assert dict(access.connection_options())["grpc.max_allowed_incoming_connections"] == connections


@pytest.mark.parametrize(("soft", "hard", "raised"), [
    (1024, 4096, 4096), (1024, 10**6, 1 << 16), (1024, resource.RLIM_INFINITY, 1 << 16), (10**6, 10**6, None),
])  # fmt: skip
def test_a_server_opens_as_many_files_as_it_may(monkeypatch, soft, hard, raised):
    asked = []
    monkeypatch.setattr(access.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(access.resource, "setrlimit", lambda _, limits: asked.append(limits))
    access.allow_files()
    assert asked == ([] if raised is None else [(raised, hard)])
