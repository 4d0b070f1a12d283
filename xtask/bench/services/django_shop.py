"""The shop as Django on gunicorn: models of its ORM, views that answer JSON. `gunicorn django_shop:application`."""

import django
from django.conf import settings

import shop

shop.make_database()
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a bench",
    USE_TZ=False,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": shop.DATABASE, "CONN_MAX_AGE": None}
    },
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402: Django must be set up first
from django.db import models  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402


class Order(models.Model):
    customer = models.TextField()
    item = models.TextField()
    amount = models.IntegerField()
    price = models.FloatField()
    note = models.TextField()
    id = models.IntegerField(primary_key=True)

    class Meta:
        app_label = "shop"
        db_table = "orders"


def as_json(order):
    return {
        "id": order.id,
        "customer": order.customer,
        "item": order.item,
        "amount": order.amount,
        "price": order.price,
        "note": order.note,
    }


def orders(request):
    first = shop.first_row()
    found = []
    shop.STEPS.begin()
    for order in Order.objects.filter(id__gte=first).order_by("id")[: shop.PAGE]:
        found.append(as_json(order))
        shop.STEPS.step()
    return JsonResponse({"first": first, "orders": found})


def search(request, query):
    return JsonResponse(shop.count_words(query))


def session(request, key):
    return JsonResponse(shop.remember(key))


def bench(request, verb, argument):
    return JsonResponse(shop.control(verb, argument))


urlpatterns = [
    path("orders", orders),
    path("search/<str:query>", search),
    path("session/<int:key>", session),
    path("bench/<str:verb>/<str:argument>", bench),
]
application = get_wsgi_application()
