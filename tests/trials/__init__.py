"""Trials: what attackers, broken parts and power cuts do to a real relay, counted and measured."""
