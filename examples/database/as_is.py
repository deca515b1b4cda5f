"""AS IS: a connection for every request. The database sees as many as there are requests."""

import os
import time

import psycopg

ENVIRONMENT = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME", f"local-{os.getpid()}")


def handler(event, context):
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT name, price FROM items WHERE id = %s", [event["id"]]).fetchone()
    time.sleep(event.get("seconds", 0))
    return {"name": row[0], "price": row[1], "environment": ENVIRONMENT}
