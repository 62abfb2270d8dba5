"""How central training spreads the clients' micro-batches over its steps."""

from collections import Counter

from fedhubert.training.central import plan_rounds, rounds_of_clients


def test_one_clients_micro_batches_stay_as_they_are() -> None:
    plans = plan_rounds({1: {4: 2}, 2: {4: 2}}, accumulate=3)
    assert [plan.number for plan in plans] == [1, 2]
    assert [len(step) for plan in plans for step in plan.steps] == [3, 3, 3, 3]
    assert [micro_batch for plan in plans for step in plan.steps for micro_batch in step] == [
        (4, i) for i in range(12)
    ]


def test_equal_clients_all_take_part_in_every_step() -> None:
    plans = plan_rounds(rounds_of_clients([[0, 1, 2]] * 2, {0: 2, 1: 2, 2: 2}), accumulate=1)
    for number, step in enumerate(step for plan in plans for step in plan.steps):
        assert sorted(step) == [(0, number), (1, number), (2, number)]


def test_by_hand_two_clients_in_turn_become_one_mixed_stream() -> None:
    """Client 0 in round 1, client 1 in round 2, two steps each: four steps of one micro-batch that alternate."""
    plans = plan_rounds({1: {0: 2}, 2: {1: 2}}, accumulate=1)
    assert [plan.steps for plan in plans] == [[[(0, 0)], [(1, 0)]], [[(0, 1)], [(1, 1)]]]


def test_the_audio_and_the_steps_in_a_row_are_those_of_the_federated_run() -> None:
    steps = {0: 5, 1: 3, 2: 9, 3: 1}
    rounds = rounds_of_clients([[0, 2], [1, 3], [0, 1], [2, 3], [0, 3]], steps)
    plans = plan_rounds(rounds, accumulate=2)
    assert [len(plan.steps) for plan in plans] == [9, 3, 5, 9, 5]
    consumed = [micro_batch for plan in plans for step in plan.steps for micro_batch in step]
    per_client = Counter(client for client, _ in consumed)
    assert per_client == {0: 3 * 5 * 2, 1: 2 * 3 * 2, 2: 2 * 9 * 2, 3: 3 * 1 * 2}
    for client, count in per_client.items():
        assert [position for number, position in consumed if number == client] == list(range(count))
    sizes = [len(step) for plan in plans for step in plan.steps]
    assert max(sizes) - min(sizes) <= 1
    half = Counter(client for client, _ in consumed[: len(consumed) // 2])
    assert all(abs(half[client] - count / 2) <= 1 for client, count in per_client.items())
