"""Everything that people see of owned tasks: snapshots, reports, metrics and dashboard pages."""
