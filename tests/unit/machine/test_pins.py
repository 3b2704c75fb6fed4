"""What the bed builds fits together."""

from bed.build import COMMANDS, COREDNS, HELM, NODE, POD, key, version


def test_the_node_is_of_the_same_kubernetes_as_the_control_plane() -> None:
    assert version("node") == version("kubernetes")


def test_every_set_of_binaries_has_a_key_of_its_own() -> None:
    keys = {key(COMMANDS), key(NODE), key({"helm": HELM}), key({"coredns": COREDNS}), key({"pod": POD})}
    assert len(keys) == 5
