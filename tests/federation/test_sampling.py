"""Who is asked, and their places."""

from fedhubert.federation.sampling import assign_to_nodes, ranking


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
