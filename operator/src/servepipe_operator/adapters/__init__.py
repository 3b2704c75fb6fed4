"""The engine's ports on one machine: Serve's REST API, the ingress's own answers, history as files, and Ray itself."""
