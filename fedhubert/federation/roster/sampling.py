"""Who trains in a round, and on which node: functions of the run's seed and of partition ids, never
of Flower's random node ids."""

from collections.abc import Mapping, Sequence

from fedhubert.config import Config
from fedhubert.seeding import generator


def ranking(seed: int, round_number: int, num_clients: int) -> list[int]:
    """Return all partition ids in the order in which a round asks them: a permutation drawn from
    the seed and round alone.

    A round asks the first so many that are connected; over-committing and retrying go further down
    the same list.
    """
    return [
        int(partition)
        for partition in generator(seed, "cohort", round_number).permutation(num_clients)
    ]


def asking_order(config: Config, round_number: int) -> list[int]:
    """Return all partition ids in the order in which a round of the run asks them.

    ``federated.sampling=random``: see :func:`ranking`. ``reshuffled``: as many rounds as it takes
    for everyone's turn share one permutation, and each asks the next ones in it, so that nobody is
    asked twice before all have been asked once.
    """
    federated = config.federated
    count, wanted = federated.num_clients, federated.clients_per_round
    if federated.sampling == "random":
        return ranking(config.seed, round_number, count)
    cycle, turn = divmod(round_number - 1, -(-count // wanted))
    order = [
        int(partition)
        for partition in generator(config.seed, "cohort cycle", cycle).permutation(count)
    ]
    return order[turn * wanted :] + order[: turn * wanted]


def assign_to_nodes(
    partitions: Sequence[int], hosts: Mapping[int, Sequence[int]], load: Mapping[int, float]
) -> dict[int, list[int]]:
    """Deal partitions to the nodes that can host them, longest first to the least busy node.

    Args:
        partitions: Partition ids to place.
        hosts: Node id -> partition ids that it can host, in a fixed order of nodes.
        load: Expected cost of each partition (frames, or seconds of an earlier round).

    Returns:
        Node id -> its partitions, sorted; nodes with none are left out, and so are partitions that
        no node hosts.
    """
    able: dict[int, list[int]] = {partition: [] for partition in partitions}
    for rank, hosted in enumerate(hosts.values()):
        for partition in set(hosted) & able.keys():
            able[partition].append(rank)
    nodes = list(hosts)
    busy = [0.0] * len(nodes)
    shares: dict[int, list[int]] = {}
    for partition in sorted(partitions, key=lambda p: (-load.get(p, 0.0), p)):
        ranks = able[partition]
        if not ranks:
            continue
        rank = min(ranks, key=lambda r: (busy[r], r))
        busy[rank] += load.get(partition, 0.0) or 1.0
        shares.setdefault(nodes[rank], []).append(partition)
    return {node: sorted(shared) for node, shared in shares.items()}
