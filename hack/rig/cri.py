"""The part of containerd's configuration that serves a kubelet (docs/cri/config.md of containerd). Used by ``rig.containerd``.

Off by default: only a comparison with Pods needs it.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cri:
    """What Pods are made with: ``sandbox_image`` keeps their namespaces; ``cni_configuration`` and ``cni_plugins`` are
    folders."""

    sandbox_image: str
    cni_configuration: Path
    cni_plugins: Path

    def render(self, version: int, runc_root: Path) -> str:
        """The plugin's tables in configuration format 2 (containerd 1.x) or 3 (2.x)."""
        if version >= 3:
            images, runtime = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"
            sandbox = f'[plugins."{images}".pinned_images]\n  sandbox = "{self.sandbox_image}"\n[plugins."{runtime}"]\n'
        else:
            images = runtime = "io.containerd.grpc.v1.cri"
            sandbox = f'[plugins."{runtime}"]\n  sandbox_image = "{self.sandbox_image}"\n'
        return (
            f"{sandbox}"
            # A kubelet wants a sandbox's score below containerd's own, which takes CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5)).
            "  restrict_oom_score_adj = true\n"
            "  netns_mounts_under_state_dir = true\n"
            f'[plugins."{runtime}".cni]\n'
            f'  bin_dir = "{self.cni_plugins}"\n'
            f'  conf_dir = "{self.cni_configuration}"\n'
            f'[plugins."{runtime}".containerd.runtimes.runc]\n'
            '  runtime_type = "io.containerd.runc.v2"\n'
            f'[plugins."{runtime}".containerd.runtimes.runc.options]\n'
            f'  Root = "{runc_root}"\n'
            "  SystemdCgroup = false\n"
        )
