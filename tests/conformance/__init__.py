"""Does the relay's WebSocket keep to RFC 6455? The cases of the Autobahn test suite, run by kosoku."""
