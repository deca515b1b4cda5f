"""Calls another function with boto3, as functions on AWS do.

The client is made outside the handler: once per environment, not once per request. boto3 itself reads
AWS_ENDPOINT_URL_LAMBDA, region and credentials from the environment, so the code is the same on AWS.
"""

import json

import boto3

lambda_client = boto3.client("lambda")


def handler(event, context):
    response = lambda_client.invoke(
        FunctionName=event["function"],
        Payload=json.dumps(event.get("payload", {})),
    )
    return {
        "status": response["StatusCode"],
        "version": response.get("ExecutedVersion"),
        "error": response.get("FunctionError"),
        "answer": json.load(response["Payload"]),
    }
