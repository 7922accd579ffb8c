"""The commands, one room a purpose. Every one is one Python call.

What is heavy is imported inside the commands, so that ``--help`` answers at once.
"""
