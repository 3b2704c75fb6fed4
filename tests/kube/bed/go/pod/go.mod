module servepipe.dev/testbed/pod

go 1.26.0
