"""A small REST API behind API Gateway, written with Powertools for AWS Lambda: three routes, structured logs."""

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response, content_types
from aws_lambda_powertools.event_handler.exceptions import BadRequestError, NotFoundError
from aws_lambda_powertools.logging import correlation_paths

logger = Logger(service="orders", level="INFO")
app = APIGatewayRestResolver()

# Lives as long as the environment, like any module state: good for a demonstration, not for real orders.
orders = {"17": {"id": "17", "items": ["tea", "bread"]}}


@app.get("/orders")
def list_orders():
    wanted = app.current_event.get_query_string_value("item")
    found = [order for order in orders.values() if wanted is None or wanted in order["items"]]
    return {"orders": found}


@app.get("/orders/<order_id>")
def read_order(order_id):
    if order_id not in orders:
        raise NotFoundError(f"there is no order {order_id}")
    logger.info("order read", extra={"order_id": order_id})
    return orders[order_id]


@app.post("/orders")
def take_order():
    items = (app.current_event.json_body or {}).get("items")
    if not items:
        raise BadRequestError("an order needs items")
    order = {"id": str(max(int(known) for known in orders) + 1), "items": items}
    orders[order["id"]] = order
    logger.info("order taken", extra={"order": order})
    return Response(status_code=201, content_type=content_types.APPLICATION_JSON, body=order)


@logger.inject_lambda_context(correlation_id_path=correlation_paths.API_GATEWAY_REST, clear_state=True)
def handler(event, context):
    return app.resolve(event, context)
