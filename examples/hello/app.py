"""Greets, and counts: the counter lives outside the handler, so it lives as long as the environment."""

count = 0


def handler(event, context):
    global count
    count += 1
    return {"greeting": f"Hello, {event.get('name', 'world')}!", "count": count}
