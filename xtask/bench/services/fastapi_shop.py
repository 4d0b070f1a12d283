"""The shop as FastAPI on uvicorn: pydantic models of rows that sqlite3 reads. `uvicorn fastapi_shop:app`."""

import sqlite3

from fastapi import FastAPI
from pydantic import BaseModel

import shop

shop.make_database()
CONNECTION = sqlite3.connect(shop.DATABASE, check_same_thread=False)
app = FastAPI()


class Order(BaseModel):
    id: int
    customer: str
    item: str
    amount: int
    price: float
    note: str


class Page(BaseModel):
    first: int
    orders: list[Order]


@app.get("/orders")
async def orders() -> Page:
    first = shop.first_row()
    rows = CONNECTION.execute("SELECT * FROM orders WHERE id >= ? LIMIT ?", (first, shop.PAGE))
    names = [column[0] for column in rows.description]
    found = []
    shop.STEPS.begin()
    for row in rows:
        found.append(Order(**dict(zip(names, row))))
        shop.STEPS.step()
    return Page(first=first, orders=found)


@app.get("/search/{query}")
async def search(query: str):
    return shop.count_words(query)


@app.get("/session/{key}")
async def session(key: int):
    return shop.remember(key)


@app.get("/bench/{verb}/{argument}")
async def bench(verb: str, argument: str):
    return shop.control(verb, argument)
