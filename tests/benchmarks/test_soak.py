"""The soak of the job service, in a short form: what must not be lost is not, and its figures make a sentence."""

from __future__ import annotations

import pytest

from benchmarks.results import _soak
from benchmarks.soak import kills, load
from benchmarks.soak.clients import Asker, World, kinds, small_world
from benchmarks.soak.servers import serving
from zkmark.v1 import zkmark_pb2 as pb


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return small_world(tmp_path_factory.mktemp("soak"))


def test_kill_nine_loses_nothing(world):
    """At random instants, while clients submit, share, follow, fetch and take back; proofs are real."""
    found = kills.kill(world, 10, None, side_by_side=1)
    assert found["kills"] == 10 and found["acknowledged"] > 0 and sum(found["struck"].values()) >= 10


def test_what_is_lost_is_noticed(world):
    """The books of clients against a server that has another outcome, another claim, or no job."""
    with serving(world.folder, 0.01) as servers:
        asker, books = Asker(world, servers.target), kills.Books()

        def asked(ends: int, taken_back: bool | None = None) -> tuple[bytes, kills.Asked]:
            header = asker.header()
            return asker.submit(header).id, kills.Asked(header, world.model, ends, taken_back)

        cases = {
            "state": [asked(pb.Job.FAILED), asked(pb.Job.DONE, True), (bytes(32), asked(pb.Job.DONE)[1])],
            "": [asked(pb.Job.DONE), asked(pb.Job.DONE, False)],
        }
        for name, job in cases[""]:
            kills._settle(asker, books, name, job)
        assert not books.wrong and len(books.claims) == 2
        for number, (name, job) in enumerate(cases["state"]):
            kills._settle(asker, books, name, job)
            assert len(books.wrong) == number + 1
        assert "NOT_FOUND" in books.wrong[-1]
        books.note(asker.end(cases[""][0][0]), b"another claim")
        assert "another claim than before" in books.wrong[-1]


def test_kinds_of_models_end_as_they_should(world):
    with serving(world.folder, None) as servers:
        asker = Asker(world, servers.target)
        for kind in kinds(world.model, fake=False):
            model = kind.make()
            assert asker.end(asker.submit(asker.header(model), model).id).state == kind.ends


def test_two_hundred_follow(world):
    assert load.followers(world, 200, 0.2)["followers"] == 200


def test_uploads_at_once_take_no_memory_of_their_size(world):
    found = load.uploads(world, 25, 4)
    assert found["peak_mib"] - found["mib_before"] < 50


def test_stalling_and_garbage_delay_nobody_much(world):
    """Ten percent is for a machine that does nothing else; here it shows that nobody waits for those who stall."""
    found = load.stalling(world, rounds=3, jobs=5, fake=0.1)
    assert found["delay_percent"] < 100 and found["garbage_per_s"] > 0


def test_uploads_that_stall_on_all_places_give_way(world):
    """Three seconds, on a machine that does nothing else; an upload may take a hundred times as long."""
    assert load.crowded(world, tries=3, fake=0.1)["seconds_until_a_place"] < 60


def test_a_cap_on_memory_that_is_broken(world, monkeypatch):
    monkeypatch.setattr(load, "MEMORY_CAP", 1 << 20)
    with pytest.raises(RuntimeError, match="MiB"):
        load.uploads(world, 1, 1)


def test_the_figures_are_said():
    said = _soak({
        "kill -9": {"kills": 1000, "acknowledged": 2345, "struck": {"uploading": 11, "queued": 22, "proving": 33}},
        "followers": {"followers": 200, "call_ms_alone": 1.0, "call_ms_beside": 2.5},
        "uploads": {"uploads": 50, "megabytes": 51, "mib_before": 100, "peak_mib": 140, "cap_mib": 1024},
        "stalling": {"stalled_uploads": 48, "stalled_connections": 32, "garbage_per_s": 70.2, "delay_percent": -3.0,
                     "rounds": 10},
        "crowded": {"stalled_uploads": 64, "tries": 10, "seconds_until_a_place": 3.21},
    })  # fmt: skip
    words = ("1,000", "2,345", "11 while one was uploading", "0 while one was deriving", "200", "2.5 ms", "50", "51 MB",
             "140 MiB", "1024", "48", "32", "70 calls", "by 0 %", "64 such uploads", "3.2 s")  # fmt: skip
    assert all(word in said for word in words)
