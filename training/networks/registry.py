"""Pose networks by name: the one list that recipes, the table of networks and export look in."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from training.networks.base import NetworkConfig, named_config
from training.networks.ccm import CCMConfig
from training.networks.cpn import CPNConfig
from training.networks.hourglass import HourglassConfig
from training.networks.hrnet import HRNetConfig
from training.networks.mspn import MSPNConfig
from training.networks.rsn import RSNConfig
from training.networks.simple_baseline import SimpleBaselineConfig
from training.networks.vitpose import ViTPoseConfig

NETWORKS: dict[str, type[NetworkConfig]] = {
    "ccm": CCMConfig,
    "cpn": CPNConfig,
    "hourglass": HourglassConfig,
    "hrnet": HRNetConfig,
    "mspn": MSPNConfig,
    "rsn": RSNConfig,
    "simple_baseline": SimpleBaselineConfig,
}
# Known to checkpoints, tuned but never trained from scratch: others' modules run them, for weights that they published.
IMPORTED: dict[str, type[NetworkConfig]] = {"vitpose": ViTPoseConfig}


def network_config(value: Any) -> NetworkConfig:
    """A recipe's ``network`` section to the config of the network it names (the hourglass when it names none).

    Raises:
        ValueError: an unknown name, or a field that does not fit (pydantic's ValidationError is one).
    """
    return named_config(value, NETWORKS | IMPORTED, "hourglass", "network")


AnyNetwork = Annotated[SerializeAsAny[NetworkConfig], BeforeValidator(network_config)]
