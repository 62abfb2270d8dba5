"""``flower-supernode`` with short waits: ``python -m
fedhubert.federation.wire.flower.supernode_process`` takes its flags. `fedhubert site` starts it."""

from fedhubert.federation.wire.flower.private import private
from fedhubert.federation.wire.flower.waits import shorten_waits


def main() -> None:
    """Be a SuperNode until told to end; raises :class:`UnsupportedFlower` where there is none."""
    command = private("flwr.supernode.cli", "flower_supernode")
    shorten_waits("supernode")
    command()


if __name__ == "__main__":
    main()
