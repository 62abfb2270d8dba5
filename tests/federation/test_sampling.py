"""Who is asked, and their places."""

from fedhubert.compose import compose
from fedhubert.federation.roster.sampling import asking_order, assign_to_nodes, ranking


def test_the_order_of_asking_depends_on_seed_and_round_alone() -> None:
    assert ranking(1, 3, 100) == ranking(1, 3, 100)
    assert ranking(1, 3, 100) != ranking(1, 4, 100)
    assert ranking(2, 3, 100) != ranking(1, 3, 100)
    assert sorted(ranking(0, 1, 5)) == [0, 1, 2, 3, 4]


def test_every_client_is_asked_about_equally_often() -> None:
    drawn = [client for round_number in range(2000) for client in ranking(0, round_number, 10)[:5]]
    counts = [drawn.count(client) for client in range(10)]
    assert min(counts) > 900 and max(counts) < 1100


def test_partitions_go_to_their_node_or_are_dealt_by_load() -> None:
    own = {70: [0], 71: [1], 72: [2]}
    assert assign_to_nodes([0, 2], own, {}) == {70: [0], 72: [2]}
    shared = {70: range(6), 71: range(6)}
    load = {0: 10.0, 1: 1.0, 2: 1.0, 3: 9.0, 4: 1.0, 5: 1.0}
    dealt = assign_to_nodes(range(6), shared, load)
    assert sorted(dealt[70] + dealt[71]) == list(range(6))
    assert abs(sum(load[p] for p in dealt[70]) - sum(load[p] for p in dealt[71])) <= 3.0
    assert 0 in dealt[70] and 3 in dealt[71]


def test_reshuffled_cohorts_ask_everyone_once_before_anyone_twice() -> None:
    settings = [
        "data.manifest=/tmp/m.csv",
        "federated.num_clients=10",
        "federated.client_fraction=0.3",
        "federated.sampling=reshuffled",
    ]
    config = compose(settings)
    rounds = [asking_order(config, number) for number in range(1, 41)]
    assert all(
        sorted(order) == list(range(10)) for order in rounds
    )  # a retry finds the others further down
    cycles = [
        [client for order in rounds[start : start + 4] for client in order[:3]]
        for start in range(0, 40, 4)
    ]
    assert all(len(set(cycle[:10])) == 10 for cycle in cycles)
    assert len({tuple(cycle) for cycle in cycles}) == 10  # another permutation each time
    assert rounds == [asking_order(config, number) for number in range(1, 41)]
    random = compose([*settings[:3]])
    assert asking_order(random, 7) == ranking(0, 7, 10)
