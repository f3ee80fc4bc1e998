"""The processes of a test's Ray cluster: a head and nodes, in a network namespace that has nothing but loopback.

Run by `ray_cluster.py` as `unshare -n python ray_node.py NODES`. It prints a line of JSON when the cluster
answers, and ends the cluster when its input is closed.
"""

import fcntl
import json
import socket
import struct
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
LITTLE_MEMORY = 80 * 2**20


def loopback_up() -> None:
    """What `ip link set lo up` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh", b"lo", 0)
        (flags,) = struct.unpack("16xh", fcntl.ioctl(any_socket, SIOCGIFFLAGS, asked))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))


def main(nodes: int) -> None:
    """A head that has a processor for light steps only, and nodes with one `slot` each in place of a GPU."""
    loopback_up()
    from ray.cluster_utils import Cluster

    shared = {"node_ip_address": "127.0.0.1", "object_store_memory": LITTLE_MEMORY}
    # In a namespace of its own, so the usual port is free.
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", **shared}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        raylets = []
        for number in range(nodes):
            # The second resource says which node it is, to a step and to whoever looks at the cluster.
            node = cluster.add_node(num_cpus=1, resources={"slot": 1, f"node{number}": 1}, **shared)
            raylets.append(node.all_processes["raylet"][0].process.pid)
        print(json.dumps({"address": f"http://{cluster.head_node.webui_url}", "raylets": raylets}), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
