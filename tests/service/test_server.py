"""Jobs over gRPC, on a real server on port 0: submit, follow, fetch, cancel, and what is refused."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ml.quantise import Derivation
from protocol.argument import Statement, verify
from protocol.claim import Claim
from protocol.errors import ParameterError, VerificationError
from prover import jobs, server, strict, worker
from prover.jobs import REFUSAL, Prover, approve, subject
from prover.queue import JobQueue, Quota
from prover.requests import Requests
from prover.server import Server, Servicer
from prover.state import State
from prover.worker import INTERNAL, TOO_LONG
from tests.service.serving import (
    PLAIN,
    QUICK,
    SECRET,
    WAIT_S,
    Gate,
    asking,
    calling,
    context,
    download,
    ended,
    failure,
    header,
    running,
    submit,
    wait_until,
)
from zkmark.connect import job_id
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

Code = grpc.StatusCode


@pytest.fixture
def prover(approved_file: Path) -> Prover:
    return Prover(approved_file, SECRET)


@pytest.fixture
def gate(prover, monkeypatch) -> Gate:
    found = Gate()
    monkeypatch.setattr(prover, "claim", found)
    return found


def test_key_health_and_reflection(world, prover):
    with running(prover) as target, grpc.insecure_channel(target) as channel:
        data = b"".join(c.data for c in pb_grpc.ProverStub(channel).Key(pb.KeyRequest(), timeout=WAIT_S))
        assert data == world.key.vk.to_bytes()
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "zkmark.v1.Prover"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert failure(lambda: next(watch))[0] == Code.UNIMPLEMENTED
        ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol="zkmark.v1.Prover")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([ask]), timeout=WAIT_S)
        assert b"SubmitRequest" in answer.file_descriptor_response.file_descriptor_proto[0]


def test_a_claim_as_a_job(world, prover):
    """Submitted, followed, fetched in two parts; submitted again, which costs no upload and gives the same claim."""
    asked = context()
    message = header(world, world.marked, context=asked.to_bytes())
    with running(prover) as target, calling(target) as stub:
        job = submit(stub, message, world.marked)
        assert job.id == job_id(message) and job.state in (pb.Job.QUEUED, pb.Job.DERIVING)
        done = ended(stub, job)
        assert done.state == pb.Job.DONE
        data = download(stub, done)
        assert len(data) == done.claim_size and download(stub, done, 1000) == data[1000:]
        assert download(stub, done, len(data)) == b""
        again = stub.Submit(iter([pb.SubmitRequest(header=message)]), timeout=WAIT_S)
        assert again == done and download(stub, again) == data
        assert failure(lambda: download(stub, done, len(data) + 1))[0] == Code.INVALID_ARGUMENT
        assert stub.Cancel(pb.JobRequest(id=job.id), timeout=WAIT_S) == done  # too late
    claim = Claim.from_bytes(data)
    about = subject(world.marked, PLAIN, None, world.key.vk)
    assert claim.context == asked
    assert claim.k_min == prover._approvals.k_min[about.network.digest]
    statement = Statement(
        world.key.vk, about.network, claim.k_min, asked, about.model_digest, about.derivation_digest
    )
    assert verify(statement, claim.proof).bits >= 120
    for folder in ("models", "uploads"):
        assert not list((prover.state.folder / folder).iterdir())


def test_refusals_tell_nothing(world, approved_file, prover):
    """A network that was never approved, and one that was approved in vain, and the exact same answer and record."""
    answers, records = [], []
    with running(prover) as target, calling(target) as stub:
        for _ in range(2):
            job = ended(stub, submit(stub, header(world, world.other), world.other))
            answers.append((job.state, job.reason, job.malformed, job.phase, job.claim_size))
            records.append([(r.times, r.client, r.dismissed) for r in Requests(prover.state).all()])
            with pytest.raises(VerificationError):
                approve(approved_file, SECRET, subject(world.other, PLAIN, None, world.key.vk))
    assert answers == [(pb.Job.FAILED, REFUSAL, False, "", 0)] * 2
    assert records == [[(1, "address 127.0.0.1", False)], [(2, "address 127.0.0.1", False)]]
    assert not list((prover.state.folder / "models").iterdir())


def test_a_copy_is_proven_and_an_approval_counts_at_once(world, approved_file, prover):
    """A refused job that is submitted again is looked at again."""
    message = header(world, world.copy)
    with running(prover) as target, calling(target) as stub:
        assert ended(stub, submit(stub, message, world.copy)).state == pb.Job.DONE
        late = header(world, world.other)
        assert ended(stub, submit(stub, late, world.other)).state == pb.Job.FAILED
        network = subject(world.other, PLAIN, None, world.key.vk).network.digest
        jobs.record_approval(approved_file, SECRET, network, 1)
        assert submit(stub, late, world.other).state == pb.Job.QUEUED
        assert ended(stub, submit(stub, late, world.other)).state in (pb.Job.DONE, pb.Job.FAILED)


def malformed(world) -> dict[str, list[pb.SubmitRequest]]:
    """What is refused before a job is made of it."""
    model, junk = world.marked, pb.SubmitRequest(model_chunk=b"junk")

    def head(**changes: object) -> pb.SubmitRequest:
        return pb.SubmitRequest(header=header(world, model, **changes))

    long = header(world, model)
    long.MergeFromString(b"\xa2\x1f\x80\x80\x04" + bytes(1 << 16))  # an unknown field of 64 KiB
    return {
        "nothing": [], "no header": [junk], "empty request": [pb.SubmitRequest()], "two headers": [head(), head()],
        "another key": [head(vk_digest=bytes(32))], "bad context": [head(context=b"junk")],
        "another claimant": [head(context=context("a thief").to_bytes())], "bad derivation": [head(derivation=b"junk")],
        "huge derivation": [head(derivation=PLAIN.to_bytes()[:20] + b"\xff" * 8)],
        "calibration it lacks": [head(derivation=Derivation(calibration=bytes(32)).to_bytes())],
        "no size": [head(model_size=0)], "huge size": [head(model_size=1 << 63)],
        "over the cap": [head(model_size=(256 << 20) + 1)], "no digest": [head(model_sha256=b"")],
        "more than announced": [head(model_size=3), junk], "empty chunk": [head(), pb.SubmitRequest(model_chunk=b"")],
        "another model": [head(model_size=4), junk], "cut off": [head(), junk],
        "a long header": [pb.SubmitRequest(header=long)],
    }  # fmt: skip


def test_malformed_requests(world, prover, gate):
    with running(prover) as target, calling(target) as stub:
        for name, requests in malformed(world).items():
            code, details = failure(lambda sent=requests: stub.Submit(iter(sent), timeout=WAIT_S))
            assert code == Code.INVALID_ARGUMENT, (name, code, details)
        for call in (stub.Cancel, lambda *a, **k: list(stub.Follow(*a, **k))):
            for name in (b"", b"x", bytes(31), b"../../../../etc/passwd", bytes(32), bytes(1 << 16)):
                found = failure(lambda call=call, name=name: call(pb.JobRequest(id=name), timeout=WAIT_S))
                assert found == (Code.NOT_FOUND, "there is no such job")
    assert gate.calls == 0
    assert not any(list((prover.state.folder / name).iterdir()) for name in ("uploads", "models", "claims", "requests"))


def test_bytes_that_are_no_message_leave_no_trace(prover, caplog, capfd):
    caplog.set_level(logging.INFO)
    with running(prover) as target, grpc.insecure_channel(target) as channel:
        for method in ("Key", "Follow", "Download"):
            call = channel.unary_stream(f"/zkmark.v1.Prover/{method}")
            assert failure(lambda call=call: list(call(b"\xff\xff", timeout=WAIT_S)))[0] == Code.INVALID_ARGUMENT
        call = channel.unary_unary("/zkmark.v1.Prover/Cancel")
        assert failure(lambda: call(b"\xff\xff", timeout=WAIT_S))[0] == Code.INVALID_ARGUMENT
        upload = channel.stream_unary("/zkmark.v1.Prover/Submit")
        assert failure(lambda: upload(iter([b"\xff\xff"]), timeout=WAIT_S))[0] == Code.INVALID_ARGUMENT
        assert failure(lambda: upload(iter([bytes(5 << 20)]), timeout=WAIT_S))[0] == Code.RESOURCE_EXHAUSTED
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


def test_calls_whose_request_does_not_come(prover, monkeypatch):
    """They end, and no client holds many: each is one of the calls that a server takes at once."""
    monkeypatch.setattr(server, "REFLECTION_S", 1.0)
    monkeypatch.setattr(server, "MAX_REFLECTIONS", 1)
    stop = threading.Event()

    def silent():
        stop.wait(WAIT_S)
        yield from ()

    with running(prover, replace(QUICK, message_s=1.0)) as target, grpc.insecure_channel(target) as channel:
        for method in ("zkmark.v1.Prover/Cancel", "grpc.health.v1.Health/Check"):
            call = channel.stream_unary(f"/{method}")
            assert failure(lambda call=call: call(silent(), timeout=WAIT_S))[0] == Code.DEADLINE_EXCEEDED
        name = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        call = channel.stream_stream(f"/{name}")
        assert failure(lambda: list(call(silent(), timeout=WAIT_S)))[0] == Code.DEADLINE_EXCEEDED
    monkeypatch.setattr(strict, "SILENT", 2)
    with running(prover) as target, grpc.insecure_channel(target) as channel:
        call = channel.stream_unary("/zkmark.v1.Prover/Cancel")
        held = [call.future(silent(), timeout=2 * WAIT_S) for _ in range(3)]
        wait_until(lambda: [one.code() for one in held if one.done()] == [Code.RESOURCE_EXHAUSTED])
        for one in held:
            one.cancel()
        wait_until(lambda: failure(lambda: call(iter([b""]), timeout=WAIT_S))[0] == Code.NOT_FOUND)
        stop.set()


def test_a_model_that_is_none(world, prover):
    with running(prover) as target, calling(target) as stub:
        for model in (b"junk", world.marked[:-9]):
            job = ended(stub, submit(stub, header(world, model), model))
            assert job.state == pb.Job.FAILED and job.malformed and job.reason not in ("", REFUSAL)


def test_followers_leave_and_come_back(world, prover, gate):
    """The job goes on without anybody; each follower sees the state that it has."""
    with running(prover) as target, calling(target) as stub:
        job = submit(stub, header(world, world.marked), world.marked)
        waiting = submit(stub, header(world, world.marked), world.marked)
        assert gate.begun.wait(WAIT_S)
        for _ in range(2):
            call = stub.Follow(pb.JobRequest(id=job.id), timeout=WAIT_S)
            seen = next(call)
            assert (seen.state, seen.phase, seen.fraction) == (pb.Job.PROVING, "slow", 0.5)
            call.cancel()
        queued = next(stub.Follow(pb.JobRequest(id=waiting.id), timeout=WAIT_S))
        assert (queued.state, queued.ahead) == (pb.Job.QUEUED, 1)
        assert failure(lambda: download(stub, job)) == (Code.FAILED_PRECONDITION, "there is no claim")
        gate.open.set()
        assert download(stub, ended(stub, job)) == download(stub, ended(stub, waiting)) == b"a claim"


def test_equal_requests_are_one_job(world, prover, gate):
    """Also when both are uploaded at the same time."""
    message = header(world, world.marked)
    first, *rest = asking(pb.SubmitRequest, message, world.marked)
    with running(prover) as target, calling(target) as stub:
        held = threading.Event()

        def slowly():
            yield first
            held.wait(WAIT_S)
            yield from rest

        slow = stub.Submit.future(slowly(), timeout=WAIT_S)
        job = submit(stub, message, world.marked)
        held.set()
        assert slow.result().id == job.id
        gate.open.set()
        assert ended(stub, job).state == pb.Job.DONE
    assert gate.calls == 1


def test_cancelling(world, prover, gate):
    """A running job stops, a waiting one never begins; both can be asked for again."""
    one, two = header(world, world.marked), header(world, world.marked)
    with running(prover) as target, calling(target) as stub:
        first, second = submit(stub, one, world.marked), submit(stub, two, world.marked)
        assert gate.begun.wait(WAIT_S)
        for job in (second, first):
            assert stub.Cancel(pb.JobRequest(id=job.id), timeout=WAIT_S).state == pb.Job.CANCELLED
            assert ended(stub, job).state == pb.Job.CANCELLED
        assert gate.cancelled.wait(WAIT_S) and gate.calls == 1
        gate.open.set()
        for message in (one, two):
            assert ended(stub, submit(stub, message, world.marked)).state == pb.Job.DONE
    assert not list((prover.state.folder / "models").iterdir())


def test_a_job_that_takes_too_long(world, prover, gate):
    with running(prover, replace(QUICK, proof_s=0.2)) as target, calling(target) as stub:
        job = ended(stub, submit(stub, header(world, world.marked), world.marked))
    assert (job.state, job.reason) == (pb.Job.CANCELLED, TOO_LONG)


def test_an_unforeseen_error_says_nothing(world, prover, monkeypatch, caplog):
    def claim(*_: object, **__: object) -> bytes:
        raise KeyError("the secret share is 7")

    monkeypatch.setattr(prover, "claim", claim)
    caplog.set_level(logging.DEBUG)
    with running(prover) as target, calling(target) as stub:
        job = ended(stub, submit(stub, header(world, world.marked), world.marked))
    assert (job.state, job.reason) == (pb.Job.CANCELLED, INTERNAL)
    assert "KeyError" in caplog.text and "share is 7" not in caplog.text


def test_a_disk_that_fails_for_a_while(world, prover, gate, monkeypatch):
    """Neither the outcome nor the failure can be written: the job is taken again when the disk works."""
    monkeypatch.setattr(worker, "AGAIN_S", 0.1)
    real, failed = JobQueue.done, []

    def broken(*_: object) -> None:
        failed.append(1)
        raise OSError("disk full")

    def done(*arguments: object) -> None:
        (broken if len(failed) < 4 else real)(*arguments)

    monkeypatch.setattr(JobQueue, "done", done)
    monkeypatch.setattr(JobQueue, "give_up", broken)
    gate.open.set()
    with running(prover) as target, calling(target) as stub:
        assert ended(stub, submit(stub, header(world, world.marked), world.marked)).state == pb.Job.DONE
    assert gate.calls == 3


def test_logs_hold_no_secret(world, prover, caplog):
    caplog.set_level(logging.DEBUG)
    with running(prover) as target, calling(target) as stub:
        for model in (world.marked, world.other):
            ended(stub, submit(stub, header(world, model), model))
    said = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "job ended" in said
    for secret in (SECRET.decode(), world.key.owner_secret_seed.hex(), str(world.key.trigger_randomness[0])):
        assert secret not in said


def test_quotas(world, prover, gate):
    """Jobs of one client, jobs of all, bytes: each has its limit, and a place is free again when a job ends."""

    def refused(stub, count: int) -> str:
        made = [header(world, world.marked) for _ in range(count)]
        for message in made:
            submit(stub, message, world.marked)
        code, details = failure(lambda: submit(stub, header(world, world.marked), world.marked))
        assert code == Code.RESOURCE_EXHAUSTED
        for message in made:
            stub.Cancel(pb.JobRequest(id=job_id(message)), timeout=WAIT_S)
        ended(stub, submit(stub, made[0], world.marked)) if gate.open.is_set() else submit(stub, made[0], world.marked)
        stub.Cancel(pb.JobRequest(id=job_id(made[0])), timeout=WAIT_S)
        return details

    size = len(world.marked)
    for quota, count, said in (
        (Quota(per_client=2), 2, "you have too many jobs"), (Quota(jobs=3), 3, "too many jobs wait"),
        (Quota(room=2 * size + 1), 2, "too many models wait"),
    ):  # fmt: skip
        with running(prover, replace(QUICK, quota=quota)) as target, calling(target) as stub:
            assert said in refused(stub, count)


def test_uploads_that_are_not_finished_count(world, prover, gate):
    """A client that opens many uploads holds no more places than with jobs."""
    stop = threading.Event()

    def silent():
        yield pb.SubmitRequest(header=header(world, world.marked))
        stop.wait(WAIT_S)

    with running(prover, replace(QUICK, quota=Quota(per_client=2))) as target, calling(target) as stub:
        calls = [stub.Submit.future(silent(), timeout=WAIT_S) for _ in range(2)]
        wait_until(lambda: len(list((prover.state.folder / "uploads").iterdir())) == 2)
        code, details = failure(lambda: submit(stub, header(world, world.marked), world.marked))
        assert (code, details.split(";")[0]) == (Code.RESOURCE_EXHAUSTED, "you have too many jobs here")
        for call in calls:
            call.cancel()
        stop.set()
        wait_until(lambda: not list((prover.state.folder / "uploads").iterdir()))
        wait_until(lambda: failure(lambda: submit(stub, header(world, world.marked), world.marked))[0] == Code.OK)


def test_rate_and_calls_at_once(world, prover, gate):
    with running(prover, replace(QUICK, per_minute=1e-6, burst=3)) as target, calling(target) as stub:
        for _ in range(3):
            assert failure(lambda: stub.Cancel(pb.JobRequest(id=bytes(32)), timeout=WAIT_S))[0] == Code.NOT_FOUND
        found = failure(lambda: stub.Cancel(pb.JobRequest(id=bytes(32)), timeout=WAIT_S))
        assert found == (Code.RESOURCE_EXHAUSTED, "you ask too often; try again later")
    with running(prover, replace(QUICK, calls=2)) as target, calling(target) as stub:
        job = submit(stub, header(world, world.marked), world.marked)
        calls = [stub.Follow(pb.JobRequest(id=job.id), timeout=WAIT_S) for _ in range(2)]
        assert [next(call).id for call in calls] == [job.id] * 2
        assert failure(lambda: next(stub.Follow(pb.JobRequest(id=job.id))))[0] == Code.RESOURCE_EXHAUSTED


def test_silent_and_trickling_uploads_end(world, prover, gate):
    stop = threading.Event()
    first, *rest = asking(pb.SubmitRequest, header(world, world.marked), world.marked, 1)

    def silent(sent):
        yield from sent
        stop.wait(WAIT_S)

    def trickle():
        yield first
        for chunk in rest:
            yield chunk
            time.sleep(0.2)

    with running(prover, replace(QUICK, message_s=1.0)) as target, calling(target) as stub:
        for sent in ([], [first]):
            assert failure(lambda sent=sent: stub.Submit(silent(sent), timeout=WAIT_S))[0] == Code.DEADLINE_EXCEEDED
    with running(prover, replace(QUICK, upload_s=1.5)) as target, calling(target) as stub:
        assert "took too long" in failure(lambda: stub.Submit(trickle(), timeout=WAIT_S))[1]
    stop.set()
    assert gate.calls == 0


def test_a_reader_that_reads_nothing(world, prover, monkeypatch):
    """Its download ends after a while, and it holds nobody up."""
    gate, left, real = Gate(bytes(60 << 20)), threading.Event(), Servicer._write

    async def write(*args) -> None:
        try:
            await real(*args)
        except TimeoutError:
            left.set()
            raise

    gate.open.set()
    monkeypatch.setattr(prover, "claim", gate)
    monkeypatch.setattr(Servicer, "_write", write)
    with running(prover, replace(QUICK, message_s=2.0)) as target, calling(target) as stub, calling(target) as other:
        message = header(world, world.marked)
        wait_until(lambda: failure(lambda: submit(stub, message, world.marked))[0] == Code.OK)  # in two seconds
        job = ended(stub, submit(stub, message, world.marked))
        call = stub.Download(pb.DownloadRequest(id=job.id), timeout=WAIT_S)
        next(call)
        wait_until(lambda: failure(lambda: submit(other, header(world, world.marked), world.marked))[0] == Code.OK)
        assert left.wait(WAIT_S)
        assert failure(lambda: list(call))[0] == Code.DEADLINE_EXCEEDED


def test_a_drained_server_puts_its_job_back(world, approved_file, prover, gate):
    """Followers are told to come back; the next server goes on with what it finds, and counts no attempt."""
    with calling_of(running(prover, replace(QUICK, grace_s=0.2))) as (stub, stop):
        job = submit(stub, header(world, world.marked), world.marked)
        assert gate.begun.wait(WAIT_S)
        call = stub.Follow(pb.JobRequest(id=job.id), timeout=WAIT_S)
        assert next(call).state == pb.Job.PROVING
        stop()
        assert failure(lambda: list(call))[0] == Code.UNAVAILABLE
    assert gate.cancelled.is_set()
    with running(Prover(approved_file, SECRET)) as target, calling(target) as stub:
        done = ended(stub, job)
        assert done.state == pb.Job.DONE and Claim.from_bytes(download(stub, done)).k_min
    row = State(prover.state.folder).connect().execute("SELECT attempts FROM jobs").fetchone()
    assert row == (1,)


class calling_of:
    """A stub for a server, and what stops that server."""

    def __init__(self, server) -> None:
        self._server = server

    def __enter__(self):
        self._channel = grpc.insecure_channel(self._server.__enter__())
        return pb_grpc.ProverStub(self._channel), self._stop

    def _stop(self) -> None:
        self._server.__exit__(None, None, None)
        self._server = None

    def __exit__(self, *error: object) -> None:
        self._channel.close()
        if self._server is not None:
            self._server.__exit__(*error)


def test_a_running_job_may_end_when_the_server_stops(world, approved_file, prover, gate):
    with calling_of(running(prover, replace(QUICK, grace_s=WAIT_S))) as (stub, stop):
        job = submit(stub, header(world, world.marked), world.marked)
        assert gate.begun.wait(WAIT_S)
        threading.Timer(0.3, gate.open.set).start()
        stop()
    with running(Prover(approved_file, SECRET)) as target, calling(target) as stub:
        assert ended(stub, job).state == pb.Job.DONE and download(stub, job) == b"a claim"


def test_one_server_for_one_address_and_one_folder(approved_file, prover):
    async def second(listen: str) -> None:
        Server(Prover(approved_file, SECRET), listen)

    with running(prover) as target:
        with pytest.raises(ParameterError, match="cannot listen"):
            asyncio.run(second(target))
        with pytest.raises(ParameterError, match="another server works on"):
            asyncio.run(second("127.0.0.1:0"))
