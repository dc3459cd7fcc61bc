"""Control groups behind one small interface, for v1, hybrid and v2 mounts.

A cgroup is named by one path, relative to every hierarchy's mount (`/kubepods/besteffort/pod<uid>/<id>`);
where v1 has a hierarchy per controller the path exists in all of them. One controller a file translates
`Resources` into file contents; `tree.Cgroups` is the only place that touches the kernel.
"""

from host.cgroups.model import CgroupStats, DeviceRule, Pressure, Resources
from host.cgroups.tree import Cgroups, Mode

__all__ = ["CgroupStats", "Cgroups", "DeviceRule", "Mode", "Pressure", "Resources"]
