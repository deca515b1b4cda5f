"""The Lambda API's control plane: functions, versions, aliases, layers, images, URLs, policies,
concurrency, tags, capacity providers.

`service.make_lambda_service` puts the room together. Accepted and answered, without an effect on this
machine, because nothing here could tell the difference: VpcConfig, KMSKeyArn, TracingConfig, Architectures
["arm64"]. Refused because they would change what a function does and are not built:
FileSystemConfigs, DeadLetterConfig, durable functions, accelerators, customer-managed runtimes, code kept by reference.
"""
