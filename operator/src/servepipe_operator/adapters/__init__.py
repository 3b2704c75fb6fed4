"""What the engine's ports are on one machine: Serve's REST API, the ingress's own answers, history as files, Ray itself."""
