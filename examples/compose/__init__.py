"""Three processes of the ranking API with Valkey, Prometheus and Grafana; see README.md."""
