"""
What a person sees: the demo as a real process, driven through real browsers.
"""
