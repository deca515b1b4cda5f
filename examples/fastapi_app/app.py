"""A FastAPI application behind a function URL; Mangum turns the URL's events into ASGI requests."""

import hashlib

from fastapi import FastAPI, HTTPException, Request, Response
from mangum import Mangum
from pydantic import BaseModel

app = FastAPI(title="Notes")
notes: dict[int, str] = {}


class Note(BaseModel):
    text: str


@app.get("/")
def index(request: Request) -> dict[str, str]:
    return {"message": "hello", "client": request.client.host if request.client else ""}


@app.post("/notes", status_code=201)
def add(note: Note, response: Response) -> dict[str, object]:
    number = len(notes) + 1
    notes[number] = note.text
    response.set_cookie("last", str(number))
    response.headers["Location"] = f"/notes/{number}"
    return {"id": number, "text": note.text}


@app.get("/notes/{number}")
def read(number: int, upper: bool = False) -> dict[str, object]:
    if number not in notes:
        raise HTTPException(404, f"There is no note {number}.")
    return {"id": number, "text": notes[number].upper() if upper else notes[number]}


@app.post("/sha256")
async def digest(request: Request) -> Response:
    """Takes any bytes, gives bytes: both travel as base64 between the URL and the function."""
    return Response(hashlib.sha256(await request.body()).digest(), media_type="application/octet-stream")


handler = Mangum(app, lifespan="off")
