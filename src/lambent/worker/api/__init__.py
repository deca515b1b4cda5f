"""The Runtime, Extensions and Telemetry APIs of an environment, on an address that only it can use."""
