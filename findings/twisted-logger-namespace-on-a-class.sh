#!/bin/bash
# Twisted: Logger(namespace=...) as a class attribute logs under another namespace
#
# Guess:     log = Logger(namespace="shop.orders") in a class logs as shop.orders, as it does in a module or an instance.
# Behaviour: Reached through the class or an instance, the Logger is a descriptor that makes another Logger, whose namespace is
#            the module and the name of the class. The namespace that was given is dropped without an error, and each
#            subclass has a namespace of its own.
# Matters:   Filters, log levels and alerts for shop.orders see nothing, and moving the class to another module renames
#            what it logs. Set self.log in __init__, or use a Logger of the module.
# Seen:      a Logger of the module: shop.orders
#            an attribute of the instance: shop.orders
#            an attribute of the class: __main__.OnClass
#            the same through a subclass: __main__.Subclass
# Versions:  Twisted 26.10.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Twisted==26.10.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import sys

from twisted.logger import Logger, globalLogPublisher

NAMESPACE = "shop.orders"
of_the_module = Logger(namespace=NAMESPACE)
events = []


class OnInstance:
    def __init__(self):
        self.log = Logger(namespace=NAMESPACE)


class OnClass:
    log = Logger(namespace=NAMESPACE)


class Subclass(OnClass):
    pass


def namespace_of(log):
    events.clear()
    log.info("an order came")
    return events[-1]["log_namespace"]


globalLogPublisher.addObserver(events.append)
found = {
    "a Logger of the module": namespace_of(of_the_module),
    "an attribute of the instance": namespace_of(OnInstance().log),
    "an attribute of the class": namespace_of(OnClass().log),
    "the same through a subclass": namespace_of(Subclass().log),
}
for name, namespace in found.items():
    print(f"{name}: {namespace}")
if list(found.values()) != [NAMESPACE, NAMESPACE, "__main__.OnClass", "__main__.Subclass"]:
    sys.exit("The behaviour has changed.")
PYTHON
