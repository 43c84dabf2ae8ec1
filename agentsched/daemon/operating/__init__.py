"""Files for operators: a systemd unit and a Grafana dashboard (``agentsched config example``)."""
