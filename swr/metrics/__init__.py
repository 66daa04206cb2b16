"""The metrics of a cache, for Prometheus and OpenTelemetry. Private.

Users import `swr.prometheus` and `swr.otel`. Imports: `swr.cache`, `swr.events`, and each exporter its own library.
Offers: `base.METRICS`, the one table of all metrics, and an `export` function for each system.
"""
