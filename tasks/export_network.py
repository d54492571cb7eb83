"""Step: the trained networks as a checkpoint to label with."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.errors import CheckpointError
from tasks.training_files import NETWORK, STATE, Training, read_state, write_networks


@task(name="export network", cache_policy=NO_CACHE, persist_result=False)
def export_network(training: Training) -> None:
    """Write student and teacher, as they are after the last epoch, to `mal` in results_dir."""
    state = read_state(training)
    if state is None:
        raise CheckpointError(f"{STATE} was deleted while the training went on; start it again")
    write_networks(training, state, NETWORK)
