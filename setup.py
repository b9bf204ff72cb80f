from setuptools import setup

setup()  # everything stands in setup.cfg
