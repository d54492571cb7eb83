"""A cache in a bucket: kept in order over a network that fails, and without a secret in any of its files."""

import pytest

from tasks.cache_contents import survey
from tasks.housekeeping import older_than, plan_pruning, prune, unreferenced, verify
from tasks.registered_runs import RunRegister
from tasks.store import ArtifactStore


@pytest.fixture
def store(s3) -> ArtifactStore:
    """Four artifacts, of which a run whose results are in the bucket, too, needs two."""
    store = ArtifactStore(f"{s3.uri}/cache", s3.storage_options)
    refs = [store.publish("masks", f"{number:02x}" * 32, b"%d" % number * 1000) for number in range(4)]
    begun = RunRegister(store).begin(f"{s3.uri}/out", "segment-masks")
    begun.needs(refs[:2])
    begun.finish()
    return store


def keys(store: ArtifactStore) -> list[str]:
    return [artifact.key[:2] for artifact in survey(store).artifacts]


def test_what_no_run_needs_goes_and_nothing_else(s3, store, tmp_path):
    import s3fs

    bucket = s3fs.S3FileSystem(**s3.storage_options)
    bucket.pipe_file(f"{s3.bucket}/cache/masks/notes.txt", b"mine")
    plan = plan_pruning(store, unreferenced)
    assert prune(store, unreferenced) == plan
    assert (keys(store), verify(store).is_sound) == (["00", "01"], True)
    bucket.invalidate_cache()
    assert sum(info["size"] for info in bucket.find(f"{s3.bucket}/cache", detail=True).values()) == plan.stays + 4


def test_a_network_that_fails_now_and_then_changes_nothing(s3, store):
    s3.faults.mix(seed=1, share=0.1)
    prune(store, unreferenced)
    s3.faults.clear()
    assert (keys(store), verify(store).is_sound) == (["00", "01"], True)


def test_the_bucket_tells_how_old_an_artifact_is(store):
    newest = max(artifact.modified for artifact in survey(store).artifacts)
    assert plan_pruning(store, older_than(newest - 86_400)).artifacts == ()
    assert len(plan_pruning(store, older_than(newest + 86_400)).artifacts) == 2


def test_what_an_unfinished_run_made_is_kept(s3, store):
    RunRegister(store).begin(f"{s3.uri}/killed", "auto-label")
    made = store.publish("candidates", "ab" * 32, b"x")
    prune(store, unreferenced)
    assert store.read(made) == b"x"


def test_the_results_in_the_bucket_are_seen_from_everywhere_those_on_a_disk_from_there(s3, store, tmp_path):
    RunRegister(store).begin(str(tmp_path), "auto-label")
    (tmp_path / "run.json").write_text("{}")
    register = RunRegister(store)
    seen = {run.entry.results_dir: register.has_results(run.entry) for run in survey(store).runs}
    assert seen == {f"{s3.uri}/out": False, str(tmp_path): True}


def test_the_register_holds_no_secret(s3, store):
    (entry,) = RunRegister(store).entries()
    import s3fs

    written = s3fs.S3FileSystem(**s3.storage_options).cat_file(f"{s3.bucket}/cache/{entry.path}")
    assert s3.secret.encode() not in written
    assert s3.key.encode() not in written
