"""``flower-supernode`` with short waits: ``python -m
fedhubert.federation.wire.flower.supernode_process`` takes its flags. `fedhubert site` starts it."""

from fedhubert.federation.wire.flower.private import private
from fedhubert.federation.wire.flower.waits import shorten_waits
from fedhubert.memory import keep_freed


def main() -> None:
    """Be a SuperNode until told to end; raises :class:`UnsupportedFlower` where there is none."""
    command = private("flwr.supernode.cli", "flower_supernode")
    shorten_waits("supernode")
    keep_freed()
    command()


if __name__ == "__main__":
    main()
