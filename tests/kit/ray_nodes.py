"""A Ray cluster of two nodes on the loopback interface of this machine, in a process of its own.

    python -m tests.kit.ray_nodes

It prints the address of the head, and the number of the process that is the second node. A line on its input ends the
second node as if its power had failed; the end of its input ends all.
"""

import sys


def main() -> None:
    """Serve until standard input ends."""
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
    cluster.add_node(num_cpus=1)  # room for one worker of a pool
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    print(cluster.address, second.all_processes["raylet"][0].process.pid, sep="\n", flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        print("gone", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
