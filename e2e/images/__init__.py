"""The project's images, and those of its examples, made where there is no Docker engine and no registry.

    python e2e/machine images            # builds what changed, says what they are and how large

buildah makes them from the same files as `docker build`. The base that they name is bootstrapped from Debian's
packages. All of it lies in the cache, in a folder of its own. Tests use `images.build.build`.
"""
