"""The cases of the Autobahn test suite, run by kosoku: whether the relay follows RFC 6455."""
