"""The Kubernetes shell around the engine: what to reconcile when, by whom, and what it tells about itself."""
