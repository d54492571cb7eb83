"""Settings that every test runs under."""

import os

from hypothesis import settings

os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# A deadline measures the machine, not the code.
settings.register_profile("autolabel", deadline=None)
settings.load_profile("autolabel")
