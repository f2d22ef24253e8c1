"""Scoring: metrics, backends, records, aggregation and the report. Imports neither lightning nor `moss.training`."""
