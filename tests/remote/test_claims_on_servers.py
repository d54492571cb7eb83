"""Claims of folders on real servers, where nothing but writing, listing and deleting decides."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tasks.domain.errors import ClaimedError, LostClaimError
from tasks.storage.claimants import Claimant, Process, dump_claimant
from tasks.storage.claims import claim
from tasks.storage.folder import Folder
from tasks.storage.remote_claims import CLAIMS

HEARTBEAT_SECONDS = 0.5


@pytest.fixture(params=["s3", "sftp"])
def folder(request: pytest.FixtureRequest) -> Folder:
    """A folder that is not there yet, in a bucket or behind SSH."""
    server = request.getfixturevalue(request.param)
    return Folder(f"{server.uri}/labels", server.storage_options)


def claim_of(folder: Folder, owner: str, exclusive: bool = True):
    return claim(folder, exclusive=exclusive, owner=owner, heartbeat_seconds=HEARTBEAT_SECONDS)


def test_of_two_that_come_at_once_one_gets_the_folder_and_nothing_of_both_stays(folder):
    together, ended = Barrier(2), Barrier(2)

    def come(owner: str) -> str:
        together.wait()
        try:
            with claim_of(folder, owner):
                ended.wait(timeout=60)
                return "got it"
        except ClaimedError as refused:
            ended.wait(timeout=60)
            return str(refused)

    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(("run 0", "run 1"), pool.map(come, ("run 0", "run 1")), strict=True))
    (winner,) = [owner for owner, outcome in outcomes.items() if outcome == "got it"]
    (refused,) = [outcome for outcome in outcomes.values() if outcome != "got it"]
    assert f"is in use by {winner};" in refused
    assert folder.names(CLAIMS) == []


def test_who_shares_a_folder_keeps_out_who_wants_it_alone(folder):
    with claim_of(folder, "a run", exclusive=False) as held, claim_of(folder, "another run", exclusive=False):
        with pytest.raises(ClaimedError, match=r"is in use by a(nother)? run"):
            claim_of(folder, "prune").__enter__()
        held.refuse_if_lost()


def test_a_claim_without_a_heartbeat_is_taken_over_and_its_owner_finds_that_out(folder, caplog):
    dead = Claimant("a run elsewhere", exclusive=True, process=Process(7, 1234, "another kernel"))
    folder.write(f"{CLAIMS}/0123.json", dump_claimant(dead))
    with claim_of(folder, "the first") as first:
        assert "a run elsewhere left its claim and does not answer" in caplog.text
        for name in folder.names(CLAIMS):
            folder.delete_tree(f"{CLAIMS}/{name}")
        with claim_of(folder, "the second"), pytest.raises(LostClaimError, match="was taken over from the first"):
            first.refuse_if_lost()
