"""The pins of Prefect's server: with a wrong one its scheduler fails in silence, and no scheduled run is ever made."""

import time
from datetime import timedelta
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server"), pytest.mark.slow]

PATIENCE_SECONDS = 60


@flow
def nothing() -> None:
    """A flow to schedule."""


def runs_of(deployment: UUID) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter.model_validate({"deployment_id": {"any_": [str(deployment)]}})
        return client.read_flow_runs(flow_run_filter=wanted)


def test_a_schedule_makes_the_server_create_runs():
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(nothing)
        schedule = {"schedule": IntervalSchedule(interval=timedelta(seconds=30)), "active": True}
        deployment = client.create_deployment(flow_id=flow_id, name="soon", schedules=[schedule])
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (runs := runs_of(deployment)) and time.monotonic() < deadline:
        time.sleep(1)
    assert {run.state_name for run in runs} == {"Scheduled"}
