"""What NCCL, gloo and DeepSpeed must be told of the network between machines; nothing of it is asked of the user.

    addresses of this machine, its RDMA devices, its EC2 type --environment--> variables of each worker
    machines of the group, RDMA or Ethernet                   --zero_options--> DeepSpeed's partitions and buckets

Left to itself gloo takes the address that the host's name stands for, which in a container is often one that no other machine
reaches, and NCCL the first interface that is up, which may be a bridge of Docker. Both are given the one interface that Ray's own
address of the node lies on: over it the machines are known to reach each other.

On EC2, EFA is used where the instance has such a device and the image NCCL's plugin for it (aws-ofi-nccl). What a user has set is
kept. On one machine nothing is set at all.

Sources: NCCL user guide, "Environment Variables" (NCCL_SOCKET_IFNAME; `=` before a name takes exactly that interface). PyTorch,
torch.distributed, "Common environment variables" (GLOO_SOCKET_IFNAME). libfabric, fi_efa(7) (FI_EFA_FORK_SAFE: for processes that
start others, as each worker does to prove its export). aws/sagemaker-training-toolkit, torch_distributed.py (FI_PROVIDER,
and FI_EFA_USE_DEVICE_RDMA on instances whose EFA reads remote memory; on others it ends the process).

It has run on Ethernet alone. No EFA and no NCCL has been seen with it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medschool.train.layout import ADDRESS, FABRIC, Layout

RDMA_READ_FAMILIES = ("p4d", "p4de", "p5", "p5e", "p5en")
"""EC2 families of GPU machines whose EFA reads remote memory (Amazon EC2 User Guide, "Elastic Fabric Adapter": RDMA read)."""
DEEPSPEED_BUCKET = 500_000_000
"""Elements; DeepSpeed 0.19.8's reduce_bucket_size and allgather_bucket_size, meant for machines on InfiniBand."""
SMALLEST_BUCKET_BYTES = 25 * 2**20
"""What PyTorch's DistributedDataParallel takes by default, bucket_cap_mb (Li et al. 2020, "PyTorch Distributed")."""
ETHERNET_LATENCY_S = 1e-4
"""One message between two machines of one data centre over TCP, assumed; the preflight prints what it is."""
ETHERNET_BYTES_PER_S = 1.25e9
"""10 Gbit/s: what EC2 gives one flow within a placement group (User Guide, "Amazon EC2 instance network bandwidth")."""
EFFICIENCY = 0.9
"""Share of the bandwidth that a bucket is large enough to use."""


@dataclass(frozen=True)
class Machine:
    """What of a machine decides how its workers reach others."""

    interfaces: Mapping[str, tuple[str, ...]]
    """IPv4 addresses of each network interface."""
    rdma: tuple[str, ...] = ()
    """Kernel drivers of its RDMA devices: `efa`, `mlx5_core`."""
    kind: str = ""
    """EC2 instance type, as in `p4de.24xlarge`; empty elsewhere."""


def this_machine(sys: Path = Path("/sys")) -> Machine:
    """What this machine is, by the kernel; no network is asked. `sys` is where it shows itself."""
    import socket

    import psutil

    found = {
        name: tuple(each.address for each in addresses if each.family == socket.AF_INET)
        for name, addresses in psutil.net_if_addrs().items()
    }
    devices = sorted((sys / "class" / "infiniband").glob("*/device/driver"))
    dmi = sys / "class" / "dmi" / "id"
    amazon = _text(dmi / "sys_vendor") == "Amazon EC2"  # on Nitro the product is the instance type
    return Machine(found, tuple(driver.resolve().name for driver in devices), _text(dmi / "product_name") if amazon else "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def environment(machine: Machine, address: str) -> dict[str, str]:
    """Variables for a worker on a machine that the others of its group reach at `address`."""
    set_to = {ADDRESS: address, FABRIC: "rdma" if machine.rdma else "ethernet"}
    interface = next((name for name, addresses in machine.interfaces.items() if address in addresses), None)
    if interface is not None:
        set_to |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}
    if "efa" in machine.rdma:
        set_to |= {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1"}
        if machine.kind.partition(".")[0] in RDMA_READ_FAMILIES:
            set_to |= {"FI_EFA_USE_DEVICE_RDMA": "1"}
    return set_to


def prepare(address: str) -> None:
    """Set this process's variables, before it joins a group. What is set already stays."""
    for name, value in environment(this_machine(), address).items():
        if name in (ADDRESS, FABRIC):
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)


def bucket_elements(workers: int, width_bytes: int) -> int:
    """Elements of a bucket of gradients on Ethernet, of `width_bytes` each.

    A ring of n workers sends S bytes in 2 (n - 1) messages of S / n, each of which takes a + S / (n B) with latency a and
    bandwidth B (Patarasuk and Yuan 2009). The share of B that is used is then S / (n B) over that, which is E for
    S = E / (1 - E) n a B. A larger bucket is not faster, and what is in the last one cannot be sent while the backward pass runs.
    """
    size = EFFICIENCY / (1 - EFFICIENCY) * workers * ETHERNET_LATENCY_S * ETHERNET_BYTES_PER_S
    return min(DEEPSPEED_BUCKET, round(max(size, SMALLEST_BUCKET_BYTES)) // width_bytes)


def zero_options(layout: Layout, stage: int, width_bytes: int, offloaded: bool) -> dict[str, Any]:
    """Keys of DeepSpeed's `zero_optimization` for a group on several machines; none on one.

    At stage 3 each machine keeps a second copy of the weights until they change, dealt out to its own workers: only the first
    forward pass of a step gathers over the network, every other pass within the machine. It takes the width of a weight, over
    the workers of a machine (hpZ; Wang et al. 2023, "ZeRO++"). It needs as many workers on every machine, and weights that are
    not `offloaded`.
    """
    if len(layout.machines) == 1 or stage == 0:
        return {}
    options: dict[str, Any] = {}
    if not layout.rdma:
        bucket = bucket_elements(len(layout.addresses), width_bytes)
        options |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3 and not offloaded and (layout.machine_workers or 1) > 1:
        options["zero_hpz_partition_size"] = layout.machine_workers
    return options
