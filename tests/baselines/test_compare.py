"""The summary over seeds, and how the verb reads its arguments."""

import pytest

from fedhubert.baselines.compare import comparison_table, summarise
from fedhubert.cli import main
from fedhubert.commands.baselines import _split, take_options


def test_mean_and_spread_by_hand() -> None:
    seeds = [{"federated": {"loss": 1.0, "phone": 0.5}}, {"federated": {"loss": 3.0}}]
    summary = summarise(seeds)
    assert summary["federated"]["loss"] == {"mean": 2.0, "sd": pytest.approx(2**0.5), "seeds": 2}
    assert summary["federated"]["phone"] == {"mean": 0.5, "sd": 0.0, "seeds": 1}
    assert summary["central"] == {}
    assert comparison_table(summary).row_count == 1


def test_overrides_and_flags_may_be_mixed() -> None:
    given = ["experiment=demo_fedavg", "--phones", "a=b.csv", "seeds=2", "--layers=0,1", "out=x"]
    assert _split(given) == (
        ["experiment=demo_fedavg", "seeds=2", "out=x"],
        ["--phones", "a=b.csv", "--layers=0,1"],
    )
    overrides, options = take_options(["local_only=True", "seed=1"])
    assert overrides == ["seed=1"] and options.local_only and not options.reset_each_round


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["seed=1"], "seeds=N"), (["seeds=0"], "from 1 on"), (["seeds=many"], "from 1 on")],
)
def test_bad_calls(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
