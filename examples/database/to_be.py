"""TO BE: the connection is made at init and lives as long as the environment, which has one request at a time: a pool
of one. A connection that died while the environment was frozen is noticed (`check`) and replaced."""

import os
import time

from psycopg_pool import ConnectionPool

ENVIRONMENT = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME", f"local-{os.getpid()}")

pool = ConnectionPool(
    os.environ["DATABASE_URL"], min_size=1, max_size=1, check=ConnectionPool.check_connection, open=True
)
pool.wait()


def handler(event, context):
    with pool.connection() as connection:
        row = connection.execute("SELECT name, price FROM items WHERE id = %s", [event["id"]]).fetchone()
        process = connection.info.backend_pid
    time.sleep(event.get("seconds", 0))
    return {"name": row[0], "price": row[1], "environment": ENVIRONMENT, "database_process": process}
