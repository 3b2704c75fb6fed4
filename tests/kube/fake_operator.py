"""The operator's shell around a stand-in for the reconciler, for tests of the shell.

It says of each look what the store has, and writes a ConfigMap per pipeline where FAKE_WRITES is set. A pipeline whose
name begins with ``hang`` is looked at for ever.
"""

import asyncio
import logging
import os

from servepipe_operator.adapters.kube import Resource
from servepipe_operator.controller.app import Context, Key, main
from servepipe_operator.controller.kinds import CHILDREN

MAPS = Resource("v1", "ConfigMap", "configmaps")
log = logging.getLogger("servepipe_operator.fake")


class FakeReconciler:
    def __init__(self, context: Context) -> None:
        self.context = context

    async def __call__(self, key: Key) -> float | None:
        store = self.context.store
        live = store.pipeline(key)
        children = {kind: [one["metadata"]["name"] for one in store.children(kind, key)] for kind in CHILDREN}
        seen = {kind: names for kind, names in children.items() if names}
        log.info("looked at %s: %s %s", key, "gone" if live is None else live["metadata"]["generation"], seen)
        if live is None:
            return None
        if key.name.startswith("hang"):
            await asyncio.Event().wait()
        if os.environ.get("FAKE_WRITES"):
            body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"by": self.context.settings.instance}}
            metadata = {"namespace": key.namespace, "name": f"{key.name}-seen"}
            await self.context.kube.apply(MAPS, {**body, "metadata": metadata})
        return self.context.settings.steady_s


if __name__ == "__main__":
    main(FakeReconciler)
