"""What the bed builds fits together."""

from bed.build import ALONE, COMMANDS, NODE, key, version


def test_the_node_is_of_the_same_kubernetes_as_the_control_plane() -> None:
    assert version("node") == version("kubernetes")


def test_every_set_of_binaries_has_a_key_of_its_own() -> None:
    sets = [COMMANDS, NODE, *({name: command} for name, command in ALONE.items())]
    assert len({key(commands) for commands in sets}) == len(sets)
