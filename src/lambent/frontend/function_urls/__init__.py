"""Function URLs: a request to `ID.lambda-url.REGION.DOMAIN` becomes an event, what the function returns an answer."""
