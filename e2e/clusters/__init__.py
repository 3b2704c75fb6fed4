"""The clusters that the tests of `e2e` can run on, and which of them it is.

`choice` decides from what the machine has (pure); `kind`, `current` and `on_machine` are the clusters; `cluster` is
what all of them offer to tests.
"""
