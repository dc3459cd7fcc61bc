"""The CNI runtime: which network configuration applies, and running its chain of plugins for a pod.

config        the configuration folder, files and versions; what one plugin of a chain is handed
attachment    what the plugins are told about a pod; its addresses in their result
plugin        one execution: programs that hang, print junk or fail
chain         `Network`, the way in: ADD, DEL, STATUS and GC of a whole configuration
"""

from cri.network.attachment import IFNAME, PodNetwork, bandwidth, pod_ips
from cri.network.chain import Network
from cri.network.config import NO_CONFIG, parse_conflist, plugin_config
from cri.network.plugin import NetworkError

__all__ = [
    "IFNAME",
    "NO_CONFIG",
    "Network",
    "NetworkError",
    "PodNetwork",
    "bandwidth",
    "parse_conflist",
    "plugin_config",
    "pod_ips",
]
