"""
Tests of the client and of the demo, in real browsers.
"""
