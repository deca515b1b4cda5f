"""Words of the domain: ids, ARNs, limits, functions, invocations, errors. No behaviour but validation."""
